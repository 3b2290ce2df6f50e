"""The host: work spread over its cores, and memory that stays with the process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

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


Piece = TypeVar("Piece")


def one_core_each(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """Do every piece of work, in threads whose torch operations stay on one core.

    Torch shares each operation among the cores, which costs more than it gains where operations take less
    than about a millisecond. Here the pieces are shared instead, among as many threads as torch was told to
    use (`torch.set_num_threads`). With one thread, or one piece, a loop of the caller's is the better way.

    Args:
        work: takes a piece; must not need what another piece gives, nor make anything that needs a gradient.
        pieces: what there is to do.

    Raises:
        Exception: the first that a piece raised.

    Example:
        >>> squares = torch.zeros(4)
        >>> one_core_each(lambda i: squares[i].fill_(i * i), range(4))
        >>> squares.tolist()
        [0.0, 1.0, 4.0, 9.0]
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def shielded(piece: Piece) -> None:  # modes of torch belong to a thread
        with torch.inference_mode(inference), torch.no_grad():
            work(piece)

    for done in [_workers(threads).submit(shielded, piece) for piece in pieces]:
        done.result()


@lru_cache(maxsize=1)
def _workers(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="kclf-core")
    everyone = Barrier(threads)

    def settle() -> None:
        torch.get_num_threads()  # a thread's first look takes the number of all, so it has to be over
        torch.set_num_threads(1)  # of this thread, and of all that start later
        everyone.wait()

    for settled in [pool.submit(settle) for _ in range(threads)]:
        settled.result()
    torch.set_num_threads(threads)  # so those that start later get what they got before
    return pool


if hasattr(os, "register_at_fork"):  # threads do not live on in a forked process
    os.register_at_fork(after_in_child=_workers.cache_clear)
