"""BatchNorm by the statistics of the whole batch, of which each rank has a share.

torch's own SyncBatchNorm computes on CUDA alone and lets each rank count alike in the backward pass; this one
is the same arithmetic on any device, and ranks count by their photos.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from .group import start, together, world_size


class _Total(torch.autograd.Function):
    """The sum over the ranks, through which each one gets the gradients of all losses, weighted by photos."""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, photos: int) -> torch.Tensor:
        ctx.photos = photos
        return _summed(mine.clone())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _summed(gradient * ctx.photos).div_(ctx.photos), None


def _summed(tensor: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        start()
        with together():
            dist.all_reduce(tensor)
    return tensor


def normalize_together(
    x: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    near: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise by the mean and the variance over all ranks.

    Args:
        x: (batch, channels, ...), this rank's share.
        gamma: factor of each channel, or None.
        beta: summand of each channel, or None.
        near: a guess of the mean, (channels,), the same on all ranks: the closer, the less is rounded away.
        epsilon: added to the variance.

    Returns:
        The normalised share, and the mean and 1/standard deviation, float32 (channels,).
    """
    shape = (1, -1, *[1] * (x.ndim - 2))
    axes = [0, *range(2, x.ndim)]
    shifted = x.float() - near.detach().reshape(shape)
    count = shifted.new_full((1,), x.numel() / x.shape[1])
    mine = torch.cat([shifted.sum(axes), shifted.square().sum(axes), count])
    total = _Total.apply(mine, len(x))
    first, second = (part / total[-1] for part in total[:-1].chunk(2))
    inverse = torch.rsqrt(second - first.square() + epsilon)
    y = (shifted - first.reshape(shape)) * inverse.reshape(shape)
    y = y if gamma is None else y * gamma.reshape(shape)
    y = y if beta is None else y + beta.reshape(shape)
    return y.to(x.dtype), (first + near).detach(), inverse.detach()
