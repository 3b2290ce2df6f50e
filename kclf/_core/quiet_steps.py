"""Steps of Keras' optimizers during which the host never waits for a CUDA device.

Keras makes tensors of Python numbers by copies from the host's memory, and reads counts and rates back, some
times a step. Here kernels fill in the numbers, and the host keeps the counts and rates that it knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from .devices import keras_device
from .fit_hooks import overridden
from .keras_private import (
    CURRENT_RATE,
    SCALED_APPLY,
    count_in_place_of,
    is_overwritten,
    rate_source,
    raw,
    step_count,
    trained_variables,
)

Tensors = list[torch.Tensor]


class HostMirror:
    """The value of a scalar variable, known to the host without asking the device each time.

    torch counts the in-place changes of a tensor (`_version`): the device is asked only after a change that
    was not made here, such as a load.

    Args:
        variable: of one number.
    """

    def __init__(self, variable: keras.Variable) -> None:
        self.variable = variable
        self._value: float = 0.0
        self._version = -1

    def read(self) -> float:
        """The number."""
        tensor = raw(self.variable)
        if tensor._version != self._version:
            self._value, self._version = tensor.item(), tensor._version
        return self._value

    def write(self, value: float) -> None:
        """Set it, on the device and here."""
        tensor = raw(self.variable)
        with torch.no_grad():
            tensor.fill_(value)
        self._value, self._version = float(np.float32(value)), tensor._version  # as float32 keeps it

    def add_one(self) -> None:
        """Count, on the device and here."""
        value = self.read()
        with torch.no_grad():
            raw(self.variable).add_(1)
        self._value, self._version = value + 1, raw(self.variable)._version


class _NumbersByKernels(TorchFunctionMode):
    """Within it a Python number becomes a tensor by a kernel that fills it, in place of a copy.

    A factor `alpha` that lies on the device, which torch would read, becomes a product.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.as_tensor and isinstance(args[0], bool | int | float):
            return torch.full((), args[0], **kwargs)
        if func is torch.floor_divide and all(isinstance(value, int) for value in args):
            return args[0] // args[1]
        if func is torch._foreach_add_ and isinstance(kwargs.get("alpha"), torch.Tensor):
            return func(args[0], torch._foreach_mul(args[1], kwargs["alpha"]))
        return func(*args, **kwargs)


class _Count(int):
    """The steps done, as a number that an optimizer may count up."""

    dtype = "int32"  # where Keras asks for it
    mirror: HostMirror

    def assign_add(self, value: int) -> None:
        """One more: what Keras' optimizers do at the end of a step."""
        self.mirror.add_one()


class QuietSteps:
    """Lets the steps of an optimizer go by without waiting, on CUDA; what they compute is Keras'.

    An optimizer that says `is_quiet`, such as a `LayerGroupOptimizer`, is left alone, with all around it.

    Args:
        optimizer: of Keras, with or without loss scaling around it; None before `compile`.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        self.inner = optimizer.inner_optimizer if self.scaled else optimizer
        self.quiet = getattr(self.inner, "is_quiet", False)
        self._steps: HostMirror | None = None
        self._rate: HostMirror | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """For one call of `apply`."""
        if self.quiet or keras_device().type != "cuda":
            yield
        elif self.scaled:
            fused = overridden(self.optimizer, **{SCALED_APPLY: self._apply})
            with _NumbersByKernels(), self._known_rate(), fused:
                yield
        else:
            with _NumbersByKernels(), self._known_rate(), self._known_count():
                yield

    def _apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        apply_scaled(self.optimizer, grads, trainable_variables)

    @contextmanager
    def _known_rate(self) -> Iterator[None]:
        rate = rate_source(self.inner)
        if not isinstance(rate, keras.Variable):  # a schedule computes it, from the count
            yield
            return
        if self._rate is None or self._rate.variable is not rate:
            self._rate = HostMirror(rate)
        with overridden(self.inner, **{CURRENT_RATE: self._rate.read}):
            yield

    @contextmanager
    def _known_count(self) -> Iterator[None]:
        variable = step_count(self.inner)
        if self._steps is None or self._steps.variable is not variable:
            self._steps = HostMirror(variable)
        count = _Count(self._steps.read())
        count.mirror = self._steps
        with count_in_place_of(self.inner, count):
            yield


def apply_scaled(
    optimizer: Any, grads: Sequence[torch.Tensor | None], trainable_variables: Any = None
) -> None:
    """The step of a `LossScaleOptimizer` in one pass over the gradients, which are unscaled in place.

    Where one of them is not finite the step leaves no trace, and the scale is halved. On CUDA the device does
    so by itself; where the optimizer inside keeps counts on the host, the host waits once.

    Args:
        optimizer: a `keras.optimizers.LossScaleOptimizer`, built.
        grads: one gradient a variable, or None.
        trainable_variables: the variables; None for all that the optimizer was built on.
    """
    variables = list(trainable_variables or trained_variables(optimizer))
    scale, inner = optimizer.dynamic_scale.value, optimizer.inner_optimizer
    found = torch.zeros((), dtype=torch.float32, device=scale.device)
    with torch.no_grad():
        gradients = [
            gradient
            for gradient, variable in zip(grads, variables, strict=True)
            if gradient is not None and not is_overwritten(optimizer, variable)
        ]
        for alike in by_dtype(gradients):
            torch._amp_foreach_non_finite_check_and_unscale_(alike, found, scale.reciprocal())
        if getattr(inner, "takes_veto", False):
            inner.veto_next(found)
            inner.apply(grads, trainable_variables=variables)
        elif scale.device.type == "cuda" and not getattr(inner, "is_quiet", False):
            with _undone_where(found, gradients, _changed_by_a_step(inner, variables)):
                inner.apply(grads, trainable_variables=variables)
        elif not found.item():  # here the host waits
            inner.apply(grads, trainable_variables=variables)
        torch._amp_update_scale_(
            scale, optimizer.step_counter.value, found, 2.0, 0.5, optimizer.dynamic_growth_steps
        )


def _changed_by_a_step(optimizer: Any, variables: Sequence[keras.Variable]) -> Tensors:
    """Weights, moments and counts; the rate stays as it is, and the host may go on knowing it."""
    state = [variable for variable in optimizer.variables if variable is not rate_source(optimizer)]
    return [variable.value for variable in (*variables, *state)]


@contextmanager
def _undone_where(found: torch.Tensor, gradients: Tensors, values: Tensors) -> Iterator[None]:
    """Let a step be made by gradients that are 0 where the flag is up, and take back then what it did."""
    for alike in by_dtype(gradients):
        finite = [torch.zeros_like(gradient) for gradient in alike]
        _add_unless(found, finite, alike)
        torch._foreach_copy_(alike, finite)
    kept = [torch.empty_like(value) for value in values]
    torch._foreach_copy_(kept, values)
    yield
    for now, before in zip(by_dtype(values), by_dtype(kept), strict=True):
        if now[0].is_floating_point():
            torch._foreach_mul_(now, (1 - found).to(now[0].dtype))
            torch._foreach_mul_(before, found.to(now[0].dtype))
            torch._foreach_add_(now, before)
        else:
            for value, old in zip(now, before, strict=True):
                value.copy_(torch.where(found > 0, old, value))


def _add_unless(found: torch.Tensor, sums: Tensors, added: Tensors) -> None:
    """Sums += added, unless the flag is up: the one kernel that looks at a flag is that of SGD."""
    torch._fused_sgd_(
        sums, added, [], weight_decay=0.0, momentum=0.0, lr=-1.0, dampening=0.0, nesterov=False,
        maximize=False, is_first_step=False, found_inf=found,
    )  # fmt: skip


def by_dtype(tensors: Sequence[torch.Tensor]) -> list[Tensors]:
    """Tensors of one dtype together: kernels over many take one dtype at a time."""
    found: dict[torch.dtype, Tensors] = {}
    for tensor in tensors:
        found.setdefault(tensor.dtype, []).append(tensor)
    return list(found.values())
