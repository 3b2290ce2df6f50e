"""One resample: pictures read through their maps, low-pass filtered before where the map shrinks them.

The filter. A result pixel should be the mean of the s x s pixels of the picture that lie under it: a box, of
variance s^2 / 12 along each axis. Reading between pixels filters too: linear interpolation has variance 1/6.
What is missing comes from mixing each pixel with a neighbour by weights 1 - w and w, which has variance
w (1 - w), and whose shift by w pixels goes into the place that is read. That is one multiply-add a value.
Where it cannot suffice (s above 2.3), a plain antialiased resize to s = 2.3 goes before it.
`docs/presizing.md` has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import sampling_grid, shrinkage, symmetry_of

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
FILL_MODES = {
    "reflect": "border",
    "border": "border",
    "zeros": "zeros",
}  # reflection is our own, see `reflected`

_KERNEL_VARIANCE = {"bilinear": 1 / 6, "bicubic": 0.0}  # of the interpolation itself, in pixels^2
_MORE = 1.5  # times the missing variance: a box also cuts off steeper than two taps do; fitted to PSNR
_LARGEST_SHRINK = {"bilinear": 2.3, "bicubic": 1.8}  # up to here two taps suffice
_PICTURES_AT_ONCE = 8  # on devices that want large batches; on a CPU one picture stays in the cache

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


@dataclass(frozen=True)
class _Plan:
    """How each of n pictures is filtered and read, worked out on the CPU.

    Args:
        symmetries: which symmetry of the square the map is, or -1.
        sizes: (height, width) to which the picture is resized first; its own where it is not.
        soft: whether neighbours are mixed.
        numbers: (n, 15) float32, what the device needs: map 9, weights (y, x), then scale (x, y) and shift
            (x, y) of the places once neighbours are mixed.
    """

    symmetries: list[int]
    sizes: list[tuple[int, int]]
    soft: list[bool]
    numbers: Tensor

    def runs(self, length: int) -> Iterator[slice]:
        """Neighbouring pictures that are treated alike, at most `length` of them."""
        keys = list(zip(self.symmetries, self.sizes, self.soft, strict=True))
        for _, group in groupby(range(len(keys)), key=keys.__getitem__):
            rows = list(group)
            for start in range(rows[0], rows[-1] + 1, length):
                yield slice(start, min(start + length, rows[-1] + 1))


def _plan(
    maps: Tensor, source: tuple[int, int], size: tuple[int, int], interpolation: str, antialias: bool
) -> _Plan:
    maps, count = maps.to(torch.float64), len(maps)
    lengths = torch.tensor(source, dtype=torch.float64)
    weights, sizes = torch.zeros(count, 2, dtype=torch.float64), lengths.expand(count, 2)
    if antialias:
        shrink = shrinkage(maps, source, size)  # (n, 2)
        sizes = (lengths * (_LARGEST_SHRINK[interpolation] / shrink).clamp(max=1)).round().clamp(min=2)
        box = (shrink * sizes / lengths) ** 2 / 12
        variance = (_MORE * (box - _KERNEL_VARIANCE[interpolation])).clamp(0, 0.25)
        weights = (1 - (1 - 4 * variance).sqrt()) / 2
    soft = (weights > 0.01).any(1)
    scale = torch.where(soft[:, None], sizes / (sizes - 1), 1.0)
    shift = torch.where(soft[:, None], (1 - 2 * weights) / (sizes - 1), 0.0)
    numbers = torch.cat([maps.flatten(1), weights, scale.flip(1), shift.flip(1)], 1).to(torch.float32)
    symmetries = symmetry_of(maps).tolist() if antialias else [-1] * count
    return _Plan(symmetries, [(int(h), int(w)) for h, w in sizes.tolist()], soft.tolist(), numbers)


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
    antialias = antialias and interpolation != "nearest"
    plan = _plan(maps, (images.shape[1], images.shape[2]), size, interpolation, antialias)
    numbers = to_device(plan.numbers, images.device)
    alike = len(set(plan.symmetries)) == 1 and plan.symmetries[0] >= 0
    length = len(images) if alike else 1 if images.device.type == "cpu" else _PICTURES_AT_ONCE
    for rows in plan.runs(length):
        first = rows.start
        pictures = images[rows].permute(0, 3, 1, 2)  # (k, channels, height, width), a view
        if plan.symmetries[first] >= 0:
            yield rows, turned_resize(pictures, size, plan.symmetries[first], interpolation)
            continue
        pictures = resize(pictures, plan.sizes[first], "bicubic")
        places = sampling_grid(numbers[rows, :9].view(-1, 3, 3), size)
        if fill_mode == "reflect":
            places = reflected(places)
        if plan.soft[first]:
            weights = plan.numbers[first, 9:11].tolist() if length == 1 else numbers[rows, 9:11].unbind(1)
            pictures = mix_neighbours(pictures, *weights)
            places = moved(places, numbers[rows, 11:13], numbers[rows, 13:15])
        sampled = F.grid_sample(
            pictures, places, mode=interpolation, padding_mode=FILL_MODES[fill_mode], align_corners=False
        )
        yield rows, sampled.clamp_(0, 255) if interpolation == "bicubic" else sampled


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Send from the CPU without waiting for the device."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def mix_neighbours(pictures: Tensor, down: float | Tensor, right: float | Tensor) -> Tensor:
    """Mix each pixel with its lower and right neighbours.

    Args:
        pictures: (n, channels, height, width), best in channels-last memory.
        down: weight of the lower neighbour, for all or (n,).
        right: weight of the right neighbour, for all or (n,).

    Returns:
        (n, channels, height - 1, width - 1).
    """
    if isinstance(down, Tensor) and isinstance(right, Tensor):
        down, right = down.view(-1, 1, 1, 1), right.view(-1, 1, 1, 1)
    pictures = torch.lerp(pictures[:, :, :-1], pictures[:, :, 1:], down)
    return torch.lerp(pictures[..., :-1], pictures[..., 1:], right)


def reflected(places: Tensor) -> Tensor:
    """Places (n, height, width, 2) outside [-1, 1] mirrored at the edge, once."""
    return torch.sub(places, F.softshrink(places, 1.0), alpha=2)


def moved(places: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Places (n, height, width, 2) times `scale` plus `shift`, both (n, 2)."""
    count, height, width, _ = places.shape
    rows = places.view(count, height, 2 * width)  # in one row x and y alternate
    scale, shift = (values.repeat(1, width).unsqueeze(1) for values in (scale, shift))  # (n, 1, 2 width)
    return torch.addcmul(shift, rows, scale).view(places.shape)


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
