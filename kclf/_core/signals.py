"""SIGTERM and Ctrl-C as a wish that a run grants between two batches."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within its `with` block the first SIGTERM or Ctrl-C is only noted; a second one ends at once.

    Called, it gives the number of the signal that came, or None: what `Checkpoint(stop=...)` takes. Signals
    reach the main thread alone; in another one, nothing is changed.

    Example:
        >>> with StopRequest() as stop:
        ...     print(stop())
        None
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> int | None:
        """The signal that came, or None."""
        return self.signal

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise_for(number)
        self.signal = number
        print("\nStopping after this batch; once more to stop at once.", file=sys.stderr, flush=True)


def raise_for(number: int, frame: FrameType | None = None) -> None:
    """A handler that ends the process by an exception, so that half-written files are removed."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
