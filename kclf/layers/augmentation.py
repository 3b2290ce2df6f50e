"""Augmentation: all geometry of an image in one resample, then the light, on the device of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import keras
import torch
from torch import Tensor

from .._core.arguments import in_closed, one_of
from .._core.devices import send
from ..distributed import shard_random
from . import geometry
from .base import Drawing, output_size
from .lighting import adjust_hue, each, in_logit_space
from .resampling import FILL_MODES, INTERPOLATIONS, resample

_TRIES = 10  # crops drawn for each image, of which the first that fits is taken, as in Inception's crop
_ASPECT = 4 / 3  # aspects of a crop lie between 3/4 and 4/3
_OPERATIONS = ("rotate", "zoom", "warp", "brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Transformation:
    """What `Augmentation.draw` drew for n images; it can be applied again, to masks or another view.

    Args:
        maps: (n, 3, 3) float64, from output to input coordinates.
        brightness: (n,) what middle grey becomes; 0.5 changes nothing.
        contrast: (n,) factor; 1 changes nothing.
        saturation: (n,) factor; 1 changes nothing.
        hue: (n,) in turns; 0 changes nothing.
    """

    maps: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, rows: slice | list[int]) -> Transformation:
        return Transformation(*(getattr(self, field.name)[rows] for field in fields(self)))


@keras.saving.register_keras_serializable(package="kclf")
class Augmentation(Drawing):
    """Random views of images for training, and their centre for everything else.

    Crop, flip, rotation, zoom, warp and the final resize of an image are multiplied to one 3x3 map, and
    the image is read once through it, low-pass filtered where the map shrinks it. Every image has its
    own draw. It works in float32 under any dtype policy.

    Args:
        size: height and width of the result, in pixels, or a pair of them; None keeps those of the input.
        flip: "horizontal" (half of the images), "dihedral" (all eight symmetries alike; where the result is
            no square, the four that it has) or None.
        max_rotate: largest turn either way, in degrees.
        min_zoom: smallest magnification.
        max_zoom: largest magnification, at a random place.
        max_warp: largest tilt of the perspective, as a share of half the side; below 0.5.
        min_scale: smallest share of the area that a random crop keeps (aspect 3/4 to 4/3); 1 for no crop.
        max_lighting: largest change of brightness and contrast, in [0, 1).
        max_saturation: largest change of saturation, in [0, 1).
        max_hue: largest turn of the colour circle, in whole turns, up to 0.5.
        p_affine: share of the images that are rotated, zoomed and warped, each decided alone.
        p_lighting: share of the images whose light changes, each change decided alone.
        trivial_augment: every image gets the flip, the crop and exactly one other change ("TrivialAugment").
        interpolation: "bilinear" or "bicubic".
        fill_mode: what lies outside the image: "reflect", "border" or "zeros".
        seed: of the draws; None takes one from Python's generator, which `keras.utils.set_random_seed` seeds.

    Shape:
        Input (batch, height, width, channels), uint8 or float in [0, 255], usually larger than `size`
        ("presized"). Output (batch, *size, channels), float32 in [0, 255]. Saturation and hue change
        images of 3 channels, leave those of 1 as they are, and take no others.

    Example:
        >>> import numpy as np
        >>> augmentation = Augmentation(224, flip="horizontal", max_rotate=10, min_scale=0.75, seed=1)
        >>> tuple(augmentation(np.zeros((2, 460, 460, 3), "uint8"), training=True).shape)
        (2, 224, 224, 3)

    References:
        - Presizing: Howard & Gugger, "Deep Learning for Coders", 2020, chapter 5.
        - [TrivialAugment](https://arxiv.org/abs/2103.10158), Müller & Hutter 2021.
    """

    _settings = (
        "size", "flip", "max_rotate", "min_zoom", "max_zoom", "max_warp", "min_scale",
        "max_lighting", "max_saturation", "max_hue", "p_affine", "p_lighting",
        "trivial_augment", "interpolation", "fill_mode", "seed",
    )  # fmt: skip

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        *,
        flip: str | None = None,
        max_rotate: float = 0.0,
        min_zoom: float = 1.0,
        max_zoom: float = 1.0,
        max_warp: float = 0.0,
        min_scale: float = 1.0,
        max_lighting: float = 0.0,
        max_saturation: float = 0.0,
        max_hue: float = 0.0,
        p_affine: float = 0.75,
        p_lighting: float = 0.75,
        trivial_augment: bool = False,
        interpolation: str = "bilinear",
        fill_mode: str = "reflect",
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(seed=seed, options=options)
        self.size = output_size(size)
        self.flip = one_of("flip", flip, ("horizontal", "dihedral", None))
        self.max_rotate = in_closed("max_rotate", max_rotate, 0, 180)
        self.min_zoom = in_closed("min_zoom", min_zoom, 0.1, 10)
        self.max_zoom = in_closed("max_zoom", max_zoom, self.min_zoom, 10)
        self.max_warp = in_closed("max_warp", max_warp, 0, 0.5)
        self.min_scale = in_closed("min_scale", min_scale, 0.01, 1)
        self.max_lighting = in_closed("max_lighting", max_lighting, 0, 0.99)
        self.max_saturation = in_closed("max_saturation", max_saturation, 0, 0.99)
        self.max_hue = in_closed("max_hue", max_hue, 0, 0.5)
        self.p_affine = in_closed("p_affine", p_affine, 0, 1)
        self.p_lighting = in_closed("p_lighting", p_lighting, 0, 1)
        self.trivial_augment = bool(trivial_augment)
        self.interpolation = one_of("interpolation", interpolation, INTERPOLATIONS[:2])
        self.fill_mode = one_of("fill_mode", fill_mode, tuple(FILL_MODES))

    def call(self, images: Tensor, training: bool | None = None) -> Tensor:
        """A random view of each image (training) or its centre, at the final size."""
        count, height, width, channels = images.shape
        if images.is_meta:
            return images.new_empty((count, *(self.size or (height, width)), channels), dtype=torch.float32)
        training = bool(training)
        drawn = self.draw(count, height, width, training=training)
        return self.apply(images, drawn, lighting=training)

    @torch.compiler.disable
    def draw(self, count: int, height: int, width: int, *, training: bool = True) -> Transformation:
        """Draw what happens to `count` images of height x width pixels.

        The same number of random numbers is drawn whatever the settings.

        Args:
            count: how many images.
            height: of the images as they come, in pixels.
            width: of the images as they come, in pixels.
            training: False gives the centre of each image and draws nothing.

        Returns:
            What `apply` takes, on the CPU.
        """
        size = self.size or (height, width)
        share_y, share_x = geometry.window_of_aspect(height, width, size)
        half, one = torch.full((count,), 0.5, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
        window = geometry.crop(one * share_x, one * share_y, half, half)
        if not training:
            return Transformation(window, half, one, one, one - 1)
        uniform = _uniform(self._generator, count)
        active = self._active(uniform, count)
        maps = window @ self._affine(uniform, active, size) @ self._crop(uniform, size)
        return Transformation(maps, *self._lighting(uniform, active))

    @torch.compiler.disable
    def apply(
        self,
        images: Tensor,
        transformation: Transformation,
        *,
        lighting: bool = True,
        interpolation: str | None = None,
    ) -> Tensor:
        """Do what was drawn.

        Args:
            images: (n, height, width, channels), uint8 or float in [0, 255].
            transformation: from `draw`, for n images.
            lighting: False for masks and whatever has no colours.
            interpolation: instead of the layer's own; "nearest" for masks.

        Returns:
            (n, *size, channels), float32 in [0, 255].
        """
        if len(images) != len(transformation):
            raise ValueError(
                "Expected as many transformations as images. "
                f"Received: {len(images)} images, {len(transformation)} transformations"
            )
        interpolation = self.interpolation if interpolation is None else interpolation
        one_of("interpolation", interpolation, INTERPOLATIONS)
        if lighting and (self.max_saturation or self.max_hue) and images.shape[3] not in (1, 3):
            raise ValueError(
                "Expected images of 3 channels for saturation and hue, or of 1, which has none. "
                f"Received: shape={tuple(images.shape)}"
            )
        size = self.size or (images.shape[1], images.shape[2])
        return resample(
            images,
            transformation.maps,
            size,
            interpolation=interpolation,
            fill_mode=self.fill_mode,
            finish=_Relight(transformation, images.device) if lighting else None,
        )

    @property
    def is_random(self) -> bool:
        """Whether training images can differ from plain ones."""
        moved = any((self.max_rotate, self.max_warp, self.min_zoom != 1, self.max_zoom != 1))
        moved = moved and (self.trivial_augment or self.p_affine > 0)
        relit = any((self.max_lighting, self.max_saturation, self.max_hue))
        relit = relit and (self.trivial_augment or self.p_lighting > 0)
        return self.flip is not None or self.min_scale < 1 or moved or relit

    def resized(self, size: int | tuple[int, int] | None) -> Augmentation:
        """A copy that gives images of another size."""
        return type(self).from_config({**self.get_config(), "size": size})

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """(batch, *size, channels)."""
        return (input_shape[0], *(self.size or input_shape[1:3]), input_shape[3])

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Augmentation:
        """The layer of a config; those of version 0.1 called `trivial_augment` "one_operation"."""
        names = {"one_operation": "trivial_augment"}
        return cls(**{names.get(name, name): value for name, value in config.items()})

    def _active(self, uniform: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """For each operation, which images it changes: (n,) bool."""
        if not self.trivial_augment:
            affine = ("rotate", "zoom", "warp")
            chances = {name: self.p_affine if name in affine else self.p_lighting for name in _OPERATIONS}
            return {name: uniform[f"{name}?"] < chance for name, chance in chances.items()}
        strengths = (
            self.max_rotate, (self.min_zoom, self.max_zoom) != (1, 1), self.max_warp,
            self.max_lighting, self.max_lighting, self.max_saturation, self.max_hue,
        )  # fmt: skip
        able = [name for name, strength in zip(_OPERATIONS, strengths, strict=True) if strength]
        chosen = (uniform["operation"] * (len(able) + 1)).long()  # the last one leaves the image as it is
        place = {name: i for i, name in enumerate(able)}
        return {name: chosen == place.get(name, -1) for name in _OPERATIONS}

    def _affine(self, uniform: dict[str, Tensor], active: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Warp, flip, rotation and zoom in a frame of a shape: (n, 3, 3)."""
        symmetries = torch.tensor(self._symmetries(size))
        symmetry = symmetries[(uniform["flip"] * len(symmetries)).long()]
        turn = _signed(uniform["rotate"], self.max_rotate) * active["rotate"]
        factor = self.min_zoom + uniform["zoom"] * (self.max_zoom - self.min_zoom)
        factor = torch.where(active["zoom"], factor, 1.0)
        tilt_x = _signed(uniform["warp_x"], self.max_warp) * active["warp"]
        tilt_y = _signed(uniform["warp_y"], self.max_warp) * active["warp"]
        window = geometry.zoom(factor, uniform["zoom_x"], uniform["zoom_y"])
        affine = geometry.dihedral(symmetry) @ geometry.rotation(turn) @ window
        return geometry.warp(tilt_x, tilt_y) @ geometry.for_aspect(affine, *size)

    def _symmetries(self, size: tuple[int, int]) -> Sequence[int]:
        """What `flip` chooses from, by the numbers of `geometry.dihedral`."""
        if self.flip == "dihedral":
            return range(8) if size[0] == size[1] else geometry.OF_RECTANGLE
        return (0, 1) if self.flip == "horizontal" else (0,)

    def _crop(self, uniform: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Random resized crop: (n, 3, 3); the whole image where none of the tries fits in it."""
        area = self.min_scale + uniform["areas"] * (1 - self.min_scale)
        aspect = _ASPECT ** (2 * uniform["aspects"] - 1) if self.min_scale < 1 else torch.ones_like(area)
        width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
        fits = (width <= 1) & (height <= 1)
        first = fits.long().argmax(1, keepdim=True)  # 0 where none fits
        whole = ~fits.any(1)
        width = torch.where(whole, 1.0, width.gather(1, first).squeeze(1))
        height = torch.where(whole, 1.0, height.gather(1, first).squeeze(1))
        return geometry.crop(width, height, uniform["crop_x"], uniform["crop_y"])

    def _lighting(self, uniform: dict[str, Tensor], active: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Brightness, contrast, saturation and hue, each (n,)."""
        return (
            0.5 + _signed(uniform["brightness"], self.max_lighting / 2) * active["brightness"],
            torch.where(active["contrast"], _factor(uniform["contrast"], self.max_lighting), 1.0),
            torch.where(active["saturation"], _factor(uniform["saturation"], self.max_saturation), 1.0),
            _signed(uniform["hue"], self.max_hue) * active["hue"],
        )


_COLUMNS = (
    "flip", "rotate", "zoom", "zoom_x", "zoom_y", "warp_x", "warp_y", "crop_x", "crop_y",
    "brightness", "contrast", "saturation", "hue", "operation",
    *(f"{name}?" for name in _OPERATIONS),
)  # fmt: skip


def _uniform(generator: torch.Generator, count: int) -> dict[str, Tensor]:
    """Random numbers in [0, 1) for `count` images, by name: (n,), and one a try for areas and aspects."""
    widths = (len(_COLUMNS), _TRIES, _TRIES)
    numbers = shard_random(
        lambda rows: torch.rand(rows, sum(widths), generator=generator, dtype=torch.float64), count
    )
    single, areas, aspects = numbers.split(widths, 1)
    return dict(zip(_COLUMNS, single.unbind(1), strict=True)) | {"areas": areas, "aspects": aspects}


def _signed(uniform: Tensor, limit: float) -> Tensor:
    return (2 * uniform - 1) * limit


def _factor(uniform: Tensor, change: float) -> Tensor:
    """A factor between 1 - change and 1 / (1 - change), its logarithm uniform."""
    return torch.exp(_signed(uniform, -math.log(1 - change)))


class _Relight:
    """Changes the light of images as it was drawn."""

    def __init__(self, transformation: Transformation, device: torch.device) -> None:
        self.transformation, self.device = transformation, device
        contrast, brightness = transformation.contrast, transformation.brightness
        drawn = torch.stack([contrast, brightness, transformation.saturation, transformation.hue], 1)
        self.changed = (drawn != torch.tensor([1.0, 0.5, 1.0, 0.0])).tolist()
        drawn[:, 1] = contrast * torch.logit(brightness)
        values = send(drawn.to(torch.float32), device).unbind(1)
        self.contrast, self.shift, self.saturation = map(each, values[:3])
        self.turn = values[3]

    def take(self, order: list[int]) -> _Relight:
        """For images in another order."""
        return _Relight(self.transformation[order], self.device)

    def __call__(self, images: Tensor, rows: slice) -> Tensor:
        """Images (k, channels, height, width) in [0, 255], and which of all they are."""
        by_contrast, by_shift, by_saturation, by_hue = map(any, zip(*self.changed[rows], strict=True))
        if images.shape[1] == 1:  # grey has no colour to change
            by_saturation = by_hue = False
        if not (by_contrast or by_shift or by_saturation or by_hue):
            return images
        images = images * (1 / 255)
        if by_contrast or by_shift or by_saturation:
            grey_by = self.saturation[rows] if by_saturation else None
            images = in_logit_space(images, self.contrast[rows], self.shift[rows], grey_by)
        if by_hue:
            images = adjust_hue(images, self.turn[rows])
        return images * 255
