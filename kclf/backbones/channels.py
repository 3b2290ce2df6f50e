"""Backbones for images of other than three channels, with the weights that were trained on three."""

from __future__ import annotations

import keras
import numpy as np

from ..errors import BackboneError
from ..weights import array_of, layer_keys, named_variables

COLOURS = 3  # channels that all published weights are for


def adapted_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution's kernel for another number of channels.

    One channel gets the sum over red, green and blue, as a grey image in all three would give. More get them
    in turn (red, green, blue, red, ...), scaled by 3 / channels so that the size of the result stays; timm
    does the same (`adapt_input_conv`).

    Args:
        kernel: float (height, width, 3, filters).
        channels: how many there are to be.

    Example:
        >>> adapted_kernel(np.ones((1, 1, 3, 1)), 1).tolist(), adapted_kernel(np.ones((1, 1, 3, 1)), 4).shape
        ([[[[3.0]]]], (1, 1, 4, 1))
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(channels) % COLOURS] * (COLOURS / channels)


def copy_adapted(source: keras.Model, target: keras.Model, channels: int) -> None:
    """Give a backbone for `channels` channels the weights of the same one for three.

    Raises:
        BackboneError: another layer than one first convolution depends on the number of channels.
    """
    layers = layer_keys(target)
    for key, layer in layer_keys(source).items():
        ours = named_variables(layers[key])
        for name, variable in named_variables(layer).items():
            value, wanted = array_of(variable), tuple(ours[name].shape)
            ours[name].assign(value if value.shape == wanted else _adapted(value, wanted, channels, key))


def _adapted(value: np.ndarray, wanted: tuple[int, ...], channels: int, key: str) -> np.ndarray:
    """A variable's value in the shape that another number of channels gives it."""
    if value.ndim == 4 and value.shape[2] == COLOURS:
        return adapted_kernel(value, channels)
    if value.shape[-1:] == (COLOURS,) and wanted[-1:] == (channels,):  # statistics of the input
        return np.broadcast_to(value.mean(axis=-1, keepdims=True), wanted)
    raise BackboneError(
        f"The layer {key} of this backbone cannot be brought to {channels} channels. Take another backbone."
    )
