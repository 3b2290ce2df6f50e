"""What belongs to which rank: rows of a batch, random draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .group import rank, world_size

_in_step = False


def share(count: int, shard: tuple[int, int]) -> slice:
    """The rows of a batch that are a rank's: every n-th one, so that shares differ by one row at most.

    Args:
        count: rows of the batch.
        shard: (i, n), the i-th of n shares.

    Example:
        >>> [list(range(10))[share(10, (i, 4))] for i in range(4)]
        [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    """
    index, shares = shard
    return slice(index, count, shares)


def rows_of_rank(draw: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
    """Random rows for this rank's share of a batch: its own of those that one process would draw for all.

    So what is drawn for a photo does not depend on the number of ranks where it divides the batch, and never
    is the same for two photos. Outside of a training step of a model that has joined the ranks, the rows are
    simply drawn.

    Args:
        draw: takes a number of rows and draws as many, from a generator that is the same on all ranks.
        count: rows that are needed here.
    """
    ranks = world_size() if _in_step else 1
    if ranks == 1:
        return draw(count)
    return draw(count * ranks)[rank() :: ranks]


@contextmanager
def own_draws() -> Iterator[None]:
    """For a training step: torch's own generators (dropout) draw differently on each rank.

    Afterwards they are the same on all ranks again, where one number more has been drawn: what a checkpoint
    of rank 0 holds is right for all.
    """
    global _in_step
    seed = int(torch.randint(2**62, ()))
    here = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=here):
        torch.manual_seed(seed + rank())
        _in_step = True
        try:
            yield
        finally:
            _in_step = False


def describe(batch_size: int, seed: int | None = None) -> str:
    """One line that says who trains, and what the numbers of a run mean; empty with one process."""
    ranks = world_size()
    if ranks == 1:
        return ""
    device = "GPU" if torch.cuda.is_available() else "CPU"
    sizes = sorted({len(range(batch_size)[share(batch_size, (i, ranks))]) for i in range(ranks)})
    each = " or ".join(str(size) for size in sizes)
    seeds = "" if seed is None else f" Seed {seed} on all."
    return (
        f"{ranks} processes with one {device} each. A batch of {batch_size} is shared by them, {each} photos "
        f"each; learning rates are those for {batch_size}.{seeds}"
    )
