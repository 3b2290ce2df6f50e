"""`Recorder` under the names of fastai 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._core.plotting import new_grid, returned
from ..callbacks import EpochTable, Recorder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CourseRecorder(Recorder):
    """`Recorder` with fastai 2's names beside its own."""

    @property
    def lrs(self) -> list[float]:
        """Learning rate of each batch."""
        return self.learning_rates

    @property
    def values(self) -> list[list[float]]:
        """For each epoch: smoothed training loss, validation loss, metrics; the rows of the table."""
        smoothed = self.smoothed_losses
        rows = []
        for logs, end in zip(self.epochs, self.epoch_ends, strict=True):
            _, *others = EpochTable.columns(logs).values()
            rows.append([float(smoothed[end - 1]), *others])
        return rows

    def plot_sched(self, figsize: tuple[float, float] = (10, 3.5)) -> Figure:
        """Learning rate and momentum over the batches.

        Args:
            figsize: inches.
        """
        rates, momenta = new_grid(1, 2, figsize)
        self.plot_lr(ax=rates)
        if not np.all(np.isnan(self.momentums)):
            self.plot_momentum(ax=momenta)
        return returned(rates.figure)
