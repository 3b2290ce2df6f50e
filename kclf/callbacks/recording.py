"""What a run did: losses and rates of each batch, a table of epochs, a progress bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import keras
import numpy as np
import torch

from .._core.csv_files import write_csv
from .._core.plotting import new_axes
from .._core.progress import Progress
from ..distributed import is_main
from ..optimizers import layer_group_optimizer
from .steps import LossHook, innermost, momentum_name, warn_of_silence

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BATCHES_OF_A_CURVE = 20  # a smoothed curve has so many that do not lean on each other
SMOOTHING = 0.98  # weight of the past in the loss that is shown, as in fastai
SECONDS_A_LOSS = 0.25  # between two losses that are fetched from a GPU


class ProgressBar(keras.callbacks.Callback):
    """Shows how far a fit has come: epoch, batches, photos/s, smoothed loss, and the time left of all epochs.

    It disappears when the fit is over, and for each line of a table between epochs. No batch waits for it: it
    counts batches begun, and from a GPU takes the loss that has arrived. In a notebook it is an output of the
    cell; where standard error is no terminal it shows nothing.

    Args:
        batch_size: photos a batch, for the speed; None shows none.
        total: batches of all; None takes epochs times steps.
        name: what is done; None says which epoch it is.
    """

    def __init__(
        self, batch_size: int | None = None, *, total: int | None = None, name: str | None = None
    ) -> None:
        super().__init__()
        self.batch_size, self.total, self.name = batch_size, total, name
        self._tap: LossHook | None = None
        self._bar: Progress | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Listen to the losses."""
        self.close()
        self._loss = LateLoss()
        self._tap = LossHook(self.model, self._receive)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar and listen no more, also where a fit was cut off."""
        if self._tap is not None:
            self._tap.close()
        if self._bar is not None:
            self._bar.close()
        self._tap = self._bar = None

    def _receive(self, loss: torch.Tensor) -> None:
        value = self._loss.add(loss)
        if value is not None and self._bar is not None:
            self._bar.note(f"loss {value:.4f}")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Say which epoch it is; the first opens the bar."""
        known = self.params or {}
        steps, epochs = known.get("steps"), known.get("epochs")
        self._epoch = f"epoch {epoch + 1}/{epochs}" if self.name is None else self.name
        if self._bar is None:
            self._bar = Progress(
                self.total or (steps and epochs and steps * epochs),
                self._epoch,
                unit="batches",
                photos=self.batch_size or 0,
                shown=is_main(),
                done=0 if self.total else epoch * (steps or 0),
                delay=0.0,
            )
        self._bar.set_description_str(self._epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """One batch more."""
        if self._bar is not None:
            self._bar.update()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Say that the validation photos are on."""
        if self._bar is not None:
            self._bar.set_description_str("validation")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Make room for the epoch's line."""
        if self._bar is not None and self.name is None:
            self._bar.clear()


class LateLoss:
    """The debiased moving average of losses, for show: at once on a CPU, when it has arrived from a GPU."""

    def __init__(self) -> None:
        self._average: torch.Tensor | None = None
        self._count, self._sent = 0, 0.0
        self._arriving: tuple[torch.cuda.Event, torch.Tensor, int] | None = None

    def add(self, loss: torch.Tensor) -> float | None:
        """Take one loss; gives the newest average that is at hand, None where none is new."""
        loss = loss.detach().float()
        average = torch.zeros_like(loss) if self._average is None else self._average
        self._average = average.mul_(SMOOTHING).add_(loss, alpha=1 - SMOOTHING)
        self._count += 1
        if loss.device.type == "cpu":
            return float(average) / (1 - SMOOTHING**self._count)
        return self._from_device(average) if loss.device.type == "cuda" else None

    def _from_device(self, average: torch.Tensor) -> float | None:
        found, now = None, time.monotonic()
        if self._arriving is not None and self._arriving[0].query():
            _, on_host, count = self._arriving
            found = float(on_host) / (1 - SMOOTHING**count)
            self._arriving = None
        if self._arriving is None and now - self._sent > SECONDS_A_LOSS:
            self._sent = now
            arrived, on_host = torch.cuda.Event(), torch.empty((), pin_memory=True)
            on_host.copy_(average, non_blocking=True)
            arrived.record()
            self._arriving = arrived, on_host, self._count
        return found


class Recorder(keras.callbacks.Callback):
    """Keeps the learning rate, momentum and loss of every batch of every fit it is given to.

    Losses stay on the device and are fetched once an epoch: no batch waits. They are the losses of the
    batches themselves, where Keras reports means since the epoch began.

    Args:
        smoothing: weight of the past in the smoothed loss, in [0, 1).

    Attributes:
        losses: raw loss of each batch, list of floats.
        learning_rates: rate of each batch (the last group's).
        momentums: momentum or beta_1 of each batch, NaN where the optimizer has none.
        epochs: one dict of Keras' logs an epoch; of a metric with one figure a class, their mean.

    Example:
        >>> recorder = Recorder()
        >>> recorder.losses
        []
    """

    _FIGURES = ("losses", "learning_rates", "momentums")

    def __init__(self, smoothing: float = 0.98) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.momentums: list[float] = []
        self.epochs: list[dict[str, float]] = []
        self._begun: list[int] = []  # batches done where each fit began
        self._ends: list[int] = []  # batches done at the end of each epoch
        self._tap: LossHook | None = None
        self._pending: list[tuple[torch.Tensor, float | torch.Tensor, float]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start listening."""
        if self._tap is not None:  # the last fit was interrupted
            self._tap.close()
        self._fetch()
        if self._begun[-1:] != [len(self.losses)]:
            self._begun.append(len(self.losses))
        self._momentum_name = momentum_name(self.model.optimizer)
        self._tap = LossHook(self.model, self._receive)
        self._heard = False

    def _receive(self, loss: torch.Tensor) -> None:
        self._heard = True
        optimizer, name = self.model.optimizer, self._momentum_name
        momentum = getattr(innermost(optimizer), name) if name else float("nan")
        self._pending.append((loss, current_rate(optimizer), momentum))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Fetch what the epoch left on the device; say so where there was nothing to hear."""
        if not self._heard:
            warn_of_silence(self)
            self._heard = True  # said once a fit
        self._fetch()
        self.epochs.append({name: float(np.mean(value)) for name, value in (logs or {}).items()})
        self._ends.append(len(self.losses))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stop listening."""
        self._fetch()
        if self._tap is not None:
            self._tap.close()

    def _fetch(self) -> None:
        if self._pending:
            losses, rates, momentums = zip(*self._pending, strict=True)
            self.losses += torch.stack(losses).float().tolist()
            self.learning_rates += [float(rate) for rate in rates]
            self.momentums += momentums
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """All that was recorded, for a checkpoint."""
        self._fetch()
        figures = {name: np.array(getattr(self, name), np.float64) for name in self._FIGURES}
        places = {"ends": np.array(self._ends, np.int64), "begun": np.array(self._begun, np.int64)}
        return {**figures, **places, "epochs": [dict(logs) for logs in self.epochs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._pending = []
        for name in self._FIGURES:
            setattr(self, name, state[name].tolist())
        self._ends, self._begun = state["ends"].tolist(), state["begun"].tolist()
        self.epochs = [dict(logs) for logs in state["epochs"]]

    @property
    def epoch_ends(self) -> list[int]:
        """Batches done at the end of each epoch."""
        return list(self._ends)

    @property
    def smoothed_losses(self) -> np.ndarray:
        """Debiased moving average of the losses, which begins anew with each fit, float64 (batches,)."""
        ends = [*self._begun[1:], len(self.losses)]
        fits = [self.losses[start:end] for start, end in zip(self._begun, ends, strict=True)]
        return np.concatenate([smooth(fit, self.smoothing) for fit in fits] or [np.zeros(0)])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line a batch: step, learning_rate, momentum, loss, smoothed_loss."""
        rows = zip(self.learning_rates, self.momentums, self.losses, self.smoothed_losses, strict=True)
        header = ["step", "learning_rate", "momentum", "loss", "smoothed_loss"]
        write_csv(path, [header, *([step, *row] for step, row in enumerate(rows))])

    def plot_lr(self, *, ax: Axes | None = None) -> Axes:
        """Learning rate over batches; returns the axes."""
        return line_plot(self.learning_rates, "learning rate", ax)

    def plot_momentum(self, *, ax: Axes | None = None) -> Axes:
        """Momentum over batches; returns the axes."""
        return line_plot(self.momentums, "momentum", ax)

    def plot_loss(self, *, skip_start: int = 5, ax: Axes | None = None) -> Axes:
        """Smoothed training loss over batches, and the validation loss at the end of each epoch.

        A short run is smoothed over fewer batches than a long one, so that the line does not lag behind.

        Args:
            skip_start: batches left out at the start, where the loss is far above the rest; of a run of fewer
                than ten times as many, none.
            ax: axes to draw on; new ones when None.
        """
        count = len(self.losses)
        skip_start = skip_start if count >= 10 * skip_start else 0
        smoothed = smooth(self.losses, min(self.smoothing, smoothing_of(count)))
        axes = ax or new_axes()
        axes.plot(range(count)[skip_start:], smoothed[skip_start:], label="train")
        valid = [logs.get("val_loss", float("nan")) for logs in self.epochs]
        if not np.all(np.isnan(valid)):
            axes.plot(self._ends, valid, marker="o", label="valid")
        axes.set(xlabel="batch", ylabel="loss", title="Loss")
        whole_ticks(axes)
        axes.legend()
        return axes

    def plot_metric(self, name: str = "accuracy", *, ax: Axes | None = None) -> Axes:
        """A metric of the validation images at the end of each epoch; of the training images without them.

        Args:
            name: of the metric.
            ax: axes to draw on; new ones when None.
        """
        values = [logs.get(f"val_{name}", logs.get(name, float("nan"))) for logs in self.epochs]
        axes = ax or new_axes()
        axes.plot(range(1, len(values) + 1), values, marker="o")
        axes.set(xlabel="epoch", ylabel=name, title=name.replace("_", " ").capitalize())
        whole_ticks(axes)
        return axes


def whole_ticks(axes: Axes) -> None:
    """Write whole numbers alone below: there is no batch 1.5."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def smoothing_of(batches: int) -> float:
    """Weight of the past by which a moving average spans a twentieth of a run."""
    return max(0.0, 1 - BATCHES_OF_A_CURVE / max(batches, 1))


def current_rate(optimizer: keras.optimizers.Optimizer) -> float | torch.Tensor:
    """The learning rate now, without waiting: a number, or a copy that is still on the device."""
    groups = layer_group_optimizer(optimizer)
    if groups is not None:
        return groups.learning_rates[-1]
    rate = optimizer.learning_rate
    tensor = rate.value if isinstance(rate, keras.Variable) else rate
    return tensor.detach().clone() if torch.is_tensor(tensor) else float(tensor)


def smooth(losses: list[float], smoothing: float = 0.98) -> np.ndarray:
    """Debiased exponential moving average: avg <- s avg + (1 - s) loss; avg / (1 - s ** k).

    Args:
        losses: (n,) floats.
        smoothing: weight of the past, in [0, 1).

    Returns:
        float64 (n,).

    Example:
        >>> smooth([1.0, 1.0, 1.0], 0.9).round(6).tolist()
        [1.0, 1.0, 1.0]
    """
    average, smoothed = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = smoothing * average + (1 - smoothing) * loss
        smoothed.append(average / (1 - smoothing**count))
    return np.array(smoothed, dtype="float64")


def line_plot(values: Sequence[float] | np.ndarray, name: str, ax: Axes | None) -> Axes:
    """Draw the values of batches as a line, on axes or in a new figure."""
    axes = ax or new_axes()
    axes.plot(values)
    axes.set(xlabel="batch", ylabel=name, title=name.capitalize())
    whole_ticks(axes)
    return axes


class EpochTable(keras.callbacks.Callback):
    """The course's table, one plain line an epoch: epoch, train_loss, valid_loss, metrics, time.

    Metrics are those of the validation data where there are any. Meant for `fit(verbose=0)`.

    Args:
        file: where to print; standard output when None.
        recorder: whose smoothed loss is the train_loss, as in the course; None has the epoch's mean. It has
            to come before the table in the callbacks.

    Example:
        >>> table = EpochTable()
        >>> table.line({"loss": 0.5, "val_loss": 0.25, "val_accuracy": 0.9}, epoch=0, seconds=75)
        '    0   0.500000   0.250000   0.900000   01:15'
    """

    def __init__(self, file: IO[str] | None = None, recorder: Recorder | None = None) -> None:
        super().__init__()
        self.file, self.recorder = file, recorder
        self.rows: list[dict[str, Any]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start a new table."""
        self._header: str | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Print the epoch's line."""
        seconds = time.perf_counter() - self._start
        logs = dict(logs or {})
        if self.recorder is not None and self.recorder.losses:
            logs["loss"] = float(self.recorder.smoothed_losses[-1])
        columns = self.columns(logs)
        self.rows.append({"epoch": epoch, **columns, "time": seconds})
        if not is_main():
            return
        header = self.header(logs)
        stream = self.file or sys.stdout
        if header != self._header:
            print(header, file=stream)
            self._header = header
        print(self.line(logs, epoch=epoch, seconds=seconds), file=stream, flush=True)

    def state_dict(self) -> dict[str, Any]:
        """The lines so far, for a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; nothing is printed again."""
        self.rows = [dict(row) for row in state["rows"]]

    @staticmethod
    def columns(logs: dict[str, float]) -> dict[str, float]:
        """The figures of one epoch under the table's names; of a metric with one a class, their mean."""
        logs = {name: float(np.mean(value)) for name, value in logs.items()}
        columns = {"train_loss": logs.get("loss", float("nan"))}
        if "val_loss" in logs:
            columns["valid_loss"] = logs["val_loss"]
        for name, value in logs.items():
            if name != "loss" and not name.startswith(("val_", "learning_rate")):
                columns[name] = logs.get(f"val_{name}", value)
        for name, value in logs.items():
            if name.startswith("val_") and name != "val_loss":
                columns.setdefault(name.removeprefix("val_"), value)
        return columns

    @classmethod
    def header(cls, logs: dict[str, float]) -> str:
        """The names of the columns, aligned with the figures."""
        names = [f"{name:>{_width(name)}}" for name in cls.columns(logs)]
        return " ".join(["epoch", *names, "   time"])

    @classmethod
    def line(cls, logs: dict[str, float], *, epoch: int, seconds: float) -> str:
        """One epoch as a line."""
        figures = [f"{value:>{_width(name)}.6f}" for name, value in cls.columns(logs).items()]
        minutes, rest = divmod(round(seconds), 60)
        return " ".join([f"{epoch:>5}", *figures, f"  {minutes:02d}:{rest:02d}"])


def _width(name: str) -> int:
    return max(10, len(name))
