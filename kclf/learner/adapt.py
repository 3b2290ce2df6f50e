"""The classifier of a `Learner`, made for its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .._core.devices import under_policy
from ..acceleration import accelerate, is_accelerated
from ..data import ImageData
from ..errors import DataError, WeightsError
from ..metrics import safe_log
from ..models import ImageClassifier, load
from ..models.clone import clone_with, copy_weights
from ..models.heads import set_target_units, target_units
from ..prediction.activation_cache import head_model
from ..prediction.predictions import Predictions


def classifier_for(
    data: ImageData | None, backbone: str | keras.Model, settings: dict[str, Any]
) -> ImageClassifier:
    """A classifier for the data, or the one that was given, if the data are for it."""
    if isinstance(backbone, ImageClassifier):
        if settings:
            raise TypeError(f"An existing classifier takes no settings. Received: {', '.join(settings)}")
        if data is not None and data.size != backbone.size:
            raise DataError(
                f"Expected data of the classifier's size {backbone.size}. Received: size={data.size}. Pass "
                f"data.replace(size={backbone.size}), or give these data to `set_data`, which changes the "
                "classifier"
            )
        return backbone if data is None else adapt_to_data(backbone, data)
    if data is None:
        raise TypeError("A new classifier needs data to know its classes. Received: data=None")
    known = {
        "size": data.size,
        "task": data.task,
        "presize": data.presize,
        "resize_method": data.train.resize_method,
        "depth": data.train.dataset.depth,
        "channels": data.channels,
    }
    model = ImageClassifier(backbone, output_names(data), **(known | settings))
    if data.task == "regression" and data.train.labels is not None:
        set_target_units(model.head, *target_units(data.train.labels))
    return model


def output_names(data: ImageData) -> list[str]:
    """The classes; data with numbers has none, and its one output is called "value"."""
    return list(data.class_names) or ["value"]


def adapt_to_data(model: ImageClassifier, data: ImageData) -> ImageClassifier:
    """The classifier as it reads photos like the data; made again where their size differs.

    Raises:
        DataError: the data are of other classes, or of another task.
    """
    if (data.task, output_names(data)) != (model.task, model.class_names):
        raise DataError(
            f"Expected data of the classes {model.class_names}, {model.task}. "
            f"Received: {output_names(data)}, {data.task}"
        )
    if data.channels != model.channels:
        raise DataError(
            f"Expected data of {model.channels} channels, as the classifier takes them. "
            f"Received: {data.channels}. data.replace(channels={model.channels}) reads files so"
        )
    if data.size != model.size:
        model = clone_with(model, size=data.size, presize=data.presize)
    model.presize, model.resize_method = data.presize, data.train.resize_method
    model.depth = data.train.dataset.depth
    return model


def take_weights(path: Path, model: ImageClassifier) -> None:
    """Give a classifier the weights of a saved one of the same layers."""
    saved = load(path)
    for setting in ("backbone_name", "class_names", "task", "hidden"):
        theirs, ours = getattr(saved, setting), getattr(model, setting)
        if theirs != ours:
            raise WeightsError(
                f"{path}: holds another classifier. Expected {setting}={ours!r}. Received: {theirs!r}"
            )
    copy_weights(saved, model)


def head_for(model: ImageClassifier) -> keras.Model:
    """The head as a model on activations, as fast and as precise as the classifier it belongs to."""
    with under_policy(model.dtype_policy):  # by which `compile` decides on loss scaling
        head = head_model(model)
    return accelerate(head) if is_accelerated(model) else head


def one_dropout(ps: float | Sequence[float]) -> float:
    """The classifier's dropout from the course's `ps`: a number, or one for each layer of the head."""
    if not isinstance(ps, Sequence):
        return float(ps)
    last = float(ps[-1])
    if any(abs(p - last / 2) > 1e-9 for p in ps[:-1]):
        raise ValueError(
            "The head has one dropout before its last layer and half of it before the others: pass ps=0.5 or "
            f"ps=[0.25, 0.5]. Received: ps={list(ps)}"
        )
    return last


def log_probabilities(found: Predictions) -> np.ndarray:
    """Log-probabilities, float32, with the floor of every log loss (`metrics.SMALLEST_PROBABILITY`).

    Numbers, the predictions of a regression, stay what they are.
    """
    if found.task == "regression":
        return found.probabilities
    return safe_log(found.probabilities).astype(np.float32)


def decode_prediction(found: Predictions) -> tuple[Any, Any, np.ndarray]:
    """What is said of one photo: in words, in numbers, and the probabilities."""
    answer = found.predicted[0]
    if found.task == "single_label":
        return found.class_names[int(answer)], int(answer), found.probabilities[0]
    if found.task == "multi_label":
        names = [name for name, has in zip(found.class_names, answer, strict=True) if has]
        return names, answer, found.probabilities[0]
    return answer, answer, found.probabilities[0]
