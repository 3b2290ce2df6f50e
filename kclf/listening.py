"""The loss of each training batch, for whoever listens.

Keras reports running means; the loss of the batch itself passes through `optimizer.scale_loss`, which every
training step calls and no evaluation does. Listeners are weak references to methods, kept by the optimizer.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable

import keras
import torch

Receive = Callable[[torch.Tensor], None]


def add_listener(optimizer: keras.optimizers.Optimizer, listener: weakref.WeakMethod[Receive]) -> None:
    """Let a method be called with the detached loss of each training batch, a scalar on the device."""
    _set(optimizer, (*_listeners(optimizer), listener))


def remove_listener(optimizer: keras.optimizers.Optimizer, listener: weakref.WeakMethod[Receive]) -> None:
    """Call it no more."""
    _set(optimizer, tuple(one for one in _listeners(optimizer) if one is not listener))


def hold_losses(optimizer: keras.optimizers.Optimizer, gate: Receive) -> None:
    """Let a gate have the losses in place of the listeners, to whom it passes on what it makes of them."""
    vars(optimizer)["_loss_gate"] = gate


def tell(optimizer: keras.optimizers.Optimizer, loss: torch.Tensor) -> None:
    """Say what the loss of a batch was: to the gate where there is one, else to the listeners."""
    vars(optimizer).get("_loss_gate", functools.partial(pass_on, optimizer))(loss)


def pass_on(optimizer: keras.optimizers.Optimizer, loss: torch.Tensor) -> None:
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
    tell(optimizer, loss.detach())
    return type(optimizer).scale_loss(optimizer, loss)
