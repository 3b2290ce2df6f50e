"""The processes of a run: who they are, what they tell one another, and which rows each one has."""

from __future__ import annotations

import atexit
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import keras
import torch
import torch.distributed as dist

from .._core.locks import FolderLock
from ..errors import KclfError, TrainingError

BUCKET = 25 * 2**20  # bytes sent at once, as torch's DistributedDataParallel has it
STEP_TIMEOUT = 300.0  # seconds that a rank waits for the others in a step
PATIENCE = timedelta(days=1)  # how long it waits for a file, a cache or a report that another one makes
Given = TypeVar("Given")
Tensors = Sequence[torch.Tensor]
_apart = 0  # how many `with apart()` blocks this process is in
_patient: Any = None  # a group of its own for waits that may be long; it talks between hosts, never by GPU


def world_size() -> int:
    """How many processes train together: 1 unless a launcher such as `torchrun` said otherwise."""
    together = "RANK" in os.environ and not _apart
    return int(os.environ.get("WORLD_SIZE", 1)) if together else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


def local_world_size() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if world_size() > 1 else 1


def restarts() -> int:
    """How often `torchrun --max-restarts` has started the processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def single_process() -> Iterator[None]:
    """Within it this process counts as the only one: it waits for none and divides nothing.

    Example:
        >>> with single_process():
        ...     world_size()
        1
    """
    global _apart
    _apart += 1
    try:
        yield
    finally:
        _apart -= 1


def print_on_main(text: object) -> None:
    """Print, on rank 0 alone."""
    if is_main():
        print(text, flush=True)


def take_device() -> None:
    """Choose the GPU of this rank, before anything is put on one; other ranks than 0 show no progress bars.

    Raises:
        TrainingError: the machine has fewer GPUs than processes.
    """
    if world_size() == 1:
        return
    if not is_main():
        keras.config.disable_interactive_logging()
    if torch.cuda.is_available():
        local, gpus = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
        if gpus == 1 and "SLURM_LOCALID" in os.environ:  # --gpus-per-task=1 shows each rank its own GPU alone
            local = 0
        if local >= gpus:
            raise TrainingError(
                f"This machine has {gpus} GPUs, one for each process: start it with --nproc-per-node {gpus}. "
                f"Received: local rank {local}"
            )
        torch.cuda.set_device(local)


def start(timeout: float = STEP_TIMEOUT) -> None:
    """Find the other processes: by NCCL between GPUs, by Gloo between CPUs. All ranks call it, or none.

    It is called where it is first needed. A group that stands already, such as Ray Train's, is used.

    Args:
        timeout: seconds that a rank waits for the others in a step, before it takes them for lost.

    Raises:
        TrainingError: the others do not come.
    """
    global _patient
    if world_size() == 1 or _patient is not None:
        return
    take_device()
    with together():
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            store, _, _ = next(dist.rendezvous("env://", rank(), world_size()))
            dist.init_process_group(
                backend,
                # torchrun keeps the store through restarts, with addresses in it of processes that are dead
                store=dist.PrefixStore(f"kclf {world_size()} {restarts()}", store),
                rank=rank(),
                world_size=world_size(),
                timeout=timedelta(seconds=timeout),
            )
            atexit.register(_leave)
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)


def barrier() -> None:
    """Go on when all ranks are here."""
    if world_size() > 1:
        start()
        with together():
            dist.barrier(_patient)


def run_on_main(function: Callable[[], Given]) -> Given:
    """What a function gives on rank 0, which alone calls it, on all ranks; an error of kclf's as well.

    Example:
        >>> run_on_main(lambda: 2 + 2)
        4
    """
    if world_size() == 1:
        return function()
    start()
    box: list[Any] = [None]
    if is_main():
        try:
            box = [(function(), None)]
        except KclfError as found:
            box = [(None, found)]
    with together():
        dist.broadcast_object_list(box, group=_patient, device=torch.device("cpu"))
    given, error = box[0]
    if error is not None:
        raise error
    return given


@contextmanager
def locked_by_main(lock: FolderLock) -> Iterator[None]:
    """Within it rank 0 has a lock, for all ranks."""
    run_on_main(lock.acquire)
    try:
        yield
    finally:
        lock.release()


def gather(value: Given) -> list[Given]:
    """The values of all ranks, on all ranks."""
    if world_size() == 1:
        return [value]
    start()
    values: list[Any] = [None] * world_size()
    with together():
        dist.all_gather_object(values, value, group=_patient)
    return values


_data: dict[str, Any] = {}  # what this process last went through


def describe_data(paths: Iterable[str], labels: Any) -> None:
    """Note what this process trains on, for `require_same_data`; called where an epoch begins.

    Args:
        paths: names of the photos, in order.
        labels: an array of them, or None.
    """
    global _data
    if world_size() > 1:
        _data = {"photos": described(paths), "labels": _digest(b"" if labels is None else labels.tobytes())}


def described(paths: Iterable[str]) -> tuple[int, str]:
    """How many photos there are, and what changes with their names and order; folders do not count."""
    names = [str(path).replace("\\", "/").rpartition("/")[2] for path in paths]
    return len(names), _digest("\0".join(names).encode("utf-8", "replace"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def require_same_data() -> None:
    """Raise on all ranks where one of them is about to train on other photos or labels than rank 0.

    Raises:
        TrainingError: one is.
    """
    require_same(**_data)


def require_same(**parts: Any) -> None:
    """Raise on all ranks where a part, such as the photos or the weights, is another one than on rank 0.

    Raises:
        TrainingError: one is.
    """
    first, *others = gather(parts)
    for number, other in enumerate(others, 1):
        for what in {**first, **other}:
            _require_equal(number, what, first.get(what), other.get(what))


def _require_equal(number: int, what: str, first: Any, other: Any) -> None:
    if first == other:
        return
    known = what == "photos" and first and other and first[0] != other[0]
    counts = f" ({other[0]} and {first[0]})" if known else ""
    raise TrainingError(
        f"Rank {number} has other {what} than rank 0{counts}. Give all ranks the same model, and the same "
        "data in the same order: each takes its own share of them"
    )


def broadcast(tensors: Tensors) -> None:
    """Give tensors the values that they have on rank 0, in place."""
    _exchange(tensors, lambda flat: dist.broadcast(flat, src=0))


def average(tensors: Tensors, weight: float = 1.0) -> None:
    """Give tensors their mean over the ranks, in place, the same bits on all of them.

    Args:
        tensors: of real numbers, at least one, of the same shapes on all ranks.
        weight: how much this rank counts, such as the number of its photos; above 0.
    """
    if world_size() == 1:
        return
    start()
    with together(), torch.no_grad():
        parts = [[torch.ones(1, device=tensors[0].device)], *buckets(tensors)]
        (weights, arrived), *sent = [send_weighted(part, weight) for part in parts]
        arrived.wait()
        for part, (flat, arrived) in zip(parts[1:], sent, strict=True):
            arrived.wait()
            unpack(flat.div_(weights), part)


def send_weighted(tensors: Sequence[Any], weight: float) -> tuple[torch.Tensor, Any]:
    """Tensors on their way as one, which becomes their weighted sum over the ranks, and what waits for it."""
    flat = flattened(tensors).mul_(weight)
    return flat, dist.all_reduce(flat, async_op=True)


def total(tensors: Tensors) -> None:
    """Give tensors their sum over the ranks, in place."""
    _exchange(tensors, dist.all_reduce)


def _exchange(tensors: Tensors, change: Callable[[torch.Tensor], Any]) -> None:
    """Let the ranks change tensors together, many in one flat tensor at a time."""
    if world_size() == 1:
        return
    start()
    with together(), torch.no_grad():
        for bucket in buckets(tensors):
            flat = flattened(bucket)
            change(flat)
            unpack(flat, bucket)


def buckets(tensors: Tensors, first: int = BUCKET) -> Iterator[list[torch.Tensor]]:
    """Tensors of one kind and device together, in the order in which they come, up to `BUCKET` bytes."""
    filling: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    room = first
    filled: dict[tuple[torch.dtype, torch.device], int] = {}
    for tensor in tensors:
        kind = (tensor.dtype, tensor.device)
        filling.setdefault(kind, []).append(tensor)
        filled[kind] = filled.get(kind, 0) + tensor.nbytes
        if filled[kind] >= room:
            filled[kind], room = 0, BUCKET
            yield filling.pop(kind)
    yield from filling.values()


def flattened(bucket: Tensors) -> torch.Tensor:
    """Tensors one after another in one of one axis."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in bucket])


def unpack(flat: torch.Tensor, bucket: Tensors) -> None:
    """Give tensors the values that `flattened` made of them, or others in their place."""
    parts = flat.split([tensor.numel() for tensor in bucket])
    shaped = [part.view(one.shape) for part, one in zip(parts, bucket, strict=True)]
    torch._foreach_copy_(list(bucket), shaped)


@contextmanager
def together() -> Iterator[None]:
    """Let the loss of another rank end this one with a message that says so."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"Rank {rank()} of {world_size()} has lost the others. One of them ended, and says why itself, "
            f"or did not come in time ({str(error).splitlines()[0]})"
        ) from error


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


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


def shard_random(draw: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
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
def per_rank_rng() -> Iterator[None]:
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
