"""Pooling of a feature map to one vector."""

from __future__ import annotations

import keras
import torch


@keras.saving.register_keras_serializable(package="kclf")
class ConcatPooling(keras.layers.Layer):
    """Global maximum and average side by side, the maximum first, as fastai's `AdaptiveConcatPool2d`.

    Shape:
        Input (batch, height, width, channels). Output (batch, 2 * channels).

    Example:
        >>> import numpy as np
        >>> ConcatPooling()(np.array([[[[0.0], [4.0]]]])).tolist()
        [[4.0, 2.0]]
    """

    calls_torch_alone = True  # for `accelerate`: without Keras' ceremony

    def call(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, 2 * channels)."""
        return torch.cat([features.amax((1, 2)), features.mean((1, 2))], dim=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """(batch, 2 * channels)."""
        return (input_shape[0], None if input_shape[-1] is None else 2 * input_shape[-1])
