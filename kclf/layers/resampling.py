"""One resample: every pixel of the result is read from the image itself, with all that lies under it.

A result pixel should be the mean of the s x s pixels of the image that lie under it: a box, of variance
s^2 / 12 along each axis. Reading between pixels filters too: linear interpolation has variance 1/6. What is
missing comes from the mean of three reads (bicubic: four) on a circle around the place: a radius of r pixels
adds r^2 / 2 in every direction. Where s is above 2.2, a plain antialiased resize to s = 2.2 goes before.
`docs/methods/presizing.md` has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.cpu import keep_freed_memory, one_core_each
from .._core.devices import send
from .geometry import reaches_outside, sampling_grids, shrinkage, symmetry_of

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
# What `grid_sample` does for each; reflection is our own, see `reflected`.
FILL_MODES = {"reflect": "border", "border": "border", "zeros": "zeros"}

_KERNEL_VARIANCE = {"bilinear": 1 / 6, "bicubic": 0.0}  # of the interpolation itself, in pixels^2
_MORE = {"bilinear": 1.15, "bicubic": 0.95}  # times the variance of the box, cut as the reads cut; by PSNR
_LARGEST_SHRINK = 2.2  # further apart, the reads leave gaps
_NEGLIGIBLE = 0.05  # pixels: reads that near are one
_READS = {"bilinear": 3, "bicubic": 4}  # a kernel that filters less leaves more to their number
_AT_ONCE = 256  # on devices that want large batches; on a CPU one image stays in the cache

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
    finish: Finish | None = None,
) -> Tensor:
    """Read every image through its map.

    On a CPU one image is read at a time, so that what follows finds it in the cache. Elsewhere all that are
    read alike are read together.

    Args:
        images: (n, height, width, channels), uint8 or float in [0, 255].
        maps: (n, 3, 3) from output to input coordinates, on the CPU.
        size: (height, width) of the result, in pixels.
        interpolation: "bilinear", "bicubic" or "nearest" (for masks: no new values, no filter).
        fill_mode: what lies outside the image: "reflect", "border" or "zeros".
        antialias: filter where the map shrinks the image.
        finish: what is still done to the images.

    Returns:
        (n, height, width, channels), float32 in [0, 255].

    Example:
        >>> image = torch.arange(4, dtype=torch.uint8).view(1, 2, 2, 1)
        >>> resample(image, torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None], (2, 2)).flatten().tolist()
        [1.0, 0.0, 3.0, 2.0]
    """
    antialias = antialias and interpolation != "nearest"
    plan = _plan(maps.to(torch.float64), (images.shape[1], images.shape[2]), size, interpolation, antialias)
    on_cpu = images.device.type == "cpu"
    order = None
    if on_cpu:
        keep_freed_memory()
    else:
        images, plan, finish, order = _sorted(images, plan, finish)
    out = images.new_empty((len(images), *size, images.shape[3]), dtype=torch.float32)

    def write(piece: _Piece) -> None:
        read = piece.read(images[piece.rows].permute(0, 3, 1, 2), size, interpolation, fill_mode)
        out[piece.rows] = (finish(read, piece.rows) if finish else read).permute(0, 2, 3, 1)

    pieces = plan.pieces(1 if on_cpu else _AT_ONCE, size, images.device)
    if on_cpu and not images.requires_grad and len(pieces) > 1 and torch.get_num_threads() > 1:
        one_core_each(write, pieces)
    else:
        for piece in pieces:
            write(piece)
    return out if order is None else torch.empty_like(out).index_copy_(0, order, out)


class Finish(Protocol):
    """What is done to images after they were read."""

    def __call__(self, images: Tensor, rows: slice) -> Tensor:
        """Images (k, channels, height, width) in [0, 255], and which of the n they are; never in place."""

    def take(self, order: list[int]) -> Finish:
        """The same for images in another order."""


def _sorted(
    images: Tensor, plan: _Plan, finish: Finish | None
) -> tuple[Tensor, _Plan, Finish | None, Tensor | None]:
    """Everything in an order in which images that are read alike stand together, and that order (n,)."""
    plan = plan.alike()
    order = sorted(range(len(plan.ways)), key=lambda row: (plan.ways[row].symmetry, plan.ways[row].size))
    if order == list(range(len(order))):
        return images, plan, finish, None
    index = send(torch.tensor(order), images.device)
    return images[index], plan.take(order), None if finish is None else finish.take(order), index


@dataclass(frozen=True)
class _ReadPlan:
    """How an image is read.

    Args:
        symmetry: which symmetry of the square the map is, or -1.
        size: (height, width) to which the image is resized first; its own where it is not.
        reads: of each pixel of the result.
        outside: whether some of them lie outside the image.
    """

    symmetry: int
    size: tuple[int, int]
    reads: int
    outside: bool


@dataclass(frozen=True)
class _Plan:
    """How each of n images is read, worked out on the CPU.

    Args:
        ways: n of them.
        maps: (n, 3, 3) float32.
        steps: (n, reads, 2) float32, (x, y) from the middle of a pixel of the result to each read.
    """

    ways: list[_ReadPlan]
    maps: Tensor
    steps: Tensor

    def alike(self) -> _Plan:
        """The same results with as few ways as there can be: one more read, or a mirror, changes nothing."""
        reads, outside = max(way.reads for way in self.ways), any(way.outside for way in self.ways)
        ways = [way if way.symmetry >= 0 else replace(way, reads=reads, outside=outside) for way in self.ways]
        return replace(self, ways=ways)

    def take(self, order: list[int]) -> _Plan:
        """The plan of the images in another order."""
        return _Plan([self.ways[row] for row in order], self.maps[order], self.steps[order])

    def pieces(self, length: int, size: tuple[int, int], device: torch.device) -> list[_Piece]:
        """Neighbouring images that are read alike, at most `length` of them at a time.

        There is no limit where all of the batch is a plain resize.
        """
        if len(set(self.ways)) == 1 and self.ways[0].symmetry >= 0:
            length = len(self.ways)
        rows = list(self._rows(length))
        lengths = [part.stop - part.start for part in rows]
        grids = sampling_grids(send(self.maps, device), size, lengths)
        steps = send(self.steps, device).repeat(1, 1, size[1]).split(lengths)
        ways = [self.ways[part.start] for part in rows]
        return list(map(_Piece, rows, ways, grids, (part.split(1, 1) for part in steps)))

    def _rows(self, length: int) -> Iterator[slice]:
        for _, group in groupby(range(len(self.ways)), key=self.ways.__getitem__):
            same = list(group)
            for start in range(same[0], same[-1] + 1, length):
                yield slice(start, min(start + length, same[-1] + 1))


@dataclass(frozen=True)
class _Piece:
    """Some of the images, which are read alike.

    Args:
        rows: which of the n these are.
        way: how they are read.
        places: gives where the middle of each pixel of the result lies, (k, height, 2 width).
        steps: from there to each read, (k, 1, 2 width).
    """

    rows: slice
    way: _ReadPlan
    places: Callable[[], Tensor]
    steps: Sequence[Tensor]

    def read(self, images: Tensor, size: tuple[int, int], interpolation: str, fill_mode: str) -> Tensor:
        """Read (k, channels, height, width), uint8 or float in [0, 255], as float32 of another size."""
        if self.way.symmetry >= 0:
            return turned_resize(images, size, self.way.symmetry, interpolation)
        images = resize(images, self.way.size, "bicubic")
        places = self.places()
        if self.way.outside and fill_mode == "reflect":
            places = reflected(places)
        steps = self.steps if self.way.reads > 1 else (0.0,)
        reads = (
            F.grid_sample(
                images,
                (places + step).view(len(images), *size, 2),
                mode=interpolation,
                padding_mode=FILL_MODES[fill_mode],
                align_corners=False,
            )
            for step in steps
        )
        result = reduce(Tensor.add_, reads)
        if self.way.reads > 1:
            result.mul_(1 / self.way.reads)
        return result.clamp_(0, 255) if interpolation == "bicubic" else result


def _plan(
    maps: Tensor, source: tuple[int, int], size: tuple[int, int], interpolation: str, antialias: bool
) -> _Plan:
    count, lengths = len(maps), torch.tensor(source, dtype=torch.float64)
    sizes, radius = lengths.expand(count, 2), torch.zeros(count, 2, dtype=torch.float64)
    if antialias:
        shrink = shrinkage(maps, source, size)  # (n, 2)
        sizes = (lengths * (_LARGEST_SHRINK / shrink).clamp(max=1)).round().clamp(min=2)
        box = (shrink * sizes / lengths) ** 2 / 12
        missing = (_MORE[interpolation] * box - _KERNEL_VARIANCE[interpolation]).clamp(min=0)
        radius = (2 * missing).sqrt()
    ways = [
        _ReadPlan(symmetry, (int(height), int(width)), _READS[interpolation] if spread else 1, outside)
        for symmetry, (height, width), spread, outside in zip(
            symmetry_of(maps).tolist() if antialias else [-1] * count,
            sizes.tolist(),
            (radius > _NEGLIGIBLE).any(1).tolist(),
            reaches_outside(maps).tolist(),
            strict=True,
        )
    ]
    steps = (2 * radius / sizes).flip(1).unsqueeze(1) * _circle(_READS.get(interpolation, 1))
    return _Plan(ways, maps.to(torch.float32), steps.to(torch.float32))


def _circle(count: int) -> Tensor:
    """Places (count, 2) spread over the unit circle, turned so that no two share a row or a column."""
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count) + math.pi / (4 * count)
    return torch.stack([angles.cos(), angles.sin()], 1)


def reflected(places: Tensor) -> Tensor:
    """Places outside [-1, 1] mirrored at the edge, once."""
    return places.lerp(places.clamp(-1, 1), 2.0)


def resize(images: Tensor, size: Sequence[int], interpolation: str = "bilinear") -> Tensor:
    """Plain antialiased resize of (n, channels, height, width), uint8 or float, to float32 in [0, 255]."""
    if tuple(images.shape[2:]) == tuple(size):
        return images.to(torch.float32)
    if images.dtype != torch.uint8 or images.device.type != "cpu":  # only CPUs filter whole numbers
        images = images.to(torch.float32)
    resized = F.interpolate(images, size=tuple(size), mode=interpolation, antialias=True).to(torch.float32)
    return resized.clamp_(0, 255) if interpolation == "bicubic" else resized


def turned_resize(images: Tensor, size: tuple[int, int], symmetry: int, interpolation: str) -> Tensor:
    """Plain resize to `size` and one of the symmetries of the square, without a second interpolation."""
    across, flips = _TURNS[symmetry]
    resized = resize(images, size[::-1] if across else size, interpolation)
    turned = resized.transpose(2, 3) if across else resized
    return turned.flip(flips) if flips else turned
