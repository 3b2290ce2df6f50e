"""Photos of many requests predicted together: one thread, one model, small batches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from ..prediction import Predictions, predict

MOST_WAITING = 512  # photos; more are refused, so that memory stays flat and answers come in time


class Busy(Exception):
    """More photos are waiting than may."""


class Engine:
    """Predicts photos that come one by one in batches, in a thread of its own.

    A batch begins with the first photo that waits, and takes those that come within `wait`: a single request
    waits no longer than that, and under load the batches fill up.

    Args:
        model: an `ImageClassifier`.
        batch_size: most photos a batch.
        wait: seconds that a batch waits for more photos.

    Example:
        >>> from kclf import ImageClassifier
        >>> engine = Engine(ImageClassifier("MobileNetV2", ["cat", "dog"], size=32, weights=None))
        >>> engine.submit(np.zeros((32, 32, 3), np.uint8)).result().probabilities.shape
        (1, 2)
        >>> engine.close()
    """

    def __init__(self, model: Any, *, batch_size: int = 32, wait: float = 0.002) -> None:
        self.model, self.batch_size, self.wait = model, batch_size, wait
        self._waiting: queue.Queue[tuple[np.ndarray, Future[Predictions]] | None] = queue.Queue(MOST_WAITING)
        self._model_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="kclf-serve", daemon=True)
        self._thread.start()

    def submit(self, photo: np.ndarray) -> Future[Predictions]:
        """Ask for the prediction of one photo, uint8 (height, width, 3) as `model.read` gives it.

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

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            photos, futures = [photo for photo, _ in batch], [future for _, future in batch]
            try:
                with self._model_lock:
                    found = predict(self.model, np.stack(photos))
                for place, future in enumerate(futures):
                    future.set_result(found.take(slice(place, place + 1)))
            except (RuntimeError, ValueError, MemoryError) as error:  # the requests fail, the server stays
                for future in futures:
                    future.set_exception(error)
            finally:
                for future in futures:
                    future.cancel()  # nothing happens to those that have their answer

    def _next_batch(self) -> list[tuple[np.ndarray, Future[Predictions]]] | None:
        first = self._waiting.get()
        if first is None:
            return None
        batch, until = [first], time.monotonic() + self.wait
        while len(batch) < self.batch_size:
            try:
                more = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if more is None:
                self._waiting.put(None)
                break
            batch.append(more)
        return batch
