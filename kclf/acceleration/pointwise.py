"""Activations, sums, pooling and reshaping as torch calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import keras
import torch
import torch.nn.functional as F

from .._core.devices import send
from .._core.keras_private import is_channels_first, raw
from .gradients import clamp_, learns
from .graph import Function, LayerContext, Pair, Run, same_padding, to_nchw, to_nhwc

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
    keras.activations.relu6: lambda x: clamp_(x, 0.0, 6.0),
    keras.activations.gelu: lambda x: F.gelu(x) if learns(x) else torch.ops.aten.gelu_(x),
}
IN_KERAS_ORDER = (keras.activations.gelu,)  # which torch computes more slowly through a view of other axes


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
    known = IN_PLACE if in_place and activation in IN_PLACE else ELEMENTWISE
    function = known.get(activation, activation)
    if image and (activation not in known or activation in IN_KERAS_ORDER):
        return lambda x: to_nchw(function(to_nhwc(x)))
    return function


def identity(run: Run, x: torch.Tensor) -> torch.Tensor:
    """The value as it is."""
    return x


def compile_activation(site: LayerContext) -> Function:
    """An Activation."""
    activation = site.layer.activation
    function = activation_function(activation, image=site.image, in_place=0 in site.disposable)
    return identity if function is None else Activation(function, POST_OPERATIONS.get(activation))


def compile_relu(site: LayerContext) -> Function | None:
    """A ReLU, with or without an upper bound."""
    layer = site.layer
    if layer.negative_slope != 0 or layer.threshold != 0:
        return None
    in_place = 0 in site.disposable
    if layer.max_value is None:
        return Activation(lambda x: F.relu(x, inplace=in_place), PostOperation("relu"))
    limits = 0.0, float(layer.max_value)
    clamp = clamp_ if in_place else F.hardtanh
    return Activation(lambda x: clamp(x, *limits), PostOperation("hardtanh", limits))


def compile_softmax(site: LayerContext) -> Function | None:
    """A Softmax over the last axis of (batch, classes)."""
    if site.rank != 2 or site.layer.axis not in (-1, 1):
        return None
    return lambda run, x: torch.softmax(x, -1)


def _same_rank(site: LayerContext) -> bool:
    return len({len(tensor.shape) for tensor in site.inputs}) == 1


class Sum:
    """An Add on values of one rank.

    Args:
        alike: whether it has two summands, each of the shape of the sum.
        overwritten: place of the summand that may be, None where each is needed elsewhere.
    """

    def __init__(self, *, alike: bool, overwritten: int | None) -> None:
        self.alike, self.overwritten = alike, overwritten

    def __call__(self, run: Run, *xs: torch.Tensor) -> torch.Tensor:
        """The sum of tensors (batch, ...)."""
        if self.overwritten is None:
            return sum(xs[1:], xs[0])
        return xs[self.overwritten].add_(xs[1 - self.overwritten])


def compile_add(site: LayerContext) -> Sum | None:
    """An Add; a summand is overwritten where nothing else needs it."""
    if not _same_rank(site):
        return None
    fills = [tensor.shape == site.output.shape for tensor in site.inputs]
    free = [place for place in site.disposable if fills[place]] if len(fills) == 2 else []
    return Sum(alike=len(fills) == 2 and all(fills), overwritten=free[0] if free else None)


def compile_multiply(site: LayerContext) -> Function | None:
    """A Multiply of two values."""
    if not _same_rank(site) or len(site.inputs) != 2:
        return None
    return lambda run, a, b: a * b


def compile_concatenate(site: LayerContext) -> Function | None:
    """A Concatenate; the channels of an image are on axis 1 here."""
    if not _same_rank(site):
        return None
    axis = site.layer.axis % site.rank
    if site.image:
        axis = (0, 2, 3, 1)[axis]
    return lambda run, *xs: torch.cat(xs, axis)


def arithmetic(function: Callable[[Any, Any], torch.Tensor]) -> Callable[[LayerContext], Function | None]:
    """The compile function of `keras.ops.add` and its like: two values, or a value and a number."""

    def compile_arithmetic(site: LayerContext) -> Function | None:
        arguments = site.record.arguments
        if arguments.kwargs or len(arguments.args) != 2 or not _same_rank(site):
            return None
        first, second = arguments.args
        if isinstance(first, keras.KerasTensor) and isinstance(second, keras.KerasTensor):
            return lambda run, a, b: function(a, b)
        if isinstance(second, int | float):
            return lambda run, a: function(a, second)
        if isinstance(first, int | float):
            return lambda run, b: function(first, b)
        return None

    return compile_arithmetic


class Padding:
    """A ZeroPadding2D on NCHW values."""

    def __init__(self, layer: Any) -> None:
        self.pads: tuple[Pair, Pair] = layer.padding

    def __call__(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        """Pad (batch, channels, height, width)."""
        rows, columns = self.pads
        return F.pad(x, (*columns, *rows))

    @property
    def border(self) -> Pair | None:
        """Rows and columns on each side, where both sides have as many."""
        (top, bottom), (left, right) = self.pads
        return (top, left) if top == bottom and left == right else None


def compile_padding(site: LayerContext) -> Padding | None:
    """A ZeroPadding2D."""
    return Padding(site.layer) if site.channels_first else None


class MaxPooling:
    """A MaxPooling2D without padding of its own, on NCHW values."""

    def __init__(self, layer: Any) -> None:
        self.size, self.strides = layer.pool_size, layer.strides
        self.border = (0, 0)

    def __call__(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        """The maxima of the windows of (batch, channels, height, width)."""
        return F.max_pool2d(x, self.size, self.strides, self.border)

    def takes(self, border: Pair) -> bool:
        """Whether torch's pooling can do a padding before it, by values below all others."""
        return all(2 * pad <= side for pad, side in zip(border, self.size, strict=True))


def compile_max_pooling(site: LayerContext) -> Function | None:
    """A MaxPooling2D."""
    if site.channels_first and site.layer.padding == "valid":
        return MaxPooling(site.layer)
    return pooling(F.max_pool2d)(site)


def pooling(pool: Callable[..., torch.Tensor], **options: Any) -> Callable[[LayerContext], Function | None]:
    """The compile function of a 2D pooling layer."""

    def compile_pooling(site: LayerContext) -> Function | None:
        layer = site.layer
        if not site.channels_first:
            return None
        size, strides = layer.pool_size, layer.strides
        if layer.padding == "valid":
            return lambda run, x: pool(x, size, strides, **options)

        def pool_same(run: Run, x: torch.Tensor) -> torch.Tensor:
            rows, columns = (same_padding(*part) for part in zip(x.shape[2:], size, strides, strict=True))
            if rows[0] == rows[1] and columns[0] == columns[1]:
                return pool(x, size, strides, (rows[0], columns[0]), **options)
            return pool(F.pad(x, (*columns, *rows), mode="replicate"), size, strides, **options)

        return pool_same

    return compile_pooling


def global_pooling(pool: Callable[..., torch.Tensor]) -> Callable[[LayerContext], Function | None]:
    """The compile function of a 2D pooling layer over the whole map."""

    def compile_global(site: LayerContext) -> Function | None:
        keep = site.layer.keepdims
        return (lambda run, x: pool(x, (2, 3), keepdim=keep)) if site.channels_first else None

    return compile_global


def compile_reshape(site: LayerContext) -> Function | None:
    """A Reshape; its size is taken in Keras' order of the axes."""
    target = site.output.shape[1:]
    if None in target:
        return None
    image_in, image_out = site.image, site.is_image(site.output)

    def reshape(run: Run, x: torch.Tensor) -> torch.Tensor:
        x = (to_nhwc(x) if image_in else x).reshape(x.shape[0], *target)
        return to_nchw(x) if image_out else x

    return reshape


def compile_flatten(site: LayerContext) -> Function | None:
    """A Flatten, in Keras' order of the axes."""
    if is_channels_first(site.layer):
        return None
    image = site.image
    return lambda run, x: (to_nhwc(x) if image else x).flatten(1)


def compile_dropout(site: LayerContext) -> Function | None:
    """A Dropout without a seed of its own; `noise_shape` with ones, as drop-connect has it, included."""
    layer = site.layer
    if layer.seed is not None:
        return None
    if layer.noise_shape is None:
        return lambda run, x: F.dropout(x, layer.rate, True) if run.training and layer.rate > 0 else x
    if len(layer.noise_shape) != site.rank:
        return None
    order = (0, 3, 1, 2) if site.image else range(site.rank)
    noise_shape = [layer.noise_shape[axis] for axis in order]

    def dropout(run: Run, x: torch.Tensor) -> torch.Tensor:
        if not run.training or layer.rate == 0:
            return x
        shape = [size if noise is None else noise for size, noise in zip(x.shape, noise_shape, strict=True)]
        keep = 1.0 - layer.rate
        return x * x.new_empty(shape).bernoulli_(keep).div_(keep)

    return dropout


def compile_normalization(site: LayerContext) -> Function | None:
    """A Normalization by stored means and variances, which are worked out once for each device."""
    layer = site.layer
    if layer.invert or layer.mean is None:
        return None

    @torch.inference_mode(False)  # what is kept may be needed for a gradient
    def levels(dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
        mean, variance = (send(torch.as_tensor(part), device) for part in (layer.mean, layer.variance))
        deviation = variance.to(dtype).sqrt().clamp(min=keras.config.epsilon())
        parts = mean.to(dtype), deviation
        return [to_nchw(part) if site.image and part.ndim == 4 else part for part in parts]

    kept = cache(levels)

    def normalization(run: Run, x: torch.Tensor) -> torch.Tensor:
        mean, deviation = (levels if torch.compiler.is_compiling() else kept)(x.dtype, x.device)
        return (x - mean) / deviation

    return normalization


def compile_rescaling(site: LayerContext) -> Function | None:
    """A Rescaling by two numbers."""
    scale, offset = site.layer.scale, site.layer.offset
    if not isinstance(scale, int | float) or not isinstance(offset, int | float):
        return None
    return lambda run, x: x * scale + offset if offset else x * scale


def compile_torch_call(site: LayerContext) -> Function | None:
    """A layer whose class says that its `call` is torch operations alone, on values in Keras' layout."""
    call = site.layer.call
    images = [site.is_image(tensor) for tensor in site.inputs]
    image_out = site.is_image(site.output)
    if len(images) > 1:
        return None if any(images) or image_out else lambda run, *values: call(list(values))

    def run_call(run: Run, x: torch.Tensor) -> torch.Tensor:
        result = call(to_nhwc(x) if images[0] else x)
        return to_nchw(result) if image_out else result

    return run_call


def compile_layernorm(site: LayerContext) -> Function | None:
    """A LayerNormalization over the channels, with scale and shift."""
    layer = site.layer
    both = layer.scale and layer.center and not layer.rms_scaling
    if [axis % site.rank for axis in layer.axis] != [site.rank - 1] or not both:
        return None
    gamma, beta, epsilon, image = layer.gamma, layer.beta, layer.epsilon, site.image

    def layernorm(run: Run, x: torch.Tensor) -> torch.Tensor:
        x = to_nhwc(x) if image else x
        weight, bias = raw(gamma).to(x.dtype), raw(beta).to(x.dtype)
        y = F.layer_norm(x, (x.shape[-1],), weight, bias, epsilon)
        return to_nchw(y) if image else y

    return layernorm


def compile_layer_scale(site: LayerContext) -> Function:
    """The learnt factor for each channel in Keras' own ConvNeXts."""
    gamma, image = site.layer.gamma, site.image

    def scale(run: Run, x: torch.Tensor) -> torch.Tensor:
        factors = raw(gamma).to(x.dtype)
        return x * (factors[:, None, None] if image else factors)

    return scale
