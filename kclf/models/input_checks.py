"""What a classifier is given is looked at once: the shape of images, their range, the shape of labels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from .._core.sizes import Size, as_size, sides
from ..errors import BackboneError

PARTS = {"x": "data.train to fit or data.valid to evaluate", "validation_data": "data.valid"}


def check_shape(images: Any, channels: int = 3) -> None:
    """Refuse what is no batch of images of so many channels, channels last.

    Raises:
        ValueError: the shape is another one; the message says what to do.
    """
    shape = tuple(images.shape)
    if len(shape) == 4 and (shape[-1] == channels or not isinstance(shape[-1], int)):
        return
    if len(shape) == 3 and shape[-1] == channels:
        hint = "One image needs the axis of the batch: images[None]"
    elif len(shape) == 4 and shape[1] == channels:
        hint = "Channels come last: images.transpose(0, 2, 3, 1)"
    elif channels != 3:
        hint = (
            f"ImageClassifier(..., channels={shape[-1]}) takes them"
            if len(shape) == 4
            else "The axis of the channels comes last: images[..., None]"
        )
    elif len(shape) == 4 and shape[-1] == 4:
        hint = "Leave out an alpha channel: images[..., :3]; ImageClassifier(..., channels=4) takes all four"
    elif len(shape) == 3 or (len(shape) == 4 and shape[-1] == 1):
        hint = (
            "Grey images need three channels: numpy.repeat(images.reshape(n, height, width, 1), 3, axis=-1); "
            "or ImageClassifier(..., channels=1)"
        )
    else:
        hint = "ImageData and kclf.predict_files read files as they should be"
    raise ValueError(
        f"Expected images of shape (batch, height, width, {channels}). {hint}. Received: shape={shape}"
    )


def warn_of_range(images: torch.Tensor) -> None:
    """Warn where images look as if they had been divided already: floats, none of them above 1."""
    if not images.is_floating_point() or not images.numel():
        return
    low, high = (float(value) for value in torch.aminmax(images))
    if high <= 1.0 and low < high:
        ways = ("images * 255" if low >= 0 else "(images + 1) * 127.5",) if low >= -1 else ()
        warnings.warn(
            f"The images lie in [{low:.3g}, {high:.3g}], where [0, 255] is expected: the classifier brings "
            f"them to its backbone's range by itself. Pass {' or '.join(['them as they were read', *ways])}",
            stacklevel=2,
        )


def check_backbone(backbone: Any, size: Size, channels: int = 3) -> None:
    """Refuse a backbone model that gives no features, or takes images of another size or other channels.

    Raises:
        BackboneError: naming the model and what to change.
    """
    shape, output = tuple(backbone.input_shape), tuple(backbone.output_shape)
    wanted = sides(size)
    if len(shape) == 4 and shape[3] not in (None, channels):
        raise BackboneError(
            f"Expected the backbone {backbone.name!r} to take images of {channels} channels. "
            f"Received: input_shape={shape}. Pass channels={shape[3]}"
        )
    fixed = tuple(theirs or ours for theirs, ours in zip(shape[1:3], wanted, strict=False))
    if len(shape) != 4 or fixed != wanted:
        instead = as_size("size", fixed) if len(shape) == 4 else size
        raise BackboneError(
            f"Expected the backbone {backbone.name!r} to take images of (batch, {wanted[0]}, {wanted[1]}, "
            f"{channels}). Received: input_shape={shape}. Pass size={instead}, or build it with "
            f"input_shape=(None, None, {channels})"
        )
    activation = getattr(getattr(backbone.layers[-1], "activation", None), "__name__", None)
    if len(output) not in (2, 4) or (len(output) == 2 and activation == "softmax"):
        raise BackboneError(
            f"Expected the backbone {backbone.name!r} to give features (batch, rows, columns, channels). "
            f"Received: output_shape={output}. Build it with include_top=False"
        )


def check_labels(labels: Any, task: str, num_classes: int) -> None:
    """Refuse an array of labels whose shape or numbers do not go with a task.

    Args:
        labels: an array or tensor; anything else is left to the steps, and so are the numbers of a tensor,
            for which the host would wait.
        task: "single_label", "multi_label" or "regression".
        num_classes: outputs of the classifier.

    Raises:
        ValueError: the shape does not fit, or there is no class of such a number or name.
    """
    shape = getattr(labels, "shape", None)
    if shape is None or not len(shape):
        return
    rows, columns = tuple(shape[:1]), tuple(shape[1:])
    single = [(), (1,)] if task == "single_label" or num_classes == 1 else []
    allowed = list(dict.fromkeys([*single, (num_classes,)]))
    if columns not in allowed:
        expected = " or ".join(str((*rows, *one)) for one in allowed)
        raise ValueError(
            f"Expected labels of shape {expected} for the task {task!r} with {num_classes} outputs. "
            f"Received: labels of shape {tuple(shape)}"
        )
    if task == "single_label" and columns in [(), (1,)] and isinstance(labels, np.ndarray):
        _check_class_numbers(labels, num_classes)


def _check_class_numbers(labels: np.ndarray, num_classes: int) -> None:
    if labels.dtype.kind == "O":
        labels = np.array(labels.tolist())
    if labels.dtype.kind not in "iufb":
        raise ValueError(
            "Expected labels as class numbers: [class_names.index(name) for name in names], or "
            f"ImageData.from_arrays, which takes names. Received: labels={labels[:3].ravel().tolist()}"
        )
    wrong = labels[~np.isin(labels, np.arange(num_classes))]
    if len(wrong):
        raise ValueError(
            f"Expected class numbers from 0 to {num_classes - 1}, as there are {num_classes} class_names. "
            f"Received: {wrong.ravel()[0]}, the first of {len(wrong):,} others"
        )


def check_given(given: dict[str, Any]) -> None:
    """Refuse what `fit` and `evaluate` cannot take as their data, and say what they can.

    Args:
        given: their arguments.

    Raises:
        TypeError: they were given all splits at once, or are to split what cannot be split.
    """
    for name in ("x", "validation_data"):
        if hasattr(given.get(name), "splits"):
            raise TypeError(f"Expected one part of the data, {PARTS[name]}. Received: {name}={given[name]!r}")
    if given.get("validation_split") and not hasattr(given.get("x"), "shape"):
        raise TypeError(
            "Expected arrays to split: data sets come in parts already, validation_data=data.valid. "
            f"Received: validation_split={given['validation_split']}"
        )
