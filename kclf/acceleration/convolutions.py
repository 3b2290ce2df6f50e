"""Convolutions and dense layers as torch calls on the Keras variables' own tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

from .activations import NOTHING, POST_OPERATIONS, Elementwise, PostOperation, activation_function
from .batchnorm import BatchNorm
from .run import Function, Run, Site

Pair = tuple[int, int]


def pair(value: int | tuple[int, ...] | list[int]) -> Pair:
    """One number for both axes of an image, or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> Pair:
    """Padding before and after one axis that makes its length ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def in_dtype(variable: Any, dtype: torch.dtype) -> torch.Tensor:
    """A variable's tensor, cast where the computation has another dtype; never to integers, which end it."""
    tensor = variable._value
    return tensor.to(dtype) if tensor.dtype is not dtype and dtype.is_floating_point else tensor


def dense_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Keras' (height, width, in, out) as torch's (out, in, height, width): a view."""
    return kernel.permute(3, 2, 0, 1)


def depthwise_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Keras' (height, width, in, multiplier) as torch's (in * multiplier, 1, height, width)."""
    height, width, _, _ = kernel.shape
    return kernel.permute(2, 3, 0, 1).reshape(-1, 1, height, width)


def state_of(tensors: Iterable[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """What changes whenever one of the tensors does."""
    return tuple((tensor._version, tensor.data_ptr()) for tensor in tensors)


class Convolution:
    """A 2D convolution on NCHW values: kernel, bias, padding and activation of a Keras layer.

    Args:
        layer: the Keras layer.
        kernel: its kernel variable.
        bias: its bias variable, or None.
        to_torch: from Keras' shape of the kernel to torch's.
        groups: torch's number of groups.
        activation: what follows on the result, or None.
        post: what oneDNN calls that, or None.
    """

    def __init__(
        self,
        layer: Any,
        kernel: Any,
        bias: Any,
        to_torch: Callable[[torch.Tensor], torch.Tensor],
        groups: int,
        activation: Elementwise | None,
        post: PostOperation | None = NOTHING,
    ) -> None:
        self.kernel, self.bias, self.to_torch = kernel, bias, to_torch
        self.groups, self.activation, self.post = groups, activation, post
        self.strides, self.dilation = pair(layer.strides), pair(layer.dilation_rate)
        self.size = pair(layer.kernel_size)
        self.same = layer.padding == "same"
        self.in_float32 = layer.compute_dtype == "float32"
        self.border = (0, 0)

    def __call__(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        """Convolve (batch, channels, height, width) with the layer's own weights."""
        y = self.convolve(x, *self.weights(x.dtype))
        return y if self.activation is None else self.activation(y)

    def weights(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The kernel and the bias in torch's shapes."""
        bias = None if self.bias is None else in_dtype(self.bias, dtype)
        return self.to_torch(in_dtype(self.kernel, dtype)), bias

    def convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The convolution alone, with any weights in torch's shapes."""
        x, padding = self.padded(x)
        return F.conv2d(x, weight, bias, self.strides, padding, self.dilation, self.groups)

    def padded(self, x: torch.Tensor) -> tuple[torch.Tensor, Pair]:
        """The input, padded here where its two ends differ, and the padding that is left to torch."""
        if not self.same:
            return x, self.border
        rows, columns = self._same(x)
        if rows[0] == rows[1] and columns[0] == columns[1]:
            return x, (rows[0], columns[0])
        return F.pad(x, (*columns, *rows)), (0, 0)

    def tensors(self) -> list[torch.Tensor]:
        """Everything that its result depends on, but for the input."""
        return [variable._value for variable in (self.kernel, self.bias) if variable is not None]

    def _same(self, x: torch.Tensor) -> tuple[Pair, Pair]:
        parts = zip(x.shape[2:], self.size, self.strides, self.dilation, strict=True)
        rows, columns = (same_padding(*part) for part in parts)
        return rows, columns


class FoldedConvolution:
    """A convolution and the batch norm after it: one convolution wherever stored statistics are used.

    The folded weights are kept until one of the variables changes, which its tensor's version tells. Where
    one of the variables is due a gradient they are folded anew in each step, within the graph, so that the
    gradient comes through to all of them: a product the size of the weights in place of the batch norm's
    three passes over the activations. By the batch's own statistics the two run apart.
    """

    def __init__(self, convolution: Convolution, norm: BatchNorm) -> None:
        self.convolution, self.norm = convolution, norm
        self._state: tuple[Any, ...] = ()
        self._weights: tuple[torch.Tensor, torch.Tensor]

    def __call__(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        """Convolve and normalise (batch, channels, height, width)."""
        if run.training and self.norm.layer.trainable:
            return self.norm(run, self.convolution(run, x))
        learns = run.gradients and any(tensor.requires_grad for tensor in self.tensors())
        weights = self.weights(x.dtype) if learns else self._folded(x.dtype)
        return self.convolution.convolve(x, *weights)

    def tensors(self) -> list[torch.Tensor]:
        """The tensors of both."""
        return self.convolution.tensors() + self.norm.tensors()

    @torch.no_grad()
    def _folded(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.compiler.is_dynamo_compiling():
            return self.weights(dtype)  # compiled code outlives the values of today's variables
        state = (dtype, *state_of(self.tensors()))
        if state == self._state:
            return self._weights
        with torch.inference_mode(False):
            weights = self.weights(dtype)
        if not torch.compiler.is_compiling():  # what a trace makes are no tensors to keep
            self._weights, self._state = weights, state
        return weights

    def weights(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The kernel and the bias of the two in one, in torch's shapes."""
        scale, shift = self.norm.scale_and_shift()
        weight = self.convolution.to_torch(self.convolution.kernel._value) * scale[:, None, None, None]
        if self.convolution.bias is not None:
            shift = shift + self.convolution.bias._value * scale
        return weight.to(dtype, memory_format=torch.channels_last), shift.to(dtype)


def compile_conv2d(site: Site) -> Convolution | None:
    """A Conv2D."""
    layer = site.layer
    if not site.channels_first or layer.padding not in ("valid", "same"):
        return None
    activation = activation_function(layer.activation, image=site.views, in_place=True)
    bias = layer.bias if layer.use_bias else None
    post = POST_OPERATIONS.get(layer.activation)
    return Convolution(layer, layer._kernel, bias, dense_kernel, layer.groups, activation, post)


def compile_depthwise(site: Site) -> Convolution | None:
    """A DepthwiseConv2D."""
    layer = site.layer
    if not site.channels_first or layer.padding not in ("valid", "same"):
        return None
    activation = activation_function(layer.activation, image=site.views, in_place=True)
    bias = layer.bias if layer.use_bias else None
    post = POST_OPERATIONS.get(layer.activation)
    return Convolution(layer, layer.kernel, bias, depthwise_kernel, layer.kernel.shape[2], activation, post)


def compile_separable(site: Site) -> Function | None:
    """A SeparableConv2D: depthwise, then 1x1."""
    layer = site.layer
    if not site.channels_first or layer.padding not in ("valid", "same"):
        return None
    groups = layer.depthwise_kernel.shape[2]
    depthwise = Convolution(layer, layer.depthwise_kernel, None, depthwise_kernel, groups, None)
    activation = activation_function(layer.activation, image=site.views, in_place=True)
    bias = layer.bias if layer.use_bias else None

    def separable(run: Run, x: torch.Tensor) -> torch.Tensor:
        x = depthwise(run, x)
        weight = dense_kernel(in_dtype(layer.pointwise_kernel, x.dtype))
        y = F.conv2d(x, weight, None if bias is None else in_dtype(bias, x.dtype))
        return y if activation is None else activation(y)

    return separable


def compile_dense(site: Site) -> Function | None:
    """A Dense on (batch, features)."""
    layer = site.layer
    if site.rank != 2:
        return None
    activation = activation_function(layer.activation, image=False, in_place=True)
    kernel, bias = layer._kernel, layer.bias

    def dense(run: Run, x: torch.Tensor) -> torch.Tensor:
        weight = in_dtype(kernel, x.dtype)
        y = x @ weight if bias is None else torch.addmm(in_dtype(bias, x.dtype), x, weight)
        return y if activation is None else activation(y)

    return dense
