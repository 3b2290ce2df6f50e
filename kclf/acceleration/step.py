"""Train and test step without host-device synchronisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import losses, metrics

from .._core.devices import send
from .._core.keras_private import (
    added_losses,
    all_layers,
    compiled_loss,
    compiled_metrics,
    function_of_loss,
    loss_tracker,
    only_loss,
    only_metrics,
    own_metrics,
    raw,
    takes_training,
)
from .._core.quiet_steps import QuietSteps
from ..losses import BinaryCrossEntropy, CrossEntropy
from ..metrics import ErrorRate, LabelAccuracy

OfBatch = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of (y, y_pred), both (batch, ...)


def batch_loss(compiled: Any) -> OfBatch | None:
    """The torch form of what `compile(loss=...)` was given.

    Args:
        compiled: Keras' `CompileLoss`, built or not.

    Returns:
        A function of `(y, y_pred)`, both (batch, ...), giving the mean loss; None where this is for Keras.
    """
    loss = only_loss(compiled)
    if loss is None or loss.dtype != "float32" or loss.reduction not in ("sum_over_batch_size", "mean"):
        return None
    make = LOSSES.get(function_of_loss(loss) or type(loss))
    return None if make is None else make(loss)


def _binary_cross_entropy(loss: BinaryCrossEntropy) -> OfBatch | None:
    if loss.focal_gamma:
        return None
    binary = _smoothed_binary(loss.label_smoothing)
    return lambda y, logits: binary(y, logits) if y.shape == logits.shape else loss(y, logits)


def _log_of_probabilities(y_pred: torch.Tensor) -> torch.Tensor:
    """Logarithms as Keras takes them: rows that sum to 1, clipped."""
    shares = y_pred.float() / y_pred.float().sum(-1, keepdim=True)
    return shares.clip(keras.config.epsilon(), 1.0 - keras.config.epsilon()).log()


def _sparse_probabilities(loss: Any) -> OfBatch:
    return lambda y, y_pred: F.nll_loss(_log_of_probabilities(y_pred), y.reshape(-1).long())


def _binary_probabilities(loss: Any) -> OfBatch:
    low, high = keras.config.epsilon(), 1.0 - keras.config.epsilon()
    return lambda y, y_pred: F.binary_cross_entropy(
        y_pred.float().clip(low, high), y.float().reshape(y_pred.shape)
    )


def _sparse_categorical(loss: losses.SparseCategoricalCrossentropy) -> OfBatch | None:
    if not _from_logits(loss) or loss.ignore_class is not None:
        return None
    return lambda y, logits: F.cross_entropy(logits.float(), y.reshape(-1).long())


def _categorical(loss: losses.CategoricalCrossentropy) -> OfBatch | None:
    if not _from_logits(loss):
        return None
    smoothing = loss.label_smoothing
    return lambda y, logits: F.cross_entropy(logits.float(), y.float(), label_smoothing=smoothing)


def _binary(loss: losses.BinaryCrossentropy) -> OfBatch | None:
    return _smoothed_binary(loss.label_smoothing) if loss.from_logits else None


def _smoothed_binary(smoothing: float) -> OfBatch:
    def binary(y: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        target = y.float().reshape(logits.shape)
        if smoothing:
            target = target * (1.0 - smoothing) + 0.5 * smoothing
        return F.binary_cross_entropy_with_logits(logits.float(), target)

    return binary


def _squared(loss: Any) -> OfBatch:
    return lambda y, y_pred: F.mse_loss(y_pred.float(), y.float().reshape(y_pred.shape))


def _absolute(loss: Any) -> OfBatch:
    return lambda y, y_pred: F.l1_loss(y_pred.float(), y.float().reshape(y_pred.shape))


def _from_logits(loss: Any) -> bool:
    return bool(loss.from_logits) and getattr(loss, "axis", -1) == -1


def _cross_entropy(loss: CrossEntropy) -> OfBatch:
    smoothing, gamma = loss.label_smoothing, loss.focal_gamma

    def cross_entropy(y: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        classes = logits.shape[-1]
        mixed = y.shape == logits.shape and classes > 1
        target = y.float() if mixed else y.reshape(-1).long()
        if not gamma:
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        shares = target if mixed else F.one_hot(target, classes).float()
        shares = shares * (1 - smoothing) + smoothing / classes
        logs = F.log_softmax(logits, dim=-1)
        return -(shares * (1 - logs.exp()) ** gamma * logs).sum(-1).mean()

    return cross_entropy


LOSSES: dict[Any, Callable[[Any], OfBatch | None]] = {
    CrossEntropy: _cross_entropy,
    BinaryCrossEntropy: _binary_cross_entropy,
    losses.SparseCategoricalCrossentropy: _sparse_categorical,
    losses.CategoricalCrossentropy: _categorical,
    losses.BinaryCrossentropy: _binary,
    losses.MeanSquaredError: _squared,
    losses.MeanAbsoluteError: _absolute,
    # those that `compile` was given by name, which Keras keeps as functions of probabilities
    losses.mean_squared_error: _squared,
    losses.mean_absolute_error: _absolute,
    losses.sparse_categorical_crossentropy: _sparse_probabilities,
    losses.binary_crossentropy: _binary_probabilities,
}


def labels_fit(y: Any, y_pred: Any) -> bool:
    """Whether labels and predictions are what the torch forms take: (n, k), and n or n * k labels."""
    return (
        isinstance(y, torch.Tensor)
        and isinstance(y_pred, torch.Tensor)
        and y_pred.ndim == 2
        and (y.shape == y_pred.shape or y.shape in ((y_pred.shape[0],), (y_pred.shape[0], 1)))
    )


def add_to_mean(metric: metrics.Mean, total: torch.Tensor, count: float) -> None:
    """Add to a mean: `total` is the sum of `count` values."""
    raw(metric.total).add_(total)
    raw(metric.count).add_(count)


def mean_value(metric: metrics.Mean) -> torch.Tensor:
    """What a mean has come to, as a tensor on the device; it must have seen a batch."""
    return raw(metric.total) / raw(metric.count)


def _hits(y: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    several = y.shape == y_pred.shape and y_pred.shape[-1] > 1
    labels = y.argmax(-1) if several else y.reshape(-1)
    return (y_pred.argmax(-1) == labels).sum()


def _errors(y: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    return len(y) - _hits(y, y_pred)


def _binary_accuracy(metric: metrics.BinaryAccuracy) -> OfBatch:
    threshold = metric.threshold
    return lambda y, y_pred: ((y_pred > threshold) == y.reshape(y_pred.shape)).float().mean(-1).sum()


TOTALS: dict[type, OfBatch] = {
    LabelAccuracy: _hits,
    ErrorRate: _errors,
    metrics.SparseCategoricalAccuracy: _hits,
    metrics.CategoricalAccuracy: _hits,
}


def batch_total(metric: Any) -> OfBatch | None:
    """The function that gives a metric's sum over a batch; None for a metric that Keras has to update."""
    if type(metric) is metrics.BinaryAccuracy and metric.threshold is not None:
        return _binary_accuracy(metric)
    return TOTALS.get(type(metric))


def metric_takes(metric: Any, y: torch.Tensor, y_pred: torch.Tensor) -> bool:
    """Whether the labels have the shape that a metric's device form was written for."""
    if type(metric) in (LabelAccuracy, ErrorRate):
        return True
    if type(metric) is metrics.SparseCategoricalAccuracy:
        return y.numel() == y_pred.shape[0]
    if type(metric) is metrics.CategoricalAccuracy:
        return y.shape == y_pred.shape and y_pred.shape[-1] > 1
    return y.shape == y_pred.shape or y_pred.shape[-1] == 1


OWN_PACKAGES = ("keras", "kclf")


def unsupported_reason(model: keras.Model) -> str | None:
    """Why a model keeps the step that it has; None if the lean step may take its place."""
    for name in ("train_step", "test_step", "compute_loss", "compute_metrics", "get_metrics_result"):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            return f"{type(model).__name__} has a {name} of its own"
    if model.compiled and model.jit_compile:
        return "jit_compile=True compiles Keras' own step"
    return None


class LeanStep:
    """One training or test step of a compiled model: Keras' results, in fewer and quieter operations.

    What it does not know (a custom loss, sample weights, several outputs, activity losses) it
    leaves to Keras, part by part.

    Args:
        model: a Keras model whose class has Keras' own steps.
        forward: a function `(x, training) -> y_pred`, or None where `model(x, training=...)` has to run.
    """

    def __init__(self, model: keras.Model, forward: Any = None) -> None:
        self.model, self.forward = model, forward
        self.refresh()

    def refresh(self) -> None:
        """Look at the model again: variables, losses and metrics may have changed since the last `fit`."""
        model = self.model
        self._variables = list(model.variables)
        self._strange = [layer for layer in all_layers(model) if not _is_known(layer)]
        self._regularized = any(variable.regularizer is not None for variable in self._variables) or any(
            getattr(layer, "activity_regularizer", None) for layer in all_layers(model)
        )
        self._loss: OfBatch | None = None
        self._totals: list[tuple[Any, Any]] | None = None
        self._looked = False
        self._quiet = QuietSteps(getattr(model, "optimizer", None))

    def _look(self) -> None:
        """Find the device forms of the loss and of the metrics, once they are built."""
        model = self.model
        self._loss = None if self._regularized else batch_loss(compiled_loss(model))
        self._totals = _device_metrics(compiled_metrics(model))
        if own_metrics(model) or any(layer.metrics for layer in all_layers(model, include_self=False)):
            self._totals = None
        self._looked = True

    def trainable(self) -> list[Any]:
        """The variables that train now; `trainable` flags count from the next step on."""
        if not self.model.trainable:
            return []
        return [variable for variable in self._variables if variable.trainable]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of `fit`: forward, loss, backward, update, metrics."""
        model = self.model
        trainable = self.trainable()
        if not trainable:
            return type(model).train_step(model, data)
        x, y, weight = _to_device(keras.utils.unpack_x_y_sample_weight(data))
        for variable in trainable:
            raw(variable).grad = None  # before the forward pass, whose activations take its place
        y_pred = self._predict(x, training=True)
        loss = self._compute_loss(x, y, y_pred, weight, training=True)
        model.optimizer.scale_loss(loss).backward()
        with torch.no_grad():
            if self._quiet.optimizer is not model.optimizer:
                self._quiet = QuietSteps(model.optimizer)
            with self._quiet():
                model.optimizer.apply([raw(variable).grad for variable in trainable], trainable)
            return self._update_metrics(x, y, y_pred, weight, loss.detach())

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of `evaluate`: forward, loss, metrics."""
        x, y, weight = _to_device(keras.utils.unpack_x_y_sample_weight(data))
        y_pred = self._predict(x, training=False)
        loss = self._compute_loss(x, y, y_pred, weight, training=False)
        return self._update_metrics(x, y, y_pred, weight, loss)

    def _predict(self, x: Any, *, training: bool) -> Any:
        if self.forward is not None and not self._strange and not self._regularized:
            y_pred = self.forward(x, training)
            if y_pred is not None:
                return y_pred
        if takes_training(self.model):
            return self.model(x, training=training)
        return self.model(x)

    def _compute_loss(self, x: Any, y: Any, y_pred: Any, weight: Any, *, training: bool) -> torch.Tensor:
        if not self._looked:
            self._look()
        if self._loss is None or weight is not None or not labels_fit(y, y_pred) or self._added_losses():
            loss = self.model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight, training=training)
            self._looked = self._looked and self._loss is not None
            return loss
        return self._loss(y, y_pred)

    def _added_losses(self) -> bool:
        return any(added_losses(layer) for layer in self._strange)

    def _update_metrics(self, x: Any, y: Any, y_pred: Any, weight: Any, loss: torch.Tensor) -> dict[str, Any]:
        model, size = self.model, _batch_size(x)
        add_to_mean(loss_tracker(model), loss * size, float(size))
        totals = self._totals if weight is None and labels_fit(y, y_pred) else None
        if totals is None or not all(total is None or metric_takes(one, y, y_pred) for one, total in totals):
            return model.compute_metrics(x, y, y_pred, sample_weight=weight)
        logs = {loss_tracker(model).name: mean_value(loss_tracker(model))}
        for metric, total in totals:
            if total is None:
                metric.update_state(y, y_pred)
                logs[metric.name] = metric.result()
            else:
                add_to_mean(metric, total(y, y_pred), float(size))
                logs[metric.name] = mean_value(metric)
        return logs


def _is_known(layer: Any) -> bool:
    """Whether a layer is Keras' or ours, so that it adds no loss in its call."""
    package = type(layer).__module__.split(".")[0]
    return package in OWN_PACKAGES and not isinstance(layer, keras.layers.ActivityRegularization)


def _device_metrics(compiled: Any) -> list[tuple[Any, Any]] | None:
    """Pairs of a metric and its device form, None where it updates itself; None where all is for Keras."""
    if compiled is None:
        return []
    metrics = only_metrics(compiled)
    if metrics is None:
        return None
    names = {metric.name for metric in metrics}
    return [(metric, batch_total(metric)) for metric in metrics] if len(names) == len(metrics) else None


def _to_device(value: Any) -> Any:
    """A tensor or array, or each of a list or dict, on the device of the model; anything else as it is."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        return send(value)
    if isinstance(value, list | tuple):
        return type(value)(_to_device(item) for item in value)
    if isinstance(value, dict):
        return {name: _to_device(item) for name, item in value.items()}
    return value


def _batch_size(x: Any) -> int:
    if not isinstance(x, torch.Tensor):
        x = next(item for item in keras.tree.flatten(x) if item is not None)
    return x.shape[0]
