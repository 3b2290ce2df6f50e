"""Which floating point types to compute in."""

from __future__ import annotations

import time
from functools import cache

import keras
import torch

from ._core.arguments import one_of

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def best_precision() -> str:
    """The precision that this device is fastest with, without giving up accuracy.

    A CUDA device with bfloat16 units (compute capability 8.0 and later): `mixed_bfloat16`; with half
    precision units only (7.0 and later): `mixed_float16`; an older one: `float32`. A CPU: `mixed_bfloat16`
    where it convolves in bfloat16 clearly faster than in float32, as those with AMX or AVX512-BF16 should.

    Returns:
        "mixed_bfloat16", "mixed_float16" or "float32".

    Example:
        >>> best_precision() in PRECISIONS
        True
    """
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability >= (8, 0):
            return "mixed_bfloat16"
        return "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if _cpu_prefers_bfloat16() else "float32"


def set_precision(precision: str = "auto") -> str:
    """Make a precision Keras' global dtype policy: models that are built from now on compute in it.

    Args:
        precision: "float32", "mixed_bfloat16", "mixed_float16" (whose losses `compile` scales), or "auto" for
            what `best_precision` finds.

    Returns:
        The name of the policy that was set.

    Raises:
        ValueError: for another name.

    Example:
        >>> set_precision("float32")
        'float32'
    """
    one_of("precision", precision, PRECISIONS)
    chosen = best_precision() if precision == "auto" else precision
    keras.config.set_dtype_policy(chosen)
    return chosen


@cache
def _cpu_prefers_bfloat16() -> bool:
    """Whether a convolution in bfloat16 takes less than 2/3 of its time in float32 here."""
    return _convolution_seconds(torch.bfloat16) < _convolution_seconds(torch.float32) / 1.5


def _convolution_seconds(dtype: torch.dtype) -> float:
    """The least of five timings of a 3x3 convolution as ResNets have it."""
    image = torch.ones(4, 64, 28, 28, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.ones(64, 64, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            torch.conv2d(image, kernel, padding=1)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
