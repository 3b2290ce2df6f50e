"""From what a file holds to upright 8-bit sRGB: depth, transparency, orientation and colour profile.

The rule for values of more than 8 bits is by their type, never by the values of one photo, so that it is the
same for a whole data set: unsigned and whole numbers reach from 0 to 65535, floats from 0 to 1. A file that
declares less (a TIFF's MaxSampleValue), or `set_decoding(depth=12)`, changes that.
"""

from __future__ import annotations

import io
import struct
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from .._core.arguments import at_least
from .files import image_formats

# Tags: Orientation, PhotometricInterpretation, MaxSampleValue
ORIENTATION, INVERTED, MOST = 0x0112, 0x0106, 0x0119
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's parsers raise for damaged metadata and for frames that are not there.
PARSER_ERRORS = (
    *(OSError, SyntaxError, LookupError, ArithmeticError, AttributeError, EOFError, TypeError, ValueError),
    *(RuntimeError, MemoryError, struct.error, Warning),
)
MOST_BITS = 32
NEAR_SRGB = 2  # grey levels: a profile that changes no colour by more is taken for sRGB


@dataclass(frozen=True)
class Decoding:
    """How files are decoded in this process.

    Args:
        depth: bits of the values of deep images, 1 to 32; None for the rule by type.
        max_pixels: most pixels of a photo as it is decoded; "pillow" for `PIL.Image.MAX_IMAGE_PIXELS`, None
            for any number.
    """

    depth: int | None = None
    max_pixels: int | Literal["pillow"] | None = "pillow"

    @property
    def limit(self) -> int | None:
        """The most pixels."""
        return Image.MAX_IMAGE_PIXELS if self.max_pixels == "pillow" else self.max_pixels


_current = [Decoding()]


def decoding() -> Decoding:
    """How files are decoded now."""
    return _current[0]


def set_decoding(
    *, depth: int | None = None, max_pixels: int | Literal["pillow"] | None = "pillow"
) -> Decoding:
    """Set how photos are decoded from now on, in this process; returns what was set before.

    Args:
        depth: bits of the values of images with more than 8, such as 12 for a camera's values in 16-bit
            files; floats then reach to 2**depth - 1. None for 16 bits, or what the file declares, and [0, 1]
            for floats.
        max_pixels: most pixels of a photo, after a JPEG was scaled down while it is decoded; "pillow" for
            `PIL.Image.MAX_IMAGE_PIXELS`, None for any number.

    Example:
        >>> before = set_decoding(depth=12)
        >>> set_decoding(depth=before.depth, max_pixels=before.max_pixels).depth
        12
    """
    check_depth(depth)
    if isinstance(max_pixels, int):
        at_least("max_pixels", max_pixels, 1)
    before, _current[0] = _current[0], Decoding(depth, max_pixels)
    return before


def check_depth(depth: int | None) -> int | None:
    """The depth, if it is one: None or 1 to 32 bits.

    Raises:
        ValueError: it is not.
    """
    if depth is not None and (type(depth) is not int or not 1 <= depth <= MOST_BITS):
        raise ValueError(f"Expected 1 to {MOST_BITS} bits, or None. Received: depth={depth!r}")
    return depth


def open_image(file: IO[bytes]) -> Image.Image:
    """Open an image by the formats of the suffixes that are taken, and no other: none runs a program.

    Unlike `Image.open` it neither warns of nor refuses many pixels, which a JPEG may be rid of by `draft`.

    Raises:
        UnidentifiedImageError: it is of none of the formats.
    """
    prefix, is_marked = file.read(16), False
    for name in image_formats():
        factory, accept = Image.OPEN[name]
        try:
            is_of_it = not is_marked if accept is None else accept(prefix)
            if is_of_it and not isinstance(is_of_it, str):  # a text says why this Pillow cannot
                is_marked = True
                file.seek(0)
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as Pillow's parsers say no
            continue
    raise UnidentifiedImageError("of none of the formats that are read")


# Upright


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the tag is damaged or means nothing."""
    # Parsing costs a tenth of the decoding, and most JPEGs have nothing to parse.
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except PARSER_ERRORS:
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """The image as the camera was held."""
    turn = TURNS.get(orientation(image))
    return image if turn is None or image.format == "TIFF" else image.transpose(turn)  # Pillow turns a TIFF


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as seen upright, from the header alone."""
    return image.size[::-1] if is_sideways(image) else image.size


def is_sideways(image: Image.Image) -> bool:
    """Whether rows of an image as it is stored are columns as seen upright."""
    return image.format != "TIFF" and orientation(image) >= 5


# Colours


def to_rgb(image: Image.Image, depth: int | None = None) -> Image.Image:
    """8-bit sRGB of an image of any mode, transparency laid on white.

    Args:
        image: whose pixels are loaded.
        depth: bits of the values of deep images; None as `set_decoding` has it.
    """
    transparent = image.has_transparency_data
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image, depth)
    if _is_deep(image):
        image = _scaled_deep_colour(image, depth)
    profile = image.info.get("icc_profile")
    if transparent:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    elif image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    if profile and _changes(profile, image.mode):
        return _profiles.transform(profile, image.mode).apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(image: Image.Image, depth: int | None) -> Image.Image:
    values = np.asarray(image)
    grey = to_8_bit(values, _depth_of(image, depth), inverted=_tags(image).get(INVERTED) == 0)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey = np.where(values == key, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def to_8_bit(values: np.ndarray, depth: int | None = None, *, inverted: bool = False) -> np.ndarray:
    """Deep values as uint8, by the rule for their type: floats from [0, 1], others from [0, 65535].

    Args:
        values: of any shape, integers or floats.
        depth: bits; the values then reach to 2**depth - 1.
        inverted: whether 0 is white.

    Example:
        >>> to_8_bit(np.array([0, 128 * 257, 65535], np.uint16)).tolist()
        [0, 128, 255]
        >>> to_8_bit(np.array([0.0, 0.5, 1.0001, np.inf])).tolist(), to_8_bit(np.array([4095]), 12).tolist()
        ([0, 128, 255, 255], [255])
    """
    most = 2.0**depth - 1 if depth else 1.0 if values.dtype.kind == "f" else 65535.0
    scaled = np.nan_to_num(values.astype(np.float64) * (255 / most), posinf=255, neginf=0).clip(0, 255)
    return np.rint(255 - scaled if inverted else scaled).astype(np.uint8)


def _depth_of(image: Image.Image, said: int | None) -> int | None:
    """Bits that are said for all photos, or that the file declares to be fewer than 16."""
    said = said or decoding().depth
    if said is not None:
        return said
    most = _tags(image).get(MOST)
    most = max(most) if isinstance(most, tuple) and most else most
    return most.bit_length() if isinstance(most, int) and 0 < most < 65535 and image.mode != "F" else None


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def _is_deep(image: Image.Image) -> bool:
    """Whether colours of 16 bits were cut to the upper 8 of them when they were decoded."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) or "deep" in image.info


def _scaled_deep_colour(image: Image.Image, said: int | None) -> Image.Image:
    depth = _depth_of(image, said)
    key = image.info.get("transparency")
    if isinstance(key, tuple):  # the key is of 16 bits, the pixels are of 8 now
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if depth is None or depth >= 16:
        return image
    scale = 256 * 255 / (2**depth - 1)
    scaled = image.point(lambda value: min(255, round(value * scale)))
    scaled.info = image.info
    return scaled


def mark_deep(image: Image.Image) -> None:
    """Note in `image.info`, before the pixels are loaded, that its colours are of 16 bits."""
    if image.format in ("PNG", "TIFF", "PPM") and _is_deep(image) and not image.mode.startswith("I"):
        image.info["deep"] = True


# Colour profiles


@lru_cache(64)
def _changes(profile: bytes, mode: str) -> bool:
    """Whether a profile changes colours: it can be used, and is not sRGB."""
    transform = _transform(profile, mode)
    if transform is None:
        return False
    if mode != "RGB":
        return True
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    colours = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3))
    there = np.asarray(transform.apply(colours)).astype(int)
    return bool(np.abs(there - np.asarray(colours)).max() > NEAR_SRGB)


def _transform(profile: bytes, mode: str) -> Any:
    """The transform from a profile to sRGB; None where it is damaged or for another mode."""
    try:
        from PIL import ImageCms

        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        spaces = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}
        if source.profile.xcolor_space.strip() != spaces.get(mode):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImportError, OSError, TypeError, ValueError, ImageCms.PyCMSError):
        return None


class _Profiles(threading.local):
    """Transforms from profiles to sRGB; of each thread its own, since one keeps the colour it saw last."""

    def __init__(self) -> None:
        self.transform = lru_cache(64)(_transform)


_profiles = _Profiles()
