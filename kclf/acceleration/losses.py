"""Keras losses as torch calls that read nothing back from the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from keras import losses

BatchLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def batch_loss(compiled: Any) -> BatchLoss | None:
    """The torch form of what `compile(loss=...)` was given.

    Args:
        compiled: Keras' `CompileLoss`, built or not.

    Returns:
        A function of `(y, y_pred)`, both (batch, ...), giving the mean loss; None where this is for Keras.
    """
    if compiled is None or not compiled.built or compiled.metrics or len(compiled._flat_losses) != 1:
        return None
    path, loss, weight, _ = compiled._flat_losses[0]
    if path or weight is not None or loss.dtype != "float32":
        return None
    if loss.reduction not in ("sum_over_batch_size", "mean"):
        return None
    make = LOSSES.get(type(loss))
    return None if make is None else make(loss)


def _sparse_categorical(loss: losses.SparseCategoricalCrossentropy) -> BatchLoss | None:
    if not _from_logits(loss) or loss.ignore_class is not None:
        return None
    return lambda y, logits: F.cross_entropy(logits.float(), y.reshape(-1).long())


def _categorical(loss: losses.CategoricalCrossentropy) -> BatchLoss | None:
    if not _from_logits(loss):
        return None
    smoothing = loss.label_smoothing
    return lambda y, logits: F.cross_entropy(logits.float(), y.float(), label_smoothing=smoothing)


def _binary(loss: losses.BinaryCrossentropy) -> BatchLoss | None:
    if not loss.from_logits:
        return None
    smoothing = loss.label_smoothing

    def binary(y: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        target = y.float().reshape(logits.shape)
        if smoothing:
            target = target * (1.0 - smoothing) + 0.5 * smoothing
        return F.binary_cross_entropy_with_logits(logits.float(), target)

    return binary


def _squared(loss: Any) -> BatchLoss:
    return lambda y, y_pred: F.mse_loss(y_pred.float(), y.float().reshape(y_pred.shape))


def _absolute(loss: Any) -> BatchLoss:
    return lambda y, y_pred: F.l1_loss(y_pred.float(), y.float().reshape(y_pred.shape))


def _from_logits(loss: Any) -> bool:
    return bool(loss.from_logits) and getattr(loss, "axis", -1) == -1


LOSSES: dict[type, Callable[[Any], BatchLoss | None]] = {
    losses.SparseCategoricalCrossentropy: _sparse_categorical,
    losses.CategoricalCrossentropy: _categorical,
    losses.BinaryCrossentropy: _binary,
    losses.MeanSquaredError: _squared,
    losses.MeanAbsoluteError: _absolute,
}


def fits(y: Any, y_pred: Any) -> bool:
    """Whether labels and predictions are what the torch forms take: (n, k), and n or n * k labels."""
    return (
        isinstance(y, torch.Tensor)
        and isinstance(y_pred, torch.Tensor)
        and y_pred.ndim == 2
        and (y.shape == y_pred.shape or y.shape in ((y_pred.shape[0],), (y_pred.shape[0], 1)))
    )
