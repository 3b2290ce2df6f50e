"""Image files and the folders they lie in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .._core.arguments import listed
from ..errors import DataError

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "mpo"),
        *("pbm", "pgm", "png", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
# What the folders of the splits are called, in any case of letters; of several names the first counts.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation"),
    "test": ("test", "test1"),
}
Split = tuple[np.ndarray, np.ndarray]


# Files


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """All image files below a folder, by suffix, sorted.

    Links are followed; names that start with a dot (`.git`, the `._photo.jpg` of macOS) are left out.

    Args:
        folder: the folder to search, at any depth.

    Returns:
        The paths, each beginning with `folder`, sorted part by part so that a folder stays together.

    Raises:
        DataError: there is no such folder, or no image in it.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png"):
        ...     (folder / name).touch()
        >>> [os.path.basename(path) for path in list_images(folder)]
        ['a.png', 'b.JPG']
    """
    require_folder(folder)
    images = list(_walk(os.fspath(folder), frozenset()))
    if not images:
        raise DataError(
            f"No image file in {folder}. Found: {_found(folder)}. "
            f"Expected files that end in {listed(sorted(IMAGE_SUFFIXES), limit=20)}"
        )
    return images


def image_files(path: str | os.PathLike[str]) -> list[str]:
    """The file itself, or all images of a folder as `list_images` gives them.

    Raises:
        DataError: there is no such file or folder, or the folder holds no images.
    """
    if os.path.isfile(path):
        return [os.fspath(path)]
    if not os.path.isdir(path):
        raise DataError(f"No such file or folder: {os.fspath(path)}")
    return list_images(path)


def list_folders(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders directly in a folder, sorted; names that start with a dot are left out."""
    require_folder(folder)
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if _is_folder(e) and not e.name.startswith("."))


def split_named(name: str) -> str:
    """The split that a folder of this name holds, "train", "valid" or "test"; "" for another folder.

    Example:
        >>> split_named("Validation"), split_named("cats")
        ('valid', '')
    """
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), "")


def split_folders(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The folders of the splits directly in a folder, by split; those that are there."""
    inside = {name.lower(): name for name in list_folders(folder)}
    there = {split: [name for name in names if name in inside] for split, names in SPLIT_NAMES.items()}
    return {split: os.path.join(folder, inside[names[0]]) for split, names in there.items() if names}


def require_folder(folder: str | os.PathLike[str]) -> None:
    """Raise `DataError` where there is no such folder, naming the nearest parent that exists."""
    path = Path(folder)
    if path.is_dir():
        return
    if path.exists():
        raise DataError(f"Expected a folder, but this is a file. Received: folder={str(folder)!r}")
    parent = next(p for p in path.absolute().parents if p.is_dir())
    raise DataError(
        f"No such folder. Received: folder={str(folder)!r}. In {parent} there is: {_found(parent)}"
    )


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Image files below a folder in sorted order; a link back to a folder above is not entered again."""
    status = os.stat(folder)
    seen = above | {(status.st_dev, status.st_ino)}
    if len(seen) == len(above):
        return
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in visible:
        if not entry.name.isascii():
            _require_text(entry)
        if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not _is_folder(entry):
            yield entry.path
        elif _is_folder(entry):
            yield from _walk(entry.path, seen)


def _require_text(entry: os.DirEntry[str]) -> None:
    """Refuse a name that is no text, as old archives and other systems leave: no table could hold it."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"Expected names in UTF-8. Received: {os.fsencode(entry.path)!r}. Rename it, "
            "such as by convmv for all at once"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _found(folder: str | os.PathLike[str]) -> str:
    with os.scandir(folder) as entries:
        names = sorted(e.name + "/" * _is_folder(e) for e in entries)
    return listed(names) or "nothing, it is empty"
