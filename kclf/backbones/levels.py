"""Features of several levels of a backbone side by side, for photos unlike those that it was trained on.

Early layers know strokes and textures, the last ones objects: what a drawing or a scan shows may be gone from
the last map. Head2Toe: Evci et al. 2022, https://arxiv.org/abs/2201.03529.
"""

from __future__ import annotations

from typing import TypeGuard

import keras

from ..errors import BackboneError
from ..layers import ConcatPooling

LEVELS = "levels"  # name of the layer that sets them side by side
PADDINGS = (keras.layers.ZeroPadding2D, keras.layers.Cropping2D)


def multi_level(backbone: keras.Model) -> keras.Model:
    """A backbone that ends in the pooled maps of all its resolutions, and no longer in its last map alone.

    The last map before each step down in resolution is pooled, by maximum and average; the features of the
    backbone itself stand last. Layers and weights are shared.

    Args:
        backbone: a functional model for images of a fixed size that ends in a map.

    Returns:
        A functional model from the same images to (batch, features).

    Raises:
        BackboneError: it ends in no map, as transformers do, or has no maps before it.

    Example:
        >>> from kclf.backbones import build_backbone
        >>> body = build_backbone("MobileNetV2", weights=None, input_shape=(64, 64, 3))
        >>> multi_level(body).output_shape
        (None, 4576)
    """
    made = _with_levels(backbone)
    if made is None:
        raise BackboneError(
            "Expected a functional backbone for images of a fixed size that ends in a map, with maps of "
            "higher resolution before it, and without branches of many layers (InceptionV3). "
            f"Received: {backbone.name!r}, which ends in shape {backbone.output_shape}"
        )
    return made


def has_levels(backbone: keras.Model) -> bool:
    """Whether `multi_level` can be made of a backbone."""
    return _with_levels(backbone) is not None


def _with_levels(backbone: keras.Model) -> keras.Model | None:
    """None where there are no levels, or where the weights would come in another order."""
    maps = _earlier_maps(backbone)
    if not maps:
        return None
    pooled = [
        ConcatPooling(name=f"level_{number}")(one) for number, one in enumerate([*maps, backbone.output], 1)
    ]
    made = keras.Model(backbone.inputs, keras.layers.Concatenate(name=LEVELS)(pooled), name=backbone.name)
    same = [*map(id, made.weights)] == [*map(id, backbone.weights)]
    return made if same else None


def _earlier_maps(backbone: keras.Model) -> list[keras.KerasTensor]:
    """The last map of each resolution above that of the end, input side first."""
    end = getattr(backbone, "output", None)
    if not _is_map(end):
        return []
    found: dict[tuple[int, int], keras.KerasTensor] = {}
    for operation in backbone.operations:
        value = operation.output
        if isinstance(operation, (keras.layers.InputLayer, *PADDINGS)) or not _is_map(value):
            continue
        if value.shape[1] > end.shape[1] and value.shape[2] > end.shape[2]:
            found[value.shape[1:3]] = value
    sides = tuple(backbone.input_shape[1:3])
    return [value for shape, value in found.items() if shape != sides]


def _is_map(value: object) -> TypeGuard[keras.KerasTensor]:
    return isinstance(value, keras.KerasTensor) and len(value.shape) == 4 and None not in value.shape[1:]
