"""SIGTERM, a closed terminal and Ctrl-C as a wish that a run grants between two batches."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, *ENDS)  # SIGHUP: the terminal was closed


class StopRequest:
    """Within its `with` block the first SIGTERM, SIGHUP or Ctrl-C is only noted; a second one ends at once.

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
            self._before = {number: signal.signal(number, self._note) for number in _heeded(SIGNALS)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise_for(number)
        self.signal = number
        with suppress(OSError):  # the terminal may be gone
            print("\nStopping after this batch; once more to stop at once.", file=sys.stderr, flush=True)


def _heeded(signals: Sequence[int]) -> list[int]:
    """The signals that are not ignored, as SIGHUP is under `nohup`."""
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process by an exception, so that half-written files are removed."""
    for number in _heeded(ENDS):
        signal.signal(number, raise_for)


def raise_for(number: int, frame: FrameType | None = None) -> None:
    """A handler that ends the process by an exception, so that half-written files are removed."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
