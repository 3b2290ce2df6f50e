"""Callbacks that set the learning rate before each batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from .. import schedules
from .._core.fit_hooks import Step, unwrap_step, wrap_step
from .._core.keywords import SCHEDULE, answering
from ..distributed import require_joined
from ..optimizers.variables import GroupSpec
from ..schedules import ScheduleFunction
from .snapshots import SnapshotSaver
from .steps import Hyperparameters, log_rates, steps_of_run

Functions = tuple[ScheduleFunction, ScheduleFunction | None]  # of the rate, and of the momentum


class Schedule(keras.callbacks.Callback):
    """Drive the learning rate, and the momentum, by functions of the step.

    The value is set before each batch, from the place in the whole run: `fit(initial_epoch=3)` continues
    where the schedule was. When the run ends, the optimizer has its own rate and momentum back, and the
    history has the rate of each layer group at the end of each epoch. No batch waits for the device. Under a
    `LayerGroupOptimizer` the function gives the last group's rate and the others keep their ratios.

    Args:
        learning_rate: a function step -> learning rate; `kclf.schedules` has many.
        momentum: a function step -> momentum (Adam's beta_1); None leaves it alone.

    Example:
        >>> from kclf.schedules import linear
        >>> callback = Schedule(linear(1e-3, 0.0, num_steps=100))
    """

    def __init__(self, learning_rate: ScheduleFunction, momentum: ScheduleFunction | None = None) -> None:
        super().__init__()
        self._given = (learning_rate, momentum)

    def functions(self, hyperparameters: Hyperparameters, num_steps: int, steps_per_epoch: int) -> Functions:
        """The two functions for a run of `num_steps` batches."""
        return self._given

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Learn the length of the run."""
        require_joined(self.model)
        num_steps, self._steps_per_epoch = steps_of_run(self.params)
        self._hyperparameters, self._has_warned = Hyperparameters(self.model.optimizer), False
        self._functions = self.functions(self._hyperparameters, num_steps, self._steps_per_epoch)
        if self.model.train_function is not None:  # else no fit of Keras' drives it
            wrap_step(self.model, "train_function", self._interruptible)

    def _interruptible(self, step: Step, data: list[Any]) -> Any:
        """A step; where it is interrupted, Keras calls no callback, and the next fit must find its rates."""
        try:
            return step(data)
        except KeyboardInterrupt:
            self._hyperparameters.restore()
            raise

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Count from the start of the run, not of the epoch."""
        self._first_step = epoch * self._steps_per_epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the values of this batch."""
        if batch == 0:
            self._warn_of_another()
        learning_rate, momentum = self._functions
        step = self.place(self._first_step + batch)
        self._hyperparameters.set(learning_rate(step), momentum and momentum(step))

    def place(self, step: int) -> float:
        """The place in the functions at which a batch of the run stands: its number.

        Args:
            step: batches of the run before it.
        """
        return step

    def _warn_of_another(self) -> None:
        """Say once that another callback sets the rate, too: it would be thought to have an effect."""
        other = None if self._has_warned else self._hyperparameters.was_set_elsewhere()
        if other is not None:
            self._has_warned = True
            warnings.warn(
                f"Something else set the learning rate to {other:.3g} between two epochs, in vain: "
                f"{type(self).__name__} sets it before each batch. Leave a ReduceLROnPlateau, "
                "LearningRateScheduler or second schedule beside it out",
                stacklevel=2,
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Tell the history the rates of the last batch."""
        log_rates(self.model.optimizer, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the optimizer its own values back."""
        self._hyperparameters.restore()
        unwrap_step(self.model, "train_function", self._interruptible)


class OneCycle(Schedule):
    """Smith's 1cycle policy: one rise and one fall of the rate over the run, the momentum against it.

    Args:
        lr_max: the highest rate. Under a `LayerGroupOptimizer` a number is the last group's and the others
            keep their ratios to it; a list, `slice(hi)` or `slice(lo, hi)` sets all groups. None takes the
            optimizer's own rates; when a checkpoint is resumed within a run, give the number.
        pct_start: share of the run spent rising.
        div: the run starts at `lr_max / div`.
        div_final: it ends at `lr_max / div_final`.
        momentum: at the start, at the highest rate and at the end (beta_1 for Adam); None leaves it alone, as
            does an optimizer that has none.

    Example:
        >>> callback = OneCycle(1e-3)
    """

    @answering(SCHEDULE)
    def __init__(
        self,
        lr_max: GroupSpec | None = None,
        *,
        pct_start: float = 0.25,
        div: float = 25.0,
        div_final: float = 1e5,
        momentum: tuple[float, float, float] | None = (0.95, 0.85, 0.95),
    ) -> None:
        keras.callbacks.Callback.__init__(self)
        self.lr_max, self.pct_start, self.div = lr_max, pct_start, div
        self.div_final, self.momentum = div_final, momentum

    def functions(self, hyperparameters: Hyperparameters, num_steps: int, steps_per_epoch: int) -> Functions:
        """One cycle over the whole run."""
        learning_rate = schedules.one_cycle(
            hyperparameters.set_group_rates(self.lr_max),
            num_steps,
            pct_start=self.pct_start,
            div=self.div,
            div_final=self.div_final,
        )
        if self.momentum is None:
            return learning_rate, None
        return learning_rate, schedules.one_cycle_momentum(
            num_steps, momentum=self.momentum, pct_start=self.pct_start
        )


class FlatCosine(Schedule):
    """A flat rate for most of the run, then a cosine down.

    Args:
        lr_max: the flat rate; as in `OneCycle`.
        pct_start: share of the run before the descent.
        div_final: the run ends at `lr_max / div_final`.

    Example:
        >>> callback = FlatCosine(1e-3)
    """

    @answering(SCHEDULE)
    def __init__(
        self, lr_max: GroupSpec | None = None, *, pct_start: float = 0.75, div_final: float = 1e5
    ) -> None:
        keras.callbacks.Callback.__init__(self)
        self.lr_max, self.pct_start, self.div_final = lr_max, pct_start, div_final

    def functions(self, hyperparameters: Hyperparameters, num_steps: int, steps_per_epoch: int) -> Functions:
        """Flat, then down, over the whole run."""
        lr_max = hyperparameters.set_group_rates(self.lr_max)
        function = schedules.flat_cosine(
            lr_max, num_steps, pct_start=self.pct_start, div_final=self.div_final
        )
        return function, None


class CosineRestarts(Schedule):
    """SGDR: the rate falls along a cosine and restarts; each cycle may end in a snapshot of the weights.

    Args:
        lr_max: the rate at each restart; as in `OneCycle`.
        cycle_len: epochs of the first cycle.
        cycle_mult: how many times longer each next cycle is: 1, 2, 4 epochs for 2.
        num_cycles: how many cycles the run shall have; only checked against the epochs of `fit`.
        lr_min: rate that each cycle falls towards.
        warmup: run the first 5 % of the first cycle at a hundredth, as fastai 0.7 did.
        snapshots: where to save the weights at the end of each cycle, e.g. "snaps/dogs" for
            `snaps/dogs_cyc_0.weights.h5` and so on; None saves none.

    Example:
        >>> cycles = CosineRestarts(1e-2, cycle_len=1, cycle_mult=2, num_cycles=3)
        >>> cycles.num_epochs
        7
    """

    @answering(SCHEDULE)
    def __init__(
        self,
        lr_max: GroupSpec | None = None,
        *,
        cycle_len: int = 1,
        cycle_mult: int = 1,
        num_cycles: int | None = None,
        lr_min: float = 0.0,
        warmup: bool = False,
        snapshots: str | os.PathLike[str] | None = None,
    ) -> None:
        keras.callbacks.Callback.__init__(self)
        schedules.cosine_restarts(1.0, cycle_len, cycle_mult=cycle_mult)  # refuses what cannot be
        self.lr_max, self.lr_min, self.warmup = lr_max, lr_min, warmup
        self.cycle_len, self.cycle_mult, self.num_cycles = cycle_len, cycle_mult, num_cycles
        self._saver = None if snapshots is None else SnapshotSaver(snapshots)

    @property
    def num_epochs(self) -> int:
        """Epochs that `num_cycles` cycles take: what `fit` should be given."""
        if self.num_cycles is None:
            raise ValueError("The number of epochs follows from `num_cycles`, which was not given")
        return schedules.cycle_ends(self.cycle_len, self.cycle_mult, self.num_cycles)[-1]

    @property
    def snapshots(self) -> list[str]:
        """Paths of the snapshots saved so far, first cycle first."""
        return [] if self._saver is None else self._saver.paths

    def functions(self, hyperparameters: Hyperparameters, num_steps: int, steps_per_epoch: int) -> Functions:
        """Cosines with restarts; says so at once where the epochs do not fill whole cycles."""
        self._check_epochs(num_steps // steps_per_epoch)
        self._underway = False
        if self._saver is not None:
            self._saver.start()
        function = schedules.cosine_restarts(
            hyperparameters.set_group_rates(self.lr_max),
            self.cycle_len * steps_per_epoch,
            cycle_mult=self.cycle_mult,
            value_min=self.lr_min,
            warmup=self.warmup,
        )
        return function, None

    def _check_epochs(self, epochs: int) -> None:
        cycle, start, length = schedules.cycle_at(epochs, self.cycle_len, self.cycle_mult)
        expected = None if self.num_cycles is None else self.num_epochs
        if epochs == expected or (expected is None and start == epochs):
            return
        whole = [start, start + length] if expected is None else [expected]
        warnings.warn(
            f"{epochs} epochs do not fill whole cycles of {self.cycle_len} epochs times {self.cycle_mult}: "
            f"cycle {cycle} would be cut short and leave no snapshot. "
            f"Fit {' or '.join(str(number) for number in whole if number)} epochs",
            stacklevel=2,
        )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """At the start of a run: of earlier snapshots only those before it are its own."""
        super().on_epoch_begin(epoch, logs)
        if self._saver is not None and not self._underway:
            self._saver.keep(schedules.cycle_at(epoch, self.cycle_len, self.cycle_mult)[0])
        self._underway = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """After the last batch of a cycle and its validation: save the snapshot."""
        super().on_epoch_end(epoch, logs)
        cycle, start, _ = schedules.cycle_at(epoch + 1, self.cycle_len, self.cycle_mult)
        if self._saver is not None and start == epoch + 1:
            self._saver.save(self.model, cycle - 1)

    def state_dict(self) -> dict[str, Any]:
        """The snapshots so far, for a checkpoint."""
        return {"snapshots": self.snapshots}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if self._saver is not None:
            self._saver.paths = list(state["snapshots"])


class TriangularCycles(Schedule):
    """Cycles with a straight rise of the rate and a straight fall (0.7's `use_clr`, Smith 2015).

    Args:
        lr_max: the highest rate; one, or one for each layer group.
        ends: the epochs after which cycles end, such as [1, 3, 7].
        div: cycles start and end at `lr_max / div`.
        cut_div: the rise takes 1/cut_div of a cycle.
        momentum_max: momentum at the lowest rate; None leaves it alone.
        momentum_min: momentum at the highest rate.
    """

    def __init__(
        self,
        lr_max: Any,
        ends: Sequence[int],
        div: float,
        cut_div: float,
        momentum_max: float | None = None,
        momentum_min: float | None = None,
    ) -> None:
        if div < 1 or cut_div < 1:
            raise ValueError(f"Expected use_clr=(div, cut_div), both 1 or more. Received: ({div}, {cut_div})")
        keras.callbacks.Callback.__init__(self)
        self.lr_max, self.ends = lr_max, list(ends)
        self.div, self.cut_div = div, cut_div
        self.momenta = None if momentum_max is None else (momentum_max, momentum_min or momentum_max)

    def functions(self, hyperparameters: Hyperparameters, num_steps: int, steps_per_epoch: int) -> Functions:
        """Rate, and momentum where it was given."""
        highest = hyperparameters.set_group_rates(self.lr_max)
        rate = self._over_cycles(highest / self.div, highest, steps_per_epoch)
        if self.momenta is None:
            return rate, None
        return rate, self._over_cycles(*self.momenta, steps_per_epoch)

    def _over_cycles(self, low: float, high: float, steps_per_epoch: int) -> ScheduleFunction:
        starts = [0, *self.ends[:-1]]
        lengths = [(end - start) * steps_per_epoch for start, end in zip(starts, self.ends, strict=True)]
        triangles = [self._triangle(low, high, steps) for steps in lengths]
        return schedules.join(triangles, [end * steps_per_epoch for end in self.ends[:-1]])

    def _triangle(self, low: float, high: float, steps: int) -> ScheduleFunction:
        rise = max(1, int(steps / self.cut_div))
        legs = [schedules.linear(low, high, rise), schedules.linear(high, low, max(1, steps - rise))]
        return schedules.join(legs, [rise])
