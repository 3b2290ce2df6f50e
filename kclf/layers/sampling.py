"""One resample: pictures read through their maps, low-pass filtered before where the map shrinks them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import sampling_grid, shrinkage, symmetry_of

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
FILL_MODES = {"reflect": "reflection", "border": "border", "zeros": "zeros"}

# How each symmetry of `geometry.dihedral` is made: rows become columns or not, then axes are reversed.
_TURNS = (
    (False, ()),
    (False, (3,)),
    (False, (2,)),
    (True, (2,)),
    (False, (2, 3)),
    (True, (3,)),
    (True, ()),
    (True, (2, 3)),
)


def resample(
    images: Tensor,
    maps: Tensor,
    size: tuple[int, int],
    *,
    interpolation: str = "bilinear",
    fill_mode: str = "reflect",
    antialias: bool = True,
) -> Tensor:
    """Read every picture through its map.

    Args:
        images: (n, height, width, channels), uint8 or float in [0, 255].
        maps: (n, 3, 3) from output to input coordinates, on the CPU.
        size: (height, width) of the result, in pixels.
        interpolation: "bilinear", "bicubic" or "nearest" (for masks: no new values, no filter).
        fill_mode: what lies outside the picture: "reflect", "border" or "zeros".
        antialias: filter the picture first where the map shrinks it.

    Returns:
        (n, height, width, channels), float32 in [0, 255].

    Example:
        >>> picture = torch.arange(4, dtype=torch.uint8).view(1, 2, 2, 1)
        >>> resample(picture, torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None], (2, 2)).flatten().tolist()
        [1.0, 0.0, 3.0, 2.0]
    """
    out = images.new_empty((len(images), *size, images.shape[3]), dtype=torch.float32)
    parts = resampled_parts(
        images, maps, size, interpolation=interpolation, fill_mode=fill_mode, antialias=antialias
    )
    for rows, part in parts:
        out[rows] = part.permute(0, 2, 3, 1)
    return out


def resampled_parts(
    images: Tensor,
    maps: Tensor,
    size: tuple[int, int],
    *,
    interpolation: str,
    fill_mode: str,
    antialias: bool,
) -> Iterator[tuple[slice, Tensor]]:
    """The work of `resample`, a few pictures at a time, so that what follows finds them in the cache.

    Yields:
        (which pictures, (k, channels, height, width) float32 in [0, 255]).
    """
    pictures = images.permute(0, 3, 1, 2)  # (n, channels, height, width), a view
    source = (images.shape[1], images.shape[2])
    antialias = antialias and interpolation != "nearest"
    symmetries = symmetry_of(maps).tolist() if antialias else [-1] * len(maps)
    if len(set(symmetries)) == 1 and symmetries[0] >= 0:
        yield slice(None), turned_resize(pictures, size, symmetries[0], interpolation)
        return
    shrink = shrinkage(maps, source, size).tolist()
    maps = maps.to(torch.float32).to(images.device)
    for i, symmetry in enumerate(symmetries):
        rows = slice(i, i + 1)
        if symmetry >= 0:
            yield rows, turned_resize(pictures[rows], size, symmetry, interpolation)
            continue
        part, aligned = pictures[rows], False
        if antialias:
            part, aligned = prefilter(part, shrink[i], interpolation)
        sampled = F.grid_sample(
            part.to(torch.float32),
            sampling_grid(maps[rows], size),
            mode=interpolation,
            padding_mode=FILL_MODES[fill_mode],
            align_corners=aligned,
        )
        yield rows, sampled.clamp_(0, 255) if interpolation == "bicubic" else sampled


def resize(pictures: Tensor, size: Sequence[int], interpolation: str = "bilinear") -> Tensor:
    """Plain antialiased resize of (n, channels, height, width), uint8 or float, to float32 in [0, 255]."""
    if tuple(pictures.shape[2:]) == tuple(size):
        return pictures.to(torch.float32)
    if pictures.dtype != torch.uint8 or pictures.device.type != "cpu":  # only CPUs filter whole numbers
        pictures = pictures.to(torch.float32)
    resized = F.interpolate(pictures, size=tuple(size), mode=interpolation, antialias=True).to(torch.float32)
    return resized.clamp_(0, 255) if interpolation == "bicubic" else resized


def turned_resize(pictures: Tensor, size: tuple[int, int], symmetry: int, interpolation: str) -> Tensor:
    """Plain resize to `size` and one of the symmetries of the square, without a second interpolation."""
    across, flips = _TURNS[symmetry]
    resized = resize(pictures, size[::-1] if across else size, interpolation)
    turned = resized.transpose(2, 3) if across else resized
    return turned.flip(flips) if flips else turned


def prefilter(pictures: Tensor, shrink: Sequence[float], interpolation: str) -> tuple[Tensor, bool]:
    """Low-pass filter for a map that shrinks.

    Returns:
        The filtered pictures, and whether their outermost pixel centres now lie on the picture's edge.
    """
    height, width = pictures.shape[2:]
    target = [
        round(length / max(1.0, factor / 1.4)) for length, factor in zip((height, width), shrink, strict=True)
    ]
    return resize(pictures, target, "bicubic"), False
