"""Memory of the process: what torch frees on a CPU stays at hand."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_KEPT = 2**30  # bytes that may lie free at the end of the heap
_LARGEST = 2**28  # bytes; what is larger still goes back at once


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next tensor, in place of giving it back to the system.

    glibc gives back large blocks as soon as they are free, and the system clears every page of the next one
    when it is first written: for batches of images, which come and go, that takes up to half of the time.
    Up to 1 GB stays with the process. It is done once; a second call changes nothing.

    Returns:
        Whether the C library took it: only glibc (Linux) has these settings.

    References:
        mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
