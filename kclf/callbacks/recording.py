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
from tqdm.auto import tqdm

from .._core.csv_files import write_csv
from .._core.plotting import new_axes
from ..distributed import is_main
from ..optimizers import layer_group_optimizer
from .steps import LossHook, innermost, momentum_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BATCHES_OF_A_CURVE = 20  # a smoothed curve has so many that do not lean on each other
SECONDS_A_LOSS = 0.5  # between two losses that are shown


class ProgressBar(keras.callbacks.Callback):
    """Shows how far the epoch has come, with images/s, the time left, and on a CPU the loss.

    It disappears when the epoch is over. It counts batches begun and reads no loss from a GPU, so that no
    batch waits for the device. In a notebook it is a widget; where standard error is no terminal it shows
    nothing.

    Args:
        batch_size: images a batch; None counts batches.
    """

    def __init__(self, batch_size: int | None = None) -> None:
        super().__init__()
        self.batch_size = batch_size
        self._tap: LossHook | None = None
        self._shown = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Listen to the losses."""
        self._tap = LossHook(self.model, self._receive)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Listen no more."""
        if self._tap is not None:
            self._tap.close()

    def _receive(self, loss: torch.Tensor) -> None:
        now = time.monotonic()
        if loss.device.type == "cpu" and now - self._shown > SECONDS_A_LOSS:
            self._shown = now
            self._bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Open the bar."""
        self._bar = tqdm(
            total=(self.params or {}).get("steps"),
            desc=f"epoch {epoch}",
            unit="batch" if self.batch_size is None else "img",
            unit_scale=self.batch_size or False,
            leave=False,
            disable=None if sys.stderr is not None and is_main() else True,
            file=sys.stderr,
        )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """One batch more."""
        self._bar.update()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Say that the validation photos are on."""
        if getattr(self, "_bar", None) is not None:
            self._bar.set_description("validation")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remove the bar before the epoch's line is printed."""
        self._bar.close()


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
        self._ends: list[int] = []  # batches done at the end of each epoch
        self._tap: LossHook | None = None
        self._pending: list[tuple[torch.Tensor, float | torch.Tensor, float]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start listening."""
        if self._tap is not None:  # the last fit was interrupted
            self._tap.close()
        self._fetch()
        self._momentum_name = momentum_name(self.model.optimizer)
        self._tap = LossHook(self.model, self._receive)

    def _receive(self, loss: torch.Tensor) -> None:
        optimizer, name = self.model.optimizer, self._momentum_name
        momentum = getattr(innermost(optimizer), name) if name else float("nan")
        self._pending.append((loss, current_rate(optimizer), momentum))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Fetch what the epoch left on the device."""
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
        ends = np.array(self._ends, np.int64)
        return {**figures, "ends": ends, "epochs": [dict(logs) for logs in self.epochs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._pending = []
        for name in self._FIGURES:
            setattr(self, name, state[name].tolist())
        self._ends = state["ends"].tolist()
        self.epochs = [dict(logs) for logs in state["epochs"]]

    @property
    def smoothed_losses(self) -> np.ndarray:
        """Debiased moving average of the losses, float64 (batches,)."""
        return smooth(self.losses, self.smoothing)

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

    Example:
        >>> table = EpochTable()
        >>> table.line({"loss": 0.5, "val_loss": 0.25, "val_accuracy": 0.9}, epoch=0, seconds=75)
        '    0   0.500000   0.250000   0.900000   01:15'
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        super().__init__()
        self.file = file
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
        columns = self.columns(logs or {})
        self.rows.append({"epoch": epoch, **columns, "time": seconds})
        if not is_main():
            return
        header = self.header(logs or {})
        stream = self.file or sys.stdout
        if header != self._header:
            print(header, file=stream)
            self._header = header
        print(self.line(logs or {}, epoch=epoch, seconds=seconds), file=stream, flush=True)

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
            if name not in {"loss", "learning_rate"} and not name.startswith("val_"):
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
