"""Files, labels and arrays in the shape that a split takes, and how they are divided."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .._core.arguments import listed
from ..errors import DataError
from .files import list_images
from .labels import column_name, encode_array, one_column
from .sources import ArrayImages, Images
from .splits import Split, random_split, require_two_of_each, stratified_split
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


def divide(images: Images, labels: np.ndarray, split: Split) -> tuple[Part, Part]:
    """Training and validation images with their labels."""
    for name, indices in zip(("training", "validation"), split, strict=True):
        if len(indices) == 0:
            raise DataError(f"No image is left for {name}: {len(labels):,} in all")
    train, valid = ((images.take(indices), labels[indices]) for indices in split)
    return train, valid


def automatic_split(
    codes: np.ndarray,
    class_names: Sequence[str],
    task: Task,
    valid_fraction: float,
    seed: int,
    report: Callable[[str], None] | None = None,
) -> Split:
    """Each class in its share where images have one class, else at random."""
    if task != "single_label" or len(codes) == 0:
        return random_split(len(codes), valid_fraction, seed)
    counts = np.bincount(codes, minlength=len(class_names))
    require_two_of_each(class_names, counts, report)
    return stratified_split(codes, valid_fraction, seed, report and (lambda message: None))


def require_all_classes(
    codes: np.ndarray, split: Split, class_names: Sequence[str], report: Callable[[str], None]
) -> None:
    """Report classes that a split which was asked for leaves without images on one of its sides."""
    for name, indices in zip(("training", "validation"), split, strict=True):
        counts = np.bincount(codes[indices], minlength=len(class_names))
        absent = [c for c, count in zip(class_names, counts, strict=True) if not count]
        if absent:
            report(
                f"{len(absent)} of {len(class_names)} classes have no {name} image in this split: "
                f"{listed(absent)}. Choose other indices or groups, or leave the classes out"
            )


def require_apart(
    files: Sequence[str], split: Split, names: tuple[str, str] = ("training", "validation")
) -> None:
    """No file (in one spelling) is on both sides, such as training and validation: it would be known."""
    if len(set(files)) == len(files):
        return
    one, other = ({files[index] for index in indices} for indices in split)
    both = sorted(one & other)
    if both:
        raise DataError(
            f"{len(both)} of {len(one | other):,} files stand twice, in {names[0]} and in {names[1]}: "
            f"{', '.join(both[:3])}. Give one row an image (`label_delimiter` for several labels), or "
            "keep repeats together (`group_column`, `group`)"
        )


def without_repeats(files: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """The rows without those whose file, in one spelling, an earlier one of them has."""
    if len(set(files)) == len(files):
        return rows
    first: dict[str, int] = {}
    return np.array([row for row in rows if first.setdefault(files[row], row) == row], dtype=np.int64)


def require_one_length(
    columns: Mapping[str, Sequence[Any]], path_column: Any, label_column: Any, groups: Sequence[Any] | None
) -> None:
    """The columns of a table have as many rows."""
    if len({len(column) for column in columns.values()}) > 1:
        several = isinstance(label_column, list | tuple)
        paths = columns[column_name(columns, 0 if path_column is None else path_column)]
        labels = columns[column_name(columns, 1 if label_column is None or several else label_column)]
        more = "" if groups is None else f", {len(groups):,} groups"
        lengths = ", ".join(f"{name} {len(column):,}" for name, column in columns.items())
        raise DataError(
            f"Expected columns of one length. Received: {len(paths):,} paths, {len(labels):,} labels{more} "
            f"({lengths})"
        )


def encoded_arrays(
    arrays: np.ndarray | tuple[np.ndarray, Any], task: Task, class_names: Sequence[str]
) -> Part:
    """Images in memory, alone or with their labels."""
    if not isinstance(arrays, tuple):
        return ArrayImages(arrays), None
    labels = one_column(np.asarray(arrays[1]), task)
    require_as_many(arrays[0], labels)
    return ArrayImages(arrays[0]), encode_array(labels, task, class_names)[1]


def require_as_many(images: Any, labels: Any) -> None:
    """As many labels as images."""
    if len(images) != len(labels):
        raise DataError(
            f"Expected a label for each image. Received: {len(images):,} images, {len(labels):,} labels"
        )
