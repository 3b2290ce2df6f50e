"""What a model got right and wrong, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..prediction.predictions import Predictions
from . import calibration
from .answers import Answers
from .calibration import Abstention, Calibration
from .confusion import Confusion, ConfusionMatrix, Order
from .gallery import Example, Gallery
from .numbers import RegressionInterpretation
from .several_labels import MultiLabelInterpretation
from .statistics import Comparison, Interval, compare_answers, precision_recall_f1, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .similar import Neighbour, SimilarPhotos


FEWEST_PHOTOS, FEWEST_MISTAKES = 50, 5  # to judge probabilities by


class ClassScore(NamedTuple):
    """How well one class is recognised.

    Args:
        name: of the class.
        photos: of this class.
        precision: share of the photos given this name that are of this class.
        recall: share of this class's photos that got its name.
        f1: harmonic mean of precision and recall.
    """

    name: str
    photos: int
    precision: Interval
    recall: Interval
    f1: Interval


class ScoreTable(list[ClassScore]):
    """The scores of the classes: a list with a text form."""

    def __str__(self) -> str:
        width = max([len(score.name) for score in self] + [5])
        head = f"{'class':{width}}  photos  {'precision':19}  {'recall':19}  f1"
        rows = [f"{s.name:{width}}  {s.photos:6,}  {s.precision!s:19}  {s.recall!s:19}  {s.f1}" for s in self]
        return "\n".join([head, *rows])


@dataclass(frozen=True, eq=False, repr=False)
class Interpretation(Answers):
    """Predictions beside the truth, for one label an image.

    Args:
        predictions: that carry their labels, of the task "single_label".

    Example:
        >>> import numpy as np
        >>> from kclf import Predictions
        >>> sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
        >>> predictions = Predictions(sure, np.array([0, 1, 1]), class_names=["cat", "dog"])
        >>> interpretation = Interpretation(predictions)
        >>> interpretation.most_confused()
        [Confusion(actual='dog', predicted='cat', photos=1)]
        >>> print(interpretation.accuracy)
        .6667 (.2077-.9385)
    """

    task = "single_label"

    @cached_property
    def labels(self) -> np.ndarray:
        """Indices of the actual classes, int (n,)."""
        return np.asarray(self.predictions.labels)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The largest probability of each photo, (n,)."""
        return self.predictions.confidence

    @cached_property
    def right(self) -> np.ndarray:
        """Whether the answer is right, bool (n,)."""
        return self.predicted == self.labels

    @cached_property
    def actual_probability(self) -> np.ndarray:
        """The probability of the actual class, float64 (n,)."""
        return self.probabilities[np.arange(len(self)), self.labels].astype(np.float64)

    @property
    def accuracy(self) -> Interval:
        """Share of right answers, with Wilson's 95 % interval."""
        return wilson_interval(int(self.right.sum()), len(self))

    def confusion_matrix(self) -> ConfusionMatrix:
        """Counts by actual (rows) and predicted class (columns)."""
        from sklearn.metrics import confusion_matrix

        counts = confusion_matrix(self.labels, self.predicted, labels=range(len(self.class_names)))
        return ConfusionMatrix(counts, self.class_names)

    def plot_confusion_matrix(
        self,
        ax: Axes | None = None,
        *,
        order: Order = "confusion",
        normalize: bool = False,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
    ) -> ConfusionMatrix:
        """Draw the confusion matrix; see `ConfusionMatrix.plot`."""
        return self.confusion_matrix().plot(ax, order=order, normalize=normalize, figsize=figsize, dpi=dpi)

    def most_confused(self, min_val: int = 1) -> list[Confusion]:
        """Pairs (actual, predicted, photos) confused at least `min_val` times, the most frequent first."""
        return self.confusion_matrix().most_confused(min_val)

    def class_scores(self, *, confidence: float = 0.95) -> ScoreTable:
        """Precision, recall and F1 of every class, each with its interval.

        Precision and recall have Wilson's interval. F1 = 2J/(1+J) where J = TP/(TP+FP+FN) is a share of the
        photos that are of the class or were called so; its interval is Wilson's for J, mapped.
        """
        counts = self.confusion_matrix().counts
        hits, called, there = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
        scores = zip(self.class_names, hits.tolist(), called.tolist(), there.tolist(), strict=True)
        return ScoreTable(
            ClassScore(name, photos, *precision_recall_f1(hit, named, photos, confidence))
            for name, hit, named, photos in scores
        )

    def most_right(self, k: int = 4, class_name: str | None = None) -> Gallery:
        """Right answers given with the largest probability, of one class or of all."""
        return self._surest(self.right, k, class_name, "Most right")

    def most_wrong(self, k: int = 4, class_name: str | None = None) -> Gallery:
        """Wrong answers given with the largest probability; `class_name` is the actual class."""
        return self._surest(~self.right, k, class_name, "Most wrong")

    def most_uncertain(self, k: int = 4) -> Gallery:
        """The photos whose largest probability is nearest to that of a guess."""
        return self._gallery(np.argsort(self.confidence, kind="stable")[:k], "Most uncertain")

    def confused(self, actual: str, predicted: str, k: int | None = None) -> Gallery:
        """The photos of one class that were taken for another, the surest first."""
        pair = self.predicted == self._class(predicted)
        return self._surest(pair, k, actual, f"{actual} taken for {predicted}")

    def similar(
        self, photos: SimilarPhotos, k: int = 9, *, count: int = 4
    ) -> list[tuple[Example, list[Neighbour]]]:
        """The wrong answers with the largest loss, each with the training photos that look most alike.

        Args:
            photos: the training photos, from `SimilarPhotos.of`.
            k: how many answers.
            count: neighbours of each.

        Raises:
            ValueError: the predictions know no files.
        """
        if self.paths is None:
            raise ValueError("Expected predictions with the files of their photos. Received: paths=None")
        worst = [example for example in self.top_losses(len(self)) if not example.is_right][:k]
        return [(example, photos.nearest(example.path, count)) for example in worst]

    def calibration(self, bins: int = 15) -> Calibration:
        """Confidence against the share that is right; see `Calibration`."""
        return calibration.calibrate(self.probabilities, self.labels, bins=bins)

    def fit_temperature(self) -> float:
        """The temperature that fits these photos best; above 1, the model is too sure of itself."""
        return calibration.fit_temperature(self.probabilities, self.labels)

    def with_temperature(self, temperature: float) -> Interpretation:
        """The same with probabilities softened (above 1) or sharpened (below 1); no answer changes."""
        softened = calibration.apply_temperature(self.probabilities, temperature)
        return Interpretation(replace(self.predictions, probabilities=softened))

    def abstain(self, precision: float = 0.99, *, assurance: float = 0.95) -> Abstention:
        """From which probability on to answer so that answers hold a precision; see `calibration.abstain`."""
        return calibration.abstain(self.confidence, self.right, precision=precision, assurance=assurance)

    @property
    def judges_probabilities(self) -> bool:
        """Whether there are photos and mistakes enough to say if probabilities are true."""
        return len(self) >= FEWEST_PHOTOS and int((~self.right).sum()) >= FEWEST_MISTAKES

    def sureness(self) -> str:
        """In words, whether the model is as sure as it should be, by the temperature that fits best."""
        if not self.judges_probabilities:
            return "too few photos, or mistakes, to say whether they are true"
        temperature = self.fit_temperature()
        if temperature > 1.05:
            return "the classifier is too sure of itself"
        if temperature < 0.95:
            return "the classifier is not sure enough"
        return "the classifier is about as sure as it should be"

    def figures(self) -> dict[str, Any]:
        """Accuracy with its interval, log loss and calibration error, as plain numbers."""
        accuracy = self.accuracy
        return {
            "photos": len(self),
            "accuracy": accuracy.value,
            "interval": [accuracy.low, accuracy.high],
            "log_loss": float(self.losses.mean()),
            "calibration_error": float(self.calibration().error),
        }

    def summary(self) -> str:
        """Accuracy, calibration, abstention and the worst confusions, in a few lines."""
        reliability, temperature = self.calibration(), self.fit_temperature()
        pairs = [f"  {p.actual} taken for {p.predicted}: {p.photos:,}" for p in self.most_confused()[:5]]
        return "\n".join(
            [
                f"accuracy {self.accuracy} on {len(self):,} photos of {len(self.class_names)} classes",
                f"log loss {self.losses.mean():.4f}, calibration error {reliability.error:.4f}, "
                f"best temperature {temperature:.2f}",
                str(self.abstain()),
                "most confused:" if pairs else "no photo confused",
                *pairs,
            ]
        )

    def _surest(self, among: np.ndarray, k: int | None, class_name: str | None, title: str) -> Gallery:
        if class_name is not None:
            among = among & (self.labels == self._class(class_name))
        places = np.flatnonzero(among)
        order = np.argsort(-self.confidence[places], kind="stable")
        return self._gallery(places[order][:k], title)

    def _answer(self, place: int) -> Example:
        return self._said(
            place,
            self.labels,
            probability=float(self.confidence[place]),
            actual_probability=float(self.actual_probability[place]),
        )


def compare(first: Interpretation, second: Interpretation) -> Comparison:
    """Is the second model better than the first on the same photos, or is it noise?

    Args:
        first: one model's answers.
        second: another's, to the same photos in the same order.
    """
    if not np.array_equal(first.labels, second.labels):
        raise ValueError("Expected answers to the same photos. Received: labels that differ")
    if first.paths is not None and second.paths is not None and not np.array_equal(first.paths, second.paths):
        raise ValueError("Expected answers to the same photos. Received: paths that differ")
    return compare_answers(first.right, second.right)


AnyInterpretation = Interpretation | MultiLabelInterpretation | RegressionInterpretation


def interpretation_of(predictions: Predictions) -> AnyInterpretation:
    """The interpretation for the task of some predictions: one label, several labels, or numbers.

    Args:
        predictions: that carry their labels.
    """
    kinds = (Interpretation, MultiLabelInterpretation, RegressionInterpretation)
    return next(kind for kind in kinds if kind.task == predictions.task)(predictions)
