"""Units of the targets of a regression."""

from __future__ import annotations

import keras

from .base import SameShape


@keras.saving.register_keras_serializable(package="kclf")
class TargetUnits(SameShape, keras.layers.Layer):
    """Outputs in the units of the targets: `outputs * scale + offset`, each a fixed number for a target.

    Layers before it compute standardised targets, whatever unit ages or prices come in: started at zero,
    they say the mean of the training targets, and a rate that suits one data set suits another.

    Shape:
        Input and output (batch, targets).

    Example:
        >>> import numpy as np
        >>> layer = TargetUnits()
        >>> layer.build((None, 1))
        >>> layer.set_weights([np.array([20.0]), np.array([30.0])])
        >>> layer(np.array([[1.5]])).tolist()
        [[60.0]]
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights, 1 and 0."""
        shape = (input_shape[-1],)
        self.scale = self.add_weight(shape=shape, initializer="ones", trainable=False, name="scale")
        self.offset = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="offset")

    def call(self, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """(batch, targets), in their own units."""
        return outputs * self.scale + self.offset
