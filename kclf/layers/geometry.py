"""Maps from output to input coordinates, one 3x3 homography for each image, and how they are put together.

Coordinates run from -1 to 1 over the width (x, first) and the height (y) of an image, edge to edge. A map
takes the place of an output pixel to the place in the input where it is read, so the *last* factor of a
product is what acts on the output first: `rotation @ zoom` looks at the zoomed frame and turns it.

All functions are stateless, take and give float tensors of one dtype, and work for a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .._core.sizes import same_shape

OF_RECTANGLE = (0, 1, 2, 4)  # symmetries of the square that are those of any rectangle

# Symmetries of the square in the order of fastai's `Dihedral`.
_DIHEDRAL = (
    ((1, 0), (0, 1)),
    ((-1, 0), (0, 1)),
    ((1, 0), (0, -1)),
    ((0, -1), (1, 0)),
    ((-1, 0), (0, -1)),
    ((0, 1), (-1, 0)),
    ((0, 1), (1, 0)),
    ((0, -1), (-1, 0)),
)


def _matrix(rows: tuple[tuple[Tensor | float, ...], ...]) -> Tensor:
    """Stack entries, tensors (n,) or numbers, to matrices (n, 3, 3)."""
    like = next(entry for row in rows for entry in row if isinstance(entry, Tensor))
    entries = [torch.as_tensor(entry, dtype=like.dtype).expand(like.shape) for row in rows for entry in row]
    return torch.stack(entries, dim=-1).reshape(*like.shape, 3, 3)


def rotation(degrees: Tensor) -> Tensor:
    """Rotation about the centre.

    Args:
        degrees: (n,) angles in degrees.

    Returns:
        Maps (n, 3, 3) for square images; `for_aspect` adapts them to others.

    Example:
        >>> rotation(torch.tensor([90.0])).round()[0].tolist()
        [[-0.0, 1.0, 0.0], [-1.0, -0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    angle = degrees * (math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    return _matrix(((cosine, sine, 0), (-sine, cosine, 0), (0, 0, 1)))


def zoom(factor: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Magnification about a place.

    Args:
        factor: (n,) magnification; 1.1 shows 1/1.1 of the width and height.
        x: (n,) horizontal place of the window, 0 (left) to 1 (right).
        y: (n,) vertical place of the window, 0 (top) to 1 (bottom).

    Returns:
        Maps (n, 3, 3).
    """
    return crop(1 / factor, 1 / factor, x, y)


def crop(width: Tensor, height: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A window of the image.

    Args:
        width: (n,) share of the image's width.
        height: (n,) share of the image's height.
        x: (n,) horizontal place of the window, 0 (left) to 1 (right).
        y: (n,) vertical place of the window, 0 (top) to 1 (bottom).

    Returns:
        Maps (n, 3, 3).

    Example:
        >>> quarter = torch.tensor([0.25])
        >>> window = crop(quarter, quarter, torch.zeros(1), torch.ones(1))
        >>> (window[0] @ torch.tensor([-1.0, 1.0, 1.0])).tolist()
        [-1.0, 1.0, 1.0]
    """
    return _matrix(
        ((width, 0, (1 - width) * (2 * x - 1)), (0, height, (1 - height) * (2 * y - 1)), (0, 0, 1))
    )


def dihedral(index: Tensor) -> Tensor:
    """The symmetries of the square: 0 as it is, 1 mirrored left to right, 2 upside down, 4 half a turn.

    3 and 5 are the quarter turns, 6 and 7 the reflections about the diagonals.

    Args:
        index: (n,) integers 0 to 7.

    Returns:
        Maps (n, 3, 3), float64.
    """
    maps = torch.eye(3, dtype=torch.float64).repeat(len(index), 1, 1)
    maps[:, :2, :2] = torch.tensor(_DIHEDRAL, dtype=torch.float64)[index]
    return maps


def symmetry_of(maps: Tensor) -> Tensor:
    """Which symmetry of the square each map is, exactly: (n,) integers 0 to 7, or -1 for none.

    Example:
        >>> symmetry_of(dihedral(torch.tensor([6, 0]))).tolist()
        [6, 0]
        >>> symmetry_of(rotation(torch.tensor([1.0]))).tolist()
        [-1]
    """
    found = (maps.unsqueeze(1) == dihedral(torch.arange(8)).to(maps.dtype)).all(3).all(2)  # (n, 8)
    return torch.where(found.any(1), found.long().argmax(1), -1)


def warp(x: Tensor, y: Tensor) -> Tensor:
    """A perspective that tilts the image: its corners move by `x` and `y` against each other.

    The corner (s, t), both ±1, of the tilted image lies at (s - y s t, t - x s t). The eight coefficients
    of the map that brings those corners back have the closed form below, since two and two of them are equal.

    Args:
        x: (n,) tilt about the horizontal, as a share of half the height.
        y: (n,) tilt about the vertical, as a share of half the width.

    Returns:
        Maps (n, 3, 3).
    """
    q = 2 * x * y / (1 - x * x - y * y)
    u, v = -x - q * y, -y - q * x
    return _matrix(((1, q, u), (q, 1, v), (u, v, 1)))


def for_aspect(maps: Tensor, height: float, width: float) -> Tensor:
    """Adapt affine maps made for a square to an image of height x width, so that a turn stays a turn.

    Args:
        maps: (n, 3, 3) affine maps.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        Maps (n, 3, 3).
    """
    adapted = maps.clone()
    adapted[:, 0, 1] *= height / width
    adapted[:, 1, 0] *= width / height
    return adapted


def window_of_aspect(height: int, width: int, size: tuple[int, int]) -> tuple[float, float]:
    """Shares (height, width) of the largest centred window that has the aspect of `size` (height, width).

    All of the image is in it where rounding to whole pixels alone has made the two differ.

    Example:
        >>> window_of_aspect(300, 400, (224, 224)), window_of_aspect(281, 420, (225, 336))
        ((1.0, 0.75), (1.0, 1.0))
    """
    if same_shape((height, width), size):
        return 1.0, 1.0
    wanted = size[1] / size[0]
    return min(1.0, width / wanted / height), min(1.0, height * wanted / width)


def shrinkage(maps: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """How many input pixels lie under one output pixel, at the centre, along the input's height and width.

    Args:
        maps: (n, 3, 3).
        source: (height, width) of the input, in pixels.
        target: (height, width) of the output, in pixels.

    Returns:
        (n, 2): along the height, along the width.
    """
    place = maps[:, :2, 2:] / maps[:, 2:, 2:]
    jacobian = (maps[:, :2, :2] - place * maps[:, 2:, :2]) / maps[:, 2:, 2:]  # (n, [x, y] in, [x, y] out)
    per_pixel = torch.tensor([2 / target[1], 2 / target[0]], dtype=maps.dtype)
    pixels = torch.tensor([source[1] / 2, source[0] / 2], dtype=maps.dtype)
    return ((jacobian * per_pixel).norm(dim=2) * pixels).flip(1)


def reaches_outside(maps: Tensor) -> Tensor:
    """Whether some place that a map reads lies outside the image: (n,) bool.

    Example:
        >>> reaches_outside(torch.stack([torch.eye(3), torch.diag(torch.tensor([1.1, 1.0, 1.0]))])).tolist()
        [False, True]
    """
    corners = torch.tensor([[x, y, 1] for x in (-1, 1) for y in (-1, 1)], dtype=maps.dtype)
    there = corners @ maps.transpose(1, 2)  # (n, 4, 3); straight edges stay straight
    return (there[..., :2].abs() > there[..., 2:].abs()).flatten(1).any(1)


def sampling_grids(maps: Tensor, size: tuple[int, int], lengths: list[int]) -> list[Callable[[], Tensor]]:
    """Where each output pixel is read.

    A place is (a x + b y + c) / (d x + e y + f), where x and y of the output pixels are a row and a column:
    what depends on x alone is worked out at once, which leaves two multiply-adds and a division.

    Args:
        maps: (n, 3, 3), float32, on the device of the images.
        size: (height, width) of the output, in pixels.
        lengths: how many maps go together; their sum is n.

    Returns:
        For each of `lengths` a function that gives the places, (length, height, 2 width), x and y in turn;
        seen as (length, height, width, 2) they are what `grid_sample` takes.

    Example:
        >>> [places] = sampling_grids(torch.eye(3)[None], (1, 2), [1])
        >>> places().tolist()
        [[[-0.5, 0.0, 0.5, 0.0]]]
    """
    height, width = size
    options = {"dtype": maps.dtype, "device": maps.device}
    x = torch.arange(width, **options).repeat_interleave(2) * (2 / width) + (1 / width - 1)
    y = (torch.arange(height, **options) * (2 / height) + (1 / height - 1)).unsqueeze(1)
    of_x, of_y, rest = maps.unsqueeze(1).unbind(3)  # each (n, 1, 3: x, y, depth)
    start = of_x[..., :2].repeat(1, 1, width) * x + rest[..., :2].repeat(1, 1, width)  # (n, 1, 2 width)
    slope = of_y[..., :2].repeat(1, 1, width)
    depth = of_x[..., 2:] * x + rest[..., 2:]
    parts = (part.split(lengths) for part in (start, slope, depth, of_y[..., 2:]))
    return [partial(_places, y, *group) for group in zip(*parts, strict=True)]


def _places(y: Tensor, start: Tensor, slope: Tensor, depth: Tensor, depth_slope: Tensor) -> Tensor:
    return torch.addcmul(start, y, slope).div_(depth + y * depth_slope)
