"""Intervals of a share, and the comparison of two classifiers on the same photos."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from .._core.arguments import in_open


@dataclass(frozen=True)
class Comparison:
    """Two models on the same photos.

    Args:
        photos: how many.
        accuracy: share right of the first and of the second model.
        only_first: photos that only the first model has right.
        only_second: photos that only the second model has right.
        difference: accuracy of the second minus that of the first, with its 95 % interval (can be negative).
        p_value: probability of a difference at least as large between equally good models (McNemar, exact).
    """

    photos: int
    accuracy: tuple[float, float]
    only_first: int
    only_second: int
    difference: Interval
    p_value: float

    @property
    def is_noise(self) -> bool:
        """True where the difference may well be chance (p > 0.05)."""
        return self.p_value > 0.05

    def __str__(self) -> str:
        first, second = map(_short, self.accuracy)
        verdict = "may well be chance" if self.is_noise else "is more than chance"
        gap = self.difference
        return (
            f"{first} against {second} on {self.photos:,} photos: the first alone is right on "
            f"{self.only_first:,}, the second alone on {self.only_second:,}. The difference of "
            f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}) {verdict} "
            f"(McNemar p = {self.p_value:.3g})."
        )


def compare_answers(first_right: np.ndarray, second_right: np.ndarray) -> Comparison:
    """McNemar's exact test on two models' answers to the same photos, in the same order.

    Only photos on which the two differ tell them apart: among equals each falls to either side like a coin.
    The interval of the difference is Agresti and Min's (2005): Wald's with half a photo added to each cell.

    Args:
        first_right: whether the first model's answer is right, bool (n,).
        second_right: the same of the second model.

    Example:
        >>> first, second = np.ones(2000, bool), np.ones(2000, bool)
        >>> first[:16] = False
        >>> second[8:26] = False
        >>> print(compare_answers(first, second))
        .9920 against .9910 on 2,000 photos: the first alone is right on 10, the second alone on 8. \
The difference of -0.0010 (-0.0053 to +0.0033) may well be chance (McNemar p = 0.815).
    """
    from scipy.stats import binomtest

    first_right, second_right = np.asarray(first_right, bool), np.asarray(second_right, bool)
    if first_right.shape != second_right.shape or first_right.ndim != 1 or not first_right.size:
        raise ValueError(
            "Expected two models' answers to the same photos. "
            f"Received: shapes {first_right.shape} and {second_right.shape}"
        )
    only_first = int((first_right & ~second_right).sum())
    only_second = int((~first_right & second_right).sum())
    apart = only_first + only_second
    return Comparison(
        photos=len(first_right),
        accuracy=(float(first_right.mean()), float(second_right.mean())),
        only_first=only_first,
        only_second=only_second,
        difference=_difference(only_first, only_second, len(first_right)),
        p_value=float(binomtest(only_first, apart).pvalue) if apart else 1.0,
    )


def _difference(only_first: int, only_second: int, photos: int) -> Interval:
    z = NormalDist().inv_cdf(0.975)
    size, losses, wins = photos + 2, only_first + 0.5, only_second + 0.5
    centre = (wins - losses) / size
    spread = z * math.sqrt((wins + losses) - (wins - losses) ** 2 / size) / size
    return Interval((only_second - only_first) / photos, centre - spread, centre + spread)


class Interval(NamedTuple):
    """An estimated share with the interval that holds the true one at the stated confidence.

    A share of nothing (of 0 photos) is `nan`, with the interval (0, 1).

    Example:
        >>> print(wilson_interval(1984, 2000))
        .9920 (.9870-.9951)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.value)} ({_short(self.low)}-{_short(self.high)})"


def _short(share: float) -> str:
    return f"{share:.4f}".removeprefix("0")


def wilson_interval(successes: float, trials: float, *, confidence: float = 0.95) -> Interval:
    """The interval of Wilson (1927) for a share; it holds near 0 and 1 and for few trials.

    With p = successes/n and z the two-sided normal quantile:
    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        successes: how many of the trials succeeded.
        trials: n, how many there were; 0 gives `nan` with (0, 1).
        confidence: share of such intervals that hold the true value, in (0, 1).

    Example:
        >>> wilson_interval(10, 10).low > 0.7
        True
    """
    in_open("confidence", confidence, 0, 1)
    if not 0 <= successes <= trials:
        raise ValueError(f"Expected 0 <= successes <= trials. Received: {successes=}, {trials=}")
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    low, high = wilson_ends(successes, trials, NormalDist().inv_cdf((1 + confidence) / 2))
    low, high = 0.0 if successes == 0 else float(low), 1.0 if successes == trials else float(high)
    return Interval(successes / trials, low, high)


def wilson_ends(successes: Any, trials: Any, z: float) -> tuple[Any, Any]:
    """Both ends of Wilson's interval, for numbers and for arrays.

    Args:
        successes: how many of the trials succeeded.
        trials: how many there were, 1 or more.
        z: the normal quantile.
    """
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return (centre - spread) / scale, (centre + spread) / scale


def precision_recall_f1(
    hits: int, named: int, photos: int, confidence: float
) -> tuple[Interval, Interval, Interval]:
    """Precision and recall of a class with Wilson's interval, and F1 = 2J/(1+J) with that of J, mapped.

    J is the share of hits among the photos that are of the class, or got its name, or both.

    Args:
        hits: photos of the class that got its name.
        named: photos that got its name.
        photos: those of the class.
        confidence: share of such intervals that hold the true value, in (0, 1).
    """
    precision, recall, shared = (
        wilson_interval(hits, trials, confidence=confidence)
        for trials in (named, photos, named + photos - hits)
    )
    return precision, recall, Interval(*(2 * j / (1 + j) for j in shared))


def mean_interval(values: np.ndarray) -> Interval:
    """A mean with the 95 % interval of Student's t; of one value it is all numbers.

    Args:
        values: float (n,).

    Example:
        >>> tuple(round(number, 2) for number in mean_interval(np.array([1.0, 2.0, 3.0])))
        (2.0, -0.48, 4.48)
    """
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf)
    spread = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean, mean - spread, mean + spread)
