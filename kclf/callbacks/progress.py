"""A bar for the batches of an epoch, for people who watch."""

from __future__ import annotations

import sys
from typing import Any

import keras
from tqdm import tqdm

from ..distributed import is_main


class ProgressBar(keras.callbacks.Callback):
    """Shows on standard error how far the epoch has come; it disappears when the epoch is over.

    It counts batches begun, so that no batch waits for the device. Where standard error is no terminal it
    shows nothing.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Open the bar."""
        self._bar = tqdm(
            total=(self.params or {}).get("steps"),
            desc=f"epoch {epoch}",
            unit="batch",
            leave=False,
            disable=None if sys.stderr is not None and is_main() else True,
            file=sys.stderr,
        )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """One batch more."""
        self._bar.update()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Say that the validation photos are on."""
        if getattr(self, "_bar", None) is not None:
            self._bar.set_description("validation")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remove the bar before the epoch's line is printed."""
        self._bar.close()
