"""`Interpretation` under the names of fastai 2."""

from __future__ import annotations

from typing import Any

from ..interpret import Gallery, Interpretation


class ClassificationInterpretation(Interpretation):
    """`Interpretation` with fastai 2's names beside its own; several labels have `learn.interpret()`."""

    def plot_top_losses(
        self,
        k: int,
        largest: bool = True,
        *,
        nrows: int | None = None,
        ncols: int | None = None,
        **options: Any,
    ) -> Gallery:
        """Draw the photos with the largest loss.

        Args:
            k: how many.
            largest: False draws those with the smallest.
            nrows: rows of the grid.
            ncols: columns of the grid.
            **options: as for `Gallery.plot`.
        """
        columns = ncols or (nrows and -(-k // nrows))
        return self.top_losses(k, largest=largest).plot(**{"columns": columns, **options})

    def print_classification_report(self) -> None:
        """Print precision, recall and F1 of each class with intervals."""
        print(self.class_scores())
