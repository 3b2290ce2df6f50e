"""What a run does, told to TensorBoard, a CSV file, Weights & Biases or MLflow as it goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch

from ..errors import DataError
from .steps import rates_now

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG_CSV, LOG_TENSORBOARD = "log.csv", "tensorboard"  # in the folder of the run
PROJECT = "kclf"


@dataclass(frozen=True)
class Log:
    """One place that a run is told to.

    Args:
        callback: the library's own for Keras.
        numbers: takes figures of the finished run, name -> value.
        picture: takes the name of a picture and a matplotlib figure.
        close: called when the run is over.
    """

    callback: keras.callbacks.Callback
    numbers: Callable[[Mapping[str, float]], Any] = lambda numbers: None
    picture: Callable[[str, Figure], Any] = lambda name, figure: None
    close: Callable[[], Any] = lambda: None


class RunLog(keras.callbacks.Callback):
    """Hands Keras' figures to logs, and with them what Keras has not: rates by layer group, images/s, memory.

    Epochs and batches are counted through all fits of a run, which each begin at 0.

    Args:
        logs: from `open_logs`.
        num_images: images an epoch.
    """

    def __init__(self, logs: Sequence[Log], num_images: int) -> None:
        super().__init__()
        self.logs, self.num_images = list(logs), num_images
        self.epoch = self.step = 0
        self._rates: list[list[float]] = []
        self._seconds = 0.0

    def set_model(self, model: keras.Model) -> None:
        """The model of the fit that begins."""
        super().set_model(model)
        for log in self.logs:
            log.callback.set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """A fit begins."""
        for log in self.logs:
            log.callback.on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._rates, self._seconds, self._start = [], 0.0, time.perf_counter()
        for log in self.logs:
            log.callback.on_epoch_begin(self.epoch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the rates; no loss is read, so that no batch waits for the device."""
        self._rates.append(rates_now(self.model.optimizer))
        for log in self.logs:
            log.callback.on_train_batch_end(self.step, _by_group(self._rates[-1]))
        self.step += 1

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Stop the clock: validation is no training."""
        self._seconds = self._seconds or time.perf_counter() - self._start

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Tell the epoch's figures."""
        seconds = self._seconds or time.perf_counter() - self._start
        figures = {name: float(np.mean(value)) for name, value in (logs or {}).items()}
        figures |= _by_group(np.max(self._rates, axis=0)) if self._rates else {}
        figures |= {"images_per_second": self.num_images / seconds, "memory_mb": peak_memory()}
        for log in self.logs:
            log.callback.on_epoch_end(self.epoch, dict(figures))
        self.epoch += 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """The fit is over; the run may go on."""
        for log in self.logs:
            log.callback.on_train_end(logs)

    def finish(self, numbers: Mapping[str, float], pictures: Mapping[str, Figure]) -> None:
        """Tell figures and pictures of the finished run, and close the logs."""
        for log in self.logs:
            log.numbers(numbers)
            for name, figure in pictures.items():
                log.picture(name, figure)
            log.close()

    def state_dict(self) -> dict[str, Any]:
        """How far the run has come, for a checkpoint."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.epoch, self.step = int(state["epoch"]), int(state["step"])


class TensorBoardLog(keras.callbacks.Callback):
    """Writes the event file of TensorBoard by torch's writer; Keras' own callback asks for TensorFlow.

    Args:
        folder: for the event file.
        settings: of the run, shown as text.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__()
        self.writer = SummaryWriter(str(folder))
        rows = [f"| {name} | {value} |" for name, value in settings.items()]
        self.writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """The rates of a batch."""
        for name, value in (logs or {}).items():
            self.writer.add_scalar(f"batch/{name}", value, batch)

    def finish(self, numbers: Mapping[str, float]) -> None:
        """The figures of the finished run."""
        for name, value in numbers.items():
            self.writer.add_scalar(f"run/{name}", value)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The figures of an epoch, those of validation beside those of training."""
        for name, value in (logs or {}).items():
            place = "valid" if name.startswith("val_") else "train"
            self.writer.add_scalar(f"{place}/{name.removeprefix('val_')}", value, epoch)
        self.writer.flush()


def open_logs(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Log]:
    """The logs of a run.

    Args:
        names: tensorboard, csv, wandb or mlflow. Of the last two the variables of the process hold:
            `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`.
        folder: of the run.
        settings: of the run, name -> value.

    Raises:
        DataError: the package of one is not installed.
    """
    openers = {"tensorboard": _tensorboard, "csv": _csv, "wandb": _wandb, "mlflow": _mlflow}
    if unknown := set(names) - set(openers):
        raise DataError(f"Expected logs among {', '.join(openers)}. Received: {', '.join(sorted(unknown))}")
    try:
        return [openers[name](folder, settings) for name in names]
    except ImportError as error:
        raise DataError(f"{error}. A log needs its package: pip install {' '.join(names)}") from error


def _csv(folder: Path, settings: Mapping[str, Any]) -> Log:
    return Log(keras.callbacks.CSVLogger(str(folder / LOG_CSV), append=True))


def _tensorboard(folder: Path, settings: Mapping[str, Any]) -> Log:
    callback = TensorBoardLog(folder / LOG_TENSORBOARD, settings)
    return Log(callback, callback.finish, callback.writer.add_figure, callback.writer.close)


def _wandb(folder: Path, settings: Mapping[str, Any]) -> Log:
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    run = wandb.init(project=PROJECT, name=folder.name, dir=str(folder), config=dict(settings))
    return Log(
        WandbMetricsLogger(),
        lambda numbers: run.summary.update(dict(numbers)),
        lambda name, figure: run.log({name: wandb.Image(figure)}),
        run.finish,
    )


def _mlflow(folder: Path, settings: Mapping[str, Any]) -> Log:
    import mlflow
    from mlflow.keras import MlflowCallback

    run = mlflow.start_run(run_name=folder.name)
    mlflow.log_params({name: str(value) for name, value in settings.items()})
    return Log(
        MlflowCallback(run=run),
        lambda numbers: mlflow.log_metrics(dict(numbers)),
        lambda name, figure: mlflow.log_figure(figure, f"{name.replace(' ', '_')}.png"),
        mlflow.end_run,
    )


def _by_group(rates: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {f"learning_rate_{number}": float(rate) for number, rate in enumerate(rates)}


def peak_memory() -> float:
    """Most memory that was in use so far, MB: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, kilobytes elsewhere
