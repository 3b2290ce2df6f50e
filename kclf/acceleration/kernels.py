"""Kernels stored in the order in which torch reads them; their shape, and so every file, stays Keras'."""

from __future__ import annotations

from typing import Any

import keras
import torch


def order_of(layer: Any, variable: Any) -> tuple[int, ...] | None:
    """The axes of a kernel from the slowest to the fastest as torch's convolution wants them in memory."""
    if len(variable.shape) != 4:
        return None
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return (2, 3, 0, 1)
    if isinstance(layer, keras.layers.SeparableConv2D) and variable is layer.depthwise_kernel:
        return (2, 3, 0, 1)
    if isinstance(layer, keras.layers.Conv2D):
        # (out, height, width, in): torch's (out, in, height, width) in channels_last memory
        return (3, 0, 1, 2)
    return None


def _reorder(tensor: torch.Tensor, order: tuple[int, ...]) -> None:
    """Give a tensor the same values in another order in memory."""
    if tensor.permute(order).is_contiguous():
        return
    back = sorted(range(len(order)), key=order.__getitem__)
    tensor.data = tensor.data.permute(order).contiguous().permute(back)


def store_for_torch(model: keras.Model) -> None:
    """Store the kernels of a model, and what its optimizer keeps for them, as torch reads them."""
    orders: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            order = order_of(layer, variable)
            if order is not None:
                _reorder(variable._value, order)
                orders.setdefault(tuple(variable.shape), set()).add(order)
    optimizer = getattr(model, "optimizer", None)
    for variable in optimizer.variables if optimizer is not None and optimizer.built else ():
        known = orders.get(tuple(variable.shape), set())
        if len(known) == 1:
            _reorder(variable._value, *known)


def store_for_keras(model: keras.Model) -> None:
    """Store every kernel of a model in the order of its own axes again."""
    variables = list(model.variables)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        variables += optimizer.variables
    for variable in variables:
        variable._value.data = variable._value.data.contiguous()
