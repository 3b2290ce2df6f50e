"""A Keras model that trains in step with its copies on the other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import torch

from .._core.fit_hooks import forward_loss, intercept_loss, is_part_of_step, override
from .._core.keras_private import EPOCH_LOGS, all_layers, epoch_logs, raw, trained_variables
from ..errors import TrainingError
from .averaging import GradientExchange
from .group import (
    broadcast,
    gather,
    per_rank_rng,
    rank,
    require_same_data,
    run_on_main,
    total,
    world_size,
)
from .sync_norm import normalize_together

_NAME = "_kclf_joined"


def distribute(model: keras.Model, *, sync_batchnorm: bool = False) -> None:
    """Let a compiled model train together with its copies on the other ranks; call it after each `compile`.

    `ImageClassifier` and `Learner` do it themselves. From then on `fit` and `evaluate` belong to all ranks
    together, each with its share of the data:

    * the first step begins with the weights and the optimizer's state of rank 0 on all ranks;
    * gradients are averaged over the ranks, weighted by their photos, while the backward pass still computes
      those of earlier layers, and so are the statistics of BatchNorm layers that train: before loss scaling,
      clipping and the update. An infinite gradient of one rank is one of all;
    * losses that callbacks hear, and the logs of epochs, are those of all ranks: callbacks decide alike.

    With one process nothing happens.

    Args:
        model: compiled.
        sync_batchnorm: let the BatchNorm layers that train normalise by the statistics of the whole batch in
            place of those of a rank's share: for shares of few photos. The model must be accelerated
            (`kclf.accelerate`; an `ImageClassifier` is).

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> distribute(model)
    """
    if world_size() > 1:
        vars(model)[_NAME] = _Joined(model, sync_batchnorm)


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

    def __init__(self, model: keras.Model, sync_batchnorm: bool) -> None:
        self.model, self.optimizer = model, model.optimizer
        self._norms = [
            layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)
        ]
        for norm in self._norms:
            override(norm, normalize_by_all=normalize_together if sync_batchnorm else None)
        self._exchange = GradientExchange([])
        self._photos = 0  # that the gradients at hand are of
        self._loss: torch.Tensor | None = None
        self._agreed = self._begun = False
        before = vars(model).get(_NAME)
        if before is not None:
            before._exchange.remove()
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
        self._exchange.begin(None if is_part_of_step(self.optimizer) else float(photos))
        try:
            with per_rank_rng():
                self._photos += photos  # of all parts, where memory allows only for parts of a batch
                return self._step(data)
        except BaseException:
            self._photos = 0
            raise
        finally:
            self._exchange.end()

    def _hold(self, loss: torch.Tensor) -> None:
        self._loss = loss

    def apply(
        self,
        grads: Sequence[torch.Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        variables = trainable_variables or trained_variables(self.optimizer)
        parameters = [raw(variable) for variable in variables]
        loss, self._loss = self._loss, None
        gradients = {id(p): g for p, g in zip(parameters, grads, strict=True) if g is not None}
        if loss is not None or gradients:
            some = loss if loss is not None else next(iter(gradients.values()))
            told = some.new_zeros(()) if loss is None else loss.clone()
            known = [gradients.pop(id(parameter), None) for parameter in self._exchange.parameters]
            self._exchange.finish(known, [told, *self._statistics(), *gradients.values()], self._photos or 1)
            self._follow(parameters)
            if loss is not None:
                forward_loss(self.optimizer, told)
        self._photos = 0
        type(self.optimizer).apply(self.optimizer, grads, trainable_variables)

    def _follow(self, parameters: list[torch.Tensor]) -> None:
        """Stand by at the parameters that train now, from the next step on."""
        if [*map(id, parameters)] != [*map(id, self._exchange.parameters)]:
            self._exchange.remove()
            self._exchange = GradientExchange(parameters)

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
