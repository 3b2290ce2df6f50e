"""Keras activations as torch functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import torch
import torch.nn.functional as F

Elementwise = Callable[[torch.Tensor], torch.Tensor]

# Each of these gives Keras' result, element by element: the layout of the tensor does not matter.
ELEMENTWISE: dict[Any, Elementwise] = {
    keras.activations.relu: F.relu,
    keras.activations.relu6: F.relu6,
    keras.activations.silu: F.silu,
    keras.activations.sigmoid: torch.sigmoid,
    keras.activations.tanh: torch.tanh,
    keras.activations.hard_sigmoid: F.hardsigmoid,
    keras.activations.hard_silu: F.hardswish,
    keras.activations.elu: F.elu,
    keras.activations.gelu: lambda x: F.gelu(x, approximate="none"),
    keras.activations.softplus: F.softplus,
}
IN_PLACE: dict[Any, Elementwise] = {
    keras.activations.relu: F.relu_,
    keras.activations.relu6: lambda x: F.hardtanh_(x, 0.0, 6.0),
}


@dataclass(frozen=True)
class PostOperation:
    """What oneDNN calls an elementwise function that it can do within a convolution."""

    name: str
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


NOTHING = PostOperation("none")
POST_OPERATIONS: dict[Any, PostOperation] = {
    None: NOTHING,
    keras.activations.linear: NOTHING,
    keras.activations.relu: PostOperation("relu"),
    keras.activations.relu6: PostOperation("hardtanh", (0.0, 6.0)),
    keras.activations.silu: PostOperation("swish"),
    keras.activations.sigmoid: PostOperation("sigmoid"),
    keras.activations.tanh: PostOperation("tanh"),
    keras.activations.hard_sigmoid: PostOperation("hardsigmoid"),
    keras.activations.hard_silu: PostOperation("hardswish"),
    keras.activations.gelu: PostOperation("gelu", algorithm="none"),
}


class Activation:
    """An elementwise function as a step of a plan.

    Args:
        function: from tensor to tensor.
        post: what oneDNN calls it, or None.
    """

    def __init__(self, function: Elementwise, post: PostOperation | None) -> None:
        self.function, self.post = function, post

    def __call__(self, run: Any, x: torch.Tensor) -> torch.Tensor:
        """The function of each element of (batch, ...)."""
        return self.function(x)


def is_linear(activation: Any) -> bool:
    """Whether an activation leaves its input as it is."""
    return activation is None or activation is keras.activations.linear


def activation_function(activation: Any, *, image: bool, in_place: bool = False) -> Elementwise | None:
    """The torch function of a Keras activation.

    Args:
        activation: a Keras activation function or any callable on tensors.
        image: whether the tensor is an NHWC image held as an NCHW view, so that Keras' last axis is not ours.
        in_place: whether the input may be overwritten.

    Returns:
        The function; None for the identity.
    """
    if is_linear(activation):
        return None
    if in_place and activation in IN_PLACE:
        return IN_PLACE[activation]
    if activation in ELEMENTWISE:
        return ELEMENTWISE[activation]
    if not image:
        return activation
    return lambda x: activation(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
