"""The head that a classifier ends in, and the loss and metric that fit a task."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from .._core.arguments import one_of
from ..data.tasks import TASKS
from ..layers import ConcatPooling, TargetUnits
from ..losses import BinaryCrossEntropy, CrossEntropy
from ..metrics import LabelAccuracy


def build_head(
    num_features: int,
    num_outputs: int,
    *,
    hidden: Sequence[int] = (512,),
    dropout: float = 0.5,
    bias: bool = False,
    units: bool = False,
    pooled: bool = False,
) -> keras.Model:
    """The head of the course: pool (average and max), then BatchNorm, Dropout and Dense by turns, to logits.

    Args:
        num_features: channels of the backbone's features.
        num_outputs: logits to give.
        hidden: widths of the hidden layers.
        dropout: rate before the last layer; half of it before each hidden one.
        bias: the last layer has one.
        units: the outputs are brought to the units of targets; `set_target_units` gives them.
        pooled: whether the backbone gives one vector an image, as transformers do, and no map.

    Returns:
        A functional model (batch, rows, columns, num_features), or (batch, num_features) where these are
        pooled, -> float32 (batch, num_outputs). Hidden layers have no bias. They start He-normal, the last
        layer at zero, as Dosovitskiy et al. 2021 ("An Image is Worth 16x16 Words") fine-tune: all classes are
        equally likely at first, where random logits would stay in a short run as noise. BatchNormalization
        has momentum .9 and epsilon 1e-5, which settles within an epoch of 90 batches where Keras' default of
        .99 does not.
    """
    layers = keras.layers
    features = keras.Input((num_features,) if pooled else (None, None, num_features))
    x = layers.Identity(name="pooling")(features) if pooled else ConcatPooling(name="pooling")(features)
    for number, width in enumerate(hidden, start=1):
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"norm_{number}")(x)
        x = layers.Dropout(dropout / 2, name=f"dropout_{number}")(x)
        x = layers.Dense(width, use_bias=False, kernel_initializer="he_normal", name=f"hidden_{number}")(x)
        x = layers.ReLU(name=f"relu_{number}")(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="norm")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    outputs = layers.Dense(
        num_outputs, use_bias=bias, kernel_initializer="zeros", name="logits", dtype="float32"
    )(x)
    if units:
        outputs = TargetUnits(name="units", dtype="float32")(outputs)
    return keras.Model(features, outputs, name="head")


def target_units(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of targets (n,) or (n, outputs), each float64 (outputs,): deviation and mean.

    The deviation of targets that are all alike counts as 1.
    """
    columns = np.asarray(targets, np.float64).reshape(len(targets), -1)
    deviation = columns.std(axis=0)
    return np.where(deviation > 0, deviation, 1.0), columns.mean(axis=0)


def set_target_units(head: keras.Model, scale: np.ndarray, offset: np.ndarray) -> None:
    """Let a head give targets in their own units; a head without `units` gives them as they are.

    Args:
        head: what `build_head` returned.
        scale: standard deviation of the targets, (outputs,).
        offset: their mean, (outputs,).
    """
    for layer in head.layers:
        if isinstance(layer, TargetUnits):
            layer.set_weights([scale, offset])


def auto_loss(task: str) -> keras.losses.Loss:
    """The loss for a task, on logits: cross-entropy, binary cross-entropy, or mean absolute error."""
    one_of("task", task, TASKS)
    return {
        "single_label": CrossEntropy,
        "multi_label": BinaryCrossEntropy,
        "regression": keras.losses.MeanAbsoluteError,
    }[task]()


def accuracy_metric(task: str) -> keras.metrics.Metric:
    """The metric "accuracy" of a task, on logits.

    Raises:
        ValueError: numbers have no accuracy.
    """
    if task == "single_label":
        return LabelAccuracy()
    if task == "multi_label":
        return keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")  # a logit of 0 is probability .5
    raise ValueError('Numbers have no accuracy. Pass metrics=["mae"]. Received: metrics=["accuracy"]')
