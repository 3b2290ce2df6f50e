"""Callbacks for the words of fastai 0.7: triangular cycles, and snapshots of the whole classifier."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from .. import schedules
from ..callbacks import Schedule, SnapshotSaver
from ..callbacks.steps import Hyperparameters
from ..distributed import is_main
from ..schedules import ScheduleFunction


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

    def functions(
        self, hyperparameters: Hyperparameters, num_steps: int, steps_per_epoch: int
    ) -> tuple[ScheduleFunction, ScheduleFunction | None]:
        """Rate, and momentum where it was given."""
        highest = hyperparameters.spread(self.lr_max)
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


class CycleSnapshots(keras.callbacks.Callback):
    """Saves the whole classifier after the last batch of each cycle, also while only its head is trained.

    Args:
        classifier: what to save.
        name: path of the snapshots up to `_cyc_{k}.weights.h5`.
        ends: the epochs after which cycles end, such as [1, 3, 7].
    """

    def __init__(self, classifier: keras.Model, name: Path, ends: Sequence[int]) -> None:
        super().__init__()
        self.classifier = classifier
        self.saver = SnapshotSaver(name)
        self.ends = list(ends)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Fail now rather than after hours."""
        self.saver.start(self.classifier)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Snapshots of an earlier fit of this name make way; those of a fit that goes on stay."""
        if epoch or not is_main():
            return
        for old in self.saver.name.parent.glob(f"{glob.escape(self.saver.name.name)}_cyc_*.weights.h5"):
            old.unlink()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save where a cycle ends."""
        if epoch + 1 in self.ends:
            self.saver.save(self.classifier, self.ends.index(epoch + 1))
