"""Convolutions, dense layers and batch norms as torch calls, with kernels stored in the order torch reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import keras
import torch
import torch.nn.functional as F

from .._core.keras_private import all_layers, kernel_of, own_variables, raw, to_torch_dtype
from .folding import FoldKernel, state_of, value_of
from .gradients import PointwiseProduct
from .graph import Function, LayerContext, Pair, Run, same_padding, to_nchw, to_nhwc
from .pointwise import NOTHING, POST_OPERATIONS, Elementwise, PostOperation, activation_function


@dataclass(frozen=True)
class Statistics:
    """The mean and 1/standard deviation of a batch, and the layer whose moving statistics follow them.

    `bias` belongs to the mean, where it was left out of what was normalised.
    """

    layer: Any
    mean: torch.Tensor
    inverse: torch.Tensor
    bias: torch.Tensor | None = None

    def rule(self) -> tuple[float, float]:
        """How fast the moving statistics follow, and what was added to the variance."""
        return 1.0 - self.layer.momentum, self.layer.epsilon


class BatchNorm:
    """A Keras BatchNormalization on values whose axis 1 holds the channels."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.gamma, self.beta = layer.gamma, layer.beta  # None where it has none

    def __call__(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        """Normalise (batch, channels, ...) by the statistics that Keras would take."""
        layer = self.layer
        if run.training and layer.trainable:
            return self.by_batch(run, x)
        gamma, beta = value_of(self.gamma), value_of(self.beta)
        mean, variance = raw(layer.moving_mean), raw(layer.moving_variance)
        return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, layer.epsilon)

    def by_batch(self, run: Run, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise x + bias by its own mean, which takes the bias out again: it is only noted down."""
        layer = self.layer
        gamma, beta = value_of(self.gamma), value_of(self.beta)
        together = vars(layer).get("normalize_by_all")  # hung there by `distribute`
        if together is None:
            y, mean, inverse = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, layer.epsilon)
        else:
            y, mean, inverse = together(x, gamma, beta, raw(layer.moving_mean), layer.epsilon)
        run.statistics.append(Statistics(layer, mean.detach(), inverse.detach(), bias))
        return y

    def tensors(self) -> list[torch.Tensor]:
        """Everything that its result in inference mode depends on, but for the input."""
        held = (self.gamma, self.beta, self.layer.moving_mean, self.layer.moving_variance)
        return [raw(variable) for variable in held if variable is not None]

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The factor and the summand, (channels,) each, that it comes to in inference mode."""
        layer = self.layer
        scale = torch.rsqrt(raw(layer.moving_variance) + layer.epsilon)
        if self.gamma is not None:
            scale = scale * raw(self.gamma)
        shift = -raw(layer.moving_mean) * scale
        return scale, shift if self.beta is None else shift + raw(self.beta)


def compile_batchnorm(site: LayerContext) -> BatchNorm | None:
    """The fused form of a layer; None where it renormalises or its channels are not on axis 1 here."""
    layer = site.layer
    axis = layer.axis if isinstance(layer.axis, int) else None
    channels = {site.rank - 1, -1} if site.views or site.rank == 2 else {1, 1 - site.rank}
    if layer.renorm or layer.synchronized or site.rank not in (2, 4) or axis not in channels:
        return None
    return BatchNorm(layer)


class StandaloneBatchNorm:
    """Stands in for `call` of a BatchNormalization that is in no plan."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.norm = layer, BatchNorm(layer)

    def __call__(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise a tensor in Keras' layout."""
        layer = self.layer
        if mask is not None or not isinstance(inputs, torch.Tensor) or inputs.is_meta:
            return type(layer).call(layer, inputs, training=training, mask=mask)
        run = Run(training=bool(training), gradients=torch.is_grad_enabled())
        y = self.norm(run, inputs.movedim(layer.axis, 1)).movedim(1, layer.axis)
        follow(run.statistics)
        return y


def can_stand_alone(layer: Any) -> bool:
    """Whether the fused form of a BatchNormalization is right wherever the layer is called."""
    return isinstance(layer.axis, int) and layer.built and not (layer.renorm or layer.synchronized)


@torch.no_grad()
def follow(statistics: Iterable[Statistics]) -> None:
    """Move the moving statistics of all layers towards those of the batch, in a few calls for all layers.

    moving = momentum * moving + (1 - momentum) * batch, with the batch's biased variance as Keras has it.
    A layer that ran more than once in a pass follows each of its batches in turn.
    """
    waiting = list(statistics)
    while waiting:
        once = {id(item.layer): item for item in reversed(waiting)}
        waiting = [item for item in waiting if once[id(item.layer)] is not item]
        items = sorted(once.values(), key=Statistics.rule)
        for (weight, epsilon), group in groupby(items, key=Statistics.rule):
            _follow_alike(list(group), weight, epsilon)


def _follow_alike(items: list[Statistics], weight: float, epsilon: float) -> None:
    means = [raw(item.layer.moving_mean) for item in items]
    variances = [raw(item.layer.moving_variance) for item in items]
    seen = [item.mean if item.bias is None else item.mean + item.bias for item in items]
    batch = torch._foreach_pow([item.inverse for item in items], -2.0)
    torch._foreach_sub_(batch, epsilon)
    torch._foreach_lerp_(means, seen, weight)
    torch._foreach_lerp_(variances, batch, weight)


def in_dtype(variable: Any, dtype: torch.dtype) -> torch.Tensor:
    """A variable's tensor, cast where the computation has another dtype; never to integers, which end it."""
    tensor = raw(variable)
    return tensor.to(dtype) if tensor.dtype is not dtype and dtype.is_floating_point else tensor


def dense_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Keras' (height, width, in, out) as torch's (out, in, height, width): a view."""
    return kernel.permute(3, 2, 0, 1)


def depthwise_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Keras' (height, width, in, multiplier) as torch's (in * multiplier, 1, height, width)."""
    height, width, _, _ = kernel.shape
    return kernel.permute(2, 3, 0, 1).reshape(-1, 1, height, width)


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
        self.size, self.strides, self.dilation = layer.kernel_size, layer.strides, layer.dilation_rate
        self.same = layer.padding == "same"
        self.dtype = to_torch_dtype(layer.compute_dtype)
        self.pointwise = self.size == self.strides == (1, 1) and groups == 1
        self.depthwise = to_torch is depthwise_kernel
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
        if self.pointwise and padding == (0, 0) and _is_faster_as_product(x, weight):
            return PointwiseProduct.apply(x, weight, bias)
        return F.conv2d(x, weight, bias, self.strides, padding, self.dilation, self.groups)

    def padded(self, x: torch.Tensor) -> tuple[torch.Tensor, Pair]:
        """The input, padded here where its two ends differ, and the padding that is left to torch."""
        if not self.same:
            return x, self.border
        rows, columns = self.same_pads(x.shape[2:])
        if rows[0] == rows[1] and columns[0] == columns[1]:
            return x, (rows[0], columns[0])
        return F.pad(x, (*columns, *rows)), (0, 0)

    def tensors(self) -> list[torch.Tensor]:
        """Everything that its result depends on, but for the input."""
        return [raw(variable) for variable in (self.kernel, self.bias) if variable is not None]

    def same_pads(self, sides: Sequence[int]) -> tuple[Pair, Pair]:
        """The rows and the columns, before and after, that "same" adds to an image of (height, width)."""
        parts = zip(sides, self.size, self.strides, self.dilation, strict=True)
        rows, columns = (same_padding(*part) for part in parts)
        return rows, columns

    def unpadded(self) -> Convolution:
        """The same for an input that is already padded."""
        twin = copy(self)
        twin.same = False
        return twin


FEW_PIXELS, MANY_WEIGHTS = 64, 2**16  # of an image and of a kernel: torch multiplies image by image


def _is_faster_as_product(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether one product is faster than torch's 1x1 convolution: in training on a CPU, for small maps."""
    if x.shape[2] * x.shape[3] > FEW_PIXELS or weight.numel() < MANY_WEIGHTS:
        return False
    plain = x.dtype is torch.float32 and x.device.type == "cpu"
    return plain and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class FoldedConvolution:
    """A convolution and the batch norm after it: one convolution wherever stored statistics are used.

    The folded weights are kept until one of the variables changes, as its tensor's version shows. Where
    one of the variables is due a gradient they are folded anew in each step (`folding`), so that the gradient
    comes through to all of them: a product the size of the weights in place of the batch norm's three passes
    over the activations. By the batch's own statistics the two run apart.
    """

    def __init__(self, convolution: Convolution, norm: BatchNorm) -> None:
        self.convolution, self.norm = convolution, norm
        self._state: tuple[Any, ...] = ()
        self._weights: tuple[torch.Tensor, torch.Tensor]

    def __call__(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        """Convolve and normalise (batch, channels, height, width)."""
        if run.training and self.norm.layer.trainable:
            weight, bias = self.convolution.weights(x.dtype)
            if bias is not None:
                run.idle.append(bias)
            return self.norm.by_batch(run, self.convolution.convolve(x, weight, None), bias)
        folded = run.folded.get(id(self))
        if folded is None:
            return self.convolution.convolve(x, *self._folded(x.dtype))
        scale, shift = folded
        kernel = FoldKernel.apply(self.convolution.to_torch(raw(self.convolution.kernel)), scale, x.dtype)
        return self.convolution.convolve(x, kernel, shift.to(x.dtype))

    def learns(self, run: Run) -> bool:
        """Whether a pass with gradients is to reach one of its variables by the stored statistics."""
        by_batch = run.training and self.norm.layer.trainable
        return not by_batch and any(tensor.requires_grad for tensor in self.tensors())

    def tensors(self) -> list[torch.Tensor]:
        """The tensors of both."""
        return self.convolution.tensors() + self.norm.tensors()

    def forget(self) -> None:
        """Fold anew at the next call."""
        self._state = ()

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
        weight = self.convolution.to_torch(raw(self.convolution.kernel)) * scale[:, None, None, None]
        if self.convolution.bias is not None:
            shift = shift + raw(self.convolution.bias) * scale
        return weight.to(dtype, memory_format=torch.channels_last), shift.to(dtype)


def compile_conv2d(site: LayerContext) -> Convolution | None:
    """A Conv2D."""
    return _one_convolution(site, kernel_of(site.layer), dense_kernel, site.layer.groups)


def compile_depthwise(site: LayerContext) -> Convolution | None:
    """A DepthwiseConv2D."""
    kernel = site.layer.kernel
    return _one_convolution(site, kernel, depthwise_kernel, kernel.shape[2])


def _one_convolution(site: LayerContext, kernel: Any, to_torch: Any, groups: int) -> Convolution | None:
    layer = site.layer
    if not site.channels_first or layer.padding not in ("valid", "same"):
        return None
    activation = activation_function(layer.activation, image=site.views, in_place=True)
    post = POST_OPERATIONS.get(layer.activation)
    return Convolution(layer, kernel, layer.bias, to_torch, groups, activation, post)


def compile_separable(site: LayerContext) -> Function | None:
    """A SeparableConv2D: depthwise, then 1x1."""
    layer = site.layer
    if not site.channels_first or layer.padding not in ("valid", "same"):
        return None
    groups = layer.depthwise_kernel.shape[2]
    depthwise = Convolution(layer, layer.depthwise_kernel, None, depthwise_kernel, groups, None)
    activation = activation_function(layer.activation, image=site.views, in_place=True)

    def separable(run: Run, x: torch.Tensor) -> torch.Tensor:
        x = depthwise(run, x)
        weight = dense_kernel(in_dtype(layer.pointwise_kernel, x.dtype))
        y = F.conv2d(x, weight, None if layer.bias is None else in_dtype(layer.bias, x.dtype))
        return y if activation is None else activation(y)

    return separable


def compile_dense(site: LayerContext) -> Function | None:
    """A Dense on the last axis: of (batch, features), of tokens, or of images."""
    layer, image = site.layer, site.image
    activation = activation_function(layer.activation, image=False, in_place=True)
    kernel, bias = kernel_of(layer), layer.bias

    def dense(run: Run, x: torch.Tensor) -> torch.Tensor:
        x = to_nhwc(x) if image else x
        rows = x if x.ndim == 2 else x.flatten(0, -2)  # so that the kernel's gradient lies as it does
        weight = in_dtype(kernel, x.dtype)
        y = rows @ weight if bias is None else torch.addmm(in_dtype(bias, x.dtype), rows, weight)
        y = y if activation is None else activation(y)
        y = y if x.ndim == 2 else y.unflatten(0, x.shape[:-1])
        return to_nchw(y) if image else y

    return dense


def order_of(layer: Any, variable: Any) -> tuple[int, ...] | None:
    """The axes of a kernel from the slowest to the fastest as torch's convolution wants them in memory."""
    if len(variable.shape) != 4:
        return None
    separable = isinstance(layer, keras.layers.SeparableConv2D) and variable is layer.depthwise_kernel
    if separable or isinstance(layer, keras.layers.DepthwiseConv2D):
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
    for layer in all_layers(model):
        for variable in own_variables(layer):
            order = order_of(layer, variable)
            if order is not None:
                _reorder(raw(variable), order)
                orders.setdefault(tuple(variable.shape), set()).add(order)
    optimizer = getattr(model, "optimizer", None)
    for variable in optimizer.variables if optimizer is not None and optimizer.built else ():
        known = orders.get(tuple(variable.shape), set())
        if len(known) == 1:
            _reorder(raw(variable), *known)


def store_for_keras(model: keras.Model) -> None:
    """Store every kernel of a model in the order of its own axes again."""
    variables = list(model.variables)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        variables += optimizer.variables
    for variable in variables:
        raw(variable).data = raw(variable).data.contiguous()
