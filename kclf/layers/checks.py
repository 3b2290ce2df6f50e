"""Arguments are refused where a layer is made, not where it is first used."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np


def check_range(name: str, value: float, low: float, high: float) -> float:
    """The value as a float, which must lie in [low, high]."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not low <= value <= high:
        raise ValueError(f"`{name}` must lie between {low} and {high}. Received: {name}={value!r}")
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The value, which must be one of the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}. Received: {name}={value!r}")
    return value


def output_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) in pixels of a size given as one number or a pair; None stays None."""
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(length, int | np.integer) and length > 0 for length in pair):
        raise ValueError(
            "`size` must be a positive whole number of pixels, a pair of them (height, width), or None. "
            f"Received: size={size!r}"
        )
    return int(pair[0]), int(pair[1])


def float32_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `keras.layers.Layer` for a layer that works in float32 whatever the dtype policy.

    Without autocast, pictures reach the layer as they are: whole numbers stay whole, and half precision,
    which cannot tell all grey levels after a change of light, is never what it computes in.
    """
    dtype = options.get("dtype", "float32")
    if getattr(dtype, "name", dtype) != "float32":
        raise ValueError(
            f"This layer computes in float32 under any policy: leave `dtype` out. Received: dtype={dtype!r}"
        )
    return options | {"dtype": "float32", "autocast": False}
