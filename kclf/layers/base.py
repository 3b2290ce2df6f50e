"""What layers of random transformations share."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np
import torch

from .._core.sizes import Size, as_size, sides


def output_size(size: Size | None) -> tuple[int, int] | None:
    """(height, width) in pixels of a size given as one number or a pair; None stays None."""
    return None if size is None else sides(as_size("size", size))


class SameShape:
    """For layers whose output has the shape of their input, as their first base."""

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """That of the input."""
        return input_shape


class Float32Layer(keras.layers.Layer):
    """A layer that works in float32 whatever the dtype policy.

    Without autocast, images reach the layer as they are: whole numbers stay whole, and half precision,
    which cannot tell all grey levels after a change of light, is never what it computes in.
    """

    _settings: tuple[str, ...] = ()  # names of the arguments

    def __init__(self, options: dict[str, Any]) -> None:
        dtype = options.get("dtype", "float32")
        if getattr(dtype, "name", dtype) != "float32":
            raise ValueError(
                "This layer computes in float32 under any policy: leave `dtype` out. "
                f"Received: dtype={dtype!r}"
            )
        super().__init__(**options | {"dtype": "float32", "autocast": False})

    def get_config(self) -> dict[str, Any]:
        """The arguments that give this layer again."""
        config = super().get_config()
        del config["dtype"]
        return config | {name: getattr(self, name) for name in self._settings}


class Drawing(Float32Layer):
    """What layers of random transformations share: float32, and a generator that can be read and set."""

    def __init__(self, *, seed: int | None, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.seed = random.randrange(2**31) if seed is None else seed
        self._generator = torch.Generator().manual_seed(self.seed)

    def get_random_state(self) -> torch.Tensor:
        """State of the generator: `set_random_state` continues from there."""
        return self._generator.get_state()

    def set_random_state(self, state: torch.Tensor) -> None:
        """Take back a state that `get_random_state` gave; the next draws are those that followed it."""
        self._generator.set_state(state)


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
