"""Schedules: pure functions of the step.

A schedule is a function `step -> value`. The step counts the batches done: batch 0 runs at `schedule(0)` and
the last of n batches at `schedule(n - 1)`. Steps past the end keep the last value; a step need not be whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._core.plotting import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ScheduleFunction = Callable[[float], float]


def constant(value: float) -> ScheduleFunction:
    """The same value at every step.

    Example:
        >>> constant(0.1)(1000)
        0.1
    """
    return lambda step: value


def linear(start: float, end: float, num_steps: int) -> ScheduleFunction:
    """A straight line from `start` at step 0 to `end` at step `num_steps`.

    Example:
        >>> linear(0.0, 1.0, 4)(1)
        0.25
    """
    _check_steps(num_steps)
    return lambda step: start + (end - start) * _share(step, num_steps)


def cosine(start: float, end: float, num_steps: int) -> ScheduleFunction:
    """Half a cosine from `start` at step 0 to `end` at step `num_steps`.

    value(i) = end + (start - end) * (1 + cos(pi * i / num_steps)) / 2

    Args:
        start: value at step 0.
        end: value at step `num_steps` and after it.
        num_steps: length in steps, at least 1.

    Returns:
        The function step -> value.

    Example:
        >>> round(cosine(1.0, 0.0, 100)(25), 6)
        0.853553
    """
    _check_steps(num_steps)
    return lambda step: end + (start - end) * (1 + math.cos(math.pi * _share(step, num_steps))) / 2


def exponential(start: float, end: float, num_steps: int) -> ScheduleFunction:
    """A constant factor a step: value(i) = start * (end / start) ** (i / num_steps).

    The range test (Smith 2015, https://arxiv.org/abs/1506.01186) raises the learning rate so.

    Args:
        start: value at step 0, above 0.
        end: value at step `num_steps`, above 0.
        num_steps: length in steps, at least 1.

    Returns:
        The function step -> value.

    Example:
        >>> round(exponential(1e-4, 1.0, 4)(2), 9)
        0.01
    """
    _check_steps(num_steps)
    if start <= 0 or end <= 0:
        raise ValueError(f"`start` and `end` must be above 0. Received: start={start}, end={end}")
    return lambda step: start * (end / start) ** _share(step, num_steps)


def join(schedules: Sequence[ScheduleFunction], boundaries: Sequence[int]) -> ScheduleFunction:
    """Run schedules one after another; each starts again at its own step 0.

    Args:
        schedules: n schedules.
        boundaries: the n - 1 steps at which the next schedule takes over, ascending.

    Returns:
        The function step -> value.

    Example:
        >>> warmed = join([linear(0.0, 1.0, 10), cosine(1.0, 0.0, 90)], [10])
        >>> warmed(5), warmed(10), round(warmed(55), 6)
        (0.5, 1.0, 0.5)
    """
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"{len(schedules)} schedules need {len(schedules) - 1} boundaries. "
            f"Received: boundaries={list(boundaries)}"
        )
    if list(boundaries) != sorted(boundaries):
        raise ValueError(f"`boundaries` must ascend. Received: boundaries={list(boundaries)}")

    def joined(step: float) -> float:
        index = sum(step >= boundary for boundary in boundaries)
        return schedules[index](step - boundaries[index - 1] if index else step)

    return joined


def one_cycle(
    value_max: float, num_steps: int, *, pct_start: float = 0.25, div: float = 25.0, div_final: float = 1e5
) -> ScheduleFunction:
    """Up and down once: `value_max / div` -> `value_max` -> `value_max / div_final`, both legs cosine.

    Smith & Topin 2017, https://arxiv.org/abs/1708.07120; the defaults are fastai's.

    Args:
        value_max: the highest value, reached at `pct_start * num_steps`.
        num_steps: length of the whole cycle in steps.
        pct_start: share of the steps spent rising, in [0, 1].
        div: the first value is `value_max / div`.
        div_final: the last value is `value_max / div_final`.

    Returns:
        The function step -> value.

    Example:
        >>> rate = one_cycle(1e-2, num_steps=100)
        >>> [round(rate(step), 6) for step in (0, 25, 50)]
        [0.0004, 0.01, 0.0075]
    """
    return _two_legs((value_max / div, value_max, value_max / div_final), num_steps, pct_start)


def one_cycle_momentum(
    num_steps: int, *, momentum: tuple[float, float, float] = (0.95, 0.85, 0.95), pct_start: float = 0.25
) -> ScheduleFunction:
    """The momentum that goes with `one_cycle`: low where the learning rate is high.

    Args:
        num_steps: length of the whole cycle in steps.
        momentum: first, middle and last value, each in [0, 1).
        pct_start: share of the steps before the middle value.

    Returns:
        The function step -> value.

    Example:
        >>> round(one_cycle_momentum(100)(25), 6)
        0.85
    """
    return _two_legs(momentum, num_steps, pct_start)


def flat_cosine(
    value: float, num_steps: int, *, pct_start: float = 0.75, div_final: float = 1e5
) -> ScheduleFunction:
    """Flat at `value` for `pct_start` of the steps, then a cosine down to `value / div_final`.

    Args:
        value: the flat value.
        num_steps: length in steps.
        pct_start: share of the steps before the descent, in [0, 1].
        div_final: the last value is `value / div_final`.

    Returns:
        The function step -> value.

    Example:
        >>> rate = flat_cosine(1e-2, num_steps=100)
        >>> rate(50), round(rate(88), 5)
        (0.01, 0.00469)
    """
    return _two_legs((value, value, value / div_final), num_steps, pct_start)


def cosine_restarts(
    value_max: float, cycle_steps: int, *, cycle_mult: int = 1, value_min: float = 0.0, warmup: bool = False
) -> ScheduleFunction:
    """SGDR: a cosine from `value_max` to `value_min`, again and again; cycle k is `cycle_mult ** k` as long.

    Loshchilov & Hutter 2016, https://arxiv.org/abs/1608.03983.

    Args:
        value_max: value at the start of each cycle.
        cycle_steps: length of the first cycle in steps.
        cycle_mult: how many times longer each next cycle is, a whole number of at least 1.
        value_min: value that each cycle falls towards.
        warmup: run the first 5 % of the first cycle at `value_max / 100`, as fastai 0.7 did.

    Returns:
        The function step -> value.

    Example:
        >>> rate = cosine_restarts(1.0, cycle_steps=100, cycle_mult=2)
        >>> [round(rate(step), 6) for step in (0, 50, 99, 100, 200)]
        [1.0, 0.5, 0.000247, 1.0, 0.5]
    """
    _check_steps(cycle_steps)
    if int(cycle_mult) != cycle_mult or cycle_mult < 1:
        raise ValueError(f"`cycle_mult` must be a whole number >= 1. Received: cycle_mult={cycle_mult}")

    def restarting(step: float) -> float:
        if warmup and step < cycle_steps / 20:
            return value_max / 100
        _, start, length = cycle_at(step, cycle_steps, cycle_mult)
        return value_min + (value_max - value_min) * (1 + math.cos(math.pi * (step - start) / length)) / 2

    return restarting


def cycle_at(step: float, first: int, cycle_mult: int = 1) -> tuple[int, int, int]:
    """Which cycle a step falls in: (index, first step, length).

    The bounds are sums of whole numbers: a logarithm would put exact restarts in the wrong cycle.

    Example:
        >>> cycle_at(3, first=1, cycle_mult=2)   # the cycles are 0, 1-2, 3-6, ...
        (2, 3, 4)
    """
    if cycle_mult == 1:
        index = int(step // first)
        return index, index * first, first
    index, start, length = 0, 0, first
    while step >= start + length:
        index, start, length = index + 1, start + length, length * cycle_mult
    return index, start, length


def cycle_ends(first: int, cycle_mult: int, num_cycles: int) -> list[int]:
    """Where each of `num_cycles` cycles ends, in the unit of `first`.

    Example:
        >>> cycle_ends(1, 2, 3)
        [1, 3, 7]
    """
    return [int(end) for end in np.cumsum([first * cycle_mult**index for index in range(num_cycles)])]


def simulate(schedule: ScheduleFunction, num_steps: int) -> np.ndarray:
    """The values of a schedule without any training, float64 (num_steps,).

    Example:
        >>> simulate(linear(0.0, 1.0, 4), 4).tolist()
        [0.0, 0.25, 0.5, 0.75]
    """
    return np.array([schedule(step) for step in range(num_steps)], dtype="float64")


def plot(
    schedule: ScheduleFunction, num_steps: int, *, ax: Axes | None = None, label: str | None = None
) -> Axes:
    """Draw a schedule over its steps and return the axes.

    Args:
        schedule: the function step -> value.
        num_steps: how many steps to draw.
        ax: axes to draw on; new ones when None.
        label: name for the legend.

    Example:
        >>> axes = plot(one_cycle(1e-2, 100), 100)
    """
    axes = ax or new_axes()
    axes.plot(simulate(schedule, num_steps), label=label)
    axes.set(xlabel="step", ylabel="value")
    if label is not None:
        axes.legend()
    return axes


def _two_legs(values: tuple[float, float, float], num_steps: int, pct_start: float) -> ScheduleFunction:
    """Cosine from the first value to the second, then to the third; the turn is at `pct_start`."""
    _check_steps(num_steps)
    if not 0 <= pct_start <= 1:
        raise ValueError(f"`pct_start` is a share of the steps, from 0 to 1. Received: pct_start={pct_start}")
    first, middle, last = values

    def two_legs(step: float) -> float:
        share = _share(step, num_steps)
        if share < pct_start:
            return _between(first, middle, share / pct_start)
        return _between(middle, last, (share - pct_start) / (1 - pct_start)) if share < 1 else last

    return two_legs


def _between(start: float, end: float, share: float) -> float:
    """The cosine that leads from `start` to `end`, at a share of the way."""
    return start + (1 - math.cos(math.pi * share)) * (end - start) / 2


def _share(step: float, num_steps: int) -> float:
    """How much of the way is done, in [0, 1]."""
    return min(max(step / num_steps, 0.0), 1.0)


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"A schedule needs at least 1 step. Received: {num_steps}")
