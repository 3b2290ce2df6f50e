"""What a model got right and wrong where a photo has several labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._core.arguments import one_of
from .._core.plotting import new_axes
from ..data.decision import Decision
from ..metrics import best_thresholds
from .answers import Answers
from .calibration import Calibration, calibrate
from .gallery import Example, Gallery
from .statistics import Interval, precision_recall_f1, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVES = 10  # a plot shows the labels with the lowest average precision


class LabelScore(NamedTuple):
    """How well one label is recognised.

    Args:
        name: of the label.
        photos: that have it.
        threshold: the probability above which it is given.
        precision: share of the photos given the label that have it.
        recall: share of the photos with the label that are given it.
        f1: harmonic mean of precision and recall.
        average_precision: mean of the precision over the photos with the label, in the order of their
            probability, whatever the threshold; NaN where no photo has it.
    """

    name: str
    photos: int
    threshold: float
    precision: Interval
    recall: Interval
    f1: Interval
    average_precision: float


class LabelTable(list[LabelScore]):
    """The scores of the labels: a list with a text form."""

    def __str__(self) -> str:
        width = max([len(score.name) for score in self] + [5])
        head = (
            f"{'label':{width}}  photos  from  {'precision':19}  {'recall':19}  {'f1':19}  average precision"
        )
        rows = [
            f"{s.name:{width}}  {s.photos:6,}  {s.threshold:.2f}  {s.precision!s:19}  {s.recall!s:19}  "
            f"{s.f1!s:19}  {s.average_precision:.4f}"
            for s in self
        ]
        return "\n".join([head, *rows])


@dataclass(frozen=True, eq=False, repr=False)
class MultiLabelInterpretation(Answers):
    """Predictions beside the truth, for several labels an image.

    Args:
        predictions: that carry their labels, of the task "multi_label". A label is given above .5, or above
            the threshold that the classifier keeps for it.

    Example:
        >>> from kclf import Predictions
        >>> said = np.array([[0.9, 0.2], [0.8, 0.7], [0.3, 0.6]], np.float32)
        >>> has = np.array([[1, 0], [1, 1], [1, 1]], np.float32)
        >>> answers = MultiLabelInterpretation(Predictions(said, has, None, ["indoor", "dog"], "multi_label"))
        >>> print(answers.exact)
        .6667 (.2077-.9385)
        >>> answers.mean_average_precision
        1.0
    """

    task = "multi_label"

    @cached_property
    def labels(self) -> np.ndarray:
        """Whether a photo has a label, bool (n, classes)."""
        return np.asarray(self.predictions.labels) > 0.5

    @cached_property
    def right(self) -> np.ndarray:
        """Whether all answers about a photo are right, bool (n,)."""
        return (self.predicted == self.labels).all(axis=1)

    @property
    def exact(self) -> Interval:
        """Share of photos of which all answers are right, with Wilson's 95 % interval."""
        return wilson_interval(int(self.right.sum()), len(self))

    @property
    def accuracy(self) -> float:
        """Share of the yes-or-no answers that are right."""
        return self.predictions.accuracy()

    @property
    def thresholds(self) -> np.ndarray:
        """The probability above which each label is given, float64 (classes,)."""
        kept = (self.predictions.decision or Decision()).thresholds
        return np.array(kept or [0.5] * len(self.class_names))

    def best_thresholds(self) -> np.ndarray:
        """The threshold of each label with the highest F1 on these photos, float64 (classes,).

        It is .5 where fewer than ten have the label. Find it on photos that the model was not trained on,
        and judge it on others.
        """
        return best_thresholds(self.probabilities, self.labels)

    def with_thresholds(self, thresholds: float | Sequence[float] | np.ndarray) -> MultiLabelInterpretation:
        """The same predictions with other thresholds: one for all labels, or one for each."""
        each = tuple(np.broadcast_to(np.asarray(thresholds, float), (len(self.class_names),)).tolist())
        decision = replace(self.predictions.decision or Decision(), thresholds=each)
        return MultiLabelInterpretation(replace(self.predictions, decision=decision))

    @cached_property
    def average_precisions(self) -> np.ndarray:
        """Average precision of each label, float64 (classes,); NaN where no photo has it."""
        from sklearn.metrics import average_precision_score

        found = np.full(len(self.class_names), np.nan)
        for place in np.flatnonzero(self.labels.any(axis=0)):
            found[place] = average_precision_score(self.labels[:, place], self.probabilities[:, place])
        return found

    @property
    def mean_average_precision(self) -> float:
        """Mean of the labels' average precision (mAP), of the labels that some photo has."""
        return float(np.nanmean(self.average_precisions)) if self.labels.any() else float("nan")

    def f1(self, average: str = "macro") -> float:
        """F1 over all labels.

        Args:
            average: "macro" is the mean of the labels' F1, "micro" takes all answers together.
        """
        one_of("average", average, ("macro", "micro"))
        hits, given, there = (part.sum(axis=0) for part in self._counted())
        if average == "micro":
            hits, given, there = hits.sum(), given.sum(), there.sum()
        return float(np.mean(2 * hits / np.maximum(given + there, 1)))

    def class_scores(self, *, confidence: float = 0.95) -> LabelTable:
        """Threshold, precision, recall, F1 and average precision of every label, with intervals."""
        hits, given, there = (part.sum(axis=0).tolist() for part in self._counted())
        columns = (self.class_names, hits, given, there, self.thresholds, self.average_precisions)
        return LabelTable(
            LabelScore(
                name,
                photos,
                float(threshold),
                *precision_recall_f1(hit, named, photos, confidence),
                average_precision=float(average),
            )
            for name, hit, named, photos, threshold, average in zip(*columns, strict=True)
        )

    def most_wrong(self, k: int = 4, class_name: str | None = None) -> Gallery:
        """Photos with the surest wrong answer, about one label or about any."""
        gap = np.where(self.predicted != self.labels, np.abs(self.probabilities - self.labels), -1.0)
        if class_name is not None:
            gap = gap[:, [self._class(class_name)]]
        worst = gap.max(axis=1)
        order = np.argsort(-worst, kind="stable")
        return self._gallery(order[worst[order] >= 0][:k], "Most wrong")

    def calibration(self, bins: int = 15) -> Calibration:
        """Confidence against the share that is right, over all yes-or-no answers; see `Calibration`."""
        yes = self.probabilities.reshape(-1, 1)
        return calibrate(np.hstack([1 - yes, yes]), self.labels.ravel().astype(int), bins=bins)

    def plot_precision_recall(self, ax: Axes | None = None, *, class_names: Sequence[str] = ()) -> Axes:
        """Precision over recall of some labels; a dot is the threshold in use. Returns the axes.

        Args:
            ax: axes to draw on; new ones when None.
            class_names: the labels; () takes the ten with the lowest average precision.
        """
        from sklearn.metrics import precision_recall_curve

        axes, scores = ax or new_axes((5.5, 4.5)), self.class_scores()
        worst = np.argsort(self.average_precisions)[: np.isfinite(self.average_precisions).sum()]
        chosen = [self._class(name) for name in class_names] or worst[:MOST_CURVES].tolist()
        for number, place in enumerate(chosen):
            score, color = scores[place], f"C{number % 10}"
            curve = precision_recall_curve(self.labels[:, place], self.probabilities[:, place])
            label = f"{score.name} {score.average_precision:.2f}"
            axes.step(curve[1], curve[0], where="post", color=color, label=label)
            axes.plot(score.recall.value, score.precision.value, "o", color=color)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.set_title("Precision and recall; average precision in the legend", fontsize=10)
        axes.legend(fontsize=8)
        return axes

    def figures(self) -> dict[str, Any]:
        """Exact answers, mean average precision, F1 and each label's scores, as plain numbers."""
        exact = self.exact
        return {
            "photos": len(self),
            "all_labels_right": exact.value,
            "interval": [exact.low, exact.high],
            "accuracy": self.accuracy,
            "mean_average_precision": _known(self.mean_average_precision),
            "f1": self.f1(),
            "f1_micro": self.f1("micro"),
            "log_loss": float(self.losses.mean()),
            "labels": {
                score.name: {
                    "photos": score.photos,
                    "threshold": score.threshold,
                    "f1": _known(score.f1.value),
                    "average_precision": _known(score.average_precision),
                }
                for score in self.class_scores()
            },
        }

    def summary(self) -> str:
        """Exact answers, mean average precision, F1 and the worst labels, in a few lines."""
        scores = sorted(self.class_scores(), key=lambda score: np.nan_to_num(score.f1.value, nan=2.0))
        mean = self.mean_average_precision
        return "\n".join(
            [
                f"all labels right {self.exact} on {len(self):,} photos, {len(self.class_names)} labels",
                f"answers right {self.accuracy:.4f}, mean average precision {mean:.4f}, "
                f"F1 {self.f1():.4f} (micro {self.f1('micro'):.4f}), log loss {self.losses.mean():.4f}",
                "lowest F1:",
                *(f"  {s.name}: {s.f1} on {s.photos:,} photos" for s in scores[:5]),
            ]
        )

    def _counted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right yeses, given labels and labels that are there, bool (n, classes)."""
        return self.predicted & self.labels, self.predicted, self.labels

    def _answer(self, place: int) -> Example:
        wrong = np.flatnonzero(self.predicted[place] != self.labels[place]).tolist()
        note = ", ".join(f"{self.class_names[n]} {self.probabilities[place, n]:.2f}" for n in wrong)
        return self._said(place, self.labels, note=note)


def _known(figure: float) -> float | None:
    """A figure as JSON has it, which knows no NaN."""
    return None if np.isnan(figure) else figure
