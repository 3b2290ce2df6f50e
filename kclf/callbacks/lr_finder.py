"""The learning-rate range test (Smith 2015, https://arxiv.org/abs/1506.01186), which leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch

from .._core.fit_hooks import Step, unwrap_step, wrap_step
from .._core.keras_private import all_layers, rate_source
from .._core.keywords import RANGE_TEST, answering
from .._core.plotting import new_axes
from ..distributed import broadcast_state
from ..errors import TrainingError
from ..schedules import exponential
from .recording import smooth
from .run_state import Undo, passing_draws, remember_model, remember_randomness
from .steps import LossHook, innermost

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SKIP_END = 5  # points left out before the loss explodes
LAST = 5  # batches whose median must be above all losses before them, or the loss has not exploded
FLAT = 0.01  # a curve that moves by less than this share of its loss says nothing
# Losses of pure noise wander further than this in 3 to 4 of 100 tests (asymptotically 5 % lie above 1.747:
# Kuiper 1960, "Tests concerning random points on a circle").
WANDERING, FEWEST_TO_TELL = 1.7, 20
SLIDE_WINDOW, SLIDE_GRADIENT = 15, 0.005  # of the "slide" rule, in points and in loss a point


@dataclass(frozen=True)
class Suggestion:
    """What one rule says of a range test.

    Attributes:
        rule: "valley", "slide", "minimum" or "steep".
        learning_rate: the rate; None where the rule does not apply. The median over repeated tests.
        reason: why there is none, or how it was found.
        low: lowest value over repeated tests.
        high: highest value over repeated tests.
    """

    rule: str
    learning_rate: float | None
    reason: str
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.learning_rate is None:
            return f"{self.rule:>8}  none      {self.reason}"
        spread = f"  ({self.low:.1e} to {self.high:.1e})" if self.low != self.high else ""
        return f"{self.rule:>8}  {self.learning_rate:.2e}  {self.reason}{spread}"


class _Unfit(Exception):
    """A rule does not apply to a curve; the message says why."""


def suggest_minimum(learning_rates: np.ndarray, losses: np.ndarray) -> float:
    """A tenth of the rate with the lowest loss."""
    lowest = int(losses.argmin())
    if lowest <= len(losses) // 10:
        raise _Unfit("the loss never falls below where it began")
    if lowest == len(losses) - 1:
        raise _Unfit("the loss still falls at the highest rate: raise `end`")
    return float(learning_rates[lowest]) / 10


def suggest_steep(learning_rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate where the loss falls fastest over the logarithm of the rate."""
    slopes = np.diff(losses) / np.diff(np.log(learning_rates))
    if slopes.min() >= 0:
        raise _Unfit("the loss never falls")
    return float(learning_rates[slopes.argmin()])


def suggest_valley(learning_rates: np.ndarray, losses: np.ndarray) -> float:
    """The middle of the longest falling subsequence of the losses."""
    lengths = np.ones(len(losses), dtype=int)
    for i in range(1, len(losses)):
        above = lengths[:i][losses[:i] > losses[i]]
        lengths[i] = 1 + above.max(initial=0)
    length, end = int(lengths.max()), int(lengths.argmax())
    if length < 3:
        raise _Unfit("the loss never falls for long")
    return float(learning_rates[end - length + int(length / 3) + int(length / 6)])


def suggest_slide(learning_rates: np.ndarray, losses: np.ndarray) -> float:
    """From the right: the rate at which the slope stops changing over a window of 15 points."""
    slopes = np.gradient(losses)
    right = len(losses) - 1
    left = right - SLIDE_WINDOW
    found = None
    while left >= 0 and abs(slopes[right] - slopes[left]) > SLIDE_GRADIENT:
        found = learning_rates[left]
        left, right = left - 1, right - 1
    if found is None:
        raise _Unfit("the slope hardly changes at the end of the test")
    return float(found)


RULES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], int, str]] = {
    "valley": (suggest_valley, 5, "middle of the longest fall"),
    "slide": (suggest_slide, SLIDE_WINDOW + 1, "before the rise"),
    "minimum": (suggest_minimum, 3, "a tenth of the lowest point"),
    "steep": (suggest_steep, 3, "steepest fall; not after unfreezing"),
}


@dataclass(frozen=True)
class RangeTestRun:
    """One pass of a range test: what was set and what came of it.

    Attributes:
        learning_rates: float64 (n,), rising.
        losses: float64 (n,), raw loss of each batch.
        num_steps: how many steps were planned; fewer are made where the loss explodes.
        smoothing: weight of the past in `smoothed`.
        trains: whether there was a weight to train.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    num_steps: int
    smoothing: float = 0.98
    trains: bool = True

    @cached_property
    def smoothed(self) -> np.ndarray:
        """Debiased moving average of the losses, float64 (n,)."""
        return smooth(list(self.losses), self.smoothing)

    def clear_part(self) -> tuple[np.ndarray, np.ndarray]:
        """Rates and smoothed losses without the first tenth, the last 5 points, and all from a NaN on."""
        part = slice(self.num_steps // 10, len(self.losses) - SKIP_END)
        rates, losses = self.learning_rates[part], self.smoothed[part]
        bad = np.flatnonzero(~np.isfinite(losses))
        end = bad[0] if len(bad) else len(losses)
        return rates[:end], losses[:end]

    def suggest(self, rule: str) -> Suggestion:
        """What a rule says of this run."""
        function, needed, how = RULES[rule]
        rates, losses = self.clear_part()
        try:
            if not self.trains:
                raise _Unfit("no weight of the model trains")
            if len(losses) < needed:
                raise _Unfit(f"too few points: {len(losses)} left of {len(self.losses)}, {needed} needed")
            if np.ptp(losses) < FLAT * abs(losses).max():
                raise _Unfit("the curve is flat: the loss does not depend on the rate")
            raw = self.losses[self.num_steps // 10 :][: len(losses)]
            if len(losses) >= FEWEST_TO_TELL and wandering(raw) < WANDERING:
                raise _Unfit("the losses scatter at random: they do not depend on the rate; try more steps")
            found = function(rates, losses)
        except _Unfit as unfit:
            return Suggestion(rule, None, str(unfit))
        return Suggestion(rule, found, how, found, found)


def wandering(losses: np.ndarray) -> float:
    """How far losses stray from chance order: the range of the sums of their centred ranks, over sqrt(n).

    It asks nothing of the scatter of losses but that it is the same everywhere, and finds falls and rises.

    Args:
        losses: raw loss of each batch, (n,), not all alike.

    Example:
        >>> falls, scatters = np.arange(50.0, 0, -1), np.random.default_rng(0).normal(size=50)
        >>> wandering(falls) > 3, wandering(scatters) < 2
        (True, True)
    """
    ranks = np.argsort(np.argsort(losses, kind="stable")).astype("float64")
    sums = np.cumsum((ranks - ranks.mean()) / ranks.std())
    return float((max(sums.max(), 0.0) - min(sums.min(), 0.0)) / np.sqrt(len(losses)))


def _suggested(rule: str, text: str) -> property:
    return property(lambda test: test.suggestions[rule].learning_rate, doc=text)


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test: curves, four suggestions, and how far they agree.

    Args:
        runs: one run, or several of the same test on other batches.
    """

    runs: tuple[RangeTestRun, ...]

    @cached_property
    def suggestions(self) -> dict[str, Suggestion]:
        """What each rule says, by its name."""
        return {rule: self._over_runs(rule) for rule in RULES}

    def _over_runs(self, rule: str) -> Suggestion:
        each = [run.suggest(rule) for run in self.runs]
        rates = sorted(one.learning_rate for one in each if one.learning_rate is not None)
        if 2 * len(rates) <= len(each):  # most runs have none
            return next(one for one in each if one.learning_rate is None)
        return Suggestion(rule, float(np.median(rates)), RULES[rule][2], rates[0], rates[-1])

    @property
    def learning_rates(self) -> np.ndarray:
        """Rates of the shortest run, float64 (n,)."""
        return min((run.learning_rates for run in self.runs), key=len)

    @property
    def losses(self) -> np.ndarray:
        """Smoothed losses, the median over the runs, float64 (n,)."""
        return np.median([run.smoothed[: len(self.learning_rates)] for run in self.runs], axis=0)

    @property
    def agreement(self) -> float | None:
        """Highest suggestion over lowest: 1 where all agree, often 10 and more; None where there are none."""
        rates = self._rates()
        return _factor(rates.values()) if rates else None

    @property
    def outlier(self) -> str | None:
        """The one rule without which the others agree ten times better; None where there is no such rule."""
        rates = self._rates()
        if len(rates) < 3:
            return None
        without = {name: _factor(rate for other, rate in rates.items() if other != name) for name in rates}
        closest = min(without, key=lambda name: without[name])
        return closest if 10 * without[closest] < _factor(rates.values()) else None

    def _rates(self) -> dict[str, float]:
        found = {rule: suggestion.learning_rate for rule, suggestion in self.suggestions.items()}
        return {rule: rate for rule, rate in found.items() if rate is not None}

    valley = _suggested("valley", "The rate in the middle of the longest fall: the default choice.")
    slide = _suggested("slide", "The rate before the rise: what to take after unfreezing.")
    minimum = _suggested("minimum", "A tenth of the rate with the lowest loss.")
    steep = _suggested("steep", "The rate where the loss falls fastest.")

    def __str__(self) -> str:
        lines = [str(suggestion) for suggestion in self.suggestions.values()]
        if self.agreement is None:
            return "\n".join([*lines, "no rule applies"])
        odd = f"; {self.outlier} is far from the others" if self.outlier else ""
        return "\n".join([*lines, f"they differ by {self.agreement:.1f} times{odd}"])

    def __repr__(self) -> str:
        return f"<RangeTest of {len(self.learning_rates)} steps>\n{self}"

    def plot(self, *, skip_start: int = 10, skip_end: int = SKIP_END, ax: Axes | None = None) -> Axes:
        """Smoothed loss over the rate, with the suggestions marked; returns the axes.

        Args:
            skip_start: points left out at the start, of a short test a tenth.
            skip_end: points left out at the end, of a short test a tenth.
            ax: axes to draw on; new ones when None.
        """
        axes = ax or new_axes()
        for run in self.runs:
            count = len(run.losses)
            part = slice(min(skip_start, count // 10), count - min(skip_end, count // 10))
            axes.plot(run.learning_rates[part], run.smoothed[part], color="C0", alpha=len(self.runs) ** -0.5)
        for color, suggestion in enumerate(self.suggestions.values(), start=1):
            if suggestion.learning_rate is not None:
                height = float(np.interp(suggestion.learning_rate, self.learning_rates, self.losses))
                label = f"{suggestion.rule} {suggestion.learning_rate:.1e}"
                axes.plot(suggestion.learning_rate, height, "o", color=f"C{color}", label=label)
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return axes


def _factor(rates: Iterable[float]) -> float:
    """Highest over lowest."""
    found = list(rates)
    return max(found) / min(found)


class LearningRateFinder(keras.callbacks.Callback):
    """Raise the learning rate batch by batch, record the loss, then put the model back as it was.

    `find_learning_rate` does it in one call, and also puts back the random state and the order of the data.
    As a callback it ends the fit it is given to, and puts back the model where a batch fails or is
    interrupted. Ratios between layer groups are kept: the rates are the last group's.

    Args:
        start: first rate.
        end: last rate.
        num_steps: how many batches.
        stop_factor: stop once the smoothed loss is this many times the lowest so far, or NaN, and the median
            of the last five batches is above all losses before them.
        smoothing: weight of the past in the smoothed loss.

    Attributes:
        run: the `RangeTestRun`, once the fit is over.

    Example:
        >>> finder = LearningRateFinder(num_steps=50)
    """

    leaves_no_trace = True

    def __init__(
        self,
        start: float = 1e-7,
        end: float = 10.0,
        num_steps: int = 100,
        *,
        stop_factor: float = 4.0,
        smoothing: float = 0.98,
    ) -> None:
        super().__init__()
        self._schedule = exponential(start, end, num_steps)
        self.num_steps, self.stop_factor, self.smoothing = num_steps, stop_factor, smoothing
        self.run: RangeTestRun | None = None
        self._undo: Undo | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Remember the model, and listen to its losses."""
        broadcast_state(self.model)
        self._undo = remember_model(self.model)
        self._rates: list[float] = []
        self._losses: list[float] = []
        self._take_rate()
        self._tap = LossHook(self.model, self._receive)
        wrap_step(self.model, "train_function", self._guarded)

    def _take_rate(self) -> None:
        """Make the rate settable where the optimizer has a schedule of its own."""
        inner = innermost(self.model.optimizer)
        self._own_schedule = None
        if not isinstance(rate_source(inner), keras.Variable):
            self._own_schedule = rate_source(inner)
            inner.learning_rate = lambda: self._rates[-1]

    def _guarded(self, step: Step, data: list[Any]) -> Any:
        try:
            return step(data)
        except BaseException:
            self.restore()
            raise

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the next rate."""
        self._rates.append(self._schedule(len(self._rates)))
        if self._own_schedule is None:
            self.model.optimizer.learning_rate = self._rates[-1]

    def _receive(self, loss: torch.Tensor) -> None:
        self._losses.append(loss.item())
        if self._exploded() or len(self._losses) >= self.num_steps:
            self.model.stop_training = True

    def _exploded(self) -> bool:
        """Whether the mean loss is high, and the last batches lose more than any before them.

        The mean alone misleads on a trained network: losses that are tiny but for a batch here and there have
        a mean that rises many times by itself.
        """
        smoothed = smooth(self._losses, self.smoothing)
        high = not smoothed[-1] <= self.stop_factor * np.fmin.reduce(smoothed)  # true for NaN
        before, last = self._losses[:-LAST], self._losses[-LAST:]
        return high and not np.median(last) <= max(before, default=float("inf"))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the model back and keep the curve."""
        self.restore()
        if len(self._losses) < len(self._rates):
            raise TrainingError(
                "The range test saw no loss: the model's train_step must pass it through "
                "`optimizer.scale_loss`, as Keras' own does"
            )
        self.run = RangeTestRun(
            np.array(self._rates),
            np.array(self._losses),
            self.num_steps,
            self.smoothing,
            bool(self.model.trainable_variables),
        )

    def restore(self) -> None:
        """Put the model back, once; nothing happens where that is done already."""
        if self._undo is None:
            return
        self._tap.close()
        unwrap_step(self.model, "train_function", self._guarded)
        if self._own_schedule is not None:
            innermost(self.model.optimizer).learning_rate = self._own_schedule
        self._undo()
        self._undo = None


@answering(RANGE_TEST)
def find_learning_rate(
    model: keras.Model,
    data: Any,
    y: Any = None,
    *,
    start: float = 1e-7,
    end: float = 10.0,
    num_steps: int = 100,
    stop_factor: float = 4.0,
    smoothing: float = 0.98,
    repeats: int = 1,
    **fit_arguments: Any,
) -> RangeTest:
    """Run a range test and leave everything as it was, bit for bit, also on an error or Ctrl-C.

    Weights, BatchNorm statistics, optimizer, loss scale, learning rate, random state and the order of the
    data are put back: a fit after the test is the fit without it. Small data are gone through repeatedly.

    Args:
        model: a compiled model.
        data: what `model.fit` takes: a DataLoader, a PyDataset, arrays, or arrays (x, y) or
            (x, y, sample weights).
        y: targets, where `data` are the inputs alone.
        start: first rate.
        end: last rate.
        num_steps: batches of one test.
        stop_factor: stop once the smoothed loss is this many times the lowest so far, or NaN, and the median
            of the last five batches is above all losses before them.
        smoothing: weight of the past in the smoothed loss.
        repeats: tests on other batches and other random draws, for the median and spread.
        **fit_arguments: passed on to `model.fit`, e.g. `batch_size`.

    Returns:
        The `RangeTest`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(), loss="mse")
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> test = find_learning_rate(model, x, x.sum(1), end=100.0, batch_size=8)
        >>> sorted(test.suggestions)
        ['minimum', 'slide', 'steep', 'valley']
    """
    if isinstance(data, tuple) and y is None:
        data, y, *weights = data
        if weights:
            (fit_arguments["sample_weight"],) = weights
    runs = []
    with remember_randomness(data):
        _ensure_built(model, data)
        for repeat in range(repeats):
            finder = LearningRateFinder(start, end, num_steps, stop_factor=stop_factor, smoothing=smoothing)
            with passing_draws(model, data, repeat):
                runs.append(_run(model, finder, data, y, fit_arguments))
    return RangeTest(tuple(runs))


def _run(
    model: keras.Model, finder: LearningRateFinder, data: Any, y: Any, fit_arguments: dict[str, Any]
) -> RangeTestRun:
    """One fit with the finder. The model is remembered before fit builds anything."""
    broadcast_state(model)
    callbacks = [*fit_arguments.get("callbacks", []), finder]
    arguments = {"epochs": finder.num_steps, "verbose": 0, **fit_arguments, "callbacks": callbacks}
    if isinstance(data, torch.utils.data.DataLoader):
        arguments["shuffle"] = False  # the loader's business; Keras would warn
    with remember_model(model), Undo(finder.restore):
        model.fit(data, y, **arguments)
    if finder.run is None:
        raise TrainingError("The range test ended before its first batch: is the data empty?")
    return finder.run


def _ensure_built(model: keras.Model, data: Any) -> None:
    """Make the variables of a model that is waiting to see data, as its first fit would."""
    if all(layer.built for layer in all_layers(model)):
        return
    batch = data[:1] if hasattr(data, "shape") else next(iter(data))
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    with torch.no_grad():
        model(inputs, training=False)
