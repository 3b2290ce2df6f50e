"""Files, labels and arrays in the shape that a split takes, and how they are divided."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from .files import Split, list_images
from .labels import encode_array, one_column
from .sources import ArrayImages, Images
from .splits import random_split, require_two_of_each, stratified_split
from .tasks import Task

Path = str | os.PathLike[str]
Part = tuple[Images, np.ndarray | None]  # images of one split, and their labels


def as_files(paths: Sequence[Path] | Path) -> list[str]:
    """The files as text; of a folder all its images."""
    if isinstance(paths, str | os.PathLike):
        return list_images(paths)
    files = [os.fspath(path) for path in paths]
    if not files:
        raise DataError("Expected image files. Received: paths with nothing in it")
    return files


def join_paths(folder: Path, names: Iterable[Any], suffix: str = "") -> list[str]:
    """The files of those names in a folder, as `os.path.join` has them, for millions.

    Example:
        >>> join_paths("photos", ["a", "/b"], ".jpg")
        ['photos/a.jpg', '/b.jpg']
    """
    start, is_absolute = os.path.join(folder, ""), os.path.isabs
    files = (f"{name}{suffix}" for name in names)
    return [file if is_absolute(file) else start + file for file in files]


def require_some_file(files: Sequence[str]) -> None:
    """One file at least is there; the loader reports those that are not."""
    if not any(os.path.exists(file) for file in files):
        raise DataError(
            f"None of the {len(files):,} files exists. The first: {files[0]}. "
            "Look at `folder`, and at `suffix` (such as '.jpg') where the names come without one"
        )


def divide(images: Images, labels: np.ndarray, split: Split) -> tuple[Part, Part]:
    """Training and validation images with their labels."""
    for name, indices in zip(("training", "validation"), split, strict=True):
        if len(indices) == 0:
            raise DataError(f"No image is left for {name}: {len(labels):,} in all")
    train, valid = ((images.take(indices), labels[indices]) for indices in split)
    return train, valid


def automatic_split(
    codes: np.ndarray, class_names: Sequence[str], task: Task, valid_fraction: float, seed: int
) -> Split:
    """Each class in its share where images have one class, else at random."""
    if task != "single_label" or len(codes) == 0:
        return random_split(len(codes), valid_fraction, seed)
    counts = np.bincount(codes, minlength=len(class_names))
    require_two_of_each(class_names, counts)
    return stratified_split(codes, valid_fraction, seed)


def require_apart(files: Sequence[str], split: Split) -> None:
    """No file is in training and in validation: there it would be known."""
    if len(set(files)) == len(files):
        return
    train, valid = ({files[index] for index in indices} for indices in split)
    both = sorted(train & valid)
    if both:
        raise DataError(
            f"{len(both)} of {len(train | valid):,} files stand twice, in training and in validation: "
            f"{', '.join(both[:3])}. Give one row an image (`label_delimiter` for several labels), or "
            "keep repeats together (`group_column`, `group`)"
        )


def require_one_length(files: Sequence[str], labels: Sequence[Any], groups: Sequence[Any] | None) -> None:
    """The columns of a table have as many rows."""
    lengths = [len(files), len(labels), *([] if groups is None else [len(groups)])]
    if len(set(lengths)) > 1:
        raise DataError(
            f"Expected columns of one length. Received: {lengths[0]:,} paths, {lengths[1]:,} labels"
            + (f", {lengths[2]:,} groups" if groups is not None else "")
        )


def encoded_arrays(
    arrays: np.ndarray | tuple[np.ndarray, Any], task: Task, class_names: Sequence[str]
) -> Part:
    """Images in memory, alone or with their labels."""
    if not isinstance(arrays, tuple):
        return ArrayImages(arrays), None
    labels = one_column(np.asarray(arrays[1]), task)
    return ArrayImages(arrays[0]), encode_array(labels, task, class_names)[1]
