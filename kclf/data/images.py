"""One photo: decode it whatever its format, and bring it to a size. Pillow and torch, safe in threads."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from .._core.sizes import Size, as_size, sides
from ..errors import DataError, ImageError
from .decoding import decoding, is_sideways, mark_deep, open_image, to_rgb, upright, upright_size

ResizeMethod = Literal["crop", "pad", "squish"]
RESIZE_METHODS: tuple[str, ...] = get_args(ResizeMethod)
CENTRE = (0.5, 0.5)


def read_image(
    path: str | os.PathLike[str],
    at_least: Size | None = None,
    *,
    content: bytes | None = None,
    depth: int | None = None,
    channels: int = 3,
) -> np.ndarray:
    """Decode a photo to upright 8-bit RGB, or to grey.

    EXIF orientation is applied; palette, grey, CMYK and deep images become RGB (`kclf.data.decoding` has the
    rule); a colour profile other than sRGB is converted; transparency is laid on white; of an animation the
    first frame is taken.

    Args:
        path: the file.
        at_least: a JPEG whose sides are both longer than this size's may be decoded at 1/2, 1/4 or 1/8 of
            its size, never below `at_least`: several times faster for camera photos.
        content: what is in the file, where it has been read already; `path` then only names it.
        depth: bits of the values of deep images; None as `set_decoding` has it.
        channels: 3 for colour, 1 for grey: the luma of the colours, .299 red + .587 green + .114 blue.

    Returns:
        uint8 (height, width, channels).

    Raises:
        ImageError: the file cannot be read as an image; has `.path` and `.reason`.

    Example:
        >>> import tempfile
        >>> file = os.path.join(tempfile.mkdtemp(), "grey.png")
        >>> Image.new("L", (40, 30), 128).save(file)
        >>> image = read_image(file)
        >>> image.shape, image[0, 0].tolist()
        ((30, 40, 3), [128, 128, 128])
    """
    with opened(path, content) as image:
        return decoded(path, image, at_least, depth, channels)


def decoded(
    path: str | os.PathLike[str],
    image: Image.Image,
    at_least: Size | None,
    depth: int | None = None,
    channels: int = 3,
) -> np.ndarray:
    """The pixels of an image that is open, as `read_image` gives them; `path` only names it."""
    if at_least is not None:
        draft(image, at_least)
    _require_size(path, image.size)
    mark_deep(image)
    image.load()  # damage shows here: a PNG's metadata may lie behind its pixels
    return _array_of(to_rgb(upright(image), depth), channels)


def draft(image: Image.Image, at_least: Size) -> None:
    """Let a JPEG that is open be decoded smaller, never below a size as seen upright."""
    height, width = sides(at_least)
    image.draft("RGB", (height, width) if height != width and is_sideways(image) else (width, height))


def _array_of(colours: Image.Image, channels: int) -> np.ndarray:
    """Pixels uint8 (height, width, channels) of an image in RGB."""
    return np.asarray(colours) if channels == 3 else np.asarray(colours.convert("L"))[..., None]


def check_file_channels(channels: int) -> int:
    """How many channels photos in files are read with: 3, or 1 for grey.

    Raises:
        DataError: it is another number.
    """
    if channels not in (1, 3):
        raise DataError(
            "Expected channels=3, or 1 for grey, of photos in files. Images of other channels come as arrays "
            "uint8 (n, height, width, channels): ImageData.from_arrays, kclf.predict(model, images). "
            f"Received: channels={channels}"
        )
    return channels


def as_colours(images: np.ndarray) -> np.ndarray:
    """Images as they can be shown, uint8 (..., 3): grey three times, of more than three channels the first.

    Args:
        images: uint8 (..., channels).

    Example:
        >>> grey, six = np.zeros((2, 4, 4, 1), np.uint8), np.zeros((4, 4, 6), np.uint8)
        >>> as_colours(grey).shape, as_colours(six).shape
        ((2, 4, 4, 3), (4, 4, 3))
    """
    return images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, axis=-1)


@contextmanager
def opened(path: str | os.PathLike[str], content: bytes | None = None) -> Iterator[Image.Image]:
    """An image open for its header and pixels, of a file or of what was in it.

    Raises:
        ImageError: it cannot be opened, or what is done with it fails.
    """
    try:
        if content is None:
            require_file(path)
        with (
            open(path, "rb") if content is None else io.BytesIO(content) as file,
            open_image(file) as image,
        ):
            yield image
    except ImageError:
        raise
    except Exception as error:  # damaged files make Pillow's parsers raise almost anything
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # no more files can be opened: the photo is not to blame
        raise ImageError(path, _reason(path, error, content)) from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of a photo as seen upright, from its header alone.

    Raises:
        ImageError: the header cannot be read, or tells of more pixels than may be decoded.
    """
    with opened(path) as image:
        return size_of(path, image)


def size_of(path: str | os.PathLike[str], image: Image.Image) -> tuple[int, int]:
    """Width and height of an image that is open, as seen upright; `path` only names it."""
    can_be_scaled = image.format in ("JPEG", "MPO")  # while it is decoded
    if not can_be_scaled or min(image.size) < 1:  # Pillow decodes a PNG to tell its orientation
        _require_size(path, image.size)
    return upright_size(image)


def require_file(path: str | os.PathLike[str]) -> None:
    """Refuse folders, and pipes, of which a read may wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a zero byte, or half a character, is in no name of a file
        raise ImageError(path, "no such file") from None
    if not stat.S_ISREG(mode):
        raise ImageError(path, "is a folder" if stat.S_ISDIR(mode) else "is not a file, but a pipe or device")


def _require_size(path: str | os.PathLike[str], size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise ImageError(path, f"has no pixels ({size[0]} x {size[1]})")
    limit = decoding().limit
    if limit is not None and size[0] * size[1] > limit:
        pixels = f"{size[0]:,} x {size[1]:,} pixels"
        raise ImageError(path, f"{pixels}, over the limit of {limit:,} (set_decoding, --max-pixels)")


def _reason(path: str | os.PathLike[str], error: Exception, content: bytes | None) -> str:
    """What is wrong, in a few words that say the same for the same fault."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too many pixels: {error}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if (os.path.getsize(path) if content is None else len(content)) == 0:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or its header is damaged"
    return str(error).strip() or type(error).__name__


def crop_box(
    width: int, height: int, position: tuple[float, float] = CENTRE, shape: Size = 1
) -> tuple[int, int, int, int]:
    """The largest window of an image that has a shape, a square by default: (left, top, right, bottom).

    Args:
        width: of the image.
        height: of the image.
        position: where the window lies in the room it has, (x, y), each in [0, 1].
        shape: a size, of which only the ratio of height to width counts.

    Example:
        >>> crop_box(500, 374), crop_box(500, 374, shape=(224, 336))
        ((63, 0, 437, 374), (0, 20, 500, 353))
    """
    of_height, of_width = sides(shape)
    across = max(1, min(width, round(height * of_width / of_height)))
    down = max(1, min(height, round(width * of_height / of_width)))
    left, top = (round(p * room) for p, room in zip(position, (width - across, height - down), strict=True))
    return left, top, left + across, top + down


def resize(image: np.ndarray, width: int, height: int, out: np.ndarray | None = None) -> np.ndarray:
    """Resize with an antialiased bilinear filter.

    Args:
        image: uint8 (h, w, channels).
        width: of the result in pixels.
        height: of the result in pixels.
        out: uint8 (height, width, channels) that takes the result, such as its place in a batch.

    Returns:
        `out`, or a new uint8 (height, width, channels); the image itself where it has that size and there
        is no `out`.
    """
    if image.shape[:2] == (height, width):
        return image if out is None else _copied(image, out)
    if out is None:
        out = np.empty((height, width, image.shape[2]), dtype=np.uint8)
    image = np.require(image, requirements=["C", "W"])  # as `torch.from_numpy` asks for
    # The operator behind `interpolate(mode="bilinear", antialias=True)`, called by its own name to write
    # (height, width, 3) memory in place: `interpolate` gives (3, height, width), 5 times slower with the
    # copy that turns it round.
    torch.ops.aten._upsample_bilinear2d_aa.out(
        _planes(image), [height, width], False, None, None, out=_planes(out)
    )
    return out


def _planes(image: np.ndarray) -> torch.Tensor:
    """A view (1, channels, height, width) of (height, width, channels) memory: torch's channels_last."""
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def _copied(image: np.ndarray, out: np.ndarray) -> np.ndarray:
    out[...] = image
    return out


def covering(shape: Sequence[int], size: Size, of_both: Callable[..., float] = max) -> tuple[int, int]:
    """Height and width of an image that is scaled so that it just covers a size.

    Args:
        shape: height and width of the image.
        size: what is to be covered.
        of_both: `max` of the scales that make height and width alike; `min` fits the image into the size.

    Example:
        >>> covering((374, 500), 224), covering((374, 500), 224, min)
        ((224, 299), (168, 224))
    """
    height, width = shape
    lines, across = sides(size)
    scale = of_both(lines / height, across / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def crop_or_pad(
    fitted: np.ndarray, size: Size, position: tuple[float, float] = CENTRE, out: np.ndarray | None = None
) -> np.ndarray:
    """Cut or pad a fitted image to the size; padding mirrors the image at its edges.

    Args:
        fitted: uint8 (height, width, channels).
        size: in pixels.
        position: of the window in the image, or of the image in the frame: (x, y), each in [0, 1].
        out: uint8 (*sides(size), channels) that takes the result, or None.

    Returns:
        uint8 (*sides(size), channels): `out`, or a view of `fitted`, or new.
    """
    (height, width), (lines, across) = fitted.shape[:2], sides(size)
    left, top = round(position[0] * abs(width - across)), round(position[1] * abs(height - lines))
    frame = fitted[top * (height > lines) :, left * (width > across) :][:lines, :across]
    if height < lines or width < across:
        above, before = top * (height < lines), left * (width < across)
        below, behind = max(0, lines - height - above), max(0, across - width - before)
        frame = np.pad(frame, ((above, below), (before, behind), (0, 0)), mode="reflect")
    return frame if out is None else _copied(frame, out)


def size_for(model: Any) -> Size:
    """The size that photos are read at for a model.

    Raises:
        ValueError: the model takes any size and does not say.
    """
    known = getattr(model, "presize", None) or getattr(model, "size", None)
    shape = getattr(model, "input_shape", None) or ()
    if isinstance(known, int | tuple):
        return known
    if isinstance(shape, tuple) and any(isinstance(side, int) for side in shape[1:3]):
        height, width = shape[1:3]
        return as_size("size", (height or width, width or height))
    raise ValueError(
        f"Expected size=SIDE in pixels, or (height, width): {model.name!r} does not say how large its photos "
        f"are. Received: input_shape={shape or None}"
    )


def as_pixels(photo: Any, channels: int = 3) -> np.ndarray:
    """A PIL image, or pixels with or without colour, as uint8 (height, width, channels).

    Example:
        >>> as_pixels(np.zeros((2, 3), np.uint8)).shape
        (2, 3, 3)
    """
    if isinstance(photo, Image.Image):
        return _array_of(to_rgb(upright(photo)), check_file_channels(channels))
    pixels = np.asarray(photo)
    if pixels.ndim == 2 and channels in (1, 3):
        pixels = np.repeat(pixels[..., None], channels, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels:
        raise DataError(
            f"Expected one photo: a path, a PIL image, or pixels uint8 (height, width, {channels}) or "
            f"(height, width). Received: {type(photo).__name__} of {pixels.dtype}, shape {pixels.shape}"
        )
    return pixels


def to_frame(
    image: np.ndarray,
    size: Size,
    method: ResizeMethod = "crop",
    position: tuple[float, float] = CENTRE,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Bring an image to a size: crop the largest window of its shape, pad by mirroring, or squish.

    Args:
        image: uint8 (height, width, channels).
        size: in pixels, the side of a square or (height, width).
        method: "crop" loses the ends of the side that is too long, "pad" loses nothing and mirrors the edges,
            "squish" changes the proportions.
        position: (x, y), each in [0, 1]: (.5, .5) is the centre.
        out: uint8 (*sides(size), channels) that takes the result, or None.

    Returns:
        uint8 (*sides(size), channels).

    Example:
        >>> photo = np.zeros((374, 500, 3), np.uint8)
        >>> to_frame(photo, 460).shape, to_frame(photo, (224, 336)).shape
        ((460, 460, 3), (224, 336, 3))
    """
    if method == "pad":
        height, width = covering(image.shape[:2], size, min)
        return crop_or_pad(resize(image, width, height), size, position, out)
    if method == "crop":
        # The window is cut before the resize: the same pixels, fewer of them to resize.
        left, top, right, bottom = crop_box(image.shape[1], image.shape[0], position, size)
        image = image[top:bottom, left:right]
    height, width = sides(size)
    return resize(image, width, height, out)
