"""What a model says of photos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .._core.arguments import listed, one_of
from .._core.csv_files import write_csv
from ..data.decision import Decision
from ..data.tasks import TASKS, label_text
from ..metrics import safe_log


def write_submission(
    predictions: Predictions, path: str | os.PathLike[str], *, id_column: str = "id"
) -> None:
    """Write a Kaggle submission: the photo's file name without its ending, then the probabilities.

    Args:
        predictions: of the test photos.
        path: the file to write; complete or not at all.
        id_column: heading of the first column.
    """
    if predictions.paths is None:
        raise ValueError("A submission names each photo by its file, and these predictions have no paths")
    rows = (
        [Path(str(photo)).stem, *(f"{value:.9g}" for value in row)]
        for photo, row in zip(predictions.paths, predictions.probabilities, strict=True)
    )
    write_csv(path, [[id_column, *predictions.class_names], *rows], escaped=False)  # read by a program


@dataclass(frozen=True)
class TTAReport:
    """What averaging over views brought and what it cost.

    Args:
        views: number of views besides the plain one.
        average: how they were averaged.
        weight: share of the plain view.
        seconds: time of all views.
        plain_seconds: time of the plain view alone; both without reading the photos.
        accuracy: gain in accuracy, or None without labels.
        accuracy_error: standard error of that gain, from the differences photo by photo.
        log_loss: change of the log loss (negative is better), or None without labels.
        log_loss_error: standard error of that change.
    """

    views: int
    average: str
    weight: float
    seconds: float
    plain_seconds: float
    accuracy: float | None = None
    accuracy_error: float | None = None
    log_loss: float | None = None
    log_loss_error: float | None = None

    @property
    def cost(self) -> float:
        """Time of all views, in times of the plain one."""
        return self.seconds / self.plain_seconds if self.plain_seconds else float("nan")

    def __str__(self) -> str:
        gain = (
            "no labels to measure the gain by"
            if self.accuracy is None
            else f"accuracy {self.accuracy:+.4f} ± {self.accuracy_error:.4f}, "
            f"log loss {self.log_loss:+.4f} ± {self.log_loss_error:.4f}"
        )
        how = f"{self.views} views ({self.average}, plain weight {self.weight:g})"
        return f"{how}: {gain}, {self.cost:.1f} x the time"


@dataclass(frozen=True, repr=False)
class Predictions:
    """What a model says of n photos, row by row beside their labels and files.

    Args:
        probabilities: float (n, classes); for regression the predicted numbers, (n, outputs).
        labels: int (n,), n-hot float (n, classes), or float numbers; None where unknown.
        paths: (n,) str, or None for images that are no files.
        class_names: one for each column; () names them by number.
        task: "single_label", "multi_label" or "regression".
        tta: what test-time augmentation brought, where it was used.
        decision: the classifier's temperature, thresholds and scores, where it keeps some.

    Example:
        >>> predictions = Predictions(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]))
        >>> predictions.accuracy(), predictions.predicted.tolist()
        (0.5, [0, 1])
    """

    probabilities: np.ndarray
    labels: np.ndarray | None = None
    paths: np.ndarray | None = None
    class_names: Sequence[str] = ()
    task: str = "single_label"
    tta: TTAReport | None = None
    decision: Decision | None = None

    def __post_init__(self) -> None:
        probabilities = np.asarray(self.probabilities)
        if probabilities.ndim != 2:
            raise ValueError(
                "`probabilities` must be of shape (photos, classes). "
                f"Received: probabilities.shape={probabilities.shape}"
            )
        one_of("task", self.task, TASKS)
        names = list(self.class_names) or [str(column) for column in range(probabilities.shape[1])]
        if len(names) != probabilities.shape[1]:
            raise ValueError(
                f"Expected a class name for each of the {probabilities.shape[1]} columns. "
                f"Received: {len(names)} class_names"
            )
        object.__setattr__(self, "probabilities", probabilities)
        object.__setattr__(self, "class_names", names)
        for name, given in (("labels", self.labels), ("paths", self.paths)):
            values = None if given is None else np.asarray(given)
            if values is not None and len(values) != len(self):
                raise ValueError(f"Expected {name} for {len(self)} photos. Received: {len(values)} {name}")
            object.__setattr__(self, name, values)
        if self.task == "single_label" and self.labels is not None:
            self._check_classes(self.labels)

    def _check_classes(self, labels: np.ndarray) -> None:
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                "Labels of the task 'single_label' are whole numbers (n,). "
                f"Received: labels of shape {labels.shape} and type {labels.dtype}"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise ValueError(
                f"Labels must lie in [0, {len(self.class_names)}). "
                f"Received: labels from {labels.min()} to {labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def predicted(self) -> np.ndarray:
        """Class numbers (n,), n-hot bool (n, classes) by the thresholds, or the numbers themselves."""
        if self.task == "single_label":
            return self.probabilities.argmax(axis=1)
        if self.task == "regression":
            return self.probabilities
        thresholds = self.decision.thresholds if self.decision is not None else ()
        return self.probabilities > (np.array(thresholds) if thresholds else 0.5)

    def sets(self, coverage: float) -> np.ndarray:
        """Classes of each photo that hold the right one in a share of `coverage`, bool (n, classes).

        Raises:
            ValueError: the classifier keeps no scores of photos set aside.
        """
        return (self.decision or Decision()).sets(self.probabilities, coverage)

    @property
    def confidence(self) -> np.ndarray:
        """Largest probability of each photo, (n,)."""
        return self.probabilities.max(axis=1)

    def take(self, rows: slice | np.ndarray) -> Predictions:
        """Those of some photos.

        Args:
            rows: a slice, or an array of places.
        """
        labels, paths = self.labels, self.paths
        return replace(
            self,
            probabilities=self.probabilities[rows],
            labels=None if labels is None else labels[rows],
            paths=None if paths is None else paths[rows],
        )

    def accuracy(self) -> float:
        """Share of right answers; with several labels a photo, of right yes-or-no answers."""
        return float(self.hits().mean())

    def log_loss(self) -> float:
        """Mean of -log(probability of what is right); with several labels, the mean over the classes."""
        self._known()
        return float(self.losses().mean())

    def hits(self) -> np.ndarray:
        """Right (1) or not (0), float64 (n,); for several labels the share of right answers."""
        right = self.predicted == self._known()
        return right.astype(np.float64) if right.ndim == 1 else right.mean(axis=1)

    def losses(self) -> np.ndarray:
        """Log loss of each photo, at most 15.9, or the mean absolute error of its numbers; float64 (n,)."""
        if self.task == "regression" and self.labels is not None:
            true = np.asarray(self.labels, np.float64).reshape(len(self), -1)
            return np.abs(self.probabilities.astype(np.float64) - true).mean(axis=1)
        labels, probabilities = self._known(), self.probabilities.astype(np.float64)
        if self.task == "single_label":
            return -safe_log(probabilities[np.arange(len(self)), labels])
        return -(labels * safe_log(probabilities) + (1 - labels) * safe_log(1 - probabilities)).mean(axis=1)

    def top(self, k: int = 1) -> list[list[tuple[str, float]]]:
        """The k likeliest classes of each photo with their probabilities, likeliest first.

        Example:
            >>> Predictions(np.array([[0.25, 0.75]]), class_names=["cat", "dog"]).top()
            [[('dog', 0.75)]]
        """
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.class_names[column], float(self.probabilities[row, column])) for column in columns]
            for row, columns in enumerate(order)
        ]

    def given(self) -> list[list[tuple[str, float]]]:
        """Of several labels, those given to each photo, with their probabilities, likeliest first.

        Example:
            >>> several = np.array([[0.6, 0.9, 0.1]])
            >>> Predictions(several, class_names=["sky", "sea", "dog"], task="multi_label").given()
            [[('sea', 0.9), ('sky', 0.6)]]
        """
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        return [
            [(self.class_names[n], float(row[n])) for n in places if has[n]]
            for row, has, places in zip(self.probabilities, self.predicted, order, strict=True)
        ]

    @property
    def files(self) -> list[str]:
        """Path of each photo, or its number where the photos are no files."""
        paths = range(len(self)) if self.paths is None else self.paths
        return [str(path) for path in paths]

    def __repr__(self) -> str:
        return f"Predictions of {listed(self.class_names)}: {self}"

    def __str__(self) -> str:
        if self.labels is None or not len(self):
            return f"{len(self):,} photos predicted"
        if self.task == "regression":
            return f"mean absolute error {self.losses().mean():.4g} on {len(self):,} photos"
        return f"accuracy {self.accuracy():.4f}, log loss {self.log_loss():.4f} on {len(self):,} photos"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each photo: file, label where known, prediction, confidence, all probabilities.

        Of a regression there is no confidence, and the numbers are in the place of probabilities.

        Args:
            path: file to write; complete or not at all.
        """
        write_csv(path, self._table())

    def _table(self) -> Iterator[list[Any]]:
        columns: dict[str, Iterable[str]] = {"path": self.files}
        if self.labels is not None:
            columns["label"] = map(self.label_text, self.labels)
        columns["predicted"] = map(self.label_text, self.predicted)
        if self.task != "regression":
            columns["confidence"] = (f"{value:.6g}" for value in self.confidence)
        yield [*columns, *self.class_names]
        for row, *cells in zip(self.probabilities, *columns.values(), strict=True):
            yield [*cells, *(f"{value:.6g}" for value in row)]

    def label_text(self, answer: Any) -> str:
        """One photo's label or prediction in words: its classes by name, or its numbers.

        Args:
            answer: a row of `labels` or `predicted`.

        Example:
            >>> rows = Predictions(np.array([[0.9, 0.6, 0.1]]), class_names="abc", task="multi_label")
            >>> rows.label_text(rows.predicted[0])
            'a;b'
        """
        return label_text(answer, self.class_names, self.task)

    def _known(self) -> np.ndarray:
        if self.labels is None or not len(self) or self.task == "regression":
            raise ValueError(
                "Expected predictions of labelled photos with classes, to score them. Received: "
                f"labels={self.labels if self.labels is None else len(self)}, task={self.task!r}"
            )
        return self.labels


def mean_gain(scores: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Mean of the paired differences of two scores, and its standard error, which one image leaves unknown.

    Args:
        scores: one for each image, float (n,).
        base: what they are compared with, float (n,).

    Example:
        >>> mean_gain(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.0]))
        (0.5, 0.28867513459481287)
    """
    difference = scores - base
    if len(difference) < 2:
        return float(difference.mean()), float("nan")
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)
