"""How true is a picture after crop, flip, rotation, zoom, warp and resize? PSNR by 8 x 8 samples a pixel.

    .venv/bin/python tests/benchmarks/presizing.py --photos FOLDER --figure docs/presizing.png

Each way of doing it gets the same geometry. kclf reads once through the product of the maps. fastai's
chain reads twice (460 -> 460, then the window -> 224, corners aligned, as recorded from fastai 2.8). The
Keras chain is `keras.ops.image` map by map and an antialiased resize of the window. The torch chain is
`grid_sample` map by map and for the window. The reference reads 64 places under each pixel of the result,
bicubic, and takes their mean; for fastai's chain by fastai's own meaning of the coordinates. Pixels that come
from outside the picture at any step do not count: the ways fill them differently.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import harness
import keras
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kclf.layers import geometry
from kclf.layers.resampling import resample

SOURCE, SIZE, FINER = 460, 224, 8


@dataclass(frozen=True)
class Geometry:
    """Maps that act one after another, and a window in whole pixels: left, top, width, height."""

    maps: tuple[Tensor, ...]
    window: tuple[int, int, int, int]

    @property
    def product(self) -> Tensor:
        return torch.linalg.multi_dot([m[0] for m in self.maps])[None]

    def crop(self, aligned: bool) -> Tensor:
        """The window as a map; [-1, 1] spans the edges of the picture, or (aligned) its outermost centres."""
        left, top, width, height = (torch.tensor([float(v)], dtype=torch.float64) for v in self.window)
        less = 1.0 if aligned else 0.0
        share_x, share_y = (width - less) / (SOURCE - less), (height - less) / (SOURCE - less)
        return geometry.crop(share_x, share_y, left / (SOURCE - width), top / (SOURCE - height))


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def draw(generator: np.random.Generator) -> Geometry:
    """As `aug_transforms(224, min_scale=0.75)` draws, every change on."""
    maps = (
        geometry.warp(number(generator.uniform(-0.2, 0.2)), number(generator.uniform(-0.2, 0.2))),
        geometry.dihedral(torch.tensor([int(generator.integers(2))])),
        geometry.rotation(number(generator.uniform(-10, 10))),
        geometry.zoom(
            number(generator.uniform(1, 1.1)), number(generator.random()), number(generator.random())
        ),
    )
    area, aspect = generator.uniform(0.75, 0.95), generator.uniform(0.95, 1.05)
    width, height = round(SOURCE * (area * aspect) ** 0.5), round(SOURCE * (area / aspect) ** 0.5)
    return Geometry(
        maps,
        (int(generator.integers(SOURCE - width)), int(generator.integers(SOURCE - height)), width, height),
    )


def places(maps: Tensor, height: int, width: int, aligned: bool, finer: int = 1) -> Tensor:
    """(1, height * finer, width * finer, 2), reflected at the edges."""

    def along(length: int) -> Tensor:
        pixel = (
            torch.arange(length * finer, dtype=torch.float64) + 0.5
        ) / finer - 0.5  # in pixels of the result
        return 2 * pixel / (length - 1) - 1 if aligned else (2 * pixel + 1) / length - 1

    y, x = torch.meshgrid(along(height), along(width), indexing="ij")
    through = torch.stack([x, y, torch.ones_like(x)], -1) @ maps[0].T
    return (through[..., :2] / through[..., 2:])[None].float()


def read(picture: Tensor, where: Tensor, aligned: bool, mode: str = "bilinear") -> Tensor:
    return F.grid_sample(picture, where, mode=mode, padding_mode="reflection", align_corners=aligned)


def reference(picture: Tensor, g: Geometry, aligned: bool) -> Tensor:
    where = places(g.product @ g.crop(aligned), SIZE, SIZE, aligned, FINER)
    return F.avg_pool2d(read(picture, where, aligned, "bicubic"), FINER)


def by_kclf(picture: Tensor, g: Geometry, interpolation: str = "bilinear") -> Tensor:
    images = picture.permute(0, 2, 3, 1).to(torch.uint8)
    out = resample(images, g.product @ g.crop(False), (SIZE, SIZE), interpolation=interpolation)
    return out.permute(0, 3, 1, 2)


def by_fastai(picture: Tensor, g: Geometry) -> Tensor:
    left, top, width, height = g.window
    whole = read(picture, places(g.product, SOURCE, SOURCE, True), True)
    window = whole[:, :, top : top + height, left : left + width]
    return read(window, places(torch.eye(3, dtype=torch.float64)[None], SIZE, SIZE, True), True)


def by_torch(picture: Tensor, g: Geometry) -> Tensor:
    for m in g.maps:
        picture = read(picture, places(m, SOURCE, SOURCE, False), False)
    return read(picture, places(g.crop(False), SIZE, SIZE, False), False)


def by_keras(picture: Tensor, g: Geometry) -> Tensor:
    """As `RandomPerspective`, `RandomFlip`, `RandomRotation`, `RandomZoom`, a crop and `Resizing` do it."""
    half = SOURCE / 2
    centred = torch.tensor([[1 / half, 0, 0.5 / half - 1], [0, 1 / half, 0.5 / half - 1], [0, 0, 1]])
    centred = centred.double()
    last = SOURCE - 1.0
    corners = torch.tensor([[0, 0, 1], [last, 0, 1], [0, last, 1], [last, last, 1]]).double()
    image = picture.permute(0, 2, 3, 1)
    tilt, *affine = (centred.inverse() @ m[0] @ centred for m in g.maps)
    there = corners @ tilt.T
    start, end = (there[:, :2] / there[:, 2:])[None].float(), corners[None, :, :2].float()
    image = keras.ops.image.perspective_transform(image, start, end, "bilinear")
    for pixels in affine:
        image = keras.ops.image.affine_transform(
            image, pixels.flatten()[:8].float()[None], "bilinear", "reflect"
        )
    left, top, width, height = g.window
    window = image[:, top : top + height, left : left + width]
    resized = keras.ops.image.resize(window, (SIZE, SIZE), "bilinear", antialias=True)
    return resized.permute(0, 3, 1, 2)


WAYS: dict[str, tuple[Callable[[Tensor, Geometry], Tensor], bool]] = {
    "kclf, one read": (by_kclf, False),
    "kclf, one read, bicubic": (lambda picture, g: by_kclf(picture, g, "bicubic"), False),
    "fastai chain": (by_fastai, True),
    "torch chain": (by_torch, False),
    "Keras chain": (by_keras, False),
}


def within(g: Geometry) -> Tensor:
    """Pixels (SIZE, SIZE) of the result that lie inside the picture at every step, and not at its edge."""
    step, mask = g.crop(False), torch.ones(SIZE, SIZE, dtype=torch.bool)
    for m in (*reversed(g.maps), torch.eye(3, dtype=torch.float64)[None]):
        mask &= (places(step, SIZE, SIZE, False)[0].abs() < 0.98).all(-1)
        step = m @ step
    return mask


def psnr(result: Tensor, wanted: Tensor, counted: Tensor) -> float:
    """In dB, over the pixels that count."""
    error = (result - wanted)[..., counted].square().mean().item()
    return 10 * math.log10(255**2 / error)


def zone_plate() -> Tensor:
    """Rings that grow finer outwards, up to the finest that 460 pixels can hold at the edge."""
    axis = torch.arange(SOURCE) - (SOURCE - 1) / 2
    squared = axis[None] ** 2 + axis[:, None] ** 2
    rings = 127.5 + 127.5 * torch.cos(math.pi * squared / SOURCE)
    return rings.round()[None, None].repeat(1, 3, 1, 1)


def photos(folder: Path, count: int, sharp: bool) -> list[Tensor]:
    """Photos presized to 460: windows of larger ones as they are (sharp), or whole ones resized."""
    found: list[Tensor] = []
    for file in sorted(folder.rglob("*.jpg")):
        with Image.open(file) as image:
            side = min(image.size)
            if len(found) == count or (side < SOURCE if sharp else not 300 <= side < SOURCE):
                continue
            square = image.convert("RGB").crop((0, 0, SOURCE, SOURCE) if sharp else (0, 0, side, side))
            pixels = np.asarray(square.resize((SOURCE, SOURCE), Image.Resampling.BILINEAR))
        found.append(torch.tensor(pixels).permute(2, 0, 1)[None].float())
    return found


def table(pictures: dict[str, list[Tensor]], geometries: list[Geometry]) -> dict[str, dict[str, float]]:
    """Mean PSNR by way and kind of picture."""
    result: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for kind, items in pictures.items():
        values: dict[str, list[float]] = {way: [] for way in WAYS}
        for picture in items:
            for g in geometries:
                wanted = {aligned: reference(picture, g, aligned) for aligned in (True, False)}
                for way, (do, aligned) in WAYS.items():
                    values[way].append(psnr(do(picture, g), wanted[aligned], within(g)))
        for way in WAYS:
            result[way][kind] = statistics.mean(values[way])
    return result


def figure(path: Path, g: Geometry) -> None:
    """The zone plate by every way, and what is wrong with it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plate = zone_plate()
    shown = {"64 samples a pixel": reference(plate, g, False)} | {
        way: do(plate, g) for way, (do, _) in WAYS.items() if "bicubic" not in way
    }
    fig, axes = plt.subplots(2, len(shown), figsize=(2.3 * len(shown), 4.8), layout="constrained")
    for column, (way, picture) in enumerate(shown.items()):
        aligned = WAYS[way][1] if way in WAYS else False
        difference = (picture - reference(plate, g, aligned))[0, 0]
        axes[0, column].imshow(picture[0, 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes[1, column].imshow(difference, cmap="RdBu", vmin=-80, vmax=80, interpolation="nearest")
        axes[0, column].set_title(way, fontsize=9)
    axes[1, 0].set_ylabel("difference, ±80 levels", fontsize=8)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    fig.savefig(path, dpi=90)
    plt.close(fig)
    Image.open(path).convert("RGB").quantize(48).save(path, optimize=True)  # a third of the size


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--photos", type=Path, help="folder of photos; without it only the zone plate")
    options.add_argument("--count", type=int, default=4, help="photos of each kind")
    options.add_argument("--rounds", type=int, default=4, help="geometries")
    options.add_argument("--figure", type=Path)
    options.add_argument("--json", type=Path, help="append the record to this file, as a line of JSON")
    chosen = options.parse_args()
    generator = np.random.default_rng(0)
    geometries = [draw(generator) for _ in range(chosen.rounds)]
    pictures = {"zone plate": [zone_plate()]}
    if chosen.photos:
        pictures["photos, full detail"] = photos(chosen.photos, chosen.count, sharp=True)
        pictures["photos, enlarged to 460"] = photos(chosen.photos, chosen.count, sharp=False)
    result = table(pictures, geometries)
    print("| PSNR, dB | " + " | ".join(pictures) + " |")
    print("|---|" + "---|" * len(pictures))
    for way, values in result.items():
        print(f"| {way} | " + " | ".join(f"{values[kind]:.1f}" for kind in pictures) + " |")
    figures = {way: [f"{values[kind]:.1f}" for kind in pictures] for way, values in result.items()}
    harness.write_figures(chosen, "Image quality", figures, heads=list(pictures), photos=chosen.count)
    if chosen.figure:
        figure(chosen.figure, geometries[0])


if __name__ == "__main__":
    main()
