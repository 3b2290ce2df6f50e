"""How sure a share is: Wilson's interval, and the exact binomial tail."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from ..arguments import between


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
    between("confidence", confidence, 0, 1)
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


def binomial_tail(successes: int, trials: int, share: float = 0.5) -> float:
    """The probability of at most `successes` in `trials` independent trials that succeed with `share`.

    Example:
        >>> round(binomial_tail(1, 4), 4)  # (1 + 4) / 2**4
        0.3125
    """
    return min(1.0, math.fsum(_binomial(k, trials, share) for k in range(successes + 1)))


def _binomial(successes: int, trials: int, share: float) -> float:
    ways = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    return math.exp(ways + successes * math.log(share) + (trials - successes) * math.log1p(-share))
