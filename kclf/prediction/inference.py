"""Predictions of a model for data and for files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import torch

from .._core.devices import Moment, moment, seconds_between, send
from .._core.keras_private import producer_of, raw
from .._core.keywords import PREDICT, answering
from .._core.progress import Progress
from .._core.sizes import Size, sides
from ..data import ImageDataset
from ..data.decision import Decision
from ..data.files import image_files
from ..data.images import size_for
from ..data.sources import FileImages
from ..data.tasks import probabilities_of
from ..distributed import described, gather, rank, require_same, world_size
from ..errors import DataError
from .exported import ExportedClassifier
from .predictions import Predictions


@answering(PREDICT)
def predict(
    model: keras.Model,
    dataset: Any,
    *,
    from_logits: bool | None = None,
    together: bool = False,
    progress: bool = False,
) -> Predictions:
    """Predict every photo of a dataset, in its order.

    Each process that calls it predicts all photos by itself, or its share of the batches (`together`).

    Args:
        model: any Keras model of images, or an `ExportedClassifier`.
        dataset: an `ImageDataset`, another iterable of batches (images, or (images, labels, ...)) whose
            order does not change, or an array of images (n, height, width, channels). A dataset that
            shuffles is read in order.
        from_logits: whether the model gives logits, and no probabilities yet; None sees it by the model's
            last activation, and by rows that sum to 1.
        together: let the processes of `torchrun` divide the batches of an `ImageDataset` among them, all of
            which must then call this; each gets all predictions, the same bits as one process alone.
        progress: show a bar.

    Returns:
        Probabilities with labels and paths, of the photos that can be read.

    Raises:
        TrainingError: processes that are to predict together have other photos or weights.

    Example:
        >>> model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
        >>> predict(model, np.zeros((3, 8, 8, 3), "float32")).probabilities.tolist()
        [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    one = Views(lambda images: iter([images]))
    (plain,), _ = predict_views(model, dataset, one, from_logits, together=together, progress=progress)
    return plain


def predict_files(
    model: Any,
    photos: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    batch_size: int = 64,
    size: Size | None = None,
    class_names: Sequence[str] = (),
    depth: int | None = None,
) -> tuple[Predictions, list[tuple[str, str]]]:
    """Predict photos from files, read as the model's own preprocessing has it.

    Args:
        model: an `ImageClassifier`, what `load_onnx` read, or another Keras model of images in [0, 255],
            whose photos are cropped to the shape of its input.
        photos: files, and folders of which all images are taken; or one of these.
        batch_size: photos a step.
        size: that photos are brought to, in pixels: the side of a square, or (height, width); None takes the
            classifier's, or that of the model's input.
        class_names: of another Keras model, one an output.
        depth: bits of the values of deep images; None takes what the classifier was trained with.

    Returns:
        The predictions of the photos that can be read, in their order, and (path, reason) of the others.

    Raises:
        DataError: a path does not exist, there are no images, or none of them can be read.
        ValueError: neither `size` nor the model says how large photos shall be; or the model takes other
            channels than files have.
    """
    photos = [photos] if isinstance(photos, str | os.PathLike) else photos
    files = [file for photo in photos for file in image_files(photo)]
    dataset = photos_for(model, files, batch_size=batch_size, size=size, class_names=class_names, depth=depth)
    return predict(model, dataset), dataset.skipped


def photos_for(
    model: Any,
    files: Sequence[str],
    *,
    batch_size: int = 64,
    size: Size | None = None,
    class_names: Sequence[str] = (),
    depth: int | None = None,
) -> ImageDataset:
    """Batches of photos without labels, read as a model's own preprocessing has it; see `predict_files`."""
    return ImageDataset(
        FileImages(files, depth or getattr(model, "depth", None), getattr(model, "channels", 3)),
        class_names=class_names or getattr(model, "class_names", ()),
        task=getattr(model, "task", "single_label"),
        presize=size or size_for(model),
        resize_method=getattr(model, "resize_method", "crop"),
        batch_size=batch_size,
        shard=(0, 1),
    )


@dataclass(frozen=True)
class Views:
    """The views of photos that are predicted: `make` gives the `count` of a batch, the plain one first.

    `skip` draws what `make` would draw for as many photos of a height and width, for nothing.
    """

    make: Callable[[torch.Tensor], Iterator[torch.Tensor]]
    skip: Callable[[int, int, int], None] = lambda count, height, width: None
    count: int = 1


def predict_views(
    model: keras.Model,
    dataset: Any,
    views: Views,
    from_logits: bool | None = None,
    *,
    together: bool = False,
    progress: bool = False,
) -> tuple[list[Predictions], list[float]]:
    """Predictions for each view and the seconds it took, every photo read once; the rest as `predict`."""
    class_names = _class_names(model, dataset)
    dataset = _in_order(dataset)
    if together and world_size() > 1 and isinstance(dataset, ImageDataset):
        arrays, seconds = _predict_together(model, dataset, views)
        known = dataset.labels
    else:
        batches, count = _batches(dataset)
        name = "predictions" if views.count == 1 else f"{views.count} views"
        with Progress(count, name, shown=progress) as shown:
            arrays, labels, seconds = _predict_batches(model, _counted(batches, shown), views)
        known = getattr(dataset, "labels", None)
        known = _on_host(labels) if known is None and labels else known
    if not arrays:
        raise ValueError("Expected a dataset with at least one batch. Received: an empty dataset")
    return _beside_labels(model, dataset, arrays, known, class_names, from_logits), seconds


def _counted(batches: Iterable[Any], shown: Progress) -> Iterator[Any]:
    """The batches, each of which moves the bar when it is done."""
    for batch in batches:
        yield batch
        shown.update(len(batch[0] if isinstance(batch, tuple | list) else batch))


def _predict_batches(
    model: keras.Model, batches: Iterable[Any], views: Views
) -> tuple[list[np.ndarray], list[Any], list[float]]:
    """Outputs (n, ...) and seconds of each view, and the labels of each batch that brings them."""
    outputs: dict[int, list[Any]] = defaultdict(list)
    spans: dict[int, list[tuple[Moment, Moment]]] = defaultdict(list)
    labels = []
    outputs_of = _function(model)
    for batch in batches:
        images, *rest = batch if isinstance(batch, tuple | list) else (batch,)
        labels += [rest[0]] if rest and rest[0] is not None else []
        start = moment()
        for place, view in enumerate(views.make(send(torch.as_tensor(images)))):
            outputs[place].append(outputs_of(view))
            start, began = moment(), start
            spans[place].append((began, start))
    arrays = [_on_host(parts).astype(np.float32) for parts in outputs.values()]  # here the host waits
    return arrays, labels, [sum(seconds_between(*span) for span in spans[place]) for place in outputs]


def _predict_together(
    model: keras.Model, dataset: ImageDataset, views: Views
) -> tuple[list[np.ndarray], list[float]]:
    """Outputs of all photos, of which each rank computes every n-th batch; the seconds are this rank's."""
    require_same(photos=described(dataset.paths), weights=_sums_of_bits(model))
    numbers = [range(first, len(dataset), world_size()) for first in range(world_size())]
    mine = dataset.part(numbers[rank()]) if numbers[rank()] else None

    def batches() -> Iterator[Any]:
        own = iter(mine or ())
        for number in range(len(dataset)):
            if number in numbers[rank()]:
                yield next(own)
            else:
                views.skip(len(dataset.rows(number)), *sides(dataset.presize))

    arrays, _, seconds = _predict_batches(model, batches(), views)
    places = [int(place) for number in numbers[rank()] for place in dataset.rows(number)]
    faults = {} if mine is None else {places[index]: reason for index, reason in mine.unreadable.items()}
    found = gather((places, arrays, faults))
    for _, _, broken in found:
        dataset.note_unreadable(broken)
    full = [np.empty((dataset.num_images, *view.shape[1:]), np.float32) for view in found[0][1]]
    for rows, values, _ in found:
        for whole, part in zip(full, values, strict=False):
            whole[rows] = part
    return full, seconds


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


def _sums_of_bits(model: Any) -> list[int]:
    """A number for each weight that changes with its values, the same on every kind of device."""
    values = [raw(weight).detach() for weight in getattr(model, "weights", ())]
    sums = [value.view(INTEGERS[value.element_size()]).sum() for value in values]
    return torch.stack(sums).tolist() if sums else []


def _function(model: Any) -> Callable[[torch.Tensor], Any]:
    """What gives the outputs of a batch of images."""
    if isinstance(model, ExportedClassifier):
        return model
    model.make_predict_function()
    return lambda view: model.predict_function([(view,)])


def _on_host(parts: list[Any]) -> np.ndarray:
    """Outputs or labels of all batches as one array, read from the device at once."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts).cpu().numpy()
    return np.concatenate([np.asarray(part) for part in parts])


def _in_order(dataset: Any) -> Any:
    """The dataset without shuffling, sampling, random windows and dropped batches, and not shared."""
    shared = getattr(dataset, "shard", (0, 1)) != (0, 1)
    drawn = getattr(dataset, "sampling_weights", None) is not None
    switches = ("shuffle", "random_crop", "drop_incomplete")
    if shared or drawn or any(getattr(dataset, name, False) for name in switches):
        return dataset.replace(
            shuffle=False, random_crop=False, drop_last=False, sampling_weights=None, shard=(0, 1)
        )
    return dataset


def _batches(dataset: Any, size: int = 64) -> tuple[Iterable[Any], int | None]:
    """The batches of a dataset or an array, and how many photos there are, where it says so."""
    if not isinstance(dataset, np.ndarray | torch.Tensor):
        return dataset, getattr(dataset, "num_images", None)
    return (dataset[start : start + size] for start in range(0, len(dataset), size)), len(dataset)


def _beside_labels(
    model: keras.Model,
    dataset: Any,
    outputs: list[np.ndarray],
    labels: np.ndarray | None,
    class_names: Sequence[str],
    from_logits: bool | None,
) -> list[Predictions]:
    """Predictions of each view, less the rows in which another photo stands in for an unreadable one."""
    task = getattr(dataset, "task", None) or getattr(model, "task", None) or "single_label"
    decision: Decision | None = getattr(model, "decision", None)
    paths = getattr(dataset, "files", getattr(dataset, "paths", None))
    rows = getattr(dataset, "readable", slice(None))
    temperature = (decision or Decision()).temperature
    if from_logits is None:
        from_logits = gives_logits(model, outputs[0], task)
    found = [_probabilities(values / temperature, task, from_logits) for values in outputs]
    return [Predictions(p, labels, paths, class_names, task, decision=decision).take(rows) for p in found]


def _class_names(model: keras.Model, dataset: Any) -> Sequence[str]:
    """The names of a model's outputs; a dataset of other classes, or in another order, is refused."""
    ours, theirs = (getattr(one, "class_names", None) or () for one in (model, dataset))
    if ours and theirs and list(ours) != list(theirs):
        raise DataError(
            f"Expected data of the model's classes, {', '.join(ours)}. Received: {', '.join(theirs)}. Pass "
            "class_names=model.class_names where the data are made"
        )
    return theirs or ours


def gives_logits(model: keras.Model, outputs: np.ndarray, task: str) -> bool:
    """Whether the outputs of a model are logits: not by a softmax or sigmoid, nor rows that sum to 1.

    Args:
        model: any Keras model.
        outputs: what it gave, (n, classes).
        task: "single_label", "multi_label" or "regression".
    """
    if isinstance(model, ExportedClassifier) or last_activation(model) in ("softmax", "sigmoid"):
        return False
    rows = outputs.reshape(len(outputs), -1)
    if task != "single_label" or rows.shape[1] < 2:
        return True
    return not (rows.min() >= 0 and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3))


def last_activation(model: Any) -> str | None:
    """The name of the activation that a functional model ends in, however deep it lies; None if unknown."""
    while isinstance(model, keras.Model):
        outputs = getattr(model, "outputs", None)
        inner = producer_of(outputs[0]) if outputs else None
        model = None if inner is model else inner  # a model of its own `call` makes its outputs itself
    if isinstance(model, keras.layers.Softmax):
        return "softmax"
    return getattr(getattr(model, "activation", None), "__name__", None)


def _probabilities(outputs: np.ndarray, task: str, from_logits: bool) -> np.ndarray:
    """Float32 (n, classes) from what the model gave."""
    outputs = outputs.reshape(len(outputs), -1)
    if task == "single_label" and outputs.shape[1] == 1:
        raise ValueError(
            "Expected one output a class. Received: one output in all. For a yes or no give the last layer "
            'two, or take the task "multi_label"'
        )
    return probabilities_of(torch.from_numpy(outputs), task).numpy() if from_logits else outputs
