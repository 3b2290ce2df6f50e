"""Predictions with their files and labels, plain or averaged over several views of each photo."""

from __future__ import annotations

import csv
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import torch

from .arguments import at_least, one_of, within
from .atomic import replacing
from .data import ImageDataset
from .files import image_files
from .layers import Augmentation, geometry
from .metrics import SMALLEST_PROBABILITY
from .tasks import TASKS, probabilities_of

VIEWS = ("random", "flip", "five_crops", "dihedral")
AVERAGES = ("arithmetic", "geometric", "max")
_CROP_SHARE = 0.875  # side of each of the five crops: 224 of 256 pixels, as in Krizhevsky et al. 2012


@dataclass(frozen=True)
class ViewGain:
    """What averaging over views brought and what it cost.

    Args:
        views: number of views besides the plain one.
        average: how they were averaged.
        weight: share of the plain view.
        seconds: time of all views.
        plain_seconds: time of the plain view alone; both without reading the photos.
        accuracy: gain in accuracy, or None without labels.
        accuracy_error: standard error of that gain, from the differences photo by photo.
        log_loss: change of the log loss (negative is better), or None without labels.
        log_loss_error: standard error of that change.
    """

    views: int
    average: str
    weight: float
    seconds: float
    plain_seconds: float
    accuracy: float | None = None
    accuracy_error: float | None = None
    log_loss: float | None = None
    log_loss_error: float | None = None

    @property
    def cost(self) -> float:
        """Time of all views, in times of the plain one."""
        return self.seconds / self.plain_seconds if self.plain_seconds else float("nan")

    def __str__(self) -> str:
        gain = (
            "no labels to measure the gain by"
            if self.accuracy is None
            else f"accuracy {self.accuracy:+.4f} ± {self.accuracy_error:.4f}, "
            f"log loss {self.log_loss:+.4f} ± {self.log_loss_error:.4f}"
        )
        how = f"{self.views} views ({self.average}, plain weight {self.weight:g})"
        return f"{how}: {gain}, {self.cost:.1f} x the time"


@dataclass(frozen=True)
class Predictions:
    """What a model says of n photos, row by row beside their labels and files.

    Args:
        probabilities: float (n, classes); for regression the predicted numbers, (n, outputs).
        labels: int (n,), n-hot float (n, classes), or float numbers; None where unknown.
        paths: (n,) str, or None for images that are no files.
        class_names: one for each column; () names them by number.
        task: "single_label", "multi_label" or "regression".
        views: what test-time augmentation brought, where it was used.

    Example:
        >>> predictions = Predictions(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]))
        >>> predictions.accuracy(), predictions.predicted.tolist()
        (0.5, [0, 1])
    """

    probabilities: np.ndarray
    labels: np.ndarray | None = None
    paths: np.ndarray | None = None
    class_names: Sequence[str] = ()
    task: str = "single_label"
    views: ViewGain | None = None

    def __post_init__(self) -> None:
        probabilities = np.asarray(self.probabilities)
        if probabilities.ndim != 2:
            raise ValueError(
                "`probabilities` must be of shape (photos, classes). "
                f"Received: probabilities.shape={probabilities.shape}"
            )
        one_of("task", self.task, TASKS)
        names = list(self.class_names) or [str(column) for column in range(probabilities.shape[1])]
        if len(names) != probabilities.shape[1]:
            raise ValueError(
                f"Expected a class name for each of the {probabilities.shape[1]} columns. "
                f"Received: {len(names)} class_names"
            )
        object.__setattr__(self, "probabilities", probabilities)
        object.__setattr__(self, "class_names", names)
        for name in ("labels", "paths"):
            object.__setattr__(self, name, self._beside(name))
        if self.task == "single_label" and self.labels is not None:
            self._check_classes(self.labels)

    def _beside(self, name: str) -> np.ndarray | None:
        values = getattr(self, name)
        if values is None:
            return None
        values = np.asarray(values)
        if len(values) != len(self):
            raise ValueError(f"Expected {name} for {len(self)} photos. Received: {len(values)} {name}")
        return values

    def _check_classes(self, labels: np.ndarray) -> None:
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                "Labels of the task 'single_label' are whole numbers (n,). "
                f"Received: labels of shape {labels.shape} and type {labels.dtype}"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise ValueError(
                f"Labels must lie in [0, {len(self.class_names)}). "
                f"Received: labels from {labels.min()} to {labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def predicted(self) -> np.ndarray:
        """Class numbers (n,), n-hot bool (n, classes) by the threshold 0.5, or the numbers themselves."""
        if self.task == "single_label":
            return self.probabilities.argmax(axis=1)
        return self.probabilities > 0.5 if self.task == "multi_label" else self.probabilities

    @property
    def confidence(self) -> np.ndarray:
        """Largest probability of each photo, (n,)."""
        return self.probabilities.max(axis=1)

    def take(self, rows: slice | np.ndarray) -> Predictions:
        """Those of some photos.

        Args:
            rows: a slice, or an array of places.
        """
        labels, paths = self.labels, self.paths
        return replace(
            self,
            probabilities=self.probabilities[rows],
            labels=None if labels is None else labels[rows],
            paths=None if paths is None else paths[rows],
        )

    def accuracy(self) -> float:
        """Share of right answers; with several labels a photo, of right yes-or-no answers."""
        return float(self.hits().mean())

    def log_loss(self) -> float:
        """Mean of -log(probability of what is right); with several labels, the mean over the classes."""
        return float(self.losses().mean())

    def hits(self) -> np.ndarray:
        """Right (1) or not (0), float64 (n,); for several labels the share of right answers."""
        right = self.predicted == self._known()
        return right.astype(np.float64) if right.ndim == 1 else right.mean(axis=1)

    def losses(self) -> np.ndarray:
        """Log loss of each photo, float64 (n,)."""
        labels, probabilities = self._known(), self.probabilities.astype(np.float64)
        if self.task == "single_label":
            return -_log(probabilities[np.arange(len(self)), labels])
        return -(labels * _log(probabilities) + (1 - labels) * _log(1 - probabilities)).mean(axis=1)

    def top(self, k: int = 1) -> list[list[tuple[str, float]]]:
        """The k likeliest classes of each photo with their probabilities, likeliest first.

        Example:
            >>> Predictions(np.array([[0.25, 0.75]]), class_names=["cat", "dog"]).top()
            [[('dog', 0.75)]]
        """
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.class_names[column], float(self.probabilities[row, column])) for column in columns]
            for row, columns in enumerate(order)
        ]

    @property
    def files(self) -> list[str]:
        """Path of each photo, or its number where the photos are no files."""
        paths = range(len(self)) if self.paths is None else self.paths
        return [str(path) for path in paths]

    def __str__(self) -> str:
        if self.labels is None or self.task == "regression":
            return f"{len(self):,} photos predicted"
        return f"accuracy {self.accuracy():.4f}, log loss {self.log_loss():.4f} on {len(self):,} photos"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each photo: file, label where known, prediction, confidence, all probabilities.

        Of a regression there is no confidence, and the numbers are in the place of probabilities.

        Args:
            path: file to write; complete or not at all.
        """
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows(self._table())

    def _table(self) -> Iterator[list[Any]]:
        known = ["label"] if self.labels is not None else []
        sure = ["confidence"] if self.task != "regression" else []
        yield ["path", *known, "predicted", *sure, *self.class_names]
        for row in range(len(self)):
            rows = [f"{value:.6g}" for value in self.probabilities[row]]
            label = [] if self.labels is None else [self.words(self.labels[row])]
            path = row if self.paths is None else self.paths[row]
            sure = [f"{self.confidence[row]:.6g}"] if self.task != "regression" else []
            yield [path, *label, self.words(self.predicted[row]), *sure, *rows]

    def words(self, answer: Any) -> str:
        """One photo's label or prediction in words: its classes by name, or its numbers.

        Args:
            answer: a row of `labels` or `predicted`.

        Example:
            >>> rows = Predictions(np.array([[0.9, 0.6, 0.1]]), class_names="abc", task="multi_label")
            >>> rows.words(rows.predicted[0])
            'a;b'
        """
        if self.task == "single_label":
            return self.class_names[int(answer)]
        if self.task == "multi_label":
            return ";".join(name for name, has in zip(self.class_names, answer, strict=True) if has)
        return " ".join(f"{value:.6g}" for value in np.atleast_1d(answer))

    def _known(self) -> np.ndarray:
        if self.labels is None or not len(self) or self.task == "regression":
            raise ValueError(
                "Expected predictions of labelled photos with classes, to score them. Received: "
                f"labels={self.labels if self.labels is None else len(self)}, task={self.task!r}"
            )
        return self.labels


def predict(model: keras.Model, dataset: Any, *, from_logits: bool = True) -> Predictions:
    """Predict every photo of a dataset, in its order.

    Each process that calls it predicts all photos by itself.

    Args:
        model: any Keras model of images.
        dataset: an `ImageDataset`, another iterable of batches (images, or (images, labels, ...)) whose
            order does not change, or an array of images (n, height, width, channels). A dataset that
            shuffles is read in order.
        from_logits: False where the model's last layer gives probabilities already.

    Returns:
        Probabilities with labels and paths, of the photos that can be read.

    Example:
        >>> model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
        >>> predict(model, np.zeros((3, 8, 8, 3), "float32")).probabilities.tolist()
        [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    (plain,), _ = _predict_views(model, dataset, from_logits, lambda images: iter([images]))
    return plain


def predict_files(
    model: Any, photos: Sequence[str | os.PathLike[str]], *, batch_size: int = 64
) -> tuple[Predictions, list[tuple[str, str]]]:
    """Predict photos from files, read as the model's own preprocessing has it.

    Args:
        model: an `ImageClassifier`.
        photos: files, and folders of which all images are taken.
        batch_size: photos a step.

    Returns:
        The predictions of the photos that can be read, in their order, and (path, reason) of the others.

    Raises:
        DataError: a path does not exist, there are no images, or none of them can be read.
    """
    dataset = ImageDataset(
        [file for photo in photos for file in image_files(photo)],
        class_names=model.class_names,
        task=model.task,
        presize=model.presize or model.size,
        resize_method=model.resize_method,
        batch_size=batch_size,
        shard=(0, 1),
    )
    return predict(model, dataset), dataset.skipped


def predict_tta(
    model: keras.Model,
    dataset: Any,
    n: int = 4,
    *,
    views: str = "random",
    average: str = "arithmetic",
    weight: float | None = None,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    from_logits: bool = True,
) -> Predictions:
    """Average the predictions of several views of each photo: test-time augmentation.

    Each photo is read once. Nothing is drawn from the generator that training uses.

    Args:
        model: a model that begins with an `Augmentation`, or any model of images with `augmentation`.
        dataset: as for `predict`.
        n: number of random views.
        views: "random" (the training augmentation), "flip" (mirrored), "five_crops" (centre and corners, each
            also mirrored: 10 views) or "dihedral" (the 7 other symmetries of the square).
        average: "arithmetic" mean of the probabilities, "geometric" (of their logarithms) or "max"; the
            last two are brought back to sum 1.
        weight: share of the plain view; None is 0.25 for random views, as in fastai 2, and as much as any
            other view for the fixed sets. Not used by "max".
        augmentation: draws the views; None takes the model's own.
        seed: of the random views.
        from_logits: False where the model's last layer gives probabilities already.

    Returns:
        Averaged probabilities; what it gained over the plain view, and cost, is in `.views`.
    """
    one_of("views", views, VIEWS)
    one_of("average", average, AVERAGES)
    layer = _augmentation_of(model) if augmentation is None else augmentation
    others, count = _view_maker(layer, views, n, seed)
    share = _plain_share(weight, views, count)

    def all_views(images: torch.Tensor) -> Iterator[torch.Tensor]:
        yield images
        yield from others(images)

    (plain, *augmented), seconds = _predict_views(model, dataset, from_logits, all_views)
    averaged = average_views(
        plain.probabilities, [view.probabilities for view in augmented], share, average, plain.task
    )
    result = replace(plain, probabilities=averaged)
    return replace(
        result, views=_gain(plain, result, ViewGain(count, average, share, sum(seconds), seconds[0]))
    )


def average_views(
    plain: np.ndarray,
    others: Sequence[np.ndarray],
    weight: float = 0.25,
    average: str = "arithmetic",
    task: str = "single_label",
) -> np.ndarray:
    """Average the plain view of each photo with its other views.

    Args:
        plain: probabilities (n, classes) of the plain view.
        others: those of the other views, which count alike.
        weight: share of the plain view; not used by "max".
        average: "arithmetic", "geometric" or "max".
        task: "single_label" rows have sum 1; the columns of "multi_label" are independent.

    Returns:
        Float32 (n, classes).

    Example:
        >>> average_views(np.array([[1.0, 0.0]]), [np.array([[0.5, 0.5]])]).tolist()
        [[0.625, 0.375]]
    """
    if task == "regression" and average != "arithmetic":
        raise ValueError(f"Numbers can only be averaged arithmetically. Received: average={average!r}")
    views = np.stack([plain, *others]).astype(np.float64)
    shares = np.array([weight, *[(1 - weight) / len(others)] * len(others)])
    if average == "arithmetic":
        return np.tensordot(shares, views, axes=1).astype(np.float32)
    independent = task == "multi_label"
    if average == "max":
        return (views.max(axis=0) if independent else _to_sum_one(views.max(axis=0))).astype(np.float32)
    logs = np.tensordot(shares, _log(views), axes=1)
    if not independent:
        return _to_sum_one(np.exp(logs)).astype(np.float32)
    other_logs = np.tensordot(shares, _log(1 - views), axes=1)
    return (1 / (1 + np.exp(other_logs - logs))).astype(np.float32)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1))


def _to_sum_one(rows: np.ndarray) -> np.ndarray:
    return rows / rows.sum(axis=1, keepdims=True)


Views = Callable[[torch.Tensor], Iterator[torch.Tensor]]


def _predict_views(
    model: keras.Model, dataset: Any, from_logits: bool, views: Views
) -> tuple[list[Predictions], list[float]]:
    """Predictions for each view and the seconds it took, every photo read once."""
    outputs: list[list[np.ndarray]] = []
    seconds: list[float] = []
    labels = []
    dataset = _in_order(dataset)
    for batch in _batches(dataset):
        images, *rest = batch if isinstance(batch, tuple | list) else (batch,)
        labels += [np.asarray(rest[0])] if rest and rest[0] is not None else []
        start = time.perf_counter()
        for place, view in enumerate(views(torch.as_tensor(images))):
            if place == len(outputs):
                outputs.append([])
                seconds.append(0.0)
            outputs[place].append(np.asarray(model.predict_on_batch(view), dtype=np.float32))
            start, began = time.perf_counter(), start
            seconds[place] += start - began
    if not outputs:
        raise ValueError("Expected a dataset with at least one batch. Received: an empty dataset")
    return _beside_labels(model, dataset, outputs, labels, from_logits), seconds


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


def _batches(dataset: Any, batch_size: int = 64) -> Iterable[Any]:
    if not isinstance(dataset, np.ndarray | torch.Tensor):
        return dataset
    return (dataset[start : start + batch_size] for start in range(0, len(dataset), batch_size))


def _beside_labels(
    model: keras.Model,
    dataset: Any,
    outputs: list[list[np.ndarray]],
    labels: list[np.ndarray],
    from_logits: bool,
) -> list[Predictions]:
    """Predictions of each view, less the rows in which another photo stands in for an unreadable one."""
    task = getattr(dataset, "task", None) or getattr(model, "task", None) or "single_label"
    names = getattr(dataset, "class_names", None) or getattr(model, "class_names", None) or ()
    known = getattr(dataset, "labels", None)
    known = np.concatenate(labels) if known is None and labels else known
    paths = getattr(dataset, "files", getattr(dataset, "paths", None))
    readable = getattr(dataset, "readable", None)
    rows = slice(None) if readable is None else readable
    return [
        Predictions(
            _probabilities(np.concatenate(parts), task, from_logits)[rows],
            None if known is None else known[rows],
            None if paths is None else np.asarray(paths)[rows],
            names,
            task,
        )
        for parts in outputs
    ]


def _probabilities(outputs: np.ndarray, task: str, from_logits: bool) -> np.ndarray:
    """Float32 (n, classes) from what the model gave."""
    outputs = outputs.reshape(len(outputs), -1)
    if task == "single_label" and outputs.shape[1] == 1:
        raise ValueError(
            "Expected one output a class. Received: one output in all. For a yes or no give the last layer "
            'two, or take the task "multi_label"'
        )
    return probabilities_of(torch.from_numpy(outputs), task).numpy() if from_logits else outputs


def _augmentation_of(model: keras.Model) -> Augmentation:
    """The model's own augmentation."""
    candidates = [getattr(model, "augmentation", None), *getattr(model, "layers", [])]
    found = next((layer for layer in candidates if isinstance(layer, Augmentation)), None)
    if found is None:
        raise ValueError(
            "The model has no `Augmentation` to draw views from: pass `augmentation=aug_transforms(size)`. "
            f"Received: model={model.name!r}"
        )
    return found


def _view_maker(layer: Augmentation, views: str, n: int, seed: int) -> tuple[Views, int]:
    """A function of the images that gives their views, and how many it gives."""
    if views == "random":
        at_least("n", n, 1)
        if not layer.is_random:
            warnings.warn(
                "The model's augmentation draws nothing, so that its views are all the plain one: build the "
                'model with `augmentation=aug_transforms(size)`, or take `views="flip"`',
                stacklevel=3,
            )
        drawing = type(layer).from_config({**layer.get_config(), "seed": seed})
        return lambda images: (drawing(images, training=True) for _ in range(n)), n
    maps = _fixed_maps(views)

    def fixed(images: torch.Tensor) -> Iterator[torch.Tensor]:
        plain = layer.draw(len(images), *images.shape[1:3], training=False)
        for view in maps:
            yield layer.apply(images, replace(plain, maps=plain.maps @ view))

    return fixed, len(maps)


def _fixed_maps(views: str) -> torch.Tensor:
    """Maps (views, 3, 3) of a fixed set, float64."""
    if views == "flip":
        return geometry.dihedral(torch.tensor([1]))
    if views == "dihedral":
        return geometry.dihedral(torch.arange(1, 8))
    x, y = torch.tensor([[0.5, 0.5], [0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64).T
    side = torch.full((5,), _CROP_SHARE, dtype=torch.float64)
    crops = geometry.crop(side, side, x, y)
    return torch.cat([crops, crops @ geometry.dihedral(torch.tensor([1]))])


def _plain_share(weight: float | None, views: str, count: int) -> float:
    if weight is None:
        return 0.25 if views == "random" else 1 / (count + 1)
    return within("weight", weight, 0, 1)


def _gain(plain: Predictions, averaged: Predictions, views: ViewGain) -> ViewGain:
    """The gain over the plain view, with the standard error of a mean of differences."""
    if plain.labels is None or plain.task == "regression" or len(plain) < 2:
        return views
    hits, losses = averaged.hits() - plain.hits(), averaged.losses() - plain.losses()
    return replace(
        views,
        accuracy=float(hits.mean()),
        accuracy_error=_standard_error(hits),
        log_loss=float(losses.mean()),
        log_loss_error=_standard_error(losses),
    )


def _standard_error(differences: np.ndarray) -> float:
    return float(differences.std(ddof=1) / len(differences) ** 0.5)
