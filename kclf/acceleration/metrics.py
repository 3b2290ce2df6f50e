"""Keras metrics summed on the device, in Keras' own variables, with nothing read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from keras import metrics

Values = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def add(metric: metrics.Mean, total: torch.Tensor, count: float) -> None:
    """Add to a mean: `total` is the sum of `count` values."""
    metric.total._value.add_(total)
    metric.count._value.add_(count)


def value(metric: metrics.Mean) -> torch.Tensor:
    """What a mean has come to, as a tensor on the device; it must have seen a batch."""
    return metric.total._value / metric.count._value


def _sparse_accuracy(y: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    return (y_pred.argmax(-1) == y.reshape(-1)).sum()


def _categorical_accuracy(y: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
    return (y_pred.argmax(-1) == y.argmax(-1)).sum()


def _binary_accuracy(metric: metrics.BinaryAccuracy) -> Values:
    threshold = metric.threshold
    return lambda y, y_pred: ((y_pred > threshold) == y.reshape(y_pred.shape)).float().mean(-1).sum()


def batch_total(metric: Any) -> Values | None:
    """The function that gives a metric's sum over a batch; None for a metric that Keras has to update."""
    if type(metric) is metrics.SparseCategoricalAccuracy:
        return _sparse_accuracy
    if type(metric) is metrics.CategoricalAccuracy:
        return _categorical_accuracy
    if type(metric) is metrics.BinaryAccuracy and metric.threshold is not None:
        return _binary_accuracy(metric)
    return None


def takes(metric: Any, y: torch.Tensor, y_pred: torch.Tensor) -> bool:
    """Whether the labels have the shape that a metric's device form was written for."""
    if type(metric) is metrics.SparseCategoricalAccuracy:
        return y.numel() == y_pred.shape[0]
    return y.shape == y_pred.shape or y_pred.shape[-1] == 1
