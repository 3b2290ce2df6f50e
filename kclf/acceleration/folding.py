"""Batch norms that go by stored statistics, folded into the convolutions before them while both learn.

With gamma and beta of a norm, its mean m, variance v and epsilon e, and a convolution's kernel K and bias c:

    scale = gamma / sqrt(v + e);  shift = beta + (c - m) scale
    norm(conv(x, K) + c) = conv(x, K scale) + shift

1 / sqrt(v + e) is kept as long as the statistics stand still. All vectors of a model are folded in a few
foreach calls; each kernel takes one product, and two more and a sum for its gradients, which come with its
layer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .._core.keras_private import raw

Tensors = Sequence[torch.Tensor | None]


class FoldVectors(torch.autograd.Function):
    """Scales and shifts, (channels,) each, of n norms at once: from gammas, betas and biases."""

    @staticmethod
    def forward(ctx: Any, known: Known, *learnt: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """`learnt` are n gammas, n betas and n biases, None where there is none; n scales and n shifts."""
        n = len(known.inverse)
        gammas, betas, biases = learnt[:n], learnt[n : 2 * n], learnt[2 * n :]
        scales = _times(known.inverse, gammas)
        centres = torch._foreach_neg(known.means)
        _add_where(centres, biases)
        shifts = torch._foreach_mul(centres, scales)
        _add_where(shifts, betas)
        ctx.known, ctx.given = known, [one is not None for one in learnt]
        ctx.save_for_backward(*scales, *centres)
        return (*scales, *_cast(shifts, known.dtypes))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of the gammas, betas and biases."""
        n = len(ctx.known.inverse)
        of_scales, of_shifts = list(gradients[:n]), _cast(gradients[n:], [torch.float32] * n)
        scales, centres = list(ctx.saved_tensors[:n]), list(ctx.saved_tensors[n:])
        of_gammas = torch._foreach_mul(of_shifts, centres)
        torch._foreach_add_(of_gammas, of_scales)
        torch._foreach_mul_(of_gammas, ctx.known.inverse)
        biased = any(ctx.given[2 * n :])
        of_biases = torch._foreach_mul(of_shifts, scales) if biased else [None] * n
        found = [*of_gammas, *of_shifts, *of_biases]
        return None, *(one if given else None for one, given in zip(found, ctx.given, strict=True))


class FoldKernel(torch.autograd.Function):
    """A kernel (out, in, height, width) times its channels' scales, in the dtype of the convolution."""

    @staticmethod
    def forward(ctx: Any, kernel: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """One product, cast and laid out as the convolution reads it."""
        ctx.save_for_backward(kernel, scale)
        folded = torch.empty_like(kernel, dtype=dtype, memory_format=torch.channels_last)
        return torch.mul(kernel, scale.view(-1, 1, 1, 1), out=folded)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        """Of the kernel, in its own layout, and of the scale."""
        kernel, scale = ctx.saved_tensors
        of_kernel = of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = (gradient * kernel).sum((1, 2, 3))
        if ctx.needs_input_grad[0]:
            of_kernel = torch.mul(gradient, scale.view(-1, 1, 1, 1), out=torch.empty_like(kernel))
        return of_kernel, of_scale, None


class Known:
    """What the folding of n norms takes from their statistics, and in which dtypes the shifts are needed."""

    def __init__(self, folds: Sequence[Any]) -> None:
        layers = [fold.norm.layer for fold in folds]
        statistics = statistics_of(folds)
        self.means, variances = statistics[::2], statistics[1::2]
        with torch.inference_mode(False), torch.no_grad():
            inverse = [variance + layer.epsilon for variance, layer in zip(variances, layers, strict=True)]
            torch._foreach_rsqrt_(inverse)
        self.inverse = inverse
        self.dtypes = [fold.convolution.dtype for fold in folds]
        self.state = state_of(statistics)


def statistics_of(folds: Sequence[Any]) -> list[torch.Tensor]:
    """The stored mean of each norm, and its variance."""
    layers = (fold.norm.layer for fold in folds)
    return [raw(one) for layer in layers for one in (layer.moving_mean, layer.moving_variance)]


def state_of(tensors: Iterable[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """What changes whenever one of the tensors does."""
    return tuple((tensor._version, tensor.data_ptr()) for tensor in tensors)


class NormFolder:
    """Folds the norms of a plan whose layers learn, at the start of a pass with gradients."""

    def __init__(self) -> None:
        self._folds: list[Any] = []
        self._known: Known | None = None

    def __call__(self, folds: Sequence[Any]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Scale and shift of each fold, by its id."""
        if not folds:
            return {}
        if self._known is None or folds != self._folds or self._known.state != state_of(statistics_of(folds)):
            self._folds, self._known = list(folds), Known(folds)
        gammas = [value_of(fold.norm.gamma) for fold in folds]
        betas = [value_of(fold.norm.beta) for fold in folds]
        biases = [value_of(fold.convolution.bias) for fold in folds]
        made = FoldVectors.apply(self._known, *gammas, *betas, *biases)
        scales, shifts = made[: len(folds)], made[len(folds) :]
        return dict(zip(map(id, folds), zip(scales, shifts, strict=True), strict=True))


def value_of(variable: Any) -> torch.Tensor | None:
    """The tensor of a variable; None where there is none."""
    return None if variable is None else raw(variable)


def _times(vectors: list[torch.Tensor], factors: Tensors) -> list[torch.Tensor]:
    """Products; a factor that is None is 1."""
    if any(factor is None for factor in factors):
        factors = [torch.ones_like(v) if f is None else f for v, f in zip(vectors, factors, strict=True)]
    return torch._foreach_mul(vectors, list(factors))


def _add_where(vectors: list[torch.Tensor], others: Tensors) -> None:
    """Add in place, where there is something to add."""
    pairs = [(vector, other) for vector, other in zip(vectors, others, strict=True) if other is not None]
    if pairs:
        here, there = map(list, zip(*pairs, strict=True))
        torch._foreach_add_(here, there)


def _cast(vectors: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]) -> list[torch.Tensor]:
    """The vectors in other dtypes, those that differ in one call."""
    made = [v if v.dtype is d else torch.empty_like(v, dtype=d) for v, d in zip(vectors, dtypes, strict=True)]
    pairs = [(new, old) for new, old in zip(made, vectors, strict=True) if new is not old]
    if pairs:
        new, old = map(list, zip(*pairs, strict=True))
        torch._foreach_copy_(new, old)
    return made
