"""Photos of many requests predicted together: one thread, one model, small batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np

from ..acceleration import constant
from ..prediction import Predictions, predict

MOST_WAITING = 512  # photos; more are refused, so that memory stays flat and answers come in time
TICK = 1.0  # seconds; the main thread wakes, and sees a signal that another thread got
Waiting = tuple[Future[np.ndarray], Future[Predictions]]  # a photo that is being read, and its prediction


class Busy(Exception):
    """More photos are waiting than may."""


class Engine:
    """Predicts photos that come one by one in batches, in one thread: that of `run`, or of `start`.

    A batch begins with the first photo that waits, and takes those that follow within `wait` of one another,
    and while they are read: a single request waits no longer than that, and under load the batches fill up.

    The main thread is the fastest on Linux: only there glibc keeps the memory of a batch for the next one.
    Any other thread gets new pages from the system each time.

    Args:
        model: an `ImageClassifier`.
        batch_size: most photos a batch.
        wait: seconds that a batch waits for one more photo.

    Example:
        >>> from kclf import ImageClassifier
        >>> engine = Engine(ImageClassifier("MobileNetV2", ["cat", "dog"], size=32, weights=None))
        >>> engine.start()
        >>> photo = Future()
        >>> photo.set_result(np.zeros((32, 32, 3), np.uint8))
        >>> engine.submit(photo).result().probabilities.shape
        (1, 2)
        >>> engine.close()
    """

    def __init__(self, model: Any, *, batch_size: int = 32, wait: float = 0.002) -> None:
        self.model, self.batch_size, self.wait = model, batch_size, wait
        self._waiting: queue.Queue[Waiting | None] = queue.Queue(MOST_WAITING)
        self._model_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, photo: Future[np.ndarray]) -> Future[Predictions]:
        """Ask for the prediction of one photo, uint8 (height, width, 3) as `model.read` gives it.

        It is predicted once it is read; what its reading raises is raised by the prediction too.

        Raises:
            Busy: too many photos are waiting.
        """
        future: Future[Predictions] = Future()
        try:
            self._waiting.put_nowait((photo, future))
        except queue.Full:
            raise Busy from None
        return future

    def with_model(self, function: Callable[[Any], Any]) -> Any:
        """Call a function with the model while no batch runs, such as one that takes gradients."""
        with self._model_lock:
            return function(self.model)

    def start(self) -> None:
        """Predict in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="kclf-serve", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish what waits, and end `run`."""
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def run(self) -> None:
        """Predict in this thread until `close` is called; the model may not change."""
        with constant(self.model):
            while (batch := self._next_batch()) is not None:
                if wanted := [pair for pair in batch if _is_readable_and_wanted(*pair)]:
                    self._predict(wanted)

    def _predict(self, batch: list[Waiting]) -> None:
        try:
            with self._model_lock:
                found = predict(self.model, np.stack([photo.result() for photo, _ in batch]))
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            if not isinstance(error, (RuntimeError, ValueError, MemoryError)):
                raise  # with those the requests fail, and the server stays
            return
        for place, (_, future) in enumerate(batch):
            future.set_result(found.take(slice(place, place + 1)))

    def _next_batch(self) -> list[Waiting] | None:
        """The photos that came together; None when there will be no more."""
        first = self._first()
        if first is None:
            return None
        batch, read = [first], 0
        while read < len(batch):  # while the last of them is read more may come
            futures.wait([photo for photo, _ in batch[read:]])
            read = len(batch)
            self._add_those_that_follow(batch)
        return batch

    def _first(self) -> Waiting | None:
        while True:
            with suppress(queue.Empty):
                return self._waiting.get(timeout=TICK)

    def _add_those_that_follow(self, batch: list[Waiting]) -> None:
        while len(batch) < self.batch_size:
            try:
                more = self._waiting.get(timeout=self.wait)
            except queue.Empty:
                return
            if more is None:
                self._waiting.put(None)
                return
            batch.append(more)


def _is_readable_and_wanted(photo: Future[np.ndarray], future: Future[Predictions]) -> bool:
    """Whether a photo is to be predicted; what its reading raised is passed on."""
    if not future.set_running_or_notify_cancel():
        return False  # the client has gone
    error = photo.exception()
    if error is not None:
        future.set_exception(error)
    return error is None
