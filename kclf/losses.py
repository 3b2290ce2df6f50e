"""Cross-entropies from logits with what recipes add: label smoothing, the focal factor, mixed labels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class _ShapedCrossEntropy(keras.losses.Loss):
    """A cross-entropy whose labels are smoothed and whose right photos count less."""

    _name: str  # where none is given

    def __init__(
        self,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        *,
        reduction: str = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"Expected label_smoothing to lie in [0, 1). Received: label_smoothing={label_smoothing}"
            )
        if focal_gamma < 0:
            raise ValueError(f"Expected focal_gamma to be 0 or more. Received: focal_gamma={focal_gamma}")
        super().__init__(name=name or self._name, reduction=reduction, dtype=dtype)
        self.label_smoothing = float(label_smoothing)
        self.focal_gamma = float(focal_gamma)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` needs."""
        return {
            **super().get_config(),
            "label_smoothing": self.label_smoothing,
            "focal_gamma": self.focal_gamma,
        }


@keras.saving.register_keras_serializable(package="kclf")
class CrossEntropy(_ShapedCrossEntropy):
    """Cross-entropy from logits, for whole labels and for the soft ones that MixUp and CutMix make.

    loss = -sum_c q_c (1 - p_c)^gamma log p_c, with q = (1 - s) * label + s / classes.

    Args:
        label_smoothing: s in [0, 1): how much of each label is spread evenly over all classes.
            Szegedy 2016, https://arxiv.org/abs/1512.00567; .1 there and in fastai.
        focal_gamma: gamma >= 0: how much less the photos count that are already right. Lin 2017,
            https://arxiv.org/abs/1708.02002; 2 there.
        reduction: as for every Keras loss.
        name: of the loss.
        dtype: as for every Keras loss.

    Call arguments:
        y_true: int (batch,) or (batch, 1) classes, or float (batch, classes) shares that sum to 1.
        y_pred: (batch, classes) logits.

    Example:
        >>> import numpy as np
        >>> loss = CrossEntropy(label_smoothing=0.1)
        >>> logits = np.array([[2.0, -2.0], [-2.0, 2.0]])
        >>> round(float(loss(np.array([0, 1]), logits)), 4)
        0.2181
    """

    _name = "cross_entropy"

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each photo, float (batch,)."""
        classes = y_pred.shape[-1]
        targets = _shares(y_true, classes, y_pred.dtype)
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / classes
        log_probabilities = ops.log_softmax(y_pred, axis=-1)
        if self.focal_gamma:
            targets = targets * (1 - ops.exp(log_probabilities)) ** self.focal_gamma
        return -ops.sum(targets * log_probabilities, axis=-1)


@keras.saving.register_keras_serializable(package="kclf")
class BinaryCrossEntropy(_ShapedCrossEntropy):
    """Binary cross-entropy from logits for several labels a photo, exact however sure the model is.

    loss = mean_c of -q_c (1 - p_c)^gamma log p_c - (1 - q_c) p_c^gamma log (1 - p_c), with
    q = (1 - s) * label + s / 2. Keras' focal form works on clipped probabilities, whose gradient is 0 where
    the model is surely wrong.

    Args:
        label_smoothing: s in [0, 1).
        focal_gamma: gamma >= 0, as in `CrossEntropy`.
        reduction: as for every Keras loss.
        name: of the loss.
        dtype: as for every Keras loss.

    Call arguments:
        y_true: (batch, classes), 0 or 1, or shares in [0, 1].
        y_pred: (batch, classes) logits.

    Example:
        >>> import numpy as np
        >>> float(BinaryCrossEntropy()(np.array([[1.0, 0.0]]), np.array([[-20.0, -20.0]])))
        10.0
    """

    _name = "binary_cross_entropy"

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each photo, float (batch,)."""
        if tuple(y_true.shape) != tuple(y_pred.shape):
            raise ValueError(
                "Expected labels of the shape of the logits, (batch, classes), 0 or 1 each. "
                f"Received: labels of shape {tuple(y_true.shape)}, logits of shape {tuple(y_pred.shape)}"
            )
        targets = ops.cast(y_true, y_pred.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        yes, no = -ops.softplus(-y_pred), -ops.softplus(y_pred)  # log p and log (1 - p)
        if self.focal_gamma:
            easy_yes, easy_no = ops.exp(self.focal_gamma * no), ops.exp(self.focal_gamma * yes)
            return -ops.mean(targets * easy_yes * yes + (1 - targets) * easy_no * no, axis=-1)
        return -ops.mean(targets * yes + (1 - targets) * no, axis=-1)


def _shares(labels: Any, classes: int, dtype: Any) -> Any:
    """Labels as (batch, classes) shares, whether they came as classes or as shares."""
    if len(labels.shape) == 2 and labels.shape[-1] == classes and classes > 1:
        return ops.cast(labels, dtype)
    if len(labels.shape) != 1 and tuple(labels.shape[1:]) != (1,):
        raise ValueError(
            f"Expected labels of shape (batch,), (batch, 1) or (batch, {classes}) for {classes} classes. "
            f"Received: labels of shape {tuple(labels.shape)}"
        )
    return ops.one_hot(ops.cast(ops.reshape(labels, (-1,)), "int32"), classes, dtype=dtype)
