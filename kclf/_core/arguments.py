"""Arguments are refused where they are given, in one wording: what was expected, and what came."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

MOST_CHOICES = 20  # that an error lists


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The value, which must be one of the choices.

    Raises:
        ValueError: it is none of them.

    Example:
        >>> one_of("flip", "horizontal", ("horizontal", "dihedral"))
        'horizontal'
    """
    if value not in choices:
        known = listed([repr(choice) for choice in choices], MOST_CHOICES)
        raise ValueError(f"Expected {name} to be one of {known}. Received: {name}={value!r}")
    return value


def in_closed(name: str, value: float, low: float, high: float) -> float:
    """The value as a float, which must lie in [low, high].

    Raises:
        TypeError: it is no number.
        ValueError: it lies outside.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"Expected {name} to be a number. Received: {name}={value!r}")
    if not low <= value <= high:
        raise ValueError(f"Expected {name} to lie in [{low}, {high}]. Received: {name}={value!r}")
    return float(value)


def in_open(name: str, value: float, low: float, high: float) -> float:
    """The value as a float, which must lie between the two, and be neither.

    Raises:
        ValueError: it does not.
    """
    if not low < value < high:
        raise ValueError(f"Expected {name} to lie between {low} and {high}. Received: {name}={value!r}")
    return float(value)


def at_least(name: str, value: int, least: int) -> int:
    """The value as an int, which must be whole and no less than that.

    Raises:
        ValueError: it is not.

    Example:
        >>> import numpy as np
        >>> at_least("batch_size", np.int64(8), 1)
        8
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected {name} to be a whole number from {least} on. Received: {name}={value!r}")
    return int(value)


def listed(names: Sequence[object], limit: int = 8) -> str:
    """The first names in a row, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
