"""Every photo of a data set with what its file says: format, size, content, look."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ..data.archives import unpacked
from ..data.decoding import PARSER_ERRORS
from ..data.files import list_images, require_folder
from ..data.folders import find_layout, read_split
from ..data.images import decoded, opened, require_file, resize, size_of
from ..errors import DataError, ImageError

NEARLY = 16  # of 255: 12-bit values in 16 bits have no pixel above 15
THUMBNAIL = 32  # pixels a side: enough to tell photos apart, 3 KB each
SAME_FORMAT = {"MPO": "JPEG"}  # phones write MPO, a JPEG with a second picture, into .jpg


@dataclass(frozen=True)
class Photo:
    """One file.

    Args:
        path: the file.
        label: name of its class, or "".
        set_name: "train", "valid", "test", or "" where the data is not split.
    """

    path: str
    label: str = ""
    set_name: str = ""


@dataclass(frozen=True)
class FileInfo:
    """What a file says about itself; `error` is None where it can be decoded.

    Args:
        error: why it cannot be decoded.
        digest: SHA-256 of the file.
        num_bytes: length of the file.
        width, height: as seen upright.
        format: of the content, as Pillow names it.
        oddity: animated, CMYK, nearly black or white; or "".
        thumbnail: uint8 (THUMBNAIL, THUMBNAIL, 3), the whole photo squeezed.
    """

    error: str | None = None
    digest: str = ""
    num_bytes: int = 0
    width: int = 0
    height: int = 0
    format: str = ""
    oddity: str = ""
    thumbnail: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8), compare=False)

    @property
    def is_readable(self) -> bool:
        """Whether the photo could be decoded."""
        return self.error is None


def photos_of(data: Any, label: Callable[[str], str] | None = None) -> tuple[str, list[Photo]]:
    """The photos of a folder or of an `ImageData`, and the folder that holds them all.

    Args:
        data: a folder, or an object with `.train`, `.valid`, `.test` (each None or with `.paths`, `.labels`)
            and `.class_names`.
        label: path -> name of the class; without it the class is the folder the photo lies in.

    Returns:
        The folder, absolute, and its photos with their classes and sets.
    """
    if isinstance(data, str | os.PathLike):
        return _photos_in(os.path.abspath(unpacked(data)), label)
    found = [
        photo
        for set_name in ("train", "valid", "test")
        if (part := getattr(data, set_name, None)) is not None
        for photo in _photos_of_set(part, set_name, data.class_names, label)
    ]
    if not found:
        raise DataError("Expected a folder or an ImageData with photos. Received: no photo")
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(photo.path)) for photo in found])
    return folder, found


def _photos_in(folder: str, label: Callable[[str], str] | None) -> tuple[str, list[Photo]]:
    require_folder(folder)
    layout = find_layout(folder)
    found = []
    for split, root in layout.splits.items():
        part = read_split(root)
        names = [label(path) for path in part.paths] if label else part.labels
        set_name = split if layout.is_split else ""
        found += [Photo(path, name, set_name) for path, name in zip(part.paths, names, strict=True)]
    return folder, found


def _photos_of_set(
    dataset: Any, set_name: str, class_names: Sequence[str], label: Callable[[str], str] | None
) -> list[Photo]:
    if getattr(dataset, "files", dataset.paths) is None:
        raise DataError(f"Expected photos in files. Received: {set_name} images in memory")
    paths = [str(path) for path in dataset.paths]
    labels = dataset.labels
    if label is not None:
        names = [label(path) for path in paths]
    elif labels is not None and np.ndim(labels) == 1 and np.issubdtype(labels.dtype, np.integer):
        names = [class_names[int(place)] for place in labels]
    else:
        names = [""] * len(paths)
    return [Photo(path, name, set_name) for path, name in zip(paths, names, strict=True)]


def other_files(folder: str) -> list[str]:
    """Files below a folder that are no images by their names; names that start with a dot are left out."""
    found = set()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # the others are not entered
        found |= {os.path.join(place, name) for name in names if not name.startswith(".")}
    return sorted(found - set(list_images(folder)))


def inspect_files(photos: Sequence[Photo], *, threads: int | None = None) -> list[FileInfo]:
    """Read every file once, in threads: Pillow decodes without the interpreter's lock."""
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return list(pool.map(lambda photo: inspect_file(photo.path), photos))


def file_digest(path: str) -> tuple[int, str]:
    """Length and SHA-256 of a file; (-1, "") of one that cannot be read, and of a pipe."""
    try:
        require_file(path)
        with open(path, "rb") as file:
            return os.path.getsize(path), hashlib.file_digest(file, "sha256").hexdigest()
    except (ImageError, OSError):
        return -1, ""


def inspect_file(path: str) -> FileInfo:
    """What one file says about itself."""
    num_bytes, digest = file_digest(path)
    try:
        with opened(path) as image:
            width, height = size_of(path, image)
            # A JPEG decoded at an eighth is still read to its last byte, so a cut file is found.
            pixels = decoded(path, image, at_least=2 * THUMBNAIL)
            image_format, oddity = str(image.format), _oddity(image) or _oddity_of(pixels)
    except (ImageError, OSError) as error:
        reason = error.reason if isinstance(error, ImageError) else error.strerror or str(error)
        return FileInfo(error=reason, digest=digest, num_bytes=num_bytes)
    return FileInfo(
        digest=digest,
        num_bytes=num_bytes,
        width=width,
        height=height,
        format=SAME_FORMAT.get(image_format, image_format),
        oddity=oddity,
        thumbnail=resize(pixels, THUMBNAIL, THUMBNAIL),
    )


def _oddity_of(pixels: np.ndarray) -> str:
    """Whether a photo comes out nearly black or nearly white, as values of another depth do."""
    if pixels.max() <= NEARLY:
        return f"nearly black (no pixel above {pixels.max()} of 255); is it of another depth?"
    if pixels.min() >= 255 - NEARLY:
        return f"nearly white (no pixel below {pixels.min()} of 255); is it of another depth?"
    return ""


def _oddity(image: Image.Image) -> str:
    """What is odd about a readable photo by its mode and its frames."""
    if image.mode == "CMYK":
        return "CMYK colours"
    if image.format == "MPO":
        return ""
    try:
        frames = getattr(image, "n_frames", 1)
    except PARSER_ERRORS as error:  # a cut animation, a bad offset of the next page
        reason = str(error).strip() or type(error).__name__
        return f"a later frame is damaged ({reason}); only the first is used"
    return f"animated, {frames} frames; only the first is used" if frames > 1 else ""


def named_format(path: str) -> str:
    """The format that a file's name promises, as Pillow names it, or "" for an unknown suffix."""
    suffix = os.path.splitext(path)[1].lower()
    return SAME_FORMAT.get(_formats().get(suffix, ""), _formats().get(suffix, ""))


@cache
def _formats() -> dict[str, str]:
    Image.init()
    return {".jfif": "JPEG", ".jpe": "JPEG"} | Image.registered_extensions()
