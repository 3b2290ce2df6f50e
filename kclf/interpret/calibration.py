"""Are the probabilities true? Reliability, temperature, and when to give no answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import log_softmax, softmax

from .._core.arguments import in_open
from .._core.plotting import new_axes
from ..metrics import safe_log
from .statistics import Interval, wilson_ends, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS_AT_A_TIME = 8192  # bounds the float64 copies to a few MB for a thousand classes
TEMPERATURES = (0.05, 20.0)  # beyond, the probabilities are one-hot or uniform whatever the model said


@dataclass
class Calibration:
    """Confidence against the share that is right, in bins of equal width.

    Args:
        confidence: mean confidence of each bin's photos, float64 (bins,); nan where the bin is empty.
        accuracy: share of each bin's photos that is right, float64 (bins,); nan where the bin is empty.
        count: photos in each bin, int (bins,).

    Attributes:
        ax_, figure_: where `plot` drew last.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    ax_: Axes | None = field(default=None, init=False, repr=False, compare=False)
    figure_: Figure | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def error(self) -> float:
        """Expected calibration error (ECE): the mean of |confidence - accuracy| over the photos."""
        gaps = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float((gaps * self.count).sum() / max(self.count.sum(), 1))

    def intervals(self) -> list[Interval]:
        """Wilson's interval of each bin's accuracy."""
        right = np.rint(np.nan_to_num(self.accuracy) * self.count)
        return [wilson_interval(int(r), int(n)) for r, n in zip(right, self.count, strict=True)]

    def filled(self) -> tuple[np.ndarray, ...]:
        """Of the bins that hold photos: confidence, accuracy, and the lower and upper ends of `intervals`."""
        _, low, high = np.array(self.intervals()).T
        return tuple(of_bins[self.count > 0] for of_bins in (self.confidence, self.accuracy, low, high))

    def plot(self, ax: Axes | None = None) -> Calibration:
        """Draw the reliability diagram: the larger a dot, the more photos; lines are the intervals."""
        axes: Any = ax or new_axes((4.5, 4.5))
        self.ax_, self.figure_ = axes, axes.figure
        confidence, accuracy, low, high = self.filled()
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
        axes.vlines(confidence, low, high, color="tab:blue", alpha=0.5)
        dots = 10 + 150 * self.count[self.count > 0] / self.count.sum()
        axes.scatter(confidence, accuracy, s=dots, color="tab:blue")
        axes.set(xlabel="confidence", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.set_title(f"expected calibration error {self.error:.3f}")
        return self


def calibrate(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> Calibration:
    """Compare the confidence of the answers with the share of them that is right (Guo et al. 2017).

    Args:
        probabilities: float (n, classes).
        labels: int (n,).
        bins: number of bins of equal width on (0, 1].

    Example:
        >>> sure_and_right = calibrate(np.eye(3), np.arange(3))
        >>> sure_and_right.error
        0.0
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bin_of, weights=confidence, minlength=bins) / count
        accuracy = np.bincount(bin_of, weights=right, minlength=bins) / count
    return Calibration(mean_confidence, accuracy, count)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Soften (above 1) or sharpen (below 1) probabilities: softmax(log p / temperature), float32."""
    in_open("temperature", temperature, 0, math.inf)
    result = np.empty(probabilities.shape, np.float32)
    for start in range(0, len(probabilities), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        result[rows] = softmax(_logits(probabilities[rows]) / temperature, axis=1)
    return result


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest log loss on these photos (Guo et al. 2017), within `TEMPERATURES`.

    Fit it on photos that the model was not trained on.

    Args:
        probabilities: float (n, classes), not one-hot.
        labels: int (n,).

    Example:
        >>> too_sure = np.array([[0.99, 0.01]] * 4)
        >>> fit_temperature(too_sure, np.array([0, 0, 0, 1])) > 1
        True
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda exponent: _summed_loss(probabilities, labels, math.exp(exponent)),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return math.exp(found.x)


def _summed_loss(probabilities: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    loss = 0.0
    for start in range(0, len(probabilities), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        logs = log_softmax(_logits(probabilities[rows]) / temperature, axis=1)
        loss -= float(np.take_along_axis(logs, labels[rows, None], axis=1).sum())
    return loss


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits of a softmax: down to the least number of float32, since no loss is meant here."""
    return safe_log(probabilities, smallest=float(np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class Abstention:
    """From which confidence on to answer, and what that gives.

    Args:
        threshold: answer where the largest probability is at least this; `inf` if never.
        wanted: the precision asked for.
        precision: of the answered photos here, with its interval.
        answered: share of the photos that are answered, with its interval.
        guaranteed: whether the photos were enough for the interval's lower end to reach `wanted`.
    """

    threshold: float
    wanted: float
    precision: Interval
    answered: Interval
    guaranteed: bool

    def __str__(self) -> str:
        if math.isinf(self.threshold):
            return f"No threshold reaches a precision of {self.wanted}: never answer."
        result = (
            f"Answer from a probability of {self.threshold:.4f} on: {self.answered.value:.1%} of the photos "
            f"are answered, with a precision of {self.precision}."
        )
        if not self.guaranteed:
            result += f" Too few photos to be sure of {self.wanted}: the interval reaches below it."
        return result


def abstain(
    confidence: np.ndarray, right: np.ndarray, *, precision: float = 0.99, assurance: float = 0.95
) -> Abstention:
    """The lowest threshold whose answers hold the wanted precision, and the share of photos answered.

    The threshold is the lowest at which the lower end of the (one-sided) Wilson interval of the answers'
    precision reaches `precision`. Where no threshold does, because there are too few photos, it is the
    lowest at which the plain share does, and `guaranteed` is False.

    Args:
        confidence: largest probability of each photo, float (n,).
        right: whether the answer is right, bool (n,).
        precision: wanted share of right answers among those given, in (0, 1).
        assurance: confidence of the lower end, in (0.5, 1).

    Example:
        >>> confidence = np.linspace(0.5, 1, 1000)
        >>> result = abstain(confidence, confidence > 0.6, precision=0.95)
        >>> result.guaranteed, 0.55 < result.threshold < 0.62
        (True, True)
    """
    in_open("precision", precision, 0, 1)
    z = NormalDist().inv_cdf(in_open("assurance", assurance, 0.5, 1))
    descending = np.argsort(-confidence, kind="stable")
    ordered, hits = confidence[descending], np.cumsum(right[descending])
    trials = np.arange(1, len(ordered) + 1)
    last_of_its_value = np.append(ordered[1:] < ordered[:-1], True)[: len(ordered)]
    low, _ = wilson_ends(hits, trials, z)
    for guaranteed, reached in ((True, low >= precision), (False, hits >= precision * trials)):
        candidates = np.flatnonzero(reached & last_of_its_value)
        if candidates.size:
            last = candidates[-1]
            given = wilson_interval(int(trials[last]), len(ordered))
            quality = wilson_interval(int(hits[last]), int(trials[last]), confidence=2 * assurance - 1)
            return Abstention(float(ordered[last]), precision, quality, given, guaranteed)
    return Abstention(math.inf, precision, wilson_interval(0, 0), wilson_interval(0, len(ordered)), False)
