"""What `torch.cuda` answers while the device is pretended, and the context that pretends it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import keras
import pytest
import torch

from .device import CUDA, Device
from .dispatch import AtTheDispatcher
from .functions import InPython

MEMORY = 2**37  # bytes
ANSWERS = {
    "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "set_device": None,
    "get_device_capability": (9, 0), "get_device_name": "pretended", "init": None, "_lazy_init": None,
    "memory_allocated": 0, "memory_reserved": 0, "max_memory_allocated": 0, "reset_peak_memory_stats": None,
    "manual_seed": None, "manual_seed_all": None, "mem_get_info": (MEMORY, MEMORY),
    "get_device_properties": SimpleNamespace(total_memory=MEMORY, multi_processor_count=132),
}  # fmt: skip


class Generator(torch._C.Generator):
    """`torch.Generator` of either device; both draw on the CPU."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")


def stream_and_event(device: Device) -> tuple[type, type, list[Any]]:
    """The classes of streams and events of a device, and the stack of current streams."""

    class Event:
        """Done when the device has come to where it was recorded."""

        position = -1

        def __init__(self, *args: Any, **options: Any) -> None: ...

        def record(self, stream: Any = None) -> None:
            self.position, self.stream = device.submitted, stream or current[-1]
            device.timeline.append(("record", self.stream.number))

        def query(self) -> bool:
            return device.arrived >= self.position

        def synchronize(self) -> None:
            device.finish(self.position)

        def elapsed_time(self, other: Any) -> float:
            return 1.0

        def wait(self, stream: Any = None) -> None:
            (stream or current[-1]).wait_event(self)

    class Stream:
        """Knows its number: 0 is the default one."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.number, self.device = device.streams, CUDA
            device.streams += 1

        def record_event(self, event: Any = None) -> Any:
            event = event or Event()
            event.record(self)
            return event

        def wait_event(self, event: Any) -> None:
            device.timeline.append(("wait", self.number, "event"))

        def wait_stream(self, other: Any) -> None:
            device.timeline.append(("wait", self.number, "stream"))

        def query(self) -> bool:
            return device.arrived == device.submitted

        def synchronize(self) -> None:
            device.wait("synchronize")

    device.streams = 0
    current = [Stream()]
    return Stream, Event, current


@contextlib.contextmanager
def pretended_cuda(lag: int = 0) -> Iterator[Device]:
    """A machine with one GPU, on which Keras builds its models.

    Args:
        lag: how many asynchronous reads the device is behind the host.
    """
    device = Device(lag)
    with pytest.MonkeyPatch.context() as patch, AtTheDispatcher(device), InPython(device):
        _stand_in(patch, device)
        with keras.device("cuda"):
            yield device


def _stand_in(patch: pytest.MonkeyPatch, device: Device) -> None:
    def trim() -> None:
        device.pool_trims += 1

    stream, event, current = stream_and_event(device)

    @contextlib.contextmanager
    def within(other: Any) -> Iterator[None]:
        current.append(other)
        try:
            yield
        finally:
            current.pop()

    def graphed(module: Any, samples: tuple[Any, ...], **options: Any) -> Any:
        """Capture forward and backward, as far as that is forbidden nothing; then run it as it is."""
        with device.captured():
            outputs = [one for one in module(*samples) if one.requires_grad]
            wanted = [one for one in (*samples, *module.parameters()) if one.requires_grad]
            gradients = [torch.ones_like(one) for one in outputs]
            torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)
        device.captures += 1

        def replayed(*entering: Any) -> Any:
            with device.captured():
                return module(*entering)

        return replayed

    functions = {
        "make_graphed_callables": graphed,
        "Stream": stream,
        "Event": event,
        "current_stream": lambda *args: current[-1],
        "default_stream": lambda *args: current[0],
        "stream": within,
        "empty_cache": trim,
        "synchronize": lambda *args: device.wait("synchronize"),
        "set_sync_debug_mode": lambda mode: setattr(device, "sync_mode", mode),
        "get_rng_state": lambda *args: torch.default_generator.get_state(),
        "set_rng_state": lambda *args: None,
        "get_rng_state_all": lambda: [torch.default_generator.get_state()],
        "set_rng_state_all": lambda states: None,
    }
    for name, value in ANSWERS.items():
        functions[name] = lambda *args, value=value, **options: value
    for name, function in functions.items():
        patch.setattr(torch.cuda, name, function)
    patch.setattr(torch, "Generator", Generator)
    patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
