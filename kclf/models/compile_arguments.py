"""What `compile` is given, as it is meant for a classifier that gives logits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from .. import metrics as figures
from ..losses import BinaryCrossEntropy, CrossEntropy
from ..metrics import ErrorRate, LabelAccuracy, OnProbabilities, metric_by_name
from .heads import accuracy_metric, auto_loss

Loss = Callable[[], keras.losses.Loss]


# Losses of classes by Keras' names, in the form for logits. One label: whole or one-hot, whatever the name.
def _by_name(loss: Any, names: str, focal: str) -> dict[str, Loss]:
    return dict.fromkeys(names.split(), loss) | {focal: lambda: loss(focal_gamma=2.0)}


_ONE_LABEL = _by_name(
    CrossEntropy,
    "sparse_categorical_crossentropy categorical_crossentropy crossentropy ce",
    focal="categorical_focal_crossentropy",
)
_TWO_CLASSES = _by_name(CrossEntropy, "binary_crossentropy bce", focal="binary_focal_crossentropy")
_MANY_LABELS = _by_name(
    BinaryCrossEntropy, "binary_crossentropy bce crossentropy ce", focal="binary_focal_crossentropy"
)
# Keras' losses that read their predictions as probabilities, and have no form for logits.
_OF_PROBABILITIES = (
    keras.losses.KLDivergence,
    keras.losses.Poisson,
    keras.losses.Dice,
    keras.losses.Tversky,
)
_ACCURACIES = ("accuracy", "acc")
# The functions of `kclf.metrics`, which take finished predictions first, and what is meant by them here.
_OF_FIGURES: dict[Any, Callable[[str], keras.metrics.Metric]] = {
    figures.accuracy: accuracy_metric,
    figures.error_rate: lambda task: ErrorRate(),
    figures.accuracy_multi: lambda task: accuracy_metric("multi_label"),
}
_LABEL_ACCURACIES = ("sparse_categorical_accuracy", "categorical_accuracy")


def loss_on_logits(loss: Any, task: str, num_classes: int) -> Any:
    """The loss that a name means for a classifier; a loss object is taken as it is, if it can be.

    Args:
        loss: "auto", a name, a function of `keras.losses`, a loss, or a list or dict with one of these.
        task: "single_label", "multi_label" or "regression".
        num_classes: outputs of the classifier.

    Raises:
        ValueError: the loss is for probabilities, or for another task.
    """
    if isinstance(loss, list | tuple | dict) and len(loss) == 1 and "class_name" not in loss:
        loss = next(iter(loss.values() if isinstance(loss, dict) else loss))
    if isinstance(loss, str) and loss == "auto":
        return auto_loss(task)
    name = _keras_name(loss)
    if name is not None:
        return _named(name, loss, task, num_classes)
    if getattr(loss, "from_logits", True) is False or (
        task != "regression" and isinstance(loss, _OF_PROBABILITIES)
    ):
        raise ValueError(
            "Expected a loss of logits, which is what an ImageClassifier gives: pass from_logits=True, "
            f'or loss="auto". Received: loss={type(loss).__name__} of probabilities'
        )
    return loss


def _named(name: str, loss: Any, task: str, num_classes: int) -> Any:
    known = {
        "single_label": _ONE_LABEL | (_TWO_CLASSES if num_classes == 2 else {}),
        "multi_label": _MANY_LABELS,
        "regression": {},
    }[task]
    if name in known:
        return known[name]()
    of_classes = name in _ONE_LABEL or name in _MANY_LABELS
    if task == "regression" and not of_classes:
        return loss
    fitting = ", ".join(["auto", *known]) if known else "auto, mse, mae, huber"
    raise ValueError(
        f"Expected a loss for the task {task!r} with {num_classes} outputs by one of the names {fitting}; "
        f"others as a loss object that takes logits. Received: loss={name!r}"
    )


def _keras_name(thing: Any) -> str | None:
    """Keras' name, in small letters, of a loss or metric given by name or as Keras' function; else None."""
    if isinstance(thing, str):
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in thing).lstrip("_")
    module = getattr(thing, "__module__", "") or ""
    is_function = callable(thing) and hasattr(thing, "__name__") and not isinstance(thing, type)
    return str(thing.__name__) if is_function and module.startswith("keras.") else None


def metrics_on_logits(metrics: Any, task: str, num_classes: int) -> list[Any] | None:
    """The metrics that names mean for a classifier, and Keras' metrics of probabilities fed with those.

    Args:
        metrics: "auto", None, a name, a metric, or a list, tuple or dict (of one output) of these.
        task: "single_label", "multi_label" or "regression".
        num_classes: outputs of the classifier.

    Raises:
        ValueError: numbers have no accuracy, the dict names several outputs, or top-k has too few classes.
    """
    if isinstance(metrics, str) and metrics == "auto":
        metrics = None if task == "regression" else ["accuracy"]
    if isinstance(metrics, dict):
        if len(metrics) > 1:
            raise ValueError(
                "Expected metrics for the one output of the classifier. "
                f"Received: metrics for {', '.join(map(str, metrics))}"
            )
        metrics = next(iter(metrics.values()), None)
    if metrics is None:
        return None
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        metrics = [metrics]
    found = [_metric(metric, task) for metric in metrics]
    for metric in found:
        k = getattr(getattr(metric, "metric", metric), "k", 0)
        if isinstance(k, int) and k > num_classes:
            raise ValueError(
                f"Expected a top-k metric with k of at most {num_classes}, the number of classes, such as "
                f"keras.metrics.SparseTopKCategoricalAccuracy(k=2). Received: k={k}"
            )
    return found


def own_metric(metric: Any, task: str) -> keras.metrics.Metric | None:
    """The metric on logits that a function of `kclf.metrics` means, or its name; None for all else.

    Args:
        metric: such a function, `functools.partial(accuracy_multi, threshold=...)` of a probability, or any.
        task: "single_label", "multi_label" or "regression".

    Raises:
        ValueError: a function of finished predictions that has no form for `compile`.
    """
    if isinstance(metric, str):
        functions = {function.__name__: make for function, make in _OF_FIGURES.items()}
        return functions[metric](task) if metric in functions else None
    settings = metric.keywords if isinstance(metric, functools.partial) and not metric.args else {}
    function = metric.func if isinstance(metric, functools.partial) else metric
    if getattr(function, "__module__", "") != figures.__name__ or isinstance(
        function, type | keras.metrics.Metric
    ):
        return None
    if function in _OF_FIGURES and function is metric:
        return _OF_FIGURES[function](task)
    threshold = float(settings.get("threshold", 0.0))
    if function is figures.accuracy_multi and set(settings) == {"threshold"} and 0 < threshold < 1:
        logit = math.log(threshold / (1 - threshold))
        return keras.metrics.BinaryAccuracy(threshold=logit, name="accuracy_multi")
    raise ValueError(
        f"Expected a metric that takes labels and logits. Received: {metric}, which takes finished "
        "predictions. Pass accuracy, error_rate or accuracy_multi, a partial of accuracy_multi with "
        "0 < threshold < 1, or a metric of keras.metrics"
    )


def _metric(metric: Any, task: str) -> Any:
    ours = own_metric(metric, task)
    if ours is not None:
        return ours
    name = _keras_name(metric)
    if name in _ACCURACIES:
        return accuracy_metric(task)
    if task == "regression":
        return metric
    if task == "single_label" and name in _LABEL_ACCURACIES:
        return LabelAccuracy(name=name)
    if isinstance(metric, str):
        metric = metric_by_name(metric)
    if OnProbabilities.is_for(metric, task):
        return OnProbabilities(metric, task)
    return metric
