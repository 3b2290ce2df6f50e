"""Which floating point types to compute in."""

from __future__ import annotations

import keras
import torch

from ._core.arguments import one_of

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def best_precision() -> str:
    """The precision that this device is fastest with, without giving up accuracy.

    A CUDA device with bfloat16 units (compute capability 8.0 and later): `mixed_bfloat16`; with half
    precision units only (7.0 and later): `mixed_float16`; an older one, and a CPU: `float32`.

    Returns:
        "mixed_bfloat16", "mixed_float16" or "float32".

    Example:
        >>> best_precision() in PRECISIONS
        True
    """
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    if capability >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= (7, 0) else "float32"


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
