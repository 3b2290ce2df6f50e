"""The head that a classifier ends in, and the loss and metric that fit a task."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from .._core.arguments import one_of
from ..data.tasks import TASKS
from ..layers import ConcatPooling
from ..losses import BinaryCrossEntropy, CrossEntropy
from ..metrics import LabelAccuracy

LOGITS_START = "zeros"  # of the last layer's weights


def build_head(
    num_features: int, num_outputs: int, *, hidden: Sequence[int] = (512,), dropout: float = 0.5
) -> keras.Model:
    """The head of the course: pool (average and max), then BatchNorm, Dropout and Dense by turns, to logits.

    Args:
        num_features: channels of the backbone's feature map.
        num_outputs: logits to give.
        hidden: widths of the hidden layers.
        dropout: rate before the last layer; half of it before each hidden one.

    Returns:
        A functional model (batch, rows, columns, num_features) -> float32 (batch, num_outputs). Dense
        layers have no bias. Hidden ones start He-normal, the last one at zero, as Dosovitskiy et al. 2021
        ("An Image is Worth 16x16 Words") fine-tune: all classes are equally likely at first, where random
        logits would stay in a short run as noise. BatchNormalization has momentum .9 and epsilon 1e-5,
        which settles within an epoch of 90 batches where Keras' default of .99 does not.
    """
    layers = keras.layers
    features = keras.Input((None, None, num_features))
    x = ConcatPooling(name="pooling")(features)
    for number, width in enumerate(hidden, start=1):
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"norm_{number}")(x)
        x = layers.Dropout(dropout / 2, name=f"dropout_{number}")(x)
        x = layers.Dense(width, use_bias=False, kernel_initializer="he_normal", name=f"hidden_{number}")(x)
        x = layers.ReLU(name=f"relu_{number}")(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="norm")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    logits = layers.Dense(
        num_outputs, use_bias=False, kernel_initializer=LOGITS_START, name="logits", dtype="float32"
    )(x)
    return keras.Model(features, logits, name="head")


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
