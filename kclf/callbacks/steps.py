"""What the callbacks share: the length of a run, the optimizer's hyperparameters, the loss of a batch."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch

from .._core.fit_hooks import add_listener, override, remove_listener
from .._core.keras_private import rate_source
from ..distributed import require_joined
from ..errors import TrainingError
from ..optimizers import layer_group_optimizer
from ..optimizers.variables import GroupSpec

_SAVING = ("get_config", "save_own_variables")  # by which Keras writes an optimizer


def steps_of_run(params: dict[str, Any] | None) -> tuple[int, int]:
    """Batches of the whole run and of one epoch, from a callback's `params`."""
    steps, epochs = (params or {}).get("steps"), (params or {}).get("epochs")
    if not steps or not epochs:
        raise TrainingError(
            "A schedule needs to know how many batches the run has, and this data does not tell its length: "
            f"pass `steps_per_epoch` to fit. Received: steps={steps}, epochs={epochs}"
        )
    return steps * epochs, steps


def innermost(optimizer: Any) -> keras.optimizers.Optimizer:
    """The optimizer that makes the updates, under all wrappers."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def momentum_name(optimizer: Any) -> str | None:
    """What the momentum of an optimizer is called: "momentum", "beta_1", or None where it has none."""
    inner = innermost(optimizer)
    if getattr(inner, "momentum", 0.0):
        return "momentum"
    return "beta_1" if isinstance(getattr(inner, "beta_1", None), float) else None


class Hyperparameters:
    """The rate and momentum of an optimizer while a schedule owns them.

    Keras does not tell callbacks of a fit that was interrupted. So the optimizer keeps what it had before,
    and the next schedule finds it there.

    Args:
        optimizer: the compiled optimizer, wrapped or not.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        finish_interrupted(optimizer)
        self._optimizer = optimizer
        self._last_rate: float | None = None
        self._groups = layer_group_optimizer(optimizer)
        self._multipliers = () if self._groups is None else self._groups.learning_rate_multipliers
        self._inner = innermost(optimizer)
        if not isinstance(rate_source(self._inner), keras.Variable):
            raise TrainingError(
                "The optimizer was made with a learning rate schedule of its own, so no callback can set its "
                "rate: make it with a number"
            )
        self._momentum_name = momentum_name(optimizer)
        self.learning_rate = self._first_rate = self._rate_now()
        self.momentum = self._momentum_now()
        parts = [optimizer, self._inner] + ([] if self._groups is None else [self._groups])
        self._parts = list({id(part): part for part in parts}.values())
        vars(optimizer)["_before_schedule"] = self
        for part in self._parts:  # what is saved meanwhile has the values from before
            override(part, **{name: self._as_before(part, name) for name in _SAVING})

    def _as_before(self, part: keras.optimizers.Optimizer, name: str) -> Callable[..., Any]:
        """A method of an optimizer that saves it, run with the values from before the schedule."""

        def save(*arguments: Any) -> Any:
            rate, momentum = self._last_rate, self._momentum_now()
            multipliers = () if self._groups is None else self._groups.learning_rate_multipliers
            self._put(self.learning_rate, self.momentum, self._multipliers)
            try:
                return getattr(type(part), name)(part, *arguments)
            finally:
                self._put(self.learning_rate if rate is None else rate, momentum, multipliers)

        return save

    def _momentum_now(self) -> float | None:
        return getattr(self._inner, self._momentum_name) if self._momentum_name else None

    def _put(self, rate: float, momentum: float | None, multipliers: Sequence[float]) -> None:
        self._optimizer.learning_rate = rate
        if self._momentum_name:
            setattr(self._inner, self._momentum_name, momentum)
        if self._groups is not None:
            self._groups.set_multipliers(multipliers)

    def set_group_rates(self, learning_rate: GroupSpec | None) -> float:
        """Set the rates of all groups and return the last one's; None keeps what the optimizer has."""
        if learning_rate is None:
            return self.learning_rate
        if isinstance(learning_rate, int | float | np.number):
            return float(learning_rate)
        if self._groups is None:
            raise TrainingError(
                "Learning rates for layer groups need a LayerGroupOptimizer. "
                f"Received: lr_max={learning_rate}, optimizer={type(self._optimizer).__name__}"
            )
        self._groups.set_learning_rates(learning_rate)
        self._first_rate = float(keras.ops.convert_to_numpy(self._groups.learning_rate))
        return self._first_rate

    def set(self, learning_rate: float, momentum: float | None) -> None:
        """Set the values of one batch."""
        self._optimizer.learning_rate = self._last_rate = learning_rate
        if momentum is not None and self._momentum_name:
            setattr(self._inner, self._momentum_name, momentum)

    def restore(self) -> None:
        """Put back the rate, the ratios between groups and the momentum from before the schedule."""
        self._put(self.learning_rate, self.momentum, self._multipliers)
        self.release()
        vars(self._optimizer).pop("_before_schedule", None)

    def release(self) -> None:
        """Let the optimizer be saved as it is again."""
        for part in self._parts:
            for name in _SAVING:
                vars(part).pop(name, None)

    def was_set_elsewhere(self) -> float | None:
        """The rate that something else has set since `set`; None where nothing has."""
        return None if self._last_rate is None or self.is_unchanged() else self._rate_now()

    def is_unchanged(self) -> bool:
        """True while the optimizer still has the rate that was set here last."""
        last = self._first_rate if self._last_rate is None else self._last_rate
        return self._rate_now() == np.float32(last)

    def _rate_now(self) -> float:
        return float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))


def finish_interrupted(optimizer: keras.optimizers.Optimizer) -> None:
    """Put back what a schedule left behind when its fit was interrupted, unless the rate was set since."""
    before = vars(optimizer).pop("_before_schedule", None)
    if before is None:
        return
    before.release()
    if before.is_unchanged():
        before.restore()


def rates_now(optimizer: keras.optimizers.Optimizer) -> list[float]:
    """The learning rate of each layer group now, input side first; of other optimizers the one rate."""
    groups = layer_group_optimizer(optimizer)
    if groups is not None:
        return groups.learning_rates
    return [float(keras.ops.convert_to_numpy(optimizer.learning_rate))]


def log_rates(optimizer: keras.optimizers.Optimizer, logs: dict[str, Any] | None) -> None:
    """Put the rates of now into the logs of an epoch, where a schedule of kclf sets them.

    The last group's is "learning_rate", as in Keras; those of the groups before it are "learning_rate_0",
    "learning_rate_1" and so on.
    """
    if logs is None or "_before_schedule" not in vars(optimizer):
        return
    *others, logs["learning_rate"] = rates_now(optimizer)
    logs.update({f"learning_rate_{number}": rate for number, rate in enumerate(others)})


def warn_of_silence(callback: keras.callbacks.Callback) -> None:
    """Say that a callback hears no loss: the step of the model keeps it to itself."""
    warnings.warn(
        f"{type(callback).__name__} hears no loss: the train_step of {type(callback.model).__name__} does "
        "not pass it through optimizer.scale_loss, as Keras' own does. Write "
        "self.optimizer.scale_loss(loss).backward() there",
        stacklevel=2,
    )


class LossHook:
    """Calls a method with the loss of each training batch, as a tensor on the device.

    With several processes it is that of the batch they share. The owner of the method is held weakly.

    Args:
        model: a compiled model.
        receive: bound method called with the detached loss, float scalar.
    """

    def __init__(self, model: keras.Model, receive: Callable[[torch.Tensor], None]) -> None:
        require_joined(model)
        self._optimizer: keras.optimizers.Optimizer | None = model.optimizer
        self._receive = weakref.WeakMethod(receive)
        add_listener(model.optimizer, self._receive)

    def close(self) -> None:
        """Stop listening."""
        if self._optimizer is not None:
            remove_listener(self._optimizer, self._receive)
            self._optimizer = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy, as in a spawned worker, listens to nobody."""
        return {"_optimizer": None}


class FinishAccumulation(keras.callbacks.Callback):
    """Lets the last batch of a fit make a step of the gradients that were accumulated, be they ever so few.

    For an optimizer that ends with the fit, as a `Learner`'s: what is left would be lost.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Know the epoch."""
        self._is_last = epoch == self.params["epochs"] - 1

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Before the last batch: its step shall not wait for more."""
        optimizer = layer_group_optimizer(self.model.optimizer)
        if self._is_last and optimizer is not None and batch + 1 == self.params["steps"]:
            optimizer.finish_accumulation()
