"""Thumbnails inside the page as JPEG, and heat maps over them as tiny transparent PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import as_colours, covering, read_image, resize, to_frame
from ..errors import ImageError
from ..interpret import grad_cam

SIDE = 176  # pixels of a thumbnail, shown at about this size
QUALITY = 72
BATCH_SIZE = 32
HEAT = (255, 96, 0)  # orange; how strong is in the transparency, so that it lies on any photo


@dataclass(frozen=True)
class Thumbnail:
    """What the page shows of one photo, "" where there is nothing to show, and how large, in pixels."""

    photo: str = ""
    heat: str = ""
    error: str = ""
    height: int = SIDE
    width: int = SIDE


def thumbnails(paths: Sequence[str], model: Any = None, *, side: int = SIDE) -> list[Thumbnail]:
    """Thumbnails of photos, of the shape that a model sees, with Grad-CAM of the predicted class.

    Args:
        paths: the photos; one that cannot be read gives the reason in its place.
        model: an `ImageClassifier`, or None for squares without heat maps.
        side: the longer one, pixels.
    """
    frames = [_frame(path, model, side) for path in paths]
    heats = _heats([frame for frame in frames if isinstance(frame, np.ndarray)], model)
    return [_thumbnail(frame, heats, side) for frame in frames]


def _thumbnail(frame: np.ndarray | str, heats: Iterator[str], side: int) -> Thumbnail:
    """That of a photo and of the next heat map, or of the reason why it cannot be read."""
    if isinstance(frame, str):
        return Thumbnail(error=frame)
    height, width = covering(frame.shape[:2], side, min)
    return Thumbnail(jpeg(resize(frame, width, height)), next(heats, ""), height=height, width=width)


def jpeg(image: np.ndarray) -> str:
    """An image as a `data:` address."""
    return _address(Image.fromarray(as_colours(image)), "jpeg", quality=QUALITY, optimize=True)


def _frame(path: str, model: Any, side: int) -> np.ndarray | str:
    """The photo as the model reads it, or the reason why it cannot be read."""
    try:
        return to_frame(read_image(path, at_least=side), side) if model is None else model.read(path)
    except ImageError as error:
        return error.reason


def _heats(frames: list[np.ndarray], model: Any) -> Iterator[str]:
    """Heat maps one by one, as `data:` addresses; the browser scales the few cells up smoothly."""
    if model is None:
        return
    for start in range(0, len(frames), BATCH_SIZE):
        for heat in grad_cam(model, np.stack(frames[start : start + BATCH_SIZE])).maps:
            yield heat_address(heat)


def heat_address(heat: np.ndarray) -> str:
    """A map of Grad-CAM, (rows, columns) in [0, 1], as a `data:` address; the browser scales it up."""
    rgba = np.empty((*heat.shape, 4), np.uint8)
    rgba[..., :3] = HEAT
    rgba[..., 3] = (heat * 160).round()
    return _address(Image.fromarray(rgba), "png", optimize=True)


def _address(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
