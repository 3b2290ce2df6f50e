"""Augmentations by name, with the settings of the course."""

from __future__ import annotations

from typing import Any

from .._core.keywords import AUGMENTATION, answering
from .augmentation import Augmentation


def side_on(
    size: int | tuple[int, int] | None = None, *, max_zoom: float = 1.1, **options: Any
) -> Augmentation:
    """For photos taken from the side: mirrored, turned up to 10 degrees, a little light.

    Args:
        size: height and width of the result, in pixels; None keeps those of the input.
        max_zoom: largest magnification.
        **options: further arguments of `Augmentation`.

    Returns:
        The layer.

    Example:
        >>> side_on(224).flip
        'horizontal'
    """
    return Augmentation(size, **{"flip": "horizontal"} | _course(max_zoom) | options)


def top_down(
    size: int | tuple[int, int] | None = None, *, max_zoom: float = 1.1, **options: Any
) -> Augmentation:
    """For images taken from above (satellite, microscope): as `side_on`, with all symmetries of the square.

    Args:
        size: as for `side_on`.
        max_zoom: as for `side_on`.
        **options: as for `side_on`.
    """
    return Augmentation(size, **{"flip": "dihedral"} | _course(max_zoom) | options)


def basic(
    size: int | tuple[int, int] | None = None, *, max_zoom: float = 1.1, **options: Any
) -> Augmentation:
    """For images whose left and right differ (letters, X-rays): as `side_on`, never mirrored.

    Args:
        size: as for `side_on`.
        max_zoom: as for `side_on`.
        **options: as for `side_on`.
    """
    return Augmentation(size, **_course(max_zoom) | options)


def _course(max_zoom: float) -> dict[str, Any]:
    """Figures of fastai 0.7's transforms."""
    return {"max_rotate": 10.0, "max_zoom": max_zoom, "max_lighting": 0.05}


def none(size: int | tuple[int, int] | None = None, **options: Any) -> Augmentation:
    """No change but the size: the centre, in training as well.

    Args:
        size: height and width of the result, in pixels; None keeps those of the input.
        **options: `interpolation`, `fill_mode` or `name` of `Augmentation`.

    Returns:
        The layer.
    """
    return Augmentation(size, **options)


def trivial(size: int | tuple[int, int] | None = None, **options: Any) -> Augmentation:
    """One change for each image, of random kind and strength: nothing to tune ("TrivialAugment").

    Args:
        size: height and width of the result, in pixels; None keeps those of the input.
        **options: further arguments of `Augmentation`.

    Returns:
        The layer.
    """
    policy: dict[str, Any] = {
        "flip": "horizontal", "max_rotate": 30.0, "max_zoom": 1.5, "max_warp": 0.3,
        "max_lighting": 0.6, "max_saturation": 0.6, "max_hue": 0.1, "trivial_augment": True,
    }  # fmt: skip
    return Augmentation(size, **policy | options)


@answering(AUGMENTATION)
def aug_transforms(
    size: int | tuple[int, int] | None = None,
    *,
    mult: float = 1.0,
    do_flip: bool = True,
    flip_vert: bool = False,
    max_rotate: float = 10.0,
    min_zoom: float = 1.0,
    max_zoom: float = 1.1,
    max_lighting: float = 0.2,
    max_warp: float = 0.2,
    p_affine: float = 0.75,
    p_lighting: float = 0.75,
    min_scale: float = 1.0,
    **options: Any,
) -> Augmentation:
    """Fastai 2's `aug_transforms`: the same arguments, the same defaults, one resample in place of two.

    Args:
        size: height and width of the result, in pixels; None keeps those of the input.
        mult: factor for `max_rotate`, `max_lighting` and `max_warp`.
        do_flip: mirror half of the images.
        flip_vert: use all eight symmetries of the square, where `do_flip` is on.
        max_rotate: largest turn either way, in degrees.
        min_zoom: smallest magnification.
        max_zoom: largest magnification.
        max_lighting: largest change of brightness and contrast.
        max_warp: largest tilt of the perspective.
        p_affine: share of the images that are rotated, zoomed and warped.
        p_lighting: share of the images whose light changes.
        min_scale: smallest share of the area that a random crop keeps.
        **options: further arguments of `Augmentation`.

    Returns:
        The layer.

    Example:
        >>> aug_transforms(224, mult=2, min_scale=0.75).max_rotate
        20.0
    """
    flip = ("dihedral" if flip_vert else "horizontal") if do_flip else None
    return Augmentation(
        size,
        flip=flip,
        max_rotate=max_rotate * mult,
        min_zoom=min_zoom,
        max_zoom=max_zoom,
        max_lighting=max_lighting * mult,
        max_warp=max_warp * mult,
        p_affine=p_affine,
        p_lighting=p_lighting,
        min_scale=min_scale,
        **options,
    )
