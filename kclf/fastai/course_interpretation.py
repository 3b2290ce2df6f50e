"""`Interpretation` under the names of fastai 2."""

from __future__ import annotations

from typing import Any

from ..interpret import Gallery, Interpretation


class ClassificationInterpretation(Interpretation):
    """`Interpretation` with fastai 2's names beside its own; several labels have `learn.interpret()`."""

    def plot_top_losses(self, k: int, largest: bool = True, **options: Any) -> Gallery:
        """Draw the photos with the largest loss; options as for `Gallery.plot`."""
        return self.top_losses(k, largest=largest).plot(**options)

    def print_classification_report(self) -> str:
        """Print precision, recall and F1 of each class with intervals; gives the text."""
        text = str(self.class_scores())
        print(text)
        return text
