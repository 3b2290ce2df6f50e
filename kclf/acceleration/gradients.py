"""Operations with a way back of their own, where torch's makes more passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .graph import Pair, Run, to_nchw, to_nhwc

aten = torch.ops.aten


class PointwiseProduct(torch.autograd.Function):
    """A 1x1 convolution as the one matrix product that it is: on a CPU faster than torch's convolutions."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Of (batch, in, height, width), (out, in, 1, 1) and (out,)."""
        ctx.save_for_backward(x, weight)
        size = (x.shape[0], weight.shape[0], *x.shape[2:])
        # not kept for the way back: what follows may overwrite it
        y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        rows, matrix = _rows(x), weight.flatten(1).T
        if bias is None:
            torch.mm(rows, matrix, out=_rows(y))
        else:
            torch.addmm(bias, rows, matrix, out=_rows(y))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of the three."""
        x, weight = ctx.saved_tensors
        rows = _rows(gradients[0])
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _image(rows @ weight.flatten(1), x) if of_x else None,
            _laid_like(rows.T @ _rows(x), weight) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _laid_like(matrix: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(out, in) as (out, in, 1, 1), with the weight's strides where it lies so: optimizers compare them."""
    if matrix.stride() == weight.stride()[:2]:
        return matrix.as_strided(weight.shape, weight.stride())
    return matrix[..., None, None]


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) as (batch * height * width, channels)."""
    return to_nhwc(x).flatten(0, 2)


def _image(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Rows as (batch, channels, height, width) of the same batch and sides as `like`."""
    return to_nchw(rows.unflatten(0, (like.shape[0], *like.shape[2:])))


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.mark_dirty(x)
        ctx.limits = low, high
        y = x.clamp_(low, high)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return aten.hardtanh_backward(gradients[0], y, *ctx.limits), None, None


def learns(x: torch.Tensor) -> bool:
    """Whether a gradient passes a value on its way back, so that what is computed from it must keep it."""
    return x.requires_grad and torch.is_grad_enabled()


def clamp_(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clamp in place; where a gradient passes, the result tells: `F.hardtanh_` copies its input for it."""
    if learns(x):
        return _Clamp.apply(x, low, high)
    return x.clamp_(low, high)


class Idle(torch.autograd.Function):
    """A value as it is, and a gradient of zero for variables that it does not depend on."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *variables: torch.Tensor) -> torch.Tensor:
        """The value."""
        ctx.save_for_backward(*variables)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Its gradient, and zeros."""
        return (*gradients, *map(torch.zeros_like, ctx.saved_tensors))


@dataclass(frozen=True)
class Written:
    """An activation that writes its result into a tensor that is there.

    Args:
        write: takes the input and the tensor for the result.
        back: from the gradient and what was kept to the gradient of the input.
        keeps_result: whether the result is kept, and not the input.
    """

    write: Callable[[torch.Tensor, torch.Tensor], Any]
    back: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    keeps_result: bool


WRITTEN = {
    "relu": Written(
        lambda x, out: torch.clamp_min(x, 0.0, out=out),
        lambda gradient, y: aten.threshold_backward(gradient, y, 0.0),
        keeps_result=True,
    ),
    "swish": Written(lambda x, out: aten.silu.out(x, out=out), aten.silu_backward, keeps_result=False),
    "hardswish": Written(
        lambda x, out: aten.hardswish.out(x, out=out), aten.hardswish_backward, keeps_result=False
    ),
}


def clamped(low: float, high: float) -> Written:
    """ReLU with an upper bound."""
    return Written(
        lambda x, out: torch.clamp(x, low, high, out=out),
        lambda gradient, y: aten.hardtanh_backward(gradient, y, low, high),
        keeps_result=True,
    )


class PaddedActivation:
    """An activation and the zero padding after it, in one pass forward and one back.

    Args:
        plain: the activation, a step of a plan.
        written: the same, written into a tensor.
        rows: zeros above and below.
        columns: zeros to the left and to the right.
    """

    def __init__(
        self, plain: Callable[..., torch.Tensor], written: Written, rows: Pair, columns: Pair
    ) -> None:
        self.plain, self.written, self.rows, self.columns = plain, written, rows, columns

    def __call__(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        """Of (batch, channels, height, width)."""
        if learns(x):
            return _Padded.apply(x, self)
        return F.pad(self.plain(run, x), (*self.columns, *self.rows))

    def inner(self, padded: torch.Tensor) -> torch.Tensor:
        """A view of what lies within the zeros."""
        (top, bottom), (left, right) = self.rows, self.columns
        return padded[:, :, top : padded.shape[2] - bottom, left : padded.shape[3] - right]

    def write(self, x: torch.Tensor) -> torch.Tensor:
        """The result, without gradients."""
        (top, bottom), (left, right) = self.rows, self.columns
        batch, channels, height, width = x.shape
        wide = x.is_contiguous(memory_format=torch.channels_last)
        y = torch.empty(
            (batch, channels, height + top + bottom, width + left + right),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last if wide else torch.contiguous_format,
        )
        edges = y[:, :, :top], y[:, :, top + height :], y[..., :left], y[..., left + width :]
        torch._foreach_zero_([edge for edge in edges if edge.numel()])
        self.written.write(x, self.inner(y))
        return y


class _Padded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, activation: PaddedActivation) -> torch.Tensor:
        y = activation.write(x)
        ctx.activation = activation
        ctx.save_for_backward(y if activation.written.keeps_result else x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        activation, (kept,) = ctx.activation, ctx.saved_tensors
        if activation.written.keeps_result:
            kept = activation.inner(kept)
        return activation.written.back(activation.inner(gradients[0]), kept), None
