"""ConvNeXt with weights of ImageNet-22k, and ConvNeXt V2, as their authors lay them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from .._core.sizes import InputShape
from ..layers.tokens import GlobalResponseNormalization, LayerScale

EPSILON = 1e-6  # of every LayerNormalization
SCALE_START = 1e-6
EXPANSION = 4
KERNEL = 7  # of the depthwise convolutions
PATCH = 4  # stride of the stem


@dataclass(frozen=True)
class ConvNeXtPlan:
    """What distinguishes one ConvNeXt from another.

    Attributes:
        depths: blocks of the four stages.
        width: channels of the first stage; each later one has twice as many.
        response: global response normalisation in place of the layer scale: version 2.
    """

    depths: tuple[int, int, int, int]
    width: int
    response: bool = False


_V1 = {
    "Tiny": ((3, 3, 9, 3), 96),
    "Small": ((3, 3, 27, 3), 96),
    "Base": ((3, 3, 27, 3), 128),
    "Large": ((3, 3, 27, 3), 192),
    "XLarge": ((3, 3, 27, 3), 256),
}
_V2 = {
    "Atto": ((2, 2, 6, 2), 40),
    "Femto": ((2, 2, 6, 2), 48),
    "Pico": ((2, 2, 6, 2), 64),
    "Nano": ((2, 2, 8, 2), 80),
    "Tiny": ((3, 3, 9, 3), 96),
    "Base": ((3, 3, 27, 3), 128),
}
CONVNEXTS = {
    **{f"ConvNeXt{size}22k": ConvNeXtPlan(*row) for size, row in _V1.items()},
    **{f"ConvNeXtV2{size}": ConvNeXtPlan(*row, response=True) for size, row in _V2.items()},
}


def convnext(name: str, input_shape: InputShape = (None, None, 3)) -> keras.Model:
    """A ConvNeXt without top and with random weights.

    Layers bear the names of Keras' own ConvNeXts, so that tools for those serve these; as there, the last
    normalisation is over the channels of each cell of the map.

    Args:
        name: a key of `CONVNEXTS`.
        input_shape: (height, width, channels); None leaves a side open.

    Returns:
        A functional model (batch, height, width, channels) -> (batch, height / 32, width / 32, features).
    """
    plan, prefix = CONVNEXTS[name], name.lower()
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(plan.width, PATCH, PATCH, name=f"{prefix}_stem_conv")(inputs)
    x = _normalized(x, f"{prefix}_stem_layernorm")
    for stage, depth in enumerate(plan.depths):
        if stage:
            x = _normalized(x, f"{prefix}_downsampling_layernorm_{stage - 1}")
            conv = layers.Conv2D(plan.width * 2**stage, 2, 2, name=f"{prefix}_downsampling_conv_{stage - 1}")
            x = conv(x)
        for block in range(depth):
            x = _block(x, f"{prefix}_stage_{stage}_block_{block}", plan.response)
    x = _normalized(x, f"{prefix}_final_layernorm")
    return keras.Model(inputs, x, name=prefix)


def _normalized(x: Any, name: str) -> Any:
    return layers.LayerNormalization(epsilon=EPSILON, name=name)(x)


def _block(inputs: Any, name: str, response: bool) -> Any:
    """Depthwise convolution, normalisation, two dense layers with GELU between, added to the input."""
    channels = inputs.shape[-1]
    x = layers.DepthwiseConv2D(KERNEL, padding="same", name=f"{name}_depthwise_conv")(inputs)
    x = _normalized(x, f"{name}_layernorm")
    x = layers.Dense(EXPANSION * channels, activation="gelu", name=f"{name}_pointwise_conv_1")(x)
    if response:
        x = GlobalResponseNormalization(name=f"{name}_response")(x)
    x = layers.Dense(channels, name=f"{name}_pointwise_conv_2")(x)
    if not response:
        x = LayerScale(SCALE_START, name=f"{name}_layer_scale")(x)
    return layers.Add(name=f"{name}_add")([inputs, x])
