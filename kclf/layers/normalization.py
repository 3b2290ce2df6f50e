"""What a backbone wants to see: grey levels in [0, 255] brought to the scale it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor

from .._core.arguments import one_of
from .._core.devices import send
from .base import Float32Layer, SameShape

COLOURS = 3
# Mean and standard deviation in grey levels, red first.
_STATISTICS = {
    "tf": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "torch": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # of ImageNet; torch has them in [0, 1]
    "caffe": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),  # ImageNet's mean, blue first after it
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@keras.saving.register_keras_serializable(package="kclf")
class InputNormalization(SameShape, Float32Layer):
    """The backbone's own normalisation: right for whole numbers, never in place, float32 under any policy.

    Args:
        mode: "tf" (to [-1, 1]), "torch" (ImageNet's mean and standard deviation), "caffe" (mean taken off,
            blue first) or "none" (for backbones that normalise by themselves), as `keras.applications`
            names them.
        mean: instead of a mode: what is taken off, in grey levels; one number or one for each channel. What
            is no photo (depth, infrared, radar) is best given its own.
        std: with `mean`: what is divided by, in grey levels; one number or one for each channel.

    Shape:
        Input (batch, height, width, channels), uint8 or float in [0, 255]. Output of the same shape, float32.
        A mode has figures for red, green and blue, which are the first three of three or more channels; every
        other channel, and a single one, takes their mean.

    Example:
        >>> import numpy as np
        >>> InputNormalization("tf")(np.full((1, 1, 1, 3), 255, "uint8")).flatten().tolist()
        [1.0, 1.0, 1.0]
        >>> InputNormalization(mean=127, std=128)(np.full((1, 1, 1, 3), 255.0)).flatten().tolist()
        [1.0, 1.0, 1.0]
    """

    _settings = ("mode", "mean", "std")

    def __init__(
        self,
        mode: str | None = None,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(options)
        if (mode is None) == (mean is None) or (mean is None) != (std is None):
            raise ValueError(
                "Give either `mode` or both `mean` and `std`. "
                f"Received: mode={mode!r}, mean={mean!r}, std={std!r}"
            )
        self.mode = mode if mode is None else one_of("mode", mode, tuple(_STATISTICS))
        self.mean = None if mean is None else _levels("mean", mean)
        self.std = None if std is None else _levels("std", std)
        if self.std and min(self.std) <= 0:
            raise ValueError(f"`std` must be above 0. Received: std={std!r}")
        statistics = _STATISTICS[self.mode] if self.mode else (self.mean, self.std)
        self._mean, self._std = (torch.tensor(levels) for levels in statistics)
        self._sent: tuple[Any, ...] = ()

    def call(self, images: Tensor) -> Tensor:
        """Normalised images."""
        images = images.to(torch.float32)
        if self.mode == "none":
            return images
        channels = images.shape[-1]
        mean, std = self._levels_on(images.device, channels)
        normalized = (images - mean) / std
        if self.mode != "caffe" or channels < COLOURS:
            return normalized
        blue_first = normalized[..., :COLOURS].flip(-1)
        return blue_first if channels == COLOURS else torch.cat([blue_first, normalized[..., COLOURS:]], -1)

    def _levels_on(self, device: torch.device, channels: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel on a device, sent to CUDA once."""
        if self._sent[:2] == (device, channels):
            return self._sent[2:]
        mean, std = (send(self._levels_of(one, channels), device) for one in (self._mean, self._std))
        if device.type == "cuda":
            self._sent = (device, channels, mean, std)
        return mean, std

    def _levels_of(self, levels: Tensor, channels: int) -> Tensor:
        """Figures of red, green and blue as those of so many channels; others as they are."""
        if self.mode is None and len(levels) not in (1, channels):
            raise ValueError(
                f"Expected images of {len(levels)} channels, one for each mean and std. Received: {channels}"
            )
        if self.mode is None or channels == COLOURS:
            return levels
        others = levels.mean().expand(channels)
        return others if channels < COLOURS else torch.cat([levels, others[COLOURS:]])


def _levels(name: str, value: float | Sequence[float]) -> tuple[float, ...]:
    levels = tuple(np.ravel(np.asarray(value, dtype=np.float64)).tolist())
    if not levels:
        raise ValueError(f"`{name}` must be one number or one for each channel. Received: {name}={value!r}")
    return levels
