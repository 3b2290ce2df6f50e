"""Changes of light and colour, as the course makes them: on [0, 1] and, but for the hue, in logit space.

In logit space a change never leaves [0, 1], so nothing is clipped and highlights keep their shades.

Every function takes images (n, channels, height, width) in [0, 1] and one value for each image.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-7  # keeps black and white finite in logit space; a grey level is 4e-3
_LUMA = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601


def each(values: Tensor) -> Tensor:
    """Values (n,) beside images: (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def in_logit_space(images: Tensor, factor: Tensor, shift: Tensor, saturation: Tensor | None) -> Tensor:
    """`factor` times the logits plus `shift`, then the saturation, all (n, 1, 1, 1); back in [0, 1]."""
    logits = torch.logit(images, eps=EPSILON).mul_(factor).add_(shift)
    if saturation is not None:
        logits = saturation * logits + (1 - saturation) * grey(logits)
    return logits.sigmoid_()


def grey(images: Tensor) -> Tensor:
    """Luma (n, 1, height, width) of images (n, 3, height, width)."""
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the colour circle.

    Args:
        images: (n, 3, height, width) in [0, 1].
        turn: (n,) share of a whole turn; 0 changes nothing.

    Returns:
        (n, 3, height, width) in [0, 1].
    """
    hue, saturation, value = _hsv_from_rgb(images)
    return _rgb_from_hsv(hue + turn.view(-1, 1, 1), saturation, value)


def _hsv_from_rgb(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in turns, saturation and value, each (n, height, width)."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    unit = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / unit,
        torch.where(value == green, 2 + (blue - red) / unit, 4 + (red - green) / unit),
    )
    return hue / 6 % 1, chroma / torch.where(value == 0, 1.0, value), value


def _rgb_from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Images (n, 3, height, width); the closed form of the six sectors of the colour circle."""
    place = torch.stack([6 * hue + sector for sector in (5, 3, 1)], dim=1) % 6  # (n, 3, height, width)
    share = torch.minimum(place, 4 - place).clamp(0, 1)
    return value.unsqueeze(1) * (1 - saturation.unsqueeze(1) * share)
