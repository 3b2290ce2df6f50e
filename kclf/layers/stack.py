"""An augmentation followed by other layers of random transformations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from torch import Tensor

from .augmentation import Augmentation
from .base import output_size


@keras.saving.register_keras_serializable(package="kclf")
class AugmentationStack(Augmentation):
    """`Augmentation`, and then, in training, other layers: `RandomErasing`, `keras.layers.RandomFlip`, ...

    Args:
        size: as for `Augmentation`.
        layers: Keras layers of images (batch, *size, channels), float32 in [0, 255], that keep the
            shape.
        **options: as for `Augmentation`.

    Example:
        >>> import numpy as np
        >>> stack = AugmentationStack(16, layers=[keras.layers.RandomFlip(seed=1)], seed=1)
        >>> tuple(stack(np.zeros((2, 32, 32, 3), "uint8"), training=True).shape)
        (2, 16, 16, 3)
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        *,
        layers: Sequence[keras.layers.Layer | dict[str, Any]] = (),
        **options: Any,
    ) -> None:
        super().__init__(size, **options)
        made = [keras.saving.deserialize_keras_object(x) if isinstance(x, dict) else x for x in layers]
        wrong = [layer for layer in made if not isinstance(layer, keras.layers.Layer)]
        if wrong:
            raise TypeError(f"Expected Keras layers that change images. Received: {wrong}")
        self.layers = made

    def build(self, input_shape: Any) -> None:
        """Build the layers for images as they leave the augmentation."""
        for layer in self.layers:
            if not layer.built:
                layer.build(input_shape)
        super().build(input_shape)

    def call(self, images: Tensor, training: bool | None = None) -> Tensor:
        """A random view of each image through all layers (training), or its centre."""
        images = super().call(images, training=training)
        if training and not images.is_meta:
            for layer in self.layers:
                images = layer(images, training=True)
        return images

    @property
    def is_random(self) -> bool:
        """Whether training images can differ from plain ones."""
        return bool(self.layers) or super().is_random

    def get_config(self) -> dict[str, Any]:
        """The arguments that give this layer again."""
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.layers]
        return {**super().get_config(), "layers": layers}


def as_augmentation(layer: keras.layers.Layer | None, size: int | tuple[int, int]) -> Augmentation:
    """Any layer of random transformations as an `Augmentation` that gives images of a size.

    Args:
        layer: an `Augmentation`, which is taken as it is where its size is the same; another Keras layer of
            images, which comes after the resampling; None for no augmentation.
        size: in pixels.
    """
    if layer is None:
        return Augmentation(size)
    if isinstance(layer, Augmentation):
        return layer if layer.size == output_size(size) else layer.resized(size)
    if isinstance(layer, keras.layers.Layer):
        return AugmentationStack(size, layers=[layer])
    raise TypeError(
        "Expected an Augmentation, such as aug_transforms(), or a Keras layer of images. "
        f"Received: augmentation={layer!r}"
    )
