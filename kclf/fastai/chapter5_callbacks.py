"""fastai 2's callbacks and losses: settings of the learner, or Keras callbacks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import keras
from PIL import Image

from ..data.images import as_pixels, read_image
from ..losses import CrossEntropy

minimum, steep, valley, slide = "minimum", "steep", "valley", "slide"  # for `lr_find(suggest_funcs=)`


@dataclass(frozen=True)
class Setting:
    """A callback of fastai's that is a setting of a learner, for all fits or for one.

    Args:
        name: of the setting, see `Learner`.
        value: of it.
    """

    name: str
    value: float


def MixUp(alpha: float = 0.4) -> Setting:
    """Blend photos, and their labels."""
    return Setting("mixup", alpha)


def CutMix(alpha: float = 1.0) -> Setting:
    """Cut parts of photos into others, and mix their labels."""
    return Setting("cutmix", alpha)


def GradientClip(max_norm: float = 1.0) -> Setting:
    """Clip the norm of the gradient of all weights together."""
    return Setting("clip", max_norm)


@dataclass(frozen=True)
class SaveModelCallback:
    """Save the best weights of a fit in `models/`, and load them at its end.

    Args:
        monitor: "valid_loss", or a metric of the validation photos, such as "accuracy".
        comp: not needed: a loss or an error is better when it is lower, all else when it is higher.
        fname: of the weights.
    """

    monitor: str = "valid_loss"
    comp: Any = None
    fname: str = "model"

    def of(self, learner: Any) -> keras.callbacks.Callback:
        """The callback for a learner."""
        return learner.best_model(self.fname, monitor=_of_validation(self.monitor))


def EarlyStoppingCallback(
    monitor: str = "valid_loss", comp: Any = None, min_delta: float = 0.0, patience: int = 1
) -> keras.callbacks.EarlyStopping:
    """Stop when a figure of the validation photos gets no better.

    Args:
        monitor: "valid_loss", or a metric.
        comp: not needed, as for `SaveModelCallback`.
        min_delta: less is no gain.
        patience: epochs to wait.
    """
    mode = "min" if "loss" in monitor or "error" in monitor else "max"
    return keras.callbacks.EarlyStopping(_of_validation(monitor), min_delta, patience, mode=mode)


def CSVLogger(fname: str = "history.csv", append: bool = False) -> keras.callbacks.CSVLogger:
    """Write the figures of each epoch into a CSV file."""
    return keras.callbacks.CSVLogger(fname, append=append)


def CrossEntropyLossFlat() -> CrossEntropy:
    """Cross-entropy from logits."""
    return CrossEntropy()


def LabelSmoothingCrossEntropy(eps: float = 0.1) -> CrossEntropy:
    """Cross-entropy with a share of each label spread over all classes."""
    return CrossEntropy(label_smoothing=eps)


def FocalLossFlat(gamma: float = 2.0) -> CrossEntropy:
    """Cross-entropy in which photos count less that are already right."""
    return CrossEntropy(focal_gamma=gamma)


class PILImage:
    """`PILImage.create(file)`, for `learn.predict`."""

    @staticmethod
    def create(fn: Any) -> Image.Image:
        """The photo in a file, or of pixels (height, width, 3), as PIL has it."""
        return Image.fromarray(read_image(fn) if isinstance(fn, str | os.PathLike) else as_pixels(fn))


def _of_validation(monitor: str) -> str:
    """Keras' name of what fastai's table shows of the validation photos."""
    if monitor == "train_loss":
        return "loss"
    return monitor if monitor.startswith("val_") else f"val_{monitor.removeprefix('valid_')}"
