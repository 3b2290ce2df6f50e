"""`ImageDataset`: one split as uint8 batches, decoded by threads a few batches ahead.

What a batch holds depends on (seed, epoch, index) alone, never on the threads. Keras asks a loader for more
iterators than it has epochs (one to look at the shapes, one more after each epoch), so an iterator does
nothing before its first batch is wanted, and the batch that was only looked at is handed out again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import DataLoader

from .._core.arguments import at_least, one_of
from .._core.devices import keras_device, may_stay, room_on
from .._core.keras_private import DataAdapter, beside_adapter
from .._core.sizes import Size, as_size, covers, shape_name, sides, size_text
from ..distributed import describe_data, local_world_size, rank, share, take_device, world_size
from ..errors import DataError, ImageError
from .images import CENTRE, RESIZE_METHODS, ResizeMethod, resize
from .labels import class_numbers
from .passes import Batch, Pass
from .resident import ResidentPhotos, bytes_of
from .sources import ArrayImages, FileImages, Images
from .tasks import TASKS, Task

log = logging.getLogger("kclf.data")

OnError = Literal["skip", "raise"]
_INSTEAD_OF = {
    "y": "Give the labels where the data are made: ImageData.from_arrays((x, y)), ImageDataset(x, y)",
    "sample_weight": "Pass arrays to fit(x, y, sample_weight=...), or weigh classes: "
    "data.replace(class_weight=...)",
    "class_weight": "Weigh classes where the data are made: ImageData(..., class_weight=...), or "
    "data.replace(class_weight=...)",
}


class ImageDataset(DataLoader, DataAdapter):
    """The photos of one split in batches, as `model.fit`, `evaluate` and `predict` take them.

    It yields `(images,)`, `(images, labels)` or `(images, labels, weights)`: images uint8
    (batch, *sides of presize, channels) in [0, 255]; labels int64 (batch,) class numbers, float32 (batch,
    classes) or float32 (batch,) numbers, by task; weights float32 (batch,) where `class_weight` is given.
    With CUDA the batches come pinned and already on the way to the device.

    An epoch is over when its last batch has been handed out; an iterator left before that leaves the epoch
    where it was. So looking at one batch, or a learning-rate range test, does not change what training sees
    (but to look at the only batch of a dataset is an epoch).

    With several processes (`kclf.distributed`) each reads its share of every batch. Order, batches and
    windows are those of one process, whatever their number; a last batch with fewer images than processes
    joins the one before it.

    Args:
        images: paths of n files, or uint8 (n, height, width, channels), or a source of images.
        labels: n class numbers, (n, classes) n-hot rows, or n numbers, by task; None where unknown.
        class_names: the classes in order.
        task: "single_label", "multi_label" or "regression".
        presize: side in pixels of the squares that photos are brought to, or (height, width).
        batch_size: images a batch.
        resize_method: how a photo is brought to it: "crop", "pad" or "squish".
        shuffle: another order each epoch.
        random_crop: another window (or place, with "pad") for each image in each epoch; else the centre.
        drop_last: leave out a last batch that is not full (unless it is the only one).
        seed: fixes order and windows.
        num_threads: threads that decode; None for one a core.
        on_error: "skip" puts the next readable image of the split in the place of one that cannot be read,
            and lists it in `skipped`; "raise" ends with its `ImageError`.
        max_unreadable: share of the images that may be skipped (one may always), and no class may lose all of
            its images; more ends with a `DataError`. None for any number.
        class_weight: weight of each class in the loss, by name, or "balanced" for n / (classes * count).
        sampling_weights: chance of each image to be drawn, float (n,), or "balanced" to draw all classes
            alike; images are then drawn with replacement.
        on_gpu: keep the photos on the GPU once they have been read, so that later epochs neither decode nor
            send them: those of an array or a presized cache, and of any source whose windows do not move.
            None where they take a fourth of its free memory at most.
        shard: (i, n) for the i-th of n shares of each batch, (0, 1) for all of it; None for the share of this
            process.
        channels: of photos in files: 3 reads them in colour, 1 in grey; None for what `images` have.

    Example:
        >>> images = np.zeros((5, 32, 32, 3), np.uint8)
        >>> labels = [0, 1, 0, 1, 1]
        >>> dataset = ImageDataset(images, labels, class_names=["cat", "dog"], presize=32, batch_size=4)
        >>> [(tuple(x.shape), y.tolist()) for x, y in dataset]
        [((4, 32, 32, 3), [0, 1, 0, 1]), ((1, 32, 32, 3), [1])]
    """

    batch_size: int = 0  # Keras' adapter has read-only properties of this name, which torch's loader sets

    def __init__(
        self,
        images: Images | Sequence[str | os.PathLike[str]] | np.ndarray,
        labels: Sequence[float] | np.ndarray | None = None,
        *,
        class_names: Sequence[str] = (),
        task: Task = "single_label",
        presize: Size = 224,
        batch_size: int = 64,
        resize_method: ResizeMethod = "crop",
        shuffle: bool = False,
        random_crop: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        num_threads: int | None = None,
        on_error: OnError = "skip",
        max_unreadable: float | None = None,
        class_weight: Mapping[str, float] | Literal["balanced"] | None = None,
        sampling_weights: Sequence[float] | np.ndarray | Literal["balanced"] | None = None,
        on_gpu: bool | None = None,
        shard: tuple[int, int] | None = None,
        channels: int | None = None,
    ) -> None:
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        one_of("task", task, TASKS)
        one_of("resize_method", resize_method, RESIZE_METHODS)
        one_of("on_error", on_error, get_args(OnError))
        at_least("num_threads", num_threads or 1, 1)
        source = as_images(images)
        source = source if channels is None else source.with_channels(channels)
        take_device()
        super().__init__(source, batch_size=at_least("batch_size", batch_size, 1))
        self.paths: np.ndarray = source.paths
        self.class_names = list(class_names)
        self.task = task
        self.labels = _checked_labels(labels, len(source), task, len(self.class_names))
        self.presize = _checked_presize(presize, source)
        self.resize_method = resize_method
        self.shuffle = shuffle
        self.random_crop = random_crop
        self.drop_incomplete = drop_last and len(source) > self.batch_size
        self.shard = _checked_shard(shard, len(source), self.batch_size)
        self.seed = seed
        self.num_threads = num_threads or max(1, usable_cores() // local_world_size())
        self.on_error = on_error
        self.max_unreadable = max_unreadable
        self.class_weight = class_weight
        self.class_weights = self._weight_of_each_class(class_weight)
        self.sample_weights = None if self.class_weights is None else self.class_weights[self.labels]
        self.sampling_weights = self._chances(sampling_weights)
        self._unreadable: dict[int, str] = {}
        self._lock = threading.Lock()
        self._epoch, self._start, self._blank = 0, 0, 0
        self._pass: Pass | None = None
        self.on_gpu = on_gpu
        self._resident: ResidentPhotos | None = None
        self._passes = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(self.num_images, self.batch_size)
        return full + (not self.drop_incomplete and (rest >= self.shard[1] or not full))

    def __iter__(self) -> Iterator[Batch]:
        """Hand out the batches of the epoch; nothing is read before the first one is wanted."""
        describe_data(self.paths, self.labels)
        current = self._begin()
        try:
            while current.handed_out < len(self):
                batch = current.next()
                if current.handed_out == len(self):  # now, since `fit` never asks for one more than `len`
                    self._epoch, self._start = current.epoch + 1, 0
                yield batch
        finally:
            self._leave(current)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), {**self._arguments, "images": self.dataset}, self.state_dict())

    def __repr__(self) -> str:
        what = {"regression": "numbers", "multi_label": "labels"}.get(self.task, "classes")
        labelled = f"{len(self.class_names)} {what}" if self.labels is not None else "unlabelled"
        return (
            f"ImageDataset({self.num_images:,} images, {labelled}, "
            f"{len(self)} x {self.batch_size} {shape_name(self.presize)}s of {size_text(self.presize)} px)"
        )

    @property
    def device(self) -> torch.device:
        """Where batches go: the GPU where Keras computes on one, else the CPU."""
        return keras_device() if keras_device().type == "cuda" else torch.device("cpu")

    @property
    def channels(self) -> int:
        """Channels of the images: 3 for colour."""
        return self.dataset.channels

    @property
    def num_images(self) -> int:
        """Number of images in the split."""
        return len(self.paths)

    @property
    def files(self) -> np.ndarray | None:
        """The files of the images, (n,); None for images in memory."""
        return self.paths if self.dataset.in_files else None

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of each image found unreadable so far; another one stood in for it."""
        return [(str(self.paths[index]), reason) for index, reason in sorted(self.unreadable.items())]

    @property
    def readable(self) -> np.ndarray:
        """Bool (n,): False for the images found unreadable so far, whose row shows another image."""
        mask = np.ones(self.num_images, dtype=bool)
        mask[list(self.unreadable)] = False
        return mask

    def replace(self, **changes: Any) -> ImageDataset:
        """A dataset of the same images with other arguments; it begins at epoch 0.

        What one of them finds unreadable all of them know.

        Example:
            >>> dataset = ImageDataset(np.zeros((8, 32, 32, 3), np.uint8), presize=32, batch_size=4)
            >>> dataset.replace(batch_size=2)
            ImageDataset(8 images, unlabelled, 4 x 2 squares of 32 px)
        """
        other = type(self)(**{**self._arguments, "images": self.dataset, **changes})
        if other.dataset is self.dataset:
            other._unreadable, other._lock = self._unreadable, self._lock
        return other

    def part(self, batches: Iterable[int]) -> ImageDataset:
        """A dataset of some of the batches, by their numbers in an epoch that is not shuffled.

        A last batch that is not full must be the last one here too. The part is no one's share, and may have
        any number of photos that cannot be read.
        """
        places = np.concatenate([self.rows(number) for number in batches])
        labels = None if self.labels is None else self.labels[places]
        other = self.replace(images=self.dataset.take(places), labels=labels, max_unreadable=None)
        known = self.unreadable
        other._unreadable = {here: known[p] for here, p in enumerate(places.tolist()) if p in known}
        return other

    @property
    def unreadable(self) -> dict[int, str]:
        """Index -> reason of each image found unreadable so far."""
        with self._lock:
            return dict(self._unreadable)

    def note_unreadable(self, found: Mapping[int, str]) -> None:
        """Take over which images others could not read: another process, or a pass without labels.

        Raises:
            DataError: they are more than `max_unreadable`, or all of a class.
        """
        with self._lock:
            self._unreadable.update(found)
        for index in found:
            self._require_enough(index)

    def peek(self) -> Batch:
        """The batch that comes next; the epoch stays where it is, even of a single batch."""
        state = self.state_dict()
        batch = next(iter(self))
        if self.state_dict() != state:
            self.load_state_dict(state)
        return batch

    def state_dict(self) -> dict[str, int]:
        """Where the dataset stands: seed, epoch, and batches of that epoch already handed out.

        Inside an epoch this is where the iterator stands that goes through it; one that was left counts for
        nothing.
        """
        batch = self._start
        if self._pass is not None and self._pass.in_use and self._pass.epoch == self._epoch:
            batch = self._pass.handed_out
        return {"seed": self.seed, "epoch": self._epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where another run stood; the next iterator begins with that batch.

        A `model.fit` that begins inside an epoch has fewer batches left than it counts on; begin it at
        batch 0, or pass the rest as `steps_per_epoch`.

        Raises:
            DataError: the state does not fit this dataset.
        """
        seed, epoch, batch = (int(state[key]) for key in ("seed", "epoch", "batch"))
        if epoch < 0 or not 0 <= batch < max(1, len(self)):
            raise DataError(
                f"Expected epoch >= 0 and batch in [0, {len(self)}). Received: state={dict(state)}"
            )
        self._discard()
        self.seed, self._epoch, self._start, self._blank = seed, epoch, batch, 0

    def blank_batches(self, batches: int) -> None:
        """Let the next epoch hand out its first batches blank, at no cost: their photos are zeros.

        For a `fit` that resumes inside an epoch: it counts from batch 0, and passes over what it has done.
        """
        self._discard()
        self._blank = batches

    # What makes it an adapter of Keras', which `fit` uses as it is: a plain torch loader draws a warning
    # at each `fit`, since `shuffle=True` is the default there.

    def get_torch_dataloader(self) -> ImageDataset:
        """The loader itself."""
        return self

    @property
    def num_batches(self) -> int:
        """Batches an epoch; here `fit` is refused what the dataset brings itself."""
        for name in beside_adapter(tuple(_INSTEAD_OF)):
            raise DataError(
                f"Expected no {name} beside a dataset of kclf, which brings its labels and weights itself. "
                f"Received: {name}. {_INSTEAD_OF[name]}"
            )
        return len(self)

    @property
    def has_partial_batch(self) -> bool:
        """Whether the last batch is not full."""
        return bool(self.partial_batch_size)

    @property
    def partial_batch_size(self) -> int:
        """Images in the last batch where it is not full, else 0."""
        return 0 if self.drop_incomplete else self.num_images % self.batch_size

    # The order and the content of an epoch

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the images of an epoch, in the order they are handed out: int64 (n,)."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.sampling_weights is not None:
            return rng.choice(self.num_images, size=self.num_images, p=self.sampling_weights)
        return rng.permutation(self.num_images) if self.shuffle else np.arange(self.num_images)

    def rows(self, number: int) -> np.ndarray:
        """Places in the order of an epoch whose images are in batch `number`, of this share: int64."""
        start, end = number * self.batch_size, (number + 1) * self.batch_size
        if number == len(self) - 1 and not self.drop_incomplete:
            end = self.num_images
        return np.arange(start, end)[share(end - start, self.shard)]

    def positions(self, epoch: int) -> np.ndarray:
        """Where the window of each image lies in an epoch: float64 (n, 2), x and y in [0, 1]."""
        if not self.random_crop:
            return np.full((self.num_images, 2), CENTRE)
        return np.random.default_rng([self.seed, epoch, 1]).random((self.num_images, 2))

    def fill(self, frame: np.ndarray, index: int, position: np.ndarray) -> int:
        """Put an image in its place in a batch; the index of the one that is there in the end.

        Runs in the threads.
        """
        for candidate in range(index, index + self.num_images):
            at = candidate % self.num_images
            if at in self._unreadable:
                continue
            try:
                self.dataset.frame(at, self.presize, self.resize_method, position, out=frame)
            except ImageError as error:
                self._report(at, error)
            else:
                return at
        first = self._said(min(self.unreadable))
        raise DataError(f"None of the {self.num_images:,} images can be read. The first: {first}")

    def kept_shapes(self) -> np.ndarray | None:
        """Heights and widths of what may stay on a GPU, int64 (n, 2); None where epochs differ in pixels."""
        if not self.random_crop:
            return np.full((self.num_images, 2), sides(self.presize))
        return self.dataset.shapes_at(self.presize) if self.resize_method == "crop" else None

    def resident(self) -> ResidentPhotos | None:
        """The photos on the GPU, for a pass that begins; None where they do not stay there."""
        self._passes += 1
        device, kept = self.device, self._resident
        if kept is not None and kept.device == device and not kept.is_gone:
            return kept
        once = not self.shuffle and self._passes == 1  # such as a prediction, which does not come back
        if device.type != "cuda" or self.on_gpu is False or once or (kept is not None and kept.is_gone):
            return None
        shapes = self.kept_shapes()
        if shapes is None or not (self.on_gpu or may_stay(bytes_of(shapes, self.channels), device)):
            return None
        self._resident = ResidentPhotos(shapes, device, self.channels)
        return self._resident

    def gpu_note(self) -> str:
        """One line that says whether the photos will stay on the GPU; empty where there is none."""
        if self.device.type != "cuda" or self.on_gpu is False:
            return ""
        shapes = self.kept_shapes()
        if shapes is None:
            return "Each epoch decodes the photos anew. A presized cache (`resize`) can stay on the GPU."
        size, room = bytes_of(shapes, self.channels), room_on(self.device)
        stay = self.on_gpu or may_stay(size, self.device)
        does = "stay on the GPU once they are read" if stay else "are sent to the GPU in each epoch"
        return f"The photos {does}: {size / 1e9:.1f} GB, of {room / 1e9:.1f} GB free."

    def fill_kept(self, photo: np.ndarray, index: int) -> int:
        """Put what stays of an image in its place: the whole of it, or its frame; as `fill`."""
        if not self.random_crop:
            return self.fill(photo, index, np.array(CENTRE))
        try:
            photo[:] = self.dataset[index]
        except ImageError as error:
            self._report(index, error)
            frame = np.empty((*sides(self.presize), self.channels), np.uint8)
            shown = self.fill(frame, index, np.array(CENTRE))
            resize(frame, photo.shape[1], photo.shape[0], out=photo)
            return shown
        return index

    def collate(self, images: torch.Tensor, indices: np.ndarray) -> Batch:
        """A batch of images with the labels and weights of their indices."""
        parts = [images]
        if self.labels is not None:
            labels = torch.from_numpy(self.labels[indices])
            parts.append(labels.long() if self.task == "single_label" else labels)
        if self.sample_weights is not None:
            parts.append(torch.from_numpy(self.sample_weights[indices]))
        return tuple(parts)

    def _report(self, index: int, error: ImageError) -> None:
        """Note an image that cannot be read, or end with its error where that was asked for."""
        if self.on_error == "raise":
            raise error
        with self._lock:
            known = index in self._unreadable
            self._unreadable[index] = error.reason
        if not known:
            log.warning("Skipped %s: %s", error.path, error.reason)
            self._require_enough(index)

    def _require_enough(self, index: int) -> None:
        """Raise `DataError` where too many images cannot be read, or none of a class."""
        if self.max_unreadable is None:
            return
        found = list(self.unreadable)
        allowed = max(self.max_unreadable * self.num_images, 1 if self.max_unreadable else 0)
        if len(found) > allowed:
            raise DataError(
                f"{len(found):,} of {self.num_images:,} images cannot be read, more than "
                f"{self.max_unreadable:.0%} (max_unreadable, --max-unreadable). The first: "
                f"{self._said(found[0])}"
            )
        if self.task == "single_label" and self.labels is not None:
            of_class = np.flatnonzero(self.labels == self.labels[index])
            if len(of_class) > 1 and np.isin(of_class, found).all():
                name = self.class_names[self.labels[index]] if self.class_names else self.labels[index]
                raise DataError(
                    f"No image of class {name!r} can be read ({len(of_class):,} of them). The first: "
                    f"{self._said(int(of_class[0]))}"
                )

    def _said(self, index: int) -> str:
        return f"{self.paths[index]}: {self._unreadable[index]}"

    # Passes

    def _begin(self) -> Pass:
        """The pass for a new iterator: the one of which only a first batch was seen, or a new one."""
        with self._lock:
            current, self._pass = self._pass, None
            if current is not None and current.reusable and not current.in_use:
                current.rewind()
            else:
                current = Pass(self, self._epoch, self._start, self._blank)
                self._blank = 0
            current.in_use = True
            self._pass = current
        return current

    def _leave(self, current: Pass) -> None:
        """An iterator is done or was dropped."""
        current.in_use = False
        finished = current.handed_out >= len(self)
        if finished or not current.reusable:
            current.close()
        if finished and self._pass is current:
            self._pass = None

    def _discard(self) -> None:
        with self._lock:
            current, self._pass = self._pass, None
        if current is not None and not current.in_use:
            current.close()

    # Weights

    def class_counts(self) -> np.ndarray:
        """Images of each class, int64 (classes,); where images have several, each class counts one."""
        if self.task == "regression" or self.labels is None:
            raise DataError(f"Expected labels that name classes. Received: task={self.task!r}")
        if self.task == "single_label":
            return np.bincount(self.labels, minlength=len(self.class_names))
        return self.labels.sum(axis=0).astype(np.int64)

    def _one_class_counts(self, what: str) -> np.ndarray:
        if self.task != "single_label" or self.labels is None:
            raise DataError(f"{what} needs one class an image. Received: task={self.task!r}")
        return self.class_counts()

    def _weight_of_each_class(self, class_weight: Mapping[str, float] | str | None) -> np.ndarray | None:
        if class_weight is None:
            return None
        counts = self._one_class_counts("class_weight")
        if isinstance(class_weight, str):
            one_of("class_weight", class_weight, ("balanced",))
            weights = self.num_images / (len(counts) * np.maximum(counts, 1))
        else:
            if set(class_weight) != set(self.class_names):
                raise DataError(
                    f"Expected a weight for each of the classes {self.class_names}. "
                    f"Received: class_weight for {sorted(class_weight)}"
                )
            weights = np.array([class_weight[name] for name in self.class_names])
        return weights.astype(np.float32)

    def _chances(self, weights: Sequence[float] | np.ndarray | str | None) -> np.ndarray | None:
        if weights is None:
            return None
        if isinstance(weights, str):
            one_of("sampling_weights", weights, ("balanced",))
            weights = 1 / np.maximum(self._one_class_counts("sampling_weights"), 1)[self.labels]
        chances = np.asarray(weights, dtype=np.float64)
        if chances.shape != (self.num_images,) or not (chances >= 0).all() or not chances.sum() > 0:
            raise DataError(
                f"Expected {self.num_images} sampling weights >= 0, not all 0. "
                f"Received: shape={chances.shape}"
            )
        return chances / chances.sum()


def as_images(images: Images | Sequence[str | os.PathLike[str]] | np.ndarray) -> Images:
    """A source of images from paths or from an array."""
    if isinstance(images, Images):
        return images
    if isinstance(images, np.ndarray) and images.dtype.kind not in "UO":
        return ArrayImages(images)
    return FileImages(images)


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _unpickled(kind: type[ImageDataset], arguments: dict[str, Any], state: Mapping[str, int]) -> ImageDataset:
    """A dataset in another process: as this one was made, and where it stands."""
    dataset = kind(**arguments)
    dataset.load_state_dict({**state, "batch": 0})
    return dataset


def _checked_presize(presize: Size, source: Images) -> Size:
    presize = as_size("presize", presize)
    if source.largest is not None and not covers(source.largest, presize):
        raise ValueError(
            f"Expected presize <= {source.largest}, the size of the photos in the cache: a larger one would "
            f"be blurred. Received: presize={presize}. Begin with the photos themselves, and call `resize` "
            f"with a size of at least {presize}"
        )
    return presize


def _checked_shard(shard: tuple[int, int] | None, n: int, batch_size: int) -> tuple[int, int]:
    index, shares = shard or (rank(), world_size())
    if not 0 <= index < shares:
        raise ValueError(f"Expected shard=(i, n) with 0 <= i < n. Received: shard={shard}")
    if min(n, batch_size) < shares:
        raise DataError(
            f"{n:,} images in batches of {batch_size} are too few for {shares} processes: each needs one at "
            "least of every batch"
        )
    return index, shares


def _checked_labels(
    labels: Sequence[float] | np.ndarray | None, n: int, task: Task, classes: int
) -> np.ndarray | None:
    """Labels as they are handed out; `classes` is 0 where their number is not known."""
    if labels is None:
        return None
    array = np.asarray(labels)
    if len(array) != n or array.ndim != (2 if task == "multi_label" else 1):
        shape = "(n, classes)" if task == "multi_label" else "(n,)"
        raise DataError(f"Expected labels of shape {shape} for n = {n} images. Received: shape={array.shape}")
    if task == "single_label":
        return class_numbers(array, classes)
    array = array.astype(np.float32)
    if task == "multi_label" and classes not in (0, array.shape[1]):
        raise DataError(
            f"Expected n-hot labels (n, {classes}) for {classes} classes. Received: shape={array.shape}"
        )
    low, high = (0, 1) if task == "multi_label" else (-np.inf, np.inf)
    if array.size and not (low <= array.min() and array.max() <= high and np.isfinite(array).all()):
        kind = "n-hot labels in [0, 1]" if task == "multi_label" else "finite numbers"
        raise DataError(f"Expected {kind}. Received: labels from {array.min()} to {array.max()}")
    return array
