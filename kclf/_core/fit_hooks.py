"""The one way into Keras' `fit`: wrap its steps, hear each loss, replace a method of one object.

* `wrap_step` calls a function around each train or test step.
* `add_listener` lets a method be called with the loss of each training batch.
* `override` lets one model or optimizer have another method than its class, out of sight of Keras' tracking.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import torch

Step = Callable[[list[Any]], Any]
Around = Callable[[Step, list[Any]], Any]


class _Steps:
    """A step of a model with functions around it; it ends with the fit that it was made for.

    An interrupted fit calls no callback. The next one has another `History`, and so is recognised.
    """

    def __init__(self, model: keras.Model, name: str, step: Step) -> None:
        self.model, self.name, self.step = model, name, step
        self.history = getattr(model, "history", None)
        self.around: list[Around] = []

    @property
    def is_over(self) -> bool:
        return getattr(self.model, "history", None) is not self.history

    def __call__(self, data: list[Any]) -> Any:
        if self.is_over:
            setattr(self.model, self.name, self.step)
            return self.step(data)
        step = self.step
        for function in self.around:
            step = functools.partial(function, step)
        return step(data)


def wrap_step(model: keras.Model, name: str, function: Around) -> None:
    """Let a function be called with each step and its data, in place of the step.

    Args:
        model: in a fit or an evaluation.
        name: "train_function" or "test_function".
        function: called with the step, or the next function inside, and the list of batches that it gets.
            What is added last stands outermost.
    """
    steps = getattr(model, name)
    if not isinstance(steps, _Steps) or steps.is_over:
        steps = _Steps(model, name, steps.step if isinstance(steps, _Steps) else steps)
        setattr(model, name, steps)
    steps.around.append(function)


def unwrap_step(model: keras.Model, name: str, function: Around) -> None:
    """Take a function away again; nothing happens where it is not there."""
    steps = getattr(model, name)
    if isinstance(steps, _Steps) and function in steps.around:
        steps.around.remove(function)
        if not steps.around:
            setattr(model, name, steps.step)


def is_part_of_step(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the backward pass of now gives but a part of a step's gradients: `apply` is called later."""
    return "step_of_parts" in vars(optimizer)


Receive = Callable[[torch.Tensor], None]


def add_listener(optimizer: keras.optimizers.Optimizer, listener: weakref.WeakMethod[Receive]) -> None:
    """Let a method be called with the detached loss of each training batch, a scalar on the device."""
    _set(optimizer, (*_listeners(optimizer), listener))


def remove_listener(optimizer: keras.optimizers.Optimizer, listener: weakref.WeakMethod[Receive]) -> None:
    """Call it no more."""
    _set(optimizer, tuple(one for one in _listeners(optimizer) if one is not listener))


def intercept_loss(optimizer: keras.optimizers.Optimizer, gate: Receive) -> None:
    """Let a gate have the losses in place of the listeners, to whom it passes on what it makes of them."""
    vars(optimizer)["_loss_gate"] = gate


def emit_loss(optimizer: keras.optimizers.Optimizer, loss: torch.Tensor) -> None:
    """Say what the loss of a batch was: to the gate where there is one, else to the listeners."""
    vars(optimizer).get("_loss_gate", functools.partial(forward_loss, optimizer))(loss)


def forward_loss(optimizer: keras.optimizers.Optimizer, loss: torch.Tensor) -> None:
    """Call the listeners."""
    for listener in _listeners(optimizer):
        receive = listener()
        if receive is not None:
            receive(loss)


def _listeners(optimizer: keras.optimizers.Optimizer) -> tuple[weakref.WeakMethod[Receive], ...]:
    return vars(optimizer).get("_loss_listeners", ())


def _set(optimizer: keras.optimizers.Optimizer, listeners: tuple[weakref.WeakMethod[Receive], ...]) -> None:
    attributes = vars(optimizer)
    attributes["_loss_listeners"] = listeners
    attributes["scale_loss"] = functools.partial(_scale_and_tell, optimizer)
    if not listeners:
        del attributes["_loss_listeners"], attributes["scale_loss"]


def _scale_and_tell(optimizer: keras.optimizers.Optimizer, loss: torch.Tensor) -> torch.Tensor:
    emit_loss(optimizer, loss.detach())
    return type(optimizer).scale_loss(optimizer, loss)


def override(owner: Any, **methods: Callable[..., Any] | None) -> None:
    """Let one object have other methods than its class, without Keras tracking them as its parts."""
    vars(owner).update(methods)


@contextmanager
def overridden(owner: Any, **methods: Any) -> Iterator[None]:
    """Let an object have other methods, or attributes, in the block; those that it had before come back."""
    before = {name: vars(owner)[name] for name in methods if name in vars(owner)}
    override(owner, **methods)
    try:
        yield
    finally:
        for name in methods:
            vars(owner).pop(name, None)
        override(owner, **before)
