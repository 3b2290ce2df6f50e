"""The activation cache (the course's `precompute`): what the backbone makes of each photo, computed once.

While the backbone is frozen, a photo always gives the same pooled activations. They are computed in one pass,
kept on disk, and the head then trains on plain arrays, hundreds of times faster:

    photo -> centre crop -> normalisation -> backbone -> pooling -> | cache | -> rest of the head -> logits

A cache lies in a folder named by a digest of everything that decides its content (`activation_key`), so that
an old one cannot be taken for a new one. It is written in parts, each whole or not at all; a pass that was
stopped resumes where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from torch.utils.data import DataLoader

from .._core.arguments import at_least, one_of
from .._core.atomic import sweep
from .._core.devices import gives_back, may_stay, send
from .._core.h5_store import read_arrays, write_arrays
from .._core.keras_private import all_layers
from .._core.locks import FolderLock
from .._core.progress import Progress
from ..callbacks.run_state import Undo
from ..data import ImageData, ImageDataset
from ..data.sources import ArrayImages, Images, JoinedImages
from ..distributed import (
    barrier,
    broadcast,
    describe_data,
    is_main,
    locked_by_main,
    rank,
    run_on_main,
    world_size,
)
from ..errors import FileFormatError, TrainingError
from ..layers.base import generator_state

log = logging.getLogger("kclf.prediction.activation_cache")

FORMAT = 2  # raise it when what is stored for the same photos changes
PART = 512  # photos a file: a stopped pass loses at most as many
LARGEST_BATCH = 64
DTYPES = ("float32", "float16")


class ActivationDataset(DataLoader):
    """Cached activations of one split in batches, as `model.fit`, `evaluate` and `predict` take them.

    It stands in for the `ImageDataset` it was made from: the same order in each epoch, the same labels and
    weights, with activations in place of pixels. With several views a photo, each epoch draws one of them.

    Args:
        features: float (views, n, channels).
        index: int (n,), which photo each row shows; another one than its own where that cannot be read.
        images: the photos.

    Attributes:
        paths: as of the photos, str (n,).
        labels: as of the photos.
    """

    def __init__(self, features: np.ndarray, index: np.ndarray, images: ImageDataset) -> None:
        if features.ndim != 3 or features.shape[1] != images.num_images or len(index) != images.num_images:
            raise ValueError(
                f"Expected features of shape (views, {images.num_images}, channels) and as many indices. "
                f"Received: features.shape={features.shape}, index.shape={index.shape}"
            )
        super().__init__(images.dataset, batch_size=images.batch_size)
        self.features = features
        self.index = index
        self.images = images
        self.paths = images.paths
        self.labels = images.labels
        self.class_names = images.class_names
        self.task = images.task
        self.shuffle = images.shuffle
        self.shard = images.shard
        self._on_gpu: torch.Tensor | None = None  # (views * n, channels)
        self._gave_back = False

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Hand out the batches of the epoch, which is over with the last of them."""
        describe_data(self.paths, self.labels)
        epoch = self.images.state_dict()["epoch"]
        order = self.images.order(epoch)
        views = np.random.default_rng([self.images.seed, epoch, 2]).integers(
            len(self.features), size=len(order)
        )
        for number in range(len(self)):
            if number == len(self) - 1:
                self.load_state_dict({"seed": self.images.seed, "epoch": epoch + 1, "batch": 0})
            rows = self.images.rows(number)
            yield self._batch(views[rows], order[rows])

    def _batch(self, views: np.ndarray, photos: np.ndarray) -> tuple[torch.Tensor, ...]:
        """The activations of some photos with their labels: on the GPU, where all of them stay there."""
        kept = self._kept()
        if kept is None:
            features = torch.from_numpy(self.features[views, photos].astype(np.float32, copy=False))
            return self.images.collate(features, self.index[photos])
        places = send(torch.from_numpy(views * self.num_images + photos), kept.device)
        batch = self.images.collate(kept.index_select(0, places).float(), self.index[photos])
        return tuple(send(part, kept.device) for part in batch)

    def _kept(self) -> torch.Tensor | None:
        device = self.images.device  # without a number, which that of a tensor has
        if self._on_gpu is not None and device.type == "cuda":
            return self._on_gpu
        if self._gave_back or not may_stay(self.features.nbytes, device):
            return None
        flat = torch.from_numpy(np.ascontiguousarray(self.features)).reshape(-1, self.features.shape[-1])
        self._on_gpu = flat.to(device)
        gives_back(self)
        return self._on_gpu

    def release(self) -> None:
        """Give the GPU's memory back: batches are sent from here on."""
        self._on_gpu, self._gave_back = None, True

    def __repr__(self) -> str:
        views, photos, channels = self.features.shape
        return f"ActivationDataset({photos:,} photos, {channels:,} activations, {views} views a photo)"

    def state_dict(self) -> dict[str, int]:
        """Where the photos stand: seed, epoch and batch; their epochs and these are counted together."""
        return self.images.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to the start of an epoch."""
        self.images.load_state_dict({**state, "batch": 0})

    def replace(self, **changes: Any) -> ActivationDataset:
        """The same activations in other batches or another order; `changes` as for `ImageDataset.replace`."""
        return ActivationDataset(self.features, self.index, self.images.replace(**changes))

    @property
    def num_images(self) -> int:
        """Number of photos."""
        return len(self.paths)

    @property
    def files(self) -> np.ndarray | None:
        """The files of the photos, (n,); None for images in memory."""
        return self.images.files

    @property
    def readable(self) -> np.ndarray:
        """Bool (n,): False for the photos that could not be read, whose row shows another one."""
        return self.index == np.arange(len(self.index))


@dataclass(frozen=True)
class ActivationData:
    """Cached activations in place of the photos of an `ImageData`.

    Args:
        train: activations of the training photos.
        valid: of the validation photos, or None.
        test: of the test photos, or None.
    """

    train: ActivationDataset
    valid: ActivationDataset | None = None
    test: ActivationDataset | None = None


def precompute(
    model: Any,
    data: ImageData,
    folder: str | os.PathLike[str] = "activations",
    *,
    views: int = 1,
    dtype: str = "float32",
    progress: bool = True,
) -> ActivationData:
    """Activations of all photos, from the cache or computed into it.

    The backbone runs in inference mode. Validation and test photos are seen as a prediction sees them;
    so are training photos, unless `views` asks for augmented ones.

    Args:
        model: an `ImageClassifier`.
        data: the photos.
        folder: where caches lie; made where it is not there. It can be deleted at any time.
        views: above 1, as many augmented views of each training photo are kept, and each epoch takes one
            of them at random. 1 keeps the plain view, without augmentation.
        dtype: "float32", or "float16" for half the room.
        progress: show a progress bar while computing.

    Returns:
        Train, valid and test as arrays, for a model that `head_model` makes.
    """
    options: dict[str, Any] = {"dtype": dtype, "progress": progress, "weights": _settled_digest(model)}
    train = activations(model, data.train, folder, views=views, **options)
    others = (
        None if part is None else activations(model, part, folder, **options)
        for part in (data.valid, data.test)
    )
    return ActivationData(train, *others)


def activations(
    model: Any,
    dataset: ImageDataset,
    folder: str | os.PathLike[str],
    *,
    views: int = 1,
    dtype: str = "float32",
    progress: bool = True,
    weights: str | None = None,
) -> ActivationDataset:
    """Activations of the photos of one split, from the cache or computed; arguments as `precompute`.

    `weights` is the digest of the backbone's, where it has been taken already.
    """
    one_of("dtype", dtype, DTYPES)
    at_least("views", views, 1)
    weights = weights or _settled_digest(model)
    key = activation_key(model, dataset, views=views, dtype=dtype, weights=weights)
    place = Path(folder) / key[:32]
    with locked_by_main(FolderLock(place, wait=True)):  # another run may be at it: then it is found done
        run_on_main(lambda: sweep(place))
        passes = [_one_pass(model, dataset, place, view, views > 1, dtype, progress) for view in range(views)]
    index = passes[0][1]
    known = dataset.unreadable
    others = np.flatnonzero(index != np.arange(len(index))).tolist()  # stand where one could not be read
    dataset.note_unreadable({row: known.get(row, "it could not be read before") for row in others})
    return ActivationDataset(np.stack([features for features, _ in passes]), index, dataset)


def _settled_digest(model: Any) -> str:
    """Digest of the backbone's weights, which are the first process's in all processes from here on."""
    broadcast([variable.value for variable in model.backbone.variables])
    return weights_digest(model.backbone)


def pooled_activations(model: Any, images: Any, *, augment: bool = False) -> torch.Tensor:
    """What the head's first layer, the pooling, makes of photos.

    Args:
        model: an `ImageClassifier`.
        images: (batch, height, width, channels) in [0, 255].
        augment: see them augmented, as in training. The backbone runs in inference mode all the same.

    Returns:
        (batch, channels), without gradient.
    """
    with torch.no_grad():
        return model.head.get_layer("pooling")(model.features(images, augment=augment))


def head_model(model: Any) -> keras.Model:
    """The head behind its pooling as a model of its own: activations (batch, channels) -> logits.

    It shares its layers with the classifier: what it learns, the classifier knows.

    Args:
        model: an `ImageClassifier`.
    """
    return keras.Model(model.head.get_layer("pooling").output, model.head.output, name="head_on_activations")


# ---- the key ------------------------------------------------------------


def activation_key(
    model: Any,
    dataset: ImageDataset,
    *,
    views: int = 1,
    dtype: str = "float32",
    weights: str | None = None,
) -> str:
    """SHA-256 of everything that decides the activations, as 64 hex digits.

    That is: the files with their order, sizes and times of change (or the pixels, for photos in memory), and
    the size at which a cache of presized photos keeps them, and the depth they are read at; how they are
    squared and to which size; normalisation; the backbone's layers and weights; number formats; how a view is
    resampled; and for several views the augmentation and where the windows lie. Labels are not part of it:
    they are never read from a cache.

    Args:
        model: an `ImageClassifier`.
        dataset: the photos.
        views: augmented views a photo.
        dtype: of the stored numbers.
        weights: `weights_digest` of the backbone, where it is known already: it reads all of them.
    """
    drawn = [_nameless(model.augmentation), dataset.random_crop, dataset.seed] if views > 1 else None
    description = {
        "format": FORMAT,
        "photos": _describe_photos(dataset.dataset),
        "square": [dataset.presize, dataset.resize_method],
        "size": model.size,
        "normalization": _nameless(model.normalization),
        "backbone": [_nameless(layer) for layer in all_layers(model.backbone, include_self=False)],
        "weights": weights or weights_digest(model.backbone),
        "computed in": model.backbone.compute_dtype,
        "stored in": dtype,
        "views": [views, drawn, model.augmentation.interpolation, model.augmentation.fill_mode],
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode()).hexdigest()


def weights_digest(model: keras.Model) -> str:
    """SHA-256 of all weights of a model, in order, with their shapes and types."""
    digest = hashlib.sha256()
    for weight in model.weights:
        array = np.ascontiguousarray(weight.value.detach().cpu().numpy())
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _describe_photos(source: Images) -> Any:
    if isinstance(source, JoinedImages):
        return [[_describe_photos(part) for part in source.sources], source.places.tolist()]
    if isinstance(source, ArrayImages):
        return [source.images.shape, hashlib.sha256(np.ascontiguousarray(source.images).data).hexdigest()]
    read = [source.largest, source.depth] + [source.channels] * (source.channels != 3)
    return [*read, [_describe_file(str(path)) for path in source.paths]]


def _describe_file(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError:  # the loader says what is wrong with it
        return os.path.abspath(path), -1, -1
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _nameless(layer: keras.layers.Layer) -> list[Any]:
    """Kind and settings of a layer, without what differs from process to process."""
    passing = ("name", "trainable", "seed")
    config = {key: value for key, value in layer.get_config().items() if key not in passing}
    return [type(layer).__name__, config]


# ---- one pass over the photos ------------------------------------------------------------


def _one_pass(
    model: Any, dataset: ImageDataset, place: Path, view: int, augment: bool, dtype: str, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, channels) and index (n,) of one view of all photos; computes the missing parts.

    With several processes each computes its share of them, and then reads those of the others.
    """
    files = [place / f"view{view:02}-{start:07}.h5" for start in range(0, dataset.num_images, PART)]
    parts = {number: part for number, file in enumerate(files) if (part := _read_part(file)) is not None}
    missing = run_on_main(lambda: [number for number in range(len(files)) if number not in parts])
    for run in _runs(np.array_split(missing, world_size())[rank()]):
        with closing(_compute_parts(model, dataset, run, view, augment, dtype, progress)) as fresh:
            for number, part in zip(run, fresh, strict=True):
                write_arrays(files[number], part)
                parts[number] = part
    barrier()
    ordered = [
        parts[number] if number in parts else read_arrays(file, ["features", "index"])[0]
        for number, file in enumerate(files)
    ]
    features, index = (np.concatenate([part[name] for part in ordered]) for name in ("features", "index"))
    return features, index


def _read_part(file: Path) -> dict[str, np.ndarray] | None:
    """A part; None where it is missing or damaged."""
    try:
        return read_arrays(file, ["features", "index"])[0]
    except FileNotFoundError:
        return None
    except FileFormatError as error:
        log.warning("Computing again what a damaged cache file held: %s", error)
        return None


def _runs(numbers: np.ndarray) -> list[range]:
    """Rising numbers as runs without a gap.

    Example:
        >>> _runs(np.array([0, 1, 4]))
        [range(0, 2), range(4, 5)]
    """
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [range(int(piece[0]), int(piece[-1]) + 1) for piece in pieces if len(piece)]


def _compute_parts(
    model: Any, dataset: ImageDataset, run: range, view: int, augment: bool, dtype: str, progress: bool
) -> Generator[dict[str, np.ndarray], None, None]:
    """The parts of a run of numbers, of up to `PART` photos each."""
    batches, drawing = _numbered(dataset, view, augment), model.augmentation
    first, end = (min(number * PART, dataset.num_images) for number in (run.start, run.stop))
    batches.load_state_dict({"seed": batches.seed, "epoch": 0, "batch": first // batches.batch_size})
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    with Progress(end, "activations", done=first, shown=progress and is_main()) as bar:
        start = batches.state_dict()["batch"]
        last = -(-end // batches.batch_size)
        for number, (images, indices) in zip(range(start, last), batches, strict=False):
            # What is drawn belongs to the batch, and leaves no trace: a part is the same whenever it is
            # computed, and training is the same with and without it.
            with Undo(partial(drawing.set_random_state, drawing.get_random_state())):
                drawing.set_random_state(generator_state(batches.seed, number))
                features = pooled_activations(model, images, augment=augment)
            waiting.append((_stored(features, dtype), indices.cpu().numpy()))
            bar.update(len(indices))
            if len(waiting) * batches.batch_size == PART or number == last - 1:
                stored, index = (np.concatenate(part) for part in zip(*waiting, strict=True))
                yield {"features": stored, "index": index}
                waiting = []


def _numbered(dataset: ImageDataset, view: int, augment: bool) -> ImageDataset:
    """The photos in order, each with its number as its label.

    The number tells which photo is there, since the loader puts another one in the place of one that cannot
    be read. The batch size divides `PART`, so that each part begins with a batch.
    """
    return dataset.replace(
        labels=np.arange(dataset.num_images),
        class_names=(),
        task="single_label",
        batch_size=1 << (min(dataset.batch_size, LARGEST_BATCH).bit_length() - 1),
        shuffle=False,
        shard=(0, 1),
        random_crop=augment and dataset.random_crop,
        drop_last=False,
        seed=dataset.seed + view,
        class_weight=None,
        sampling_weights=None,
    )


def _stored(features: torch.Tensor, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = features.float().cpu().numpy().astype(dtype)
    if not np.isfinite(array).all():
        raise TrainingError(
            f"The backbone gives activations that {dtype} cannot hold (infinite or NaN). "
            'Use dtype="float32", and check the backbone\'s weights.'
        )
    return array
