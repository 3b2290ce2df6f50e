"""Batch normalisation as one torch operation, with the biased variance of Keras."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F

from .run import Run, Site


@dataclass(frozen=True)
class Statistics:
    """The mean and 1/standard deviation of a batch, and the layer whose moving statistics follow them."""

    layer: Any
    mean: torch.Tensor
    inverse: torch.Tensor

    def rule(self) -> tuple[float, float]:
        """How fast the moving statistics follow, and what was added to the variance."""
        return 1.0 - self.layer.momentum, self.layer.epsilon


class BatchNorm:
    """A Keras BatchNormalization on values whose axis 1 holds the channels."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.gamma = layer.gamma if layer.scale else None
        self.beta = layer.beta if layer.center else None

    def __call__(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        """Normalise (batch, channels, ...) by the statistics that Keras would take."""
        layer = self.layer
        gamma = None if self.gamma is None else self.gamma._value
        beta = None if self.beta is None else self.beta._value
        if run.training and layer.trainable:
            y, mean, inverse = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, layer.epsilon)
            run.statistics.append(Statistics(layer, mean.detach(), inverse.detach()))
            return y
        mean, variance = layer.moving_mean._value, layer.moving_variance._value
        return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, layer.epsilon)

    def tensors(self) -> list[torch.Tensor]:
        """Everything that its result in inference mode depends on, but for the input."""
        held = (self.gamma, self.beta, self.layer.moving_mean, self.layer.moving_variance)
        return [variable._value for variable in held if variable is not None]

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The factor and the summand, (channels,) each, that it comes to in inference mode."""
        layer = self.layer
        scale = torch.rsqrt(layer.moving_variance._value + layer.epsilon)
        if self.gamma is not None:
            scale = scale * self.gamma._value
        shift = -layer.moving_mean._value * scale
        return scale, shift if self.beta is None else shift + self.beta._value


def compile_batchnorm(site: Site) -> BatchNorm | None:
    """The fused form of a layer; None where it renormalises or its channels are not on axis 1 here."""
    layer = site.layer
    axis = layer.axis if isinstance(layer.axis, int) else None
    channels = {site.rank - 1, -1} if site.views or site.rank == 2 else {1, 1 - site.rank}
    if layer.renorm or layer.synchronized or site.rank not in (2, 4) or axis not in channels:
        return None
    return BatchNorm(layer)


class LoneBatchNorm:
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


def lone_batchnorm(layer: Any) -> LoneBatchNorm | None:
    """The fused form of a layer wherever it is called; None where that is for Keras."""
    plain = isinstance(layer.axis, int) and layer.built and not (layer.renorm or layer.synchronized)
    return LoneBatchNorm(layer) if plain else None


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
    means = [item.layer.moving_mean._value for item in items]
    variances = [item.layer.moving_variance._value for item in items]
    batch = torch._foreach_pow([item.inverse for item in items], -2.0)
    torch._foreach_sub_(batch, epsilon)
    torch._foreach_lerp_(means, [item.mean for item in items], weight)
    torch._foreach_lerp_(variances, batch, weight)
