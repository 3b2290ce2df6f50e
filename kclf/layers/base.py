"""What layers of random transformations share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._core.sizes import Size, as_size, sides


def output_size(size: Size | None) -> tuple[int, int] | None:
    """(height, width) in pixels of a size given as one number or a pair; None stays None."""
    return None if size is None else sides(as_size("size", size))


def float32_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `keras.layers.Layer` for a layer that works in float32 whatever the dtype policy.

    Without autocast, images reach the layer as they are: whole numbers stay whole, and half precision,
    which cannot tell all grey levels after a change of light, is never what it computes in.
    """
    dtype = options.get("dtype", "float32")
    if getattr(dtype, "name", dtype) != "float32":
        raise ValueError(
            f"This layer computes in float32 under any policy: leave `dtype` out. Received: dtype={dtype!r}"
        )
    return options | {"dtype": "float32", "autocast": False}


def generator_state(*place: int) -> torch.Tensor:
    """The state of a fresh generator for a place, such as (seed, epoch, batch): for `set_random_state`.

    Args:
        place: integers >= 0.

    Example:
        >>> bool((generator_state(1, 2) == generator_state(1, 2)).all())
        True
    """
    seed = np.random.SeedSequence(place).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed)).get_state()
