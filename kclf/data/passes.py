"""One way through the batches of an epoch: threads decode ahead, copies to a GPU go ahead."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from .._core.devices import copy_stream, send
from .._core.sizes import sides
from .resident import ResidentPhotos

BATCHES_AHEAD = 2  # one being decoded while one waits: more only costs memory
Batch = tuple[torch.Tensor, ...]


@dataclass
class _Pending:
    """A batch whose images are being decoded; each job gives the index of the image it put in place.

    Where photos stay on the GPU, `images` are the pixels of those that are not there yet, `coming`.
    """

    images: torch.Tensor
    jobs: list[Future[int]]
    indices: np.ndarray
    coming: np.ndarray | None = None


class Pass:
    """One way through the batches of an epoch, with the threads that decode ahead of it.

    Args:
        dataset: an `ImageDataset`, which is held weakly.
        epoch: which one.
        start: the first batch.
        blank: how many batches to hand out without their photos.
    """

    def __init__(self, dataset: Any, epoch: int, start: int, blank: int = 0) -> None:
        self.epoch = epoch
        self.start = self.handed_out = start
        self._first_read = start + blank
        self.in_use = False
        self._closed = False
        # No circle of references: a dropped dataset takes its pass and the waiting threads with it at once.
        self._dataset = weakref.proxy(dataset)
        self._order = dataset.order(epoch)
        self._positions = dataset.positions(epoch)
        self._requested = self._first_read
        self._pending: deque[_Pending] = deque()
        self._first: Batch | None = None
        self._device = dataset.device
        self._resident: ResidentPhotos | None = dataset.resident()
        self._coming = np.zeros(dataset.num_images, bool)  # requested in this pass, to stay on the GPU
        self._sending: tuple[Batch | Callable[[], Batch], torch.cuda.Event | None] | None = None
        self._pool = ThreadPoolExecutor(dataset.num_threads, thread_name_prefix="kclf-data")

    @property
    def reusable(self) -> bool:
        """True while at most the first batch has been handed out, so that another iterator can take over."""
        return not self._closed and self.handed_out - self.start <= 1

    def rewind(self) -> None:
        """Hand out the first batch once more."""
        self.handed_out = self.start

    def next(self) -> Batch:
        """The next batch, waiting for it where it is not decoded yet."""
        self._request()
        first = self.handed_out == self.start
        if self.handed_out < self._first_read:
            batch, first = self._blank(), False
        elif first and self._first is not None:
            batch = self._first
        else:
            batch = self._take()
        # A copy: the first batch may have been written to by its reader.
        self._first = tuple(part.clone() for part in batch) if first else None
        self.handed_out += 1
        return batch

    def close(self) -> None:
        """Stop decoding."""
        self._closed = True
        self._pending.clear()
        self._first = self._sending = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _request(self) -> None:
        ahead = min(self.handed_out + 1 + BATCHES_AHEAD, len(self._dataset))
        while self._requested < ahead:
            self._pending.append(self._submit(self._requested))
            self._requested += 1

    def _indices(self, number: int) -> np.ndarray:
        return self._order[self._dataset.rows(number)]

    def _submit(self, number: int) -> _Pending:
        indices = self._indices(number)
        if self._resident is not None and not self._resident.is_gone:
            return self._submit_kept(self._resident, indices)
        return self._submit_frames(indices)

    def _submit_frames(self, indices: np.ndarray) -> _Pending:
        dataset = self._dataset
        shape = (len(indices), *sides(dataset.presize), dataset.channels)
        if self._device.type == "cuda":
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:  # numpy asks for huge pages: a sixth of the time that torch's memory takes on first use
            images = torch.from_numpy(np.empty(shape, dtype=np.uint8))
        frames = images.numpy()
        jobs = [
            self._pool.submit(dataset.fill, frame, int(index), self._positions[index])
            for frame, index in zip(frames, indices, strict=True)
        ]
        return _Pending(images, jobs, indices)

    def _submit_kept(self, resident: ResidentPhotos, indices: np.ndarray) -> _Pending:
        """Read those photos that are not on the GPU, nor on their way."""
        absent = np.unique(indices[resident.shown[indices] < 0])
        coming = absent[~self._coming[absent]]
        self._coming[coming] = True
        flat, photos = resident.buffer(coming)
        jobs = [
            self._pool.submit(self._dataset.fill_kept, photo, int(index))
            for photo, index in zip(photos, coming, strict=True)
        ]
        return _Pending(flat, jobs, indices, coming)

    def _blank(self) -> Batch:
        """The next batch without its photos: zeros, in no memory of their own."""
        dataset = self._dataset
        indices = self._indices(self.handed_out)
        shape = (len(indices), *sides(dataset.presize), dataset.channels)
        return dataset.collate(torch.zeros((), dtype=torch.uint8).expand(shape), indices)

    def _take(self) -> Batch:
        if self._device.type != "cuda":
            return self._decoded(self._pending.popleft())
        batch, arrived = self._sending or self._send()
        self._sending = None
        if self._pending and all(job.done() for job in self._pending[0].jobs):
            self._sending = self._send()  # while the device works on this batch
        here = torch.cuda.current_stream(self._device)
        if arrived is not None:
            here.wait_event(arrived)  # for this batch, and not for the next one
        if not isinstance(batch, tuple):
            return batch()
        for part in batch:
            part.record_stream(here)
        return batch

    def _send(self) -> tuple[Batch | Callable[[], Batch], torch.cuda.Event | None]:
        """The next batch on its way to the device, or what makes it there, and the event of its arrival."""
        pending, resident = self._pending.popleft(), self._resident
        if pending.coming is None or resident is None:
            return _sent(self._decoded(pending), self._device)
        shown = self._indices_of(pending)
        arrived = None
        if shown and not resident.is_gone:
            arrived = resident.put(pending.coming, pending.images, shown)
        return partial(self._cut, resident, pending.indices), arrived

    def _cut(self, resident: ResidentPhotos, indices: np.ndarray) -> Batch:
        """A batch of photos that are on the device; read anew where memory has run out meanwhile."""
        dataset = self._dataset
        if resident.has(indices):
            images = resident.cut(indices, dataset.presize, self._positions[indices])
            batch = dataset.collate(images, resident.shown[indices])
        else:
            batch = self._decoded(self._submit_frames(indices))
        return tuple(send(part, self._device) for part in batch)

    def _decoded(self, pending: _Pending) -> Batch:
        return self._dataset.collate(pending.images, np.array(self._indices_of(pending)))

    def _indices_of(self, pending: _Pending) -> list[int]:
        """Which images are in their places now, waiting for them."""
        try:
            return [job.result() for job in pending.jobs]
        except BaseException:
            self.close()
            raise


def _sent(batch: Batch, device: torch.device) -> tuple[Batch, torch.cuda.Event]:
    """The batch on its way to the device, and what happens when it is there."""
    stream = copy_stream(device)
    with torch.cuda.stream(stream):
        return tuple(send(part, device) for part in batch), stream.record_event()
