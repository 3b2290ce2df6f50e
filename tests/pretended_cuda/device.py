"""The device: where storages lie, what the host did to it, and what it has not come to yet."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

CUDA = torch.device("cuda", 0)
TRANSPARENT = ("/pretended_cuda/", "/torch/", "/contextlib.py", "/functools.py", "/keras/src/utils/traceback")


@contextmanager
def behind_the_scenes() -> Iterator[None]:
    """For what the pretence does itself: no mode sees it."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors in arguments, at any depth."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))


def place_of(tensor: torch.Tensor) -> str:
    """Where a tensor lies: "cuda", "pinned" or "cpu"; the storage itself carries the word."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return "cpu"
    with torch._C.DisableTorchFunction():
        return getattr(tensor.untyped_storage(), "pretended_place", "cpu")


def put(tree: Any, place: str = "cuda") -> Any:
    """Let the tensors of a tree lie somewhere."""
    with torch._C.DisableTorchFunction():
        for tensor in tensors(tree):
            if not tensor.is_meta and tensor.layout is torch.strided:
                tensor.untyped_storage().pretended_place = place
    return tree


def caller() -> str:
    """The two innermost lines of code that are neither torch's nor the pretence's."""
    frames = [f for f in traceback.extract_stack() if not any(part in f.filename for part in TRANSPARENT)]
    return " < ".join(f"{'/'.join(f.filename.split('/')[-2:])}:{f.lineno}" for f in reversed(frames[-2:]))


class Device:
    """What a program did to the pretended device.

    Args:
        lag: how many asynchronous reads the device is behind the host.

    Attributes:
        waits: (operation, where) -> how often the host had to wait for the device.
        pageable: (operation, where) -> copies from memory that is not pinned, which no CUDA graph takes.
        kernels: operation -> launches; views and allocations are none.
        timeline: ("copy", stream), ("record", stream) and ("wait", stream, what for), in the host's order.
        streams: how many streams were made.
        pool_trims: how often the allocator's cache was emptied.
    """

    def __init__(self, lag: int = 0) -> None:
        self.lag = lag
        self.sync_mode = "default"
        self.streams = 0
        self.inside = 0  # depth of calls on device tensors, whose factories make device tensors
        self.quiet = False
        self.capturing = False  # in what becomes a CUDA graph
        self.captures = 0  # such regions so far
        self.arrived = 0
        self._queue: deque[Callable[[], None]] = deque()
        self.clear()

    def clear(self) -> None:
        """Forget what was counted so far."""
        self.waits: Counter[tuple[str, str]] = Counter()
        self.pageable: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()
        self.timeline: list[tuple[Any, ...]] = []
        self.pool_trims = 0

    @property
    def submitted(self) -> int:
        """Reads given to the device so far."""
        return self.arrived + len(self._queue)

    def later(self, action: Callable[[], None]) -> None:
        """Do something on the device, when it has come so far."""
        self._queue.append(action)
        self.finish(self.submitted - self.lag)

    def finish(self, position: int) -> None:
        """Let the device come to what was submitted up to here."""
        while self._queue and self.arrived < position:
            with behind_the_scenes():
                self._queue.popleft()()
            self.arrived += 1

    def forbid_in_graphs(self, operation: str) -> None:
        """Raise in a region that is captured, which later is launched without the host."""
        if self.capturing:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation} (pretended)")

    @contextmanager
    def captured(self) -> Iterator[None]:
        """A region that becomes a CUDA graph."""
        before, self.capturing = self.capturing, True
        try:
            yield
        finally:
            self.capturing = before

    def wait(self, operation: str) -> None:
        """The host waits for all that was submitted."""
        if self.quiet:
            return
        self.forbid_in_graphs(operation)
        self.finish(self.submitted)
        self.waits[operation, caller()] += 1
        if self.sync_mode == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation ({operation})")

    def crosses(self, source: torch.Tensor, way: str, asynchronous: bool) -> None:
        """A copy between host and device."""
        self.forbid_in_graphs(way)
        if not asynchronous:
            self.wait(way)
        elif way == "to the device" and place_of(source) != "pinned":
            self.pageable[way, caller()] += 1


def kernels(device: Device) -> int:
    """Launches so far: foreach and fused operations count once."""
    return sum(device.kernels.values())
