"""Which layer is compiled by which function; a layer that is not here runs as Keras runs it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from keras import layers
from keras.src.ops import numpy as keras_operations

from . import batchnorm, convolutions, pointwise
from .run import Function, Site

TABLE: dict[type, Callable[[Site], Function | None]] = {
    layers.Activation: pointwise.compile_activation,
    layers.Add: pointwise.compile_add,
    layers.AveragePooling2D: pointwise.pooling(F.avg_pool2d, count_include_pad=False),
    layers.BatchNormalization: batchnorm.compile_batchnorm,
    layers.Concatenate: pointwise.compile_concatenate,
    layers.Conv2D: convolutions.compile_conv2d,
    layers.Dense: convolutions.compile_dense,
    layers.DepthwiseConv2D: convolutions.compile_depthwise,
    layers.Dropout: pointwise.compile_dropout,
    layers.Flatten: pointwise.compile_flatten,
    layers.GlobalAveragePooling2D: pointwise.compile_global_average,
    layers.GlobalMaxPooling2D: pointwise.compile_global_max,
    layers.MaxPooling2D: pointwise.pooling(F.max_pool2d),
    layers.Multiply: pointwise.compile_multiply,
    layers.ReLU: pointwise.compile_relu,
    layers.Rescaling: pointwise.compile_rescaling,
    layers.Reshape: pointwise.compile_reshape,
    layers.SeparableConv2D: convolutions.compile_separable,
    layers.Softmax: pointwise.compile_softmax,
    layers.ZeroPadding2D: pointwise.compile_padding,
    keras_operations.Add: pointwise.arithmetic(operator.add),
    keras_operations.Multiply: pointwise.arithmetic(operator.mul),
    keras_operations.Subtract: pointwise.arithmetic(operator.sub),
}


def compiled(site: Site) -> Function | None:
    """The torch function of a layer where it stands, or None where Keras has to run it."""
    layer = site.layer
    if type(layer) not in TABLE or not is_plain(layer):
        return None
    return TABLE[type(layer)](site)


def is_plain(layer: Any) -> bool:
    """Whether a layer does what its class does: no quantising, LoRA, activity loss or `call` of its own."""
    if not isinstance(layer, layers.Layer):
        return True
    return not (
        getattr(layer, "activity_regularizer", None) is not None
        or getattr(layer, "lora_enabled", False)
        or layer.quantization_mode is not None
        or getattr(layer, "_remat_mode", None)
        or not layer.autocast
        or "call" in layer.__dict__
    )
