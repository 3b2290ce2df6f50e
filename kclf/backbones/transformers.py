"""Vision transformers as functional models: ViT, DINOv2 and the vision tower of SigLIP 2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from keras import layers

from .._core.sizes import InputShape
from ..errors import BackboneError
from ..layers.tokens import (
    CrossAttention,
    LayerScale,
    LearntQuery,
    PatchTokens,
    ReadTokens,
    SelfAttention,
    gelu_tanh,
)

EPSILON = 1e-6  # of every LayerNormalization here
LAYER_SCALE_START = 1e-5  # of DINOv2
MLP_RATIO = 4


@dataclass(frozen=True)
class TransformerPlan:
    """What distinguishes one vision transformer from another.

    Attributes:
        width: channels of a token.
        depth: number of blocks.
        num_heads: heads of attention in each block.
        patch: side of a patch in pixels.
        grid: side of the square of patches that its published positions are for.
        reading: how tokens become features: "token", "token_and_mean" or "attention".
        interpolation: how positions are resampled, see `PatchTokens`.
        layer_scale: whether residual branches are scaled.
        registers: number of register tokens.
        activation: of the hidden layers.
    """

    width: int
    depth: int
    num_heads: int
    patch: int
    grid: int
    reading: str = "token"
    interpolation: str = "timm"
    layer_scale: bool = False
    registers: int = 0
    activation: str = "gelu"


_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}  # width, depth, heads
# DINOv2's positions were last trained at 518 pixels, 37 patches a side.
_dinov2 = partial(TransformerPlan, patch=14, grid=37, reading="token_and_mean", layer_scale=True)
TRANSFORMERS = {
    **{f"ViT{size}16": TransformerPlan(*_SIZES[size], patch=16, grid=14) for size in "SBL"},
    "ViTB32": TransformerPlan(*_SIZES["B"], patch=32, grid=7),
    **{f"DINOv2{size}14": _dinov2(*_SIZES[size], interpolation="dinov2") for size in "SBL"},
    **{
        f"DINOv2{size}14Registers": _dinov2(*_SIZES[size], interpolation="dinov2_registers", registers=4)
        for size in "SBL"
    },
    "SigLIP2B16": TransformerPlan(
        *_SIZES["B"], patch=16, grid=14, reading="attention", interpolation="bicubic", activation="gelu_tanh"
    ),
}


def transformer(name: str, input_shape: InputShape = (None, None, 3)) -> keras.Model:
    """A vision transformer with random weights, up to its features.

    Args:
        name: a key of `TRANSFORMERS`.
        input_shape: (height, width, channels); None leaves a side open.

    Returns:
        A functional model (batch, height, width, channels) -> (batch, features).

    Raises:
        BackboneError: a side is no multiple of the patch's.
    """
    plan = TRANSFORMERS[name]
    _check_sides(name, plan.patch, input_shape)
    inputs = keras.Input(input_shape)
    patches = layers.Conv2D(plan.width, plan.patch, plan.patch, name="patch_embed_proj")(inputs)
    tokens = PatchTokens(
        plan.grid,
        class_token=plan.reading != "attention",
        registers=plan.registers,
        interpolation=plan.interpolation,
        name="tokens",
    )
    x = tokens(patches)
    for block in range(plan.depth):
        x = _block(x, f"block{block + 1}", plan)
    x = _normalized(x, "norm")
    if plan.reading == "attention":
        features = _attention_pooled(x, plan)
    else:
        features = ReadTokens(plan.reading, prefix=tokens.prefix, name="features")(x)
    return keras.Model(inputs, features, name=name.lower())


def _check_sides(name: str, patch: int, input_shape: InputShape) -> None:
    side = next((side for side in input_shape[:2] if side is not None and side % patch), None)
    if side is not None:
        near = [multiple for multiple in (side // patch * patch, (side // patch + 1) * patch) if multiple]
        raise BackboneError(
            f"{name} reads patches of {patch} x {patch} pixels: each side must be a multiple of {patch}, "
            f"such as {' or '.join(map(str, near))}. Received: height and width of {input_shape[:2]}"
        )


def _normalized(x: Any, name: str) -> Any:
    return layers.LayerNormalization(epsilon=EPSILON, name=name)(x)


def _dense(width: int, name: str, activation: Any = None) -> layers.Dense:
    start = keras.initializers.TruncatedNormal(stddev=0.02)
    return layers.Dense(width, activation=activation, kernel_initializer=start, name=name)


def _mlp(x: Any, name: str, plan: TransformerPlan) -> Any:
    activation = gelu_tanh if plan.activation == "gelu_tanh" else "gelu"
    x = _dense(MLP_RATIO * plan.width, f"{name}_fc1", activation)(x)
    return _dense(plan.width, f"{name}_fc2")(x)


def _block(inputs: Any, name: str, plan: TransformerPlan) -> Any:
    """Attention and two dense layers, each normalised before and added to its input."""
    x = _dense(3 * plan.width, f"{name}_attn_qkv")(_normalized(inputs, f"{name}_norm1"))
    x = SelfAttention(plan.num_heads, name=f"{name}_attn")(x)
    x = _dense(plan.width, f"{name}_attn_proj")(x)
    x = layers.Add(name=f"{name}_add1")([inputs, _scaled(x, f"{name}_ls1", plan)])
    hidden = _mlp(_normalized(x, f"{name}_norm2"), f"{name}_mlp", plan)
    return layers.Add(name=f"{name}_add2")([x, _scaled(hidden, f"{name}_ls2", plan)])


def _scaled(x: Any, name: str, plan: TransformerPlan) -> Any:
    return LayerScale(LAYER_SCALE_START, name=name)(x) if plan.layer_scale else x


def _attention_pooled(x: Any, plan: TransformerPlan) -> Any:
    """SigLIP's features: a learnt query reads the tokens, and a block without attention follows."""
    query = _dense(plan.width, "attn_pool_q")(LearntQuery(name="attn_pool")(x))
    projected = _dense(2 * plan.width, "attn_pool_kv")(x)
    x = CrossAttention(plan.num_heads, name="attn_pool_mix")([query, projected])
    x = _dense(plan.width, "attn_pool_proj")(x)
    hidden = _mlp(_normalized(x, "attn_pool_norm"), "attn_pool_mlp", plan)
    return layers.Add(name="features")([x, hidden])
