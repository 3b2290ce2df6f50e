"""What interpretations of one label, of several labels and of numbers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from .._core.arguments import listed, one_of
from ..prediction.predictions import Predictions
from .gallery import Example, Gallery


@dataclass(frozen=True, eq=False, repr=False)
class Answers(ABC):
    """Predictions beside the truth.

    Args:
        predictions: that carry their labels, of the class's task.
    """

    predictions: Predictions
    task: ClassVar[str]

    def __post_init__(self) -> None:
        task, labels = self.predictions.task, self.predictions.labels
        if labels is None or task != self.task:
            given = None if labels is None else f"{len(labels)} of them"
            raise ValueError(
                f"Expected predictions that carry labels of the task {self.task!r}; "
                f"`kclf.interpret.interpretation_of` takes each. Received: labels={given}, {task=}"
            )
        unknown = int(np.isnan(self.predictions.probabilities).any(axis=1).sum())
        if unknown:
            raise ValueError(
                f"Expected probabilities. Received: NaN for {unknown} of {len(self)} images: numbers of the "
                "model that overflow, as they may in float16. Predict in float32"
            )

    @classmethod
    def from_learner(cls, learner: Any) -> Self:
        """Interpret a learner's predictions of its validation photos.

        Args:
            learner: anything with `.model` and `.data.valid`.
        """
        from ..prediction.inference import predict

        return cls(predict(learner.model, learner.data.valid))

    def __len__(self) -> int:
        return len(self.predictions)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self):,} photos of {listed(self.class_names)}"

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, or of the numbers."""
        return self.predictions.class_names

    @property
    def paths(self) -> np.ndarray | None:
        """The images' files, (n,), or None."""
        return self.predictions.paths

    @property
    def probabilities(self) -> np.ndarray:
        """Those of the predictions, float (n, classes), or the numbers."""
        return self.predictions.probabilities

    @cached_property
    def predicted(self) -> np.ndarray:
        """What was predicted of each photo, as `Predictions.predicted` has it."""
        return self.predictions.predicted

    @cached_property
    def losses(self) -> np.ndarray:
        """Loss of each photo, float64 (n,), as `Predictions.losses` has it."""
        return self.predictions.losses()

    def top_losses(self, k: int = 9, *, largest: bool = True) -> Gallery:
        """The photos with the largest (or smallest) loss: where the truth surprised the model most."""
        order = np.argsort(-self.losses if largest else self.losses, kind="stable")
        return self._gallery(order[:k], "Top losses" if largest else "Smallest losses")

    def _gallery(self, places: np.ndarray, title: str) -> Gallery:
        return Gallery([self._answer(int(place)) for place in places], title)

    def _class(self, name: str) -> int:
        names = list(self.class_names)
        return names.index(one_of("class_name", name, names))

    def _said(self, place: int, truth: np.ndarray, **more: Any) -> Example:
        """What was predicted of one photo beside its row of the truth."""
        text, path = self.predictions.label_text, None if self.paths is None else str(self.paths[place])
        actual, predicted = (text(rows[place]) or "none" for rows in (truth, self.predicted))
        return Example(place, path, actual, predicted, float(self.losses[place]), **more)

    @abstractmethod
    def _answer(self, place: int) -> Example:
        """What the model said of one photo."""

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """The figures by name, as plain numbers."""

    @abstractmethod
    def summary(self) -> str:
        """The figures in a few lines."""
