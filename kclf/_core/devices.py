"""What is computed on, and how: the device, copies to it that nobody waits for, number formats."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import keras
import torch

from .keras_private import get_device


def keras_device() -> torch.device:
    """The device on which Keras computes now: that of `keras.device`, else CUDA where there is one."""
    return torch.device(get_device())


def send(values: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    """A tensor on a device.

    To CUDA it goes from pinned memory, without waiting for the device. What comes from there is waited for:
    torch would hand out memory that is not filled yet.

    Args:
        values: any tensor.
        device: where to; None for Keras' device.
    """
    target = keras_device() if device is None else torch.device(device)
    if target.type != "cuda" or values.device.type != "cpu":
        return values.to(target)
    return values.pin_memory().to(target, non_blocking=True)


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream on which batches travel to a device.

    torch keeps freed memory for the stream that it was used on, so that a new stream each epoch would strand
    a few batches each time.
    """
    return torch.cuda.Stream(device)


class _Keeper(Protocol):
    def release(self) -> None: ...


_keepers: weakref.WeakSet[Any] = weakref.WeakSet()


def gives_back(keeper: _Keeper) -> None:
    """Note who holds memory of a device that it can do without; `release` is called when memory runs out."""
    _keepers.add(keeper)


def release_keepers() -> None:
    """Take back the memory that can be done without."""
    for keeper in list(_keepers):
        keeper.release()


SHARE = 0.25  # of the memory that is free: the rest is for activations, whose size nobody knows yet


def may_stay(count: int, device: torch.device) -> bool:
    """Whether so many bytes of data may stay on a device: on CUDA, up to a fourth of what is free."""
    return device.type == "cuda" and count <= SHARE * room_on(device)


def room_on(device: torch.device) -> int:
    """Bytes of a CUDA device that are free, those that torch holds for later among them."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


Moment = Any  # a float, or an event of the device


def moment() -> Moment:
    """Now, or on CUDA when the device has done all that it was given so far; nothing waits for it."""
    if keras_device().type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Moment, end: Moment) -> float:
    """Seconds from one moment to another; the device must have come to both."""
    return end - start if isinstance(end, float) else start.elapsed_time(end) / 1000


@contextmanager
def under_policy(policy: Any) -> Iterator[None]:
    """Keras' global dtype policy for a while: `keras.applications` and what Keras compiles know no other."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply in whole float32 for a while, where CUDA would take TF32, which has 10 bits in place of 23.

    For checks that compare numbers made on different devices.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    newer = hasattr(matmul, "fp32_precision")  # from torch 2.9 on
    owners = (cudnn.conv if newer else cudnn, matmul)
    name, exact = ("fp32_precision", "ieee") if newer else ("allow_tf32", False)
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, exact)
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, name, value)
