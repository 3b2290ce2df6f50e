"""Sizes of photos: one number is the side of a square, any other rectangle is a pair (height, width).

`as_size` brings what a caller gives to that one form, and everything behind it reads `sides`.
"""

from __future__ import annotations

import numbers
from typing import Any

Size = int | tuple[int, int]
InputShape = tuple[int | None, int | None, int]  # (height, width, channels); None leaves a side open


def as_size(name: str, value: Any, least: int = 1, most: int | None = None) -> Size:
    """A size in its one form: a pair of equal sides is the side of a square.

    Args:
        name: what the message calls it.
        value: a number of pixels, or (height, width).
        least: pixels of a side.
        most: the same; None sets no limit.

    Raises:
        ValueError: it is neither, or has a side outside of the limits.

    Example:
        >>> as_size("size", [224, 336]), as_size("size", (224, 224))
        ((224, 336), 224)
    """
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(_is_side(side, least, most) for side in pair):
        limits = f"from {least} on" if most is None else f"from {least} to {most}"
        raise ValueError(
            f"Expected {name} to be a whole number of pixels {limits}, the side of a square, or two of them, "
            f"(height, width). Received: {name}={value!r}"
        )
    height, width = (int(side) for side in pair)
    return height if height == width else (height, width)


def _is_side(side: Any, least: int, most: int | None) -> bool:
    is_whole = isinstance(side, numbers.Integral) and not isinstance(side, bool)
    return is_whole and least <= side and (most is None or side <= most)


def sides(size: Size) -> tuple[int, int]:
    """(height, width) in pixels.

    Example:
        >>> sides(224), sides((224, 336))
        ((224, 224), (224, 336))
    """
    return (size, size) if isinstance(size, int) else size


def size_text(size: Any) -> str:
    """A size in words, as the command takes it: height first. Anything else out of a file stays as it is.

    Example:
        >>> size_text(224), size_text([224, 336])
        ('224', '224x336')
    """
    return "x".join(map(str, size)) if isinstance(size, list | tuple) else str(size)


def shape_name(size: Size) -> str:
    """What photos of a size are."""
    return "square" if isinstance(size, int) else "rectangle"


def num_pixels(size: Size) -> int:
    """Height times width."""
    height, width = sides(size)
    return height * width


def scaled(size: Size, factor: float) -> Size:
    """A size whose sides are so many times as long, in whole pixels.

    Example:
        >>> scaled((224, 336), 1.25), scaled(224, 1.25)
        ((280, 420), 280)
    """
    return as_size("size", [max(1, round(side * factor)) for side in sides(size)])


def covers(size: Size, other: Size) -> bool:
    """Whether neither side is shorter than the other size's."""
    return all(mine >= theirs for mine, theirs in zip(sides(size), sides(other), strict=True))


def same_shape(size: Size, other: Size) -> bool:
    """Whether two sizes have the same ratio of height to width, but for rounding to whole pixels.

    Example:
        >>> same_shape((281, 420), (225, 336)), same_shape(280, (224, 336))
        (True, False)
    """
    (height, width), (of_height, of_width) = sides(size), sides(other)
    return 2 * abs(height * of_width - width * of_height) < of_height + of_width


def presize_for(size: Size, presize: Size) -> Size:
    """The nearest to a presize that goes with a size: no smaller, and of the same shape.

    Example:
        >>> presize_for((288, 432), (280, 420)), presize_for(224, 460)
        ((288, 432), 460)
    """
    if not covers(presize, size):
        return size
    return presize if same_shape(presize, size) else scaled(size, sides(presize)[0] / sides(size)[0])


def require_same_shape(name: str, value: Size, size: Size) -> None:
    """Refuse a size that photos cannot be brought from to another one as they are.

    Raises:
        ValueError: it has another ratio of height to width.
    """
    if not same_shape(value, size):
        near = scaled(size, max(1.0, min(sides(value)) / min(sides(size))))
        raise ValueError(
            f"Expected {name} of the same shape as size={size}, (height, width), such as {near}. "
            f"Received: {name}={value}"
        )


def size_and_presize(size: Any, presize: Any = None) -> tuple[Size, Size]:
    """Both in their one form; a presize that is None is the size.

    Raises:
        ValueError: one is no size, or the presize is smaller, or has another ratio of height to width.
    """
    size = as_size("size", size)
    presize = size if presize is None else as_size("presize", presize)
    if not covers(presize, size):
        raise ValueError(f"Expected presize >= size. Received: presize={presize}, size={size}")
    require_same_shape("presize", presize, size)
    return size, presize
