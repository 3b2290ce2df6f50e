"""One update of many tensors, by torch's fused and foreach kernels, all rates given as Python floats.

Python floats travel inside the kernel launch, so no update waits for the device. SGD and RMSprop keep torch's
momentum, `b <- m b + g; p <- p - rate * b`: Keras folds the rate into `b`, which is another optimizer as soon
as the rate changes. Epsilons stand where Keras has them. torch does not count what its fused kernels change
(`Tensor._version`), by which packed and folded weights are known to be old: here it is counted.
"""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass
from typing import Any, TypeAlias

import keras
import torch
from keras.optimizers import Optimizer
from torch.autograd.graph import increment_version

from .._core.keras_private import SLOTS, kernel_name, slots
from .._core.nadam import nadam as nadam_of
from .._core.nadam import product_of

Tensors = list[torch.Tensor]
Rate: TypeAlias = "float | torch.Tensor"  # a tensor where a schedule works it out on the device


class Veto:
    """A step that is made or not, which the device alone knows: no host waits to hear it.

    Args:
        found: float32 scalar on the device; above 0 where the step is not to be made.
    """

    def __init__(self, found: torch.Tensor) -> None:
        self.found = found
        self.counts = (found == 0).to(torch.float32)  # what the step adds to counts: 1 or 0

    def unless(self, due: torch.Tensor) -> Veto:
        """Also of steps whose time has not come, by a flag on the device."""
        return Veto(1 - self.counts * due)

    def corrected(self, rate: Rate, done: torch.Tensor, beta_1: float, beta_2: float) -> torch.Tensor:
        """Adam's rate with both bias corrections in it, float32 scalar on the device.

        rate * sqrt(1 - beta_2^t) / (1 - beta_1^t), where t is `done` + 1.
        """
        first, second = (-torch.expm1((done + 1) * math.log(beta)) for beta in (beta_1, beta_2))
        return rate * second.sqrt_().div_(first)


@dataclass
class Bucket:
    """Variables that share multiplier, weight decay, count of updates, dtype and device."""

    multiplier: float
    weight_decay: float
    count: int  # updates done
    positions: list[int]  # places of the variables in the gradients of a step
    variables: list[keras.Variable]
    optimizer: InitVar[Optimizer]
    torch_epsilon: bool  # Adam's epsilon stands after the bias correction

    def __post_init__(self, optimizer: Optimizer) -> None:
        """Look up the tensors of the optimizer's state, laid out in memory like the values."""
        self.values = [variable.value for variable in self.variables]
        self.step = torch.zeros((), dtype=torch.float32, device=self.values[0].device)
        self.done = torch.full_like(self.step, self.count)  # `count`, as the device knows it
        self.state: dict[str, Tensors] = {}
        for name in SLOTS.get(kernel_name(optimizer), ()):
            if owners := slots(optimizer, name, self.variables):
                kept = [_laid_like(o.value, v) for o, v in zip(owners, self.values, strict=True)]
                self.state[name.removeprefix("_")] = kept

    def updates_done(self, veto: Veto | None) -> torch.Tensor:
        """The count of updates, float32 scalar on the device; the host's, where no step is ever left out."""
        return self.done.fill_(self.count) if veto is None else self.done

    def decay(self, rate: Rate, veto: Veto | None = None) -> None:
        """Decoupled weight decay (Loshchilov & Hutter 2017): p <- p * (1 - rate * weight_decay)."""
        if self.weight_decay:
            share = rate * self.weight_decay
            torch._foreach_mul_(self.values, 1.0 - (share if veto is None else share * veto.counts))


def _laid_like(state: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The state with the strides of the value: fused kernels walk memory, not indices."""
    if state.stride() != value.stride():
        state.data = torch.empty_like(value, dtype=state.dtype).copy_(state)
    return state


def sgd(optimizer: Optimizer, bucket: Bucket, gradients: Tensors, rate: Rate, veto: Veto | None) -> None:
    """Stochastic gradient descent with momentum, Nesterov's or not."""
    bucket.decay(rate, veto)
    torch._fused_sgd_(
        _flat(bucket.values),
        _flat(gradients),
        _flat(bucket.state["momentums"]) if optimizer.momentum else [],
        weight_decay=0.0,
        momentum=optimizer.momentum,
        lr=rate,
        dampening=0.0,
        nesterov=bool(optimizer.nesterov),
        maximize=False,
        is_first_step=False,
        found_inf=None if veto is None else veto.found,
    )
    increment_version(bucket.values)


def adam(optimizer: Optimizer, bucket: Bucket, gradients: Tensors, rate: Rate, veto: Veto | None) -> None:
    """Adam and AdamW. Keras adds epsilon before the bias correction and torch after: hence its division."""
    if veto is not None:
        _adam_unless(optimizer, bucket, gradients, rate, veto)
        return
    count = bucket.count + 1
    correction = 1.0 if bucket.torch_epsilon else (1.0 - optimizer.beta_2**count) ** 0.5
    epsilon = optimizer.epsilon / correction
    _fused_adam(optimizer, bucket, gradients, count, lr=rate, weight_decay=bucket.weight_decay, eps=epsilon)


def _flat(tensors: Tensors) -> Tensors:
    """The tensors as torch's fused kernels on a CPU take them without a copy: in the order of their memory.

    Values, gradients and state lie alike (`match_layout`, `_laid_like`), so their elements keep together.
    """
    return [
        tensor if tensor.is_contiguous() or tensor.is_cuda else tensor.as_strided((tensor.numel(),), (1,))
        for tensor in tensors
    ]


ENDLESS = 1e9  # steps, after which Adam's moments are no longer biased


def _adam_unless(optimizer: Optimizer, bucket: Bucket, gradients: Tensors, rate: Rate, veto: Veto) -> None:
    """Adam by a count that the device alone knows.

    With Keras' epsilon the corrections stand in the rate, and torch makes none.
    """
    bucket.decay(rate, veto)
    count: Rate = bucket.done + 1
    if not bucket.torch_epsilon:
        count, rate = ENDLESS, veto.corrected(rate, bucket.done, optimizer.beta_1, optimizer.beta_2)
    at = {"lr": rate, "weight_decay": 0.0, "eps": optimizer.epsilon}
    _fused_adam(optimizer, bucket, gradients, count, **at, found_inf=veto.found)


def _fused_adam(
    optimizer: Optimizer, bucket: Bucket, gradients: Tensors, count: Rate, **options: Any
) -> None:
    torch._fused_adamw_(
        _flat(bucket.values),
        _flat(gradients),
        *(_flat(bucket.state.get(name, [])) for name in ("momentums", "velocities", "velocity_hats")),
        [bucket.step.fill_(count)] * len(gradients),
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        amsgrad=bool(optimizer.amsgrad),
        maximize=False,
        **options,
    )
    increment_version(bucket.values)


def rmsprop(optimizer: Optimizer, bucket: Bucket, gradients: Tensors, rate: Rate, veto: Veto | None) -> None:
    """RMSprop, centered or not, with momentum or not."""
    bucket.decay(rate, veto)
    velocities = bucket.state["velocities"]
    torch._foreach_mul_(velocities, optimizer.rho)
    torch._foreach_addcmul_(velocities, gradients, gradients, 1.0 - optimizer.rho)
    scale = torch._foreach_add(velocities, optimizer.epsilon)
    if optimizer.centered:
        averages = bucket.state["average_gradients"]
        torch._foreach_lerp_(averages, gradients, 1.0 - optimizer.rho)
        torch._foreach_addcmul_(scale, averages, averages, -1.0)
    torch._foreach_sqrt_(scale)
    if not optimizer.momentum:
        torch._foreach_addcdiv_(bucket.values, gradients, scale, -rate)
        return
    momentums = bucket.state["momentums"]
    torch._foreach_mul_(momentums, optimizer.momentum)
    torch._foreach_addcdiv_(momentums, gradients, scale, 1.0)
    torch._foreach_add_(bucket.values, momentums, alpha=-rate)


def nadam(optimizer: Optimizer, bucket: Bucket, gradients: Tensors, rate: Rate, veto: Veto | None) -> None:
    """Adam with Nesterov's momentum."""
    bucket.decay(rate, veto)
    done = bucket.updates_done(veto)
    at = {"rate": rate, "count": done + 1, "product": product_of(optimizer.beta_1, done)}
    moments = (bucket.state[name] for name in ("momentums", "velocities"))
    nadam_of(optimizer, bucket.values, gradients, *moments, **at)


# The update of an optimizer; where it has none here, Keras' own must be used.
KERNELS = {"SGD": sgd, "Adam": adam, "AdamW": adam, "RMSprop": rmsprop, "Nadam": nadam}
VETOED = ("SGD", "Adam", "AdamW")  # whose kernels leave a step out by a flag on the device


def clip(optimizer: Optimizer, gradients: Tensors) -> Tensors:
    """Clip once over all groups, as the optimizer is set: by global norm, norm a variable, or value."""
    if optimizer.global_clipnorm:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale = torch.clamp(optimizer.global_clipnorm / norm, max=1.0) + (norm - norm)  # NaN spreads
        return torch._foreach_mul(gradients, scale)
    if optimizer.clipnorm:
        norms = torch._foreach_norm(gradients)
        torch._foreach_clamp_min_(norms, optimizer.clipnorm)
        return torch._foreach_mul(torch._foreach_div(gradients, norms), optimizer.clipnorm)
    if optimizer.clipvalue:
        low = torch._foreach_clamp_min(gradients, -optimizer.clipvalue)
        return torch._foreach_clamp_max(low, optimizer.clipvalue)
    return gradients


def match_layout(gradients: Tensors, values: Tensors) -> Tensors:
    """The gradients with the strides and dtypes of the values; those that fit are passed on as they are."""
    return [
        gradient
        if gradient.stride() == value.stride() and gradient.dtype == value.dtype
        else torch.empty_like(value).copy_(gradient)
        for gradient, value in zip(gradients, values, strict=True)
    ]
