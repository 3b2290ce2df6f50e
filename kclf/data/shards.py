"""Training photos out of tar files, a stream for each process: more than any folder holds.

The files are as the library `webdataset` has them: the members of one photo follow each other and share a
name up to the ending, `0017.jpg` and `0017.cls`.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..distributed import local_world_size, rank, share, take_device, world_size
from ..errors import DataError, ImageError
from .files import IMAGE_SUFFIXES
from .image_dataset import usable_cores
from .images import ResizeMethod, read_image, to_square

log = logging.getLogger("kclf.data")

BATCHES_AHEAD = 2
Sample = dict[str, Any]


class TarShards(DataLoader):
    """Photos in tar shards as `model.fit` takes them for training; needs the extra [webdataset].

    Each process streams shards of its own, in another order each epoch, and shuffles among the photos at
    hand. An epoch has `num_images // batch_size` batches on every process; where a process has read its
    shards before that, it begins them again, and so may see some photos twice and leave out others: validate
    on an `ImageDataset`. A photo that cannot be read is left out with a warning.

    Args:
        shards: tar files, or addresses that `webdataset` opens ("pipe:aws s3 cp s3://... -"); at least one
            for each process.
        class_names: the classes in order.
        num_images: photos in all shards together.
        presize: side in pixels of the squares.
        batch_size: photos a batch, of all processes together.
        label: the member that says the class, as its name or its number.
        resize_method: how a photo becomes a square: "crop", "pad" or "squish".
        among: how many photos to shuffle among; they are held encoded.
        seed: fixes orders and windows.
        num_threads: threads that decode; None for one a core.

    Example:
        >>> shards = TarShards(["a.tar", "b.tar"], ["cat", "dog"], num_images=1000, batch_size=64)
        >>> len(shards)
        15
    """

    def __init__(
        self,
        shards: Sequence[str],
        class_names: Sequence[str],
        *,
        num_images: int,
        presize: int = 224,
        batch_size: int = 64,
        label: str = "cls",
        resize_method: ResizeMethod = "crop",
        among: int = 1000,
        seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        if len(shards) < world_size():
            raise DataError(f"Expected a shard for each of {world_size()} processes. Received: {len(shards)}")
        if not world_size() <= batch_size <= num_images:
            raise DataError(
                f"Expected batches of {world_size()} (one photo a process) to {num_images} photos. "
                f"Received: batch_size={batch_size}"
            )
        super().__init__(_Streamed(num_images), batch_size=batch_size)
        take_device()
        self.shards = sorted(shards)
        self.class_names = list(class_names)
        self.num_images, self.presize, self.label = num_images, presize, label
        self.resize_method, self.among, self.seed = resize_method, among, seed
        self.num_threads = num_threads or max(1, usable_cores() // local_world_size())
        self._epoch = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.num_images // int(self.batch_size or 1)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's share of the batches of the epoch: uint8 photos, int64 classes."""
        epoch, size = self._epoch, int(self.batch_size or 1)
        here = len(range(size)[share(size, (rank(), world_size()))])
        photos = self._decoded(epoch, ahead=(1 + BATCHES_AHEAD) * here)
        for number in range(len(self)):
            squares, classes = zip(*islice(photos, here), strict=True)
            if number == len(self) - 1:
                self._epoch = epoch + 1
            yield torch.from_numpy(np.stack(squares)), torch.tensor(classes)

    def state_dict(self) -> dict[str, int]:
        """Seed and epoch."""
        return {"seed": self.seed, "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to the start of an epoch."""
        self.seed, self._epoch = int(state["seed"]), int(state["epoch"])

    def _decoded(self, epoch: int, ahead: int) -> Iterator[tuple[np.ndarray, int]]:
        """Squares and classes without an end, in the order of the stream, decoded by threads."""
        windows = np.random.default_rng([self.seed, epoch, rank()])
        waiting: deque[Future[tuple[np.ndarray, int] | None]] = deque()
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="kclf-shards") as pool:
            try:
                for sample in self._samples(epoch):
                    waiting.append(pool.submit(self._decode, sample, tuple(windows.random(2))))
                    photo = waiting.popleft().result() if len(waiting) >= ahead else None
                    if photo is not None:
                        yield photo
            finally:
                pool.shutdown(cancel_futures=True)

    def _samples(self, epoch: int) -> Iterator[Sample]:
        """Members by ending, photo by photo, over and over."""
        try:
            import webdataset
        except ImportError as error:
            raise DataError(
                "Tar shards need the extra [webdataset]: pip install 'kclf[webdataset]'"
            ) from error
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        mine = [self.shards[index] for index in order[rank() :: world_size()]]
        stream = webdataset.WebDataset(mine, shardshuffle=False, nodesplitter=None, empty_check=False)
        generator = random.Random(f"{self.seed} {epoch} {rank()}")
        while True:
            found = False
            for sample in stream.shuffle(self.among, rng=generator):
                found = True
                yield sample
            if not found:
                raise DataError(f"There is no photo in these shards: {', '.join(mine)}")

    def _decode(self, sample: Sample, position: tuple[float, float]) -> tuple[np.ndarray, int] | None:
        """Square and class of a photo; None where it cannot be read."""
        name = f"{sample['__url__']}: {sample['__key__']}"
        ending = next((ending for ending in sample if f".{ending.lower()}" in IMAGE_SUFFIXES), None)
        if ending is None or self.label not in sample:
            raise DataError(
                f"{name}: expected a photo and a member {self.label!r}. "
                f"Received: {', '.join(key for key in sample if not key.startswith('__'))}"
            )
        try:
            photo = read_image(name, at_least=self.presize, content=sample[ending])
        except ImageError as error:
            log.warning("Skipped %s: %s", error.path, error.reason)
            return None
        square = to_square(photo, self.presize, self.resize_method, position)
        return square, self._class_of(name, sample[self.label])

    def _class_of(self, name: str, label: bytes) -> int:
        text = label.decode().strip()
        if text in self.class_names:
            return self.class_names.index(text)
        if text.isdecimal() and int(text) < len(self.class_names):
            return int(text)
        raise DataError(f"{name}: expected one of {len(self.class_names)} classes. Received: {text!r}")


class _Streamed(Dataset):
    """What torch's loader is told to load, where the loader does it all: Keras asks for its length."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Any:
        raise TypeError("Photos in tar shards come one after the other, not by number")
