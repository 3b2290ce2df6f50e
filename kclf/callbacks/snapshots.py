"""Weights kept while training: snapshots of cycles, and the best epoch."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras

from .._core.fit_hooks import overridden
from .._core.keras_private import metric_direction
from ..distributed import barrier, is_main
from ..errors import TrainingError
from ..weights import save_weights
from .delivered import as_delivered, live_batchnorms, moving_statistics
from .run_state import Undo, remember_tensors


def without_optimizer(model: keras.Model) -> AbstractContextManager[None]:
    """Set the optimizer aside, so that files of weights are written and read without its state."""
    return overridden(model, optimizer=None)


def load_snapshot(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Load the weights of a snapshot; the model's optimizer stays as it is.

    Args:
        model: a model with the same layers as the one that was saved.
        path: a file that `SnapshotSaver` or `CosineRestarts` wrote.
    """
    with without_optimizer(model):
        model.load_weights(path)


def save_snapshot(
    model: keras.Model, path: str | os.PathLike[str], trained: keras.Model | None = None
) -> None:
    """Save a model's weights without the optimizer's state; rank 0 writes while other processes wait.

    Under an average of weights these are the averaged ones, which the last validation saw.

    Args:
        model: what to save.
        path: a file that ends in `.weights.h5`; folders are made.
        trained: the model in training, where it is a part of `model`.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if is_main():
        with as_delivered(trained or model), without_optimizer(model):
            save_weights(model, path)
    barrier()


class SnapshotSaver:
    """Saves a model's weights as `{name}_cyc_{k}.weights.h5`, without the optimizer's state.

    Args:
        name: path of the snapshots up to `_cyc_{k}`; folders are made.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> saver = SnapshotSaver(tempfile.mkdtemp() + "/dogs")
        >>> saver.save(model, 0).endswith("/dogs_cyc_0.weights.h5")
        True
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = Path(name)
        self.paths: list[str] = []

    def path(self, cycle: int) -> str:
        """Where the snapshot of a cycle goes."""
        return str(self.name.with_name(f"{self.name.name}_cyc_{cycle}.weights.h5"))

    def start(self) -> None:
        """Make the folder, to fail now rather than after hours."""
        self.name.parent.mkdir(parents=True, exist_ok=True)

    def keep(self, cycles: int) -> None:
        """Forget all snapshots but those of the first cycles, which a resumed run has behind it."""
        own = {self.path(cycle) for cycle in range(cycles)}
        self.paths = [path for path in self.paths if path in own]

    def save(self, model: keras.Model, cycle: int) -> str:
        """Save the weights of now as the snapshot of a cycle and return its path.

        With several processes rank 0 writes it while the others wait.
        """
        target = self.path(cycle)
        save_snapshot(model, target)
        if target not in self.paths:
            self.paths.append(target)
        return target


SMALLER_IS_BETTER = ("loss", "error", "mae", "mse", "absolute", "squared", "entropy")


def better_direction(monitor: str, model: keras.Model | None = None) -> str:
    """Whether more or less of a figure is better: "max" or "min".

    Args:
        monitor: name of the figure as `fit` logs it, such as "val_error_rate".
        model: where it is compiled with a metric of that name which knows its direction, that counts.

    Example:
        >>> better_direction("val_accuracy"), better_direction("val_error_rate"), better_direction("val_loss")
        ('max', 'min', 'min')
    """
    name = monitor.removeprefix("val_")
    for metric in [] if model is None else model.metrics:
        inner = getattr(metric, "metrics", [metric])
        for known in inner:
            direction = metric_direction(known)
            if known.name == name and direction:
                return {"up": "max", "down": "min"}[direction]
    return "min" if any(word in name for word in SMALLER_IS_BETTER) else "max"


class BestModel(keras.callbacks.Callback):
    """Saves the weights whenever a figure is the best of the run, and loads the best when the run ends.

    Args:
        path: a file that ends in `.weights.h5`.
        classifier: the model to save; None for the one that is trained (not the same with `precompute`).
        monitor: the figure as `fit` logs it.
        patience: stop after as many epochs without a better one; None trains to the end.
        restore: load the best weights when the run ends.

    Attributes:
        best: the best figure so far, or None.
        best_epoch: the epoch it was reached in.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        classifier: keras.Model | None = None,
        *,
        monitor: str = "val_loss",
        patience: int | None = None,
        restore: bool = True,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.classifier = classifier
        self.monitor = monitor
        self.patience = patience
        self.restore = restore

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget an earlier run, and fail now rather than after an epoch."""
        self.best: float | None = None
        self.best_epoch = -1
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save where the epoch is the best so far."""
        if self._is_best(epoch, logs or {}):
            save_snapshot(self.classifier or self.model, self.path, self.model)

    def _is_best(self, epoch: int, logs: Mapping[str, Any]) -> bool:
        """Whether this is the best epoch; stops the run if none came for long."""
        if self.monitor not in logs:
            raise TrainingError(f"fit logs no {self.monitor!r}, only: {', '.join(logs)}")
        value = float(logs[self.monitor])
        sign = 1 if better_direction(self.monitor, self.model) == "max" else -1
        if value == value and (self.best is None or sign * value > sign * self.best):
            self.best, self.best_epoch = value, epoch
            return True
        if self.patience is not None and epoch - self.best_epoch >= self.patience:
            self.model.stop_training = True
        return False

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Load the best weights."""
        if self.restore and self.best is not None:
            load_snapshot(self.classifier or self.model, self.path)

    def state_dict(self) -> dict[str, Any]:
        """The best so far, for a checkpoint."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]


class BestSoFar(keras.callbacks.Callback):
    """Keeps the weights of a fit's best epoch in memory, to have them back where the fit is cut off.

    Args:
        monitor: the figure, as `fit` logs it; where it does not, the last epoch is the best.

    Attributes:
        epoch: the best epoch so far, counted from 0; None before one is over.
        value: its figure, None where there is none.
    """

    def __init__(self, monitor: str = "val_loss") -> None:
        super().__init__()
        self.monitor = monitor

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget an earlier fit."""
        self.epoch: int | None = None
        self.value: float | None = None
        self._undo: Undo | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the weights, as the last validation saw them, where they are better than those before."""
        value = (logs or {}).get(self.monitor)
        sign = 1 if better_direction(self.monitor, self.model) == "max" else -1
        if value is not None and self.value is not None and not sign * value > sign * self.value:
            return
        self.epoch, self.value = epoch, value
        with as_delivered(self.model):
            weights = [variable.value for variable in self.model.trainable_variables]
            self._undo = remember_tensors([*weights, *moving_statistics(live_batchnorms(self.model))])

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Let go of the weights."""
        self._undo = None

    def restore(self) -> str:
        """Put the best weights back, and say which they are."""
        if self._undo is not None:
            self._undo()
        self._undo = None
        if self.epoch is None:
            return "No epoch was over: the weights are those of now."
        figure = "" if self.value is None else f", {self.monitor.replace('val_', 'valid_')} {self.value:.6f}"
        return f"The weights are those of epoch {self.epoch}, the best so far{figure}."


class CycleSnapshots(keras.callbacks.Callback):
    """Saves the whole classifier after the last batch of each cycle, also while only its head is trained.

    Args:
        classifier: what to save.
        name: path of the snapshots up to `_cyc_{k}.weights.h5`.
        ends: the epochs after which cycles end, such as [1, 3, 7].
    """

    def __init__(self, classifier: keras.Model, name: Path, ends: Sequence[int]) -> None:
        super().__init__()
        self.classifier, self.ends = classifier, list(ends)
        self.saver = SnapshotSaver(name)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Fail now rather than after hours."""
        self.saver.start()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Snapshots of an earlier fit of this name make way; those of a resumed fit stay."""
        if epoch or not is_main():
            return
        for old in self.saver.name.parent.glob(f"{glob.escape(self.saver.name.name)}_cyc_*.weights.h5"):
            old.unlink()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save where a cycle is over."""
        if epoch + 1 in self.ends:
            self.saver.save(self.classifier, self.ends.index(epoch + 1))
