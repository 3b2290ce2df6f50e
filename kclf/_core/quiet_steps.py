"""Steps of Keras' optimizers during which the host never waits for a CUDA device.

Keras makes tensors of Python numbers by copies from the host's memory, and reads counts and rates back, some
times a step. Here kernels fill in the numbers, and the host keeps the counts and rates that it knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from .devices import keras_device
from .fit_hooks import overridden
from .keras_private import (
    APPLY_FINITE,
    BESIDE_UPDATES,
    CURRENT_RATE,
    SCALED_APPLY,
    SLOTS,
    SUMS,
    UPDATE,
    average_of_weights,
    count_in_place_of,
    is_overwritten,
    kernel_name,
    move_averages,
    product_variable,
    rate_source,
    raw,
    slots,
    step_count,
    trained_variables,
    whole_update,
)
from .nadam import Tensors, nadam


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


class NumbersByKernels(TorchFunctionMode):
    """Within it a Python number becomes a tensor by a kernel that fills it, in place of a copy.

    A factor that lies on the device, which torch would read, becomes a product.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.as_tensor and isinstance(args[0], bool | int | float):
            return torch.full((), args[0], **kwargs)
        if func is torch.floor_divide and all(isinstance(value, int) for value in args):
            return args[0] // args[1]
        if func is torch._foreach_add_ and isinstance(kwargs.get("alpha"), torch.Tensor):
            return func(args[0], torch._foreach_mul(args[1], kwargs["alpha"]))
        if func is torch._foreach_addcdiv_ and isinstance(args[-1], torch.Tensor):
            return func(args[0], torch._foreach_mul(args[1], args[-1]), args[2])
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
            return
        scaled = {SCALED_APPLY: partial(apply_scaled, self.optimizer)}
        step = overridden(self.optimizer, **scaled) if self.scaled else self._known_count()
        with NumbersByKernels(), self._known_rate(), overridden(self.inner, **self._formulas()), step:
            yield

    def _formulas(self) -> dict[str, Any]:
        """Methods of the optimizer that ask the device, in forms that do not."""
        methods: dict[str, Any] = {}
        if kernel_name(self.inner) == "Nadam":
            methods[UPDATE] = partial(_nadam, self.inner)
        if self.scaled and (self.inner.gradient_accumulation_steps or self.inner.ema_overwrite_frequency):
            methods[APPLY_FINITE] = partial(_apply_by_flags, self.inner)
        return methods

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
    so by itself.

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
        if getattr(inner, "is_quiet", False):
            inner.veto_next(found)
            inner.apply(grads, trainable_variables=variables)
        elif scale.device.type == "cuda":
            zero_where(found, gradients)
            with undone_where(found, _changed_by_a_step(inner, variables)):
                inner.apply(grads, trainable_variables=variables)
        elif not found.item():  # on a CPU nothing is waited for
            inner.apply(grads, trainable_variables=variables)
        torch._amp_update_scale_(
            scale, optimizer.step_counter.value, found, 2.0, 0.5, optimizer.dynamic_growth_steps
        )


def _nadam(optimizer: Any, gradients: Tensors, variables: Sequence[keras.Variable], rate: Any) -> None:
    moments = ([slot.value for slot in slots(optimizer, name, variables)] for name in SLOTS["Nadam"])
    product = raw(product_variable(optimizer))
    at = {"rate": rate, "count": optimizer.iterations + 1, "product": product}
    values = [variable.value for variable in variables]
    product.copy_(nadam(optimizer, values, gradients, *moments, **at))


def _apply_by_flags(optimizer: Any, gradients: Tensors, variables: Sequence[keras.Variable]) -> None:
    """Keras' step with accumulation and averages, where the device alone knows the count of steps.

    Whether it is time to update, or to overwrite weights, is a flag there: what comes too early is undone.
    """
    count = raw(step_count(optimizer)) + 1
    if every := optimizer.gradient_accumulation_steps:
        sums = [kept.value for kept in slots(optimizer, SUMS, variables)]
        torch._foreach_add_(sums, gradients)
        early = (count % every != 0).to(torch.float32)
        with undone_where(early, changed_by_an_update(optimizer, variables)):
            whole_update(optimizer, torch._foreach_div(sums, float(every)), list(variables))
        torch._foreach_mul_(sums, early)
    else:
        whole_update(optimizer, gradients, list(variables))
    if optimizer.use_ema:
        move_averages(optimizer)
        if frequency := optimizer.ema_overwrite_frequency:
            now = ((count - 1) // (every or 1) + 1) % frequency == 0
            overwrite_where(now.to(torch.float32), *_weights_and_averages(optimizer))


def _weights_and_averages(optimizer: Any) -> tuple[Tensors, Tensors]:
    pairs = zip(trained_variables(optimizer), average_of_weights(optimizer), strict=True)
    kept = [(variable.value, average.value) for variable, average in pairs if average is not None]
    values, averages = zip(*kept, strict=True)
    return list(values), list(averages)


def overwrite_where(flag: torch.Tensor, values: Tensors, others: Tensors) -> None:
    """Values become the others where the flag, 0 or 1 on the device, is up."""
    torch._foreach_mul_(values, 1 - flag)
    torch._foreach_add_(values, torch._foreach_mul(others, flag))


def zero_where(found: torch.Tensor, gradients: Tensors) -> None:
    """Gradients, of whatever values, become 0 where the flag is up."""
    for alike in by_dtype(gradients):
        finite = [torch.zeros_like(gradient) for gradient in alike]
        _add_unless(found, finite, alike)
        torch._foreach_copy_(alike, finite)


def changed_by_an_update(optimizer: Any, variables: Sequence[keras.Variable]) -> Tensors:
    """Weights and moments; what an optimizer does beside its updates, it does outside."""
    beside = [step_count(optimizer)]
    for name in BESIDE_UPDATES:
        beside += getattr(optimizer, name, None) or []
    return _changed_by_a_step(optimizer, variables, beside)


def _changed_by_a_step(
    optimizer: Any, variables: Sequence[keras.Variable], beside: Sequence[Any] = ()
) -> Tensors:
    """Weights, moments and counts; the rate stays as it is, and the host may go on knowing it."""
    changed = {id(variable): variable for variable in (*variables, *optimizer.variables)}
    if (product := product_variable(optimizer)) is not None:  # not among the variables under loss scaling
        changed[id(product)] = product
    for variable in (rate_source(optimizer), *beside):
        changed.pop(id(variable), None)
    return [variable.value for variable in changed.values()]


@contextmanager
def undone_where(found: torch.Tensor, values: Tensors) -> Iterator[None]:
    """Take back what the block does to values, none of which may become infinite, where the flag is up."""
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
