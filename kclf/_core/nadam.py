"""Nadam's formula (Dozat 2016) with all its numbers on the device: Keras' own reads two of them back."""

from __future__ import annotations

from typing import Any

import torch

Tensors = list[torch.Tensor]
DECAY = 0.96  # of the momentum's schedule, u_t = beta_1 * (1 - 0.5 * 0.96^t); Keras has it as a constant
SETTLED = 512  # updates, after which 1 - 0.5 * 0.96^t is 1 in float32


def product_of(beta_1: float, count: torch.Tensor) -> torch.Tensor:
    """u_1 * u_2 * ... * u_count.

    Args:
        beta_1: the momentum.
        count: updates done, scalar on any device.

    Returns:
        float32 scalar on that device.
    """
    done = torch.arange(1, SETTLED + 1, dtype=torch.float32, device=count.device)
    factors = torch.where(done <= count, 1.0 - 0.5 * torch.pow(DECAY, done), 1.0)
    return factors.prod() * torch.pow(beta_1, count.to(torch.float32))


def nadam(
    optimizer: Any,
    values: Tensors,
    gradients: Tensors,
    momentums: Tensors,
    velocities: Tensors,
    *,
    rate: Any,
    count: Any,
    product: torch.Tensor,
) -> torch.Tensor:
    """One update, in place.

    Args:
        optimizer: of which beta_1, beta_2 and epsilon are read.
        values: weights.
        gradients: of the weights.
        momentums: first moments.
        velocities: second moments.
        rate: learning rate, a number or a scalar on the device.
        count: which update this is, from 1; a number or a scalar on the device.
        product: `product_of` the updates before.

    Returns:
        `product_of` the updates with this one.
    """
    beta_1, beta_2 = optimizer.beta_1, optimizer.beta_2
    now, after = (beta_1 * (1.0 - 0.5 * DECAY**step) for step in (count, count + 1))
    product = product * now
    torch._foreach_lerp_(momentums, gradients, 1.0 - beta_1)
    torch._foreach_mul_(velocities, beta_2)
    torch._foreach_addcmul_(velocities, gradients, gradients, 1.0 - beta_2)
    steps = torch._foreach_mul(momentums, after / (1.0 - product * after))
    torch._foreach_add_(steps, torch._foreach_mul(gradients, (1.0 - now) / (1.0 - product)))
    torch._foreach_mul_(steps, -rate)
    scale = torch._foreach_div(velocities, 1.0 - beta_2**count)
    torch._foreach_sqrt_(scale)
    torch._foreach_add_(scale, optimizer.epsilon)
    torch._foreach_addcdiv_(values, steps, scale)
    return product
