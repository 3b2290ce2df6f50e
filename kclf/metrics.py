"""Metrics on finished predictions (numpy arrays, torch tensors and lists alike), and some for `compile`.

The functions need no model: `accuracy(log_preds, y)` works on what `Learner.TTA` gives, on a tensor of logits
on the GPU, and on nested lists.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import torch
from keras import ops

# What a smaller probability counts as in a logarithm: the least that float32 tells from 0 beside 1.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)


def safe_log(probabilities: Any, *, smallest: float = SMALLEST_PROBABILITY) -> np.ndarray:
    """Logarithm of probabilities, where less than `smallest` counts as that; float64, shape kept.

    Args:
        probabilities: float, any shape, in [0, 1].
        smallest: above 0.

    Example:
        >>> safe_log([1.0, 0.0]).round(1).tolist()
        [0.0, -15.9]
    """
    return np.log(np.clip(np.asarray(probabilities, np.float64), smallest, 1.0))


def accuracy(predictions: Any, labels: Any) -> float:
    """Share of the photos whose largest score is that of their label.

    Args:
        predictions: (n, classes) logits, probabilities or log-probabilities: only their order counts.
        labels: int (n,), places of the right classes.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: the shapes do not go together, or there is no photo.

    Example:
        >>> accuracy([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1])
        0.6666666666666666
    """
    scores, labels = _scores_and_classes(predictions, labels)
    return float(np.mean(scores.argmax(axis=1) == labels))


def error_rate(predictions: Any, labels: Any) -> float:
    """Share of the photos whose largest score is not that of their label: 1 - accuracy.

    Args:
        predictions: (n, classes) logits, probabilities or log-probabilities.
        labels: int (n,), places of the right classes.

    Example:
        >>> error_rate([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], [0, 1, 1, 1])
        0.25
    """
    return 1.0 - accuracy(predictions, labels)


def accuracy_multi(probabilities: Any, labels: Any, threshold: float = 0.5) -> float:
    """Share of the yes-or-no answers that are right, where a photo can have many labels.

    Args:
        probabilities: (n, classes) in [0, 1]. For logits pass `threshold=0.0`, which is probability .5.
        labels: (n, classes), 0 or 1.
        threshold: an answer is yes above it.

    Example:
        >>> accuracy_multi([[0.9, 0.2], [0.4, 0.6]], [[1, 0], [1, 1]])
        0.75
    """
    scores, labels = _array(probabilities), _array(labels)
    if scores.shape != labels.shape or scores.size == 0:
        raise ValueError(
            "Expected predictions and labels of one shape (n, classes), n >= 1. "
            f"Received: predictions.shape={scores.shape}, labels.shape={labels.shape}"
        )
    return float(np.mean((scores > threshold) == (labels > 0.5)))


FEWEST_POSITIVES = 10  # photos that have a label, for a threshold of its own


def best_thresholds(probabilities: Any, labels: Any, *, fewest: int = FEWEST_POSITIVES) -> np.ndarray:
    """For each label, the probability above which F1 on these photos is highest.

    Args:
        probabilities: (n, classes) in [0, 1].
        labels: (n, classes), 0 or 1.
        fewest: photos that must have a label; of fewer, its threshold is .5.

    Returns:
        Float64 (classes,).

    Example:
        >>> best_thresholds([[0.9], [0.6], [0.2]], [[1], [0], [0]], fewest=1).tolist()
        [0.75]
    """
    scores, has = _array(probabilities), _array(labels) > 0.5
    return np.array(
        [_best_threshold(p, y) if y.sum() >= fewest else 0.5 for p, y in zip(scores.T, has.T, strict=True)]
    )


def _best_threshold(p: np.ndarray, has: np.ndarray) -> float:
    order = np.argsort(-p, kind="stable")
    hits = has[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + has.sum())
    best = int(f1.argmax())
    below = p[order[best + 1]] if best + 1 < len(p) else 0.0
    return float((p[order[best]] + below) / 2)


def log_loss(labels: Any, probabilities: Any) -> float:
    """Mean of -log(probability given to the right class), the figure many competitions are scored by.

    The order of the arguments is that of `sklearn.metrics.log_loss`, which the course calls. A probability
    of 0 counts as the smallest that float32 tells from 0 beside 1 (1.2e-7, a loss of 15.9), here and in every
    log loss of kclf.

    Args:
        labels: int (n,), places of the right classes.
        probabilities: (n, classes), rows that sum to 1.

    Raises:
        ValueError: the shapes do not go together, or the rows are no probabilities.

    Example:
        >>> round(log_loss([0, 1], [[0.9, 0.1], [0.2, 0.8]]), 4)
        0.1643
    """
    probabilities, labels = _scores_and_classes(probabilities, labels)
    sums = probabilities.sum(axis=1)
    if probabilities.min() < 0 or not np.allclose(sums, 1.0, atol=1e-3):
        raise ValueError(
            "Expected rows of probabilities that sum to 1 (np.exp turns log-probabilities into them). "
            f"Received: values from {probabilities.min():.3g}, sums from {sums.min():.3g} to {sums.max():.3g}"
        )
    right = probabilities[np.arange(len(labels)), labels]
    return float(-safe_log(right).mean())


@keras.saving.register_keras_serializable(package="kclf")
class LabelAccuracy(keras.metrics.MeanMetricWrapper):
    """Accuracy while training, for whole labels and for mixed ones, of which the largest share counts.

    Args:
        name: of the metric.
        dtype: as for every Keras metric.

    Example:
        >>> metric = LabelAccuracy()
        >>> metric.update_state([[0.7, 0.3], [0.4, 0.6]], [[1.0, 0.0], [2.0, 0.0]])
        >>> float(metric.result())
        0.5
    """

    def __init__(self, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(_hits, name=name, dtype=dtype)
        self._direction = "up"

    get_config = keras.metrics.Metric.get_config  # without the function


@keras.saving.register_keras_serializable(package="kclf")
class ErrorRate(keras.metrics.MeanMetricWrapper):
    """1 - accuracy while training; labels as for `LabelAccuracy`.

    Args:
        name: of the metric.
        dtype: as for every Keras metric.
    """

    def __init__(self, name: str = "error_rate", dtype: Any = None) -> None:
        super().__init__(_misses, name=name, dtype=dtype)
        self._direction = "down"

    get_config = keras.metrics.Metric.get_config  # without the function


# Keras' metrics that read predictions as probabilities in [0, 1], by a threshold or as they are: those that
# take labels as classes, those that take a row of all classes, and those that take yes or no.
_WHOLE_LABELS = (
    keras.metrics.SparseCategoricalAccuracy,
    keras.metrics.SparseTopKCategoricalAccuracy,
    keras.metrics.SparseCategoricalCrossentropy,
)
_ALL_CLASSES = (
    keras.metrics.FBetaScore,
    keras.metrics.CategoricalCrossentropy,
    keras.metrics.KLDivergence,
    keras.metrics.TopKCategoricalAccuracy,
    keras.metrics.CategoricalAccuracy,
)
_OF_PROBABILITIES = (
    *_WHOLE_LABELS,
    *_ALL_CLASSES,
    keras.metrics.AUC,
    keras.metrics.Precision,
    keras.metrics.Recall,
    keras.metrics.TruePositives,
    keras.metrics.TrueNegatives,
    keras.metrics.FalsePositives,
    keras.metrics.FalseNegatives,
    keras.metrics.SensitivityAtSpecificity,
    keras.metrics.SpecificityAtSensitivity,
    keras.metrics.PrecisionAtRecall,
    keras.metrics.RecallAtPrecision,
    keras.metrics.BinaryAccuracy,
    keras.metrics.BinaryCrossentropy,
)
_BY_FUNCTION = {  # names that Keras keeps as functions
    "top_k_categorical_accuracy": keras.metrics.TopKCategoricalAccuracy,
    "sparse_top_k_categorical_accuracy": keras.metrics.SparseTopKCategoricalAccuracy,
    "binary_accuracy": keras.metrics.BinaryAccuracy,
    "binary_crossentropy": keras.metrics.BinaryCrossentropy,
    "categorical_crossentropy": keras.metrics.CategoricalCrossentropy,
    "sparse_categorical_crossentropy": keras.metrics.SparseCategoricalCrossentropy,
}


@keras.saving.register_keras_serializable(package="kclf")
class OnProbabilities(keras.metrics.Metric):
    """A Keras metric of probabilities, fed from logits, with the labels in the form that it reads.

    `ImageClassifier.compile` puts it around AUC, Precision, Recall, F-scores, top-k and others. Of two
    classes the second is the positive one; of more, each class is a yes-or-no answer.

    Args:
        metric: the metric, or its config.
        task: "single_label" or "multi_label".
        name: of the metric; None takes that of `metric`.
        dtype: as for every Keras metric.

    Example:
        >>> metric = OnProbabilities(keras.metrics.Precision(), "single_label")
        >>> metric.update_state(np.array([1, 0]), np.array([[-1.0, 3.0], [-3.0, -5.0]]))
        >>> float(metric.result())
        1.0
    """

    def __init__(self, metric: Any, task: str, name: str | None = None, dtype: Any = None) -> None:
        metric = keras.metrics.get(metric)
        super().__init__(name=name or metric.name, dtype=dtype)
        self.metric, self.task = metric, task
        self._direction = getattr(metric, "_direction", None)

    @staticmethod
    def is_for(metric: Any, task: str) -> bool:
        """Whether a metric reads probabilities, so that logits would mislead it."""
        if isinstance(metric, keras.metrics.Metric) and metric.get_config().get("from_logits"):
            return False
        if isinstance(metric, keras.metrics.BinaryAccuracy) and metric.threshold == 0:
            return False  # a logit of 0 is a probability of .5
        return isinstance(metric, _OF_PROBABILITIES)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Args:
            y_true: whole labels (batch,) or (batch, 1), or rows (batch, classes).
            y_pred: logits (batch, classes).
            sample_weight: weight of each photo.
        """
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        if self.task == "multi_label":
            self.metric.update_state(y_true, ops.sigmoid(y_pred), sample_weight)
            return
        labels, classes = _whole_labels(y_true, y_pred), y_pred.shape[-1]
        probabilities = ops.softmax(y_pred, axis=-1)
        if isinstance(self.metric, _WHOLE_LABELS):
            self.metric.update_state(labels, probabilities, sample_weight)
        elif classes == 2 and not isinstance(self.metric, _ALL_CLASSES):
            self.metric.update_state(labels[:, None], probabilities[:, 1:], sample_weight)
        else:
            self.metric.update_state(ops.one_hot(labels, classes), probabilities, sample_weight)

    def result(self) -> Any:
        """The metric's figure."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Begin anew."""
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        """What `from_config` needs."""
        return {
            "metric": keras.saving.serialize_keras_object(self.metric),
            "task": self.task,
            "name": self.name,
            "dtype": self.dtype,
        }


def metric_by_name(name: str) -> Any:
    """Keras' metric of a name; a class where Keras itself keeps a function of probabilities."""
    made = _BY_FUNCTION.get(name)
    return keras.metrics.get(name) if made is None else made(name=name)


def _whole_labels(y_true: Any, y_pred: Any) -> Any:
    """Labels as int32 (batch,), from classes or from rows of shares, of which the largest counts."""
    if len(y_true.shape) == 2 and y_true.shape[-1] == y_pred.shape[-1]:
        y_true = ops.argmax(y_true, axis=-1)
    return ops.reshape(ops.cast(y_true, "int32"), (-1,))


def _hits(y_true: Any, y_pred: Any) -> Any:
    """1.0 where the largest score is that of the label, float32 (batch,)."""
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    labels = _whole_labels(y_true, y_pred)
    return ops.cast(ops.equal(labels, ops.cast(ops.argmax(y_pred, axis=-1), "int32")), "float32")


def _misses(y_true: Any, y_pred: Any) -> Any:
    return 1.0 - _hits(y_true, y_pred)


def _array(values: Any) -> np.ndarray:
    """Anything with numbers as float64 numpy, brought from whatever device it is on."""
    if isinstance(values, keras.Variable):
        values = values.value
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _scores_and_classes(predictions: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, classes = _array(predictions), _array(labels)
    if scores.ndim != 2 or classes.shape != scores.shape[:1] or len(scores) == 0:
        raise ValueError(
            "Expected scores of shape (n, classes) and labels of shape (n,), n >= 1. "
            f"Received: scores of shape {scores.shape}, labels of shape {classes.shape}"
        )
    if classes.min() < 0 or classes.max() >= scores.shape[1] or (classes != classes.round()).any():
        raise ValueError(
            f"Expected whole labels from 0 to {scores.shape[1] - 1}. "
            f"Received: labels from {classes.min():g} to {classes.max():g}"
        )
    return scores, classes.astype(np.intp)
