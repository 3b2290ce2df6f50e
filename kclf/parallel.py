"""Many small pieces of work on a CPU: each on one core, as many at a time as there are cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def one_core_each(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """Do every piece of work, in threads whose torch operations stay on one core.

    Torch shares each operation among the cores, which costs more than it gains where operations take less
    than about a millisecond. Here the pieces are shared instead. There are as many threads as torch was told
    to use (`torch.set_num_threads`); with one, or with one piece, all is done in the caller's.

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
    pieces, threads = list(pieces), torch.get_num_threads()
    if threads == 1 or len(pieces) < 2:
        for piece in pieces:
            work(piece)
        return
    inference = torch.is_inference_mode_enabled()

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
