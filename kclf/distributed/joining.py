"""A Keras model that trains in step with its copies on the other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import torch

from .._core.fit_hooks import forward_loss, intercept_loss, override
from .._core.keras_private import EPOCH_LOGS, all_layers, epoch_logs
from ..errors import TrainingError
from .group import (
    average,
    broadcast,
    gather,
    per_rank_rng,
    rank,
    require_same_data,
    run_on_main,
    total,
    world_size,
)

_NAME = "_kclf_joined"


def distribute(model: keras.Model) -> None:
    """Let a compiled model train together with its copies on the other ranks; call it after each `compile`.

    `ImageClassifier` and `Learner` do it themselves. From then on `fit` and `evaluate` belong to all ranks
    together, each with its share of the data:

    * the first step begins with the weights and the optimizer's state of rank 0 on all ranks;
    * `optimizer.apply` first averages the gradients over the ranks, weighted by their photos, together with
      the statistics of BatchNorm layers that train: before loss scaling, clipping and the update. An infinite
      gradient of one rank is one of all;
    * losses that callbacks hear, and the logs of epochs, are those of all ranks: callbacks decide alike.

    With one process nothing happens.

    Args:
        model: compiled.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> distribute(model)
    """
    if world_size() > 1:
        vars(model)[_NAME] = _Joined(model)


def broadcast_state(model: keras.Model) -> None:
    """Give a model that has joined, and has not trained since, the state of rank 0 now."""
    joined = vars(model).get(_NAME)
    if joined is not None:
        joined.broadcast_state()


def require_joined(model: keras.Model) -> None:
    """Refuse to train a model on each rank by itself.

    Raises:
        TrainingError: there are several ranks, and the model has not joined them since it was compiled.
    """
    joined = vars(model).get(_NAME)
    if world_size() > 1 and (joined is None or joined.optimizer is not model.optimizer):
        raise TrainingError(
            f"There are {world_size()} processes, and {model.name!r} would train in each of them by itself: "
            "call kclf.distributed.distribute(model) after compile"
        )


class _Joined:
    """What stands between a model and its step, its optimizer and its logs."""

    def __init__(self, model: keras.Model) -> None:
        self.model, self.optimizer = model, model.optimizer
        self._norms = [
            layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)
        ]
        self._photos = 0  # that the gradients at hand are of
        self._loss: torch.Tensor | None = None
        self._agreed = self._begun = False
        before = vars(model).get(_NAME)
        step = model.train_step
        self._step = before._step if getattr(step, "__self__", None) is before is not None else step
        override(model, **{"train_step": self.train_step, EPOCH_LOGS: self.logs})
        override(self.optimizer, apply=self.apply)
        intercept_loss(self.optimizer, self._hold)

    def broadcast_state(self) -> None:
        if self._agreed or world_size() == 1:
            return
        shapes = gather([tuple(variable.shape) for variable in self.model.variables])
        if any(other != shapes[0] for other in shapes):
            raise TrainingError(f"Rank {rank()} has another model than rank 0: other layers, or other shapes")
        variables = [*self.model.variables, *self.optimizer.variables]
        broadcast([variable.value for variable in variables])
        drawing = [layer for layer in all_layers(self.model) if hasattr(layer, "get_random_state")]
        states = run_on_main(lambda: [torch.get_rng_state(), *(one.get_random_state() for one in drawing)])
        torch.set_rng_state(states[0])
        for layer, state in zip(drawing, states[1:], strict=True):
            layer.set_random_state(state)
        self._agreed = True

    def train_step(self, data: Any) -> Any:
        if world_size() == 1:
            return self._step(data)
        if not self._begun:
            require_same_data()
            self._begun = True
        self.broadcast_state()
        photos = next(leaf for leaf in keras.tree.flatten(data) if leaf is not None).shape[0]
        try:
            with per_rank_rng():
                self._photos += photos  # of all parts, where memory allows only for parts of a batch
                return self._step(data)
        except BaseException:
            self._photos = 0
            raise

    def _hold(self, loss: torch.Tensor) -> None:
        self._loss = loss

    def apply(
        self,
        grads: Sequence[torch.Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        gradients = [gradient for gradient in grads if gradient is not None]
        loss, self._loss = self._loss, None
        if loss is not None or gradients:
            told = gradients[0].new_zeros(()) if loss is None else loss.clone()
            average([told, *self._statistics(), *gradients], weight=self._photos or 1)
            if loss is not None:
                forward_loss(self.optimizer, told)
        self._photos = 0
        type(self.optimizer).apply(self.optimizer, grads, trainable_variables)

    def _statistics(self) -> list[torch.Tensor]:
        """The moving averages of the BatchNorm layers that follow the batches."""
        live = [norm for norm in self._norms if norm.trainable]
        return [v.value for norm in live for v in (norm.moving_mean, norm.moving_variance)]

    def logs(self, logs: Any) -> Any:
        """The logs of an epoch or an evaluation, from the sums of all ranks."""
        model = self.model
        sums = [variable.value for variable in model.metrics_variables]
        if world_size() == 1 or not sums:
            return epoch_logs(model, logs)
        mine = [tensor.detach().clone() for tensor in sums]
        total(sums)
        try:
            return epoch_logs(model, logs)
        finally:
            with torch.no_grad():
                torch._foreach_copy_(sums, mine)
