"""What `ImageData` makes of folders, columns and arrays: files, class names, encoded labels, a split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import (
    Split,
    class_table,
    encode,
    encode_many,
    encode_numbers,
    folder_labels,
    list_folders,
    list_images,
    random_split,
    regex_label,
    require_classes,
    require_two_of_each,
    split_folders,
    stratified_split,
)
from ..tasks import Task
from .sources import ArrayImages, FileImages, Images

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


def within(folder: Path, names: Iterable[Any], suffix: str = "") -> list[str]:
    """The files of those names in a folder, as `os.path.join` has them, for millions.

    Example:
        >>> within("photos", ["a", "/b"], ".jpg")
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


# Folders


@dataclass(frozen=True)
class SplitFolders:
    """Where the splits lie; None for those that have no folder."""

    train: str
    valid: str | None = None
    test: str | None = None


def find_splits(folder: Path) -> SplitFolders:
    """The folders of the splits, where there is one for training; else all is for training."""
    found = split_folders(folder)
    if found and "train" not in found:
        names = ", ".join(os.path.basename(path) for path in found.values())
        raise DataError(
            f"{os.fspath(folder)} has folders of other splits ({names}) and none for training. Expected the "
            "class folders in a folder `train`, or no such folders beside them"
        )
    return SplitFolders(**found) if found else SplitFolders(os.fspath(folder))


def read_folder(root: Path, label_regex: str | None) -> tuple[list[str], list[str]]:
    """The images below a folder, and the label of each: its class folder, or what the pattern finds."""
    paths = list_images(root)
    if label_regex is not None:
        label = regex_label(label_regex)
        return paths, [label(path) for path in paths]
    labels = folder_labels(paths, root)
    empty = sorted(set(list_folders(root)) - set(labels))
    if empty:
        raise DataError(
            f"{len(empty)} folders in {root} hold no image, so they are no class: {', '.join(empty[:8])}. "
            "Remove them, or fill them"
        )
    return paths, labels


def read_test_folder(folder: Path, class_names: Sequence[str], label_regex: str | None) -> Part:
    """The test images, with their class numbers where the folder is divided in the classes."""
    paths = list_images(folder)
    if label_regex is not None or not set(list_folders(folder)) & set(class_names):
        return FileImages(paths), None
    return FileImages(paths), encode(folder_labels(paths, folder), class_names, paths)


# Labels


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


def text_of(label: Any) -> str:
    """A field of a table as text; empty where it is None or NaN."""
    return "" if label is None or label != label else str(label)


def column_of(table: Mapping[str, Sequence[Any]], column: str | int) -> Sequence[Any]:
    """A column by name or number."""
    names = list(table)
    if isinstance(column, int) and 0 <= column < len(names):
        return table[names[column]]
    if column in table:
        return table[str(column)]
    raise DataError(f"No such column. Received: {column!r}. The table has: {', '.join(map(str, names))}")


def label_parts(label: str, delimiter: str) -> list[str]:
    """The labels of an image whose field holds several, or none."""
    return [part for part in map(str.strip, label.split(delimiter)) if part]


def task_of(labels: Sequence[Any], files: Sequence[str]) -> Task:
    """The task that labels of this kind are for."""
    if all(isinstance(label, str) for label in labels):
        return "single_label"
    if all(isinstance(label, list | tuple | set | frozenset) for label in labels):
        return "multi_label"
    at = next(i for i, label in enumerate(labels) if not isinstance(label, str))
    raise DataError(
        f"{files[at]}: its label is {labels[at]!r}. Expected text (one class), or a list of texts (several). "
        'Numbers need task="regression", or str() where they are classes'
    )


def encode_labels(labels: Sequence[Any], task: Task, files: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Class names and encoded labels."""
    if task == "regression":
        return [], encode_numbers(labels, files)
    if task == "multi_label":
        names = class_table(name for row in labels for name in row)
        return names, encode_many(labels, names, files)
    texts = [str(label) for label in labels]
    empty = [file for file, text in zip(files, texts, strict=True) if not text.strip()]
    if empty:
        raise DataError(
            f"{len(empty):,} of {len(files):,} images have no label: {', '.join(empty[:3])}. "
            "Label them, or leave them out"
        )
    names = class_table(texts)
    require_classes(texts, texts, f"{len(texts):,} images")
    return names, encode(texts, names, files)


def one_column(labels: np.ndarray, task: Task | None) -> np.ndarray:
    """Labels (n, 1), as `keras.datasets` has them, as (n,); n-hot rows as they are."""
    is_column = labels.ndim == 2 and labels.shape[1] == 1 and task != "multi_label"
    return labels[:, 0] if is_column else labels


def task_of_array(labels: np.ndarray) -> Task:
    """The task that an array of labels is for."""
    if labels.ndim == 2:
        return "multi_label"
    return "regression" if np.issubdtype(labels.dtype, np.floating) else "single_label"


def encode_array(
    labels: np.ndarray, task: Task, class_names: Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    """Class names and encoded labels of an array."""
    if task == "regression":
        return [], labels.astype(np.float32)
    if task == "multi_label":
        names = list(class_names or [str(i) for i in range(labels.shape[1])])
        return names, labels.astype(np.float32)
    if labels.dtype.kind in "UO":
        names = list(class_names or class_table(labels.tolist()))
        return names, encode(labels.tolist(), names)
    numbers = class_numbers(labels, len(class_names or ()))
    return list(class_names or map(str, range(numbers.max(initial=-1) + 1))), numbers


def class_numbers(labels: np.ndarray, classes: int) -> np.ndarray:
    """Class numbers (n,), int32; `classes` is 0 where their number is not known."""
    with np.errstate(invalid="ignore"):  # NaN becomes some number, and differs from it
        numbers = labels.astype(np.int32)
    if not (numbers == labels).all():
        raise DataError(f"Expected class numbers, which are whole. Received: labels of type {labels.dtype}")
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < (classes or np.inf):
        raise DataError(
            f"Expected class numbers in [0, {classes or 'classes'}). "
            f"Received: labels from {numbers.min()} to {numbers.max()}"
        )
    return numbers


def encoded_arrays(
    arrays: np.ndarray | tuple[np.ndarray, Any], task: Task, class_names: Sequence[str]
) -> Part:
    """Images in memory, alone or with their labels."""
    if not isinstance(arrays, tuple):
        return ArrayImages(arrays), None
    labels = one_column(np.asarray(arrays[1]), task)
    return ArrayImages(arrays[0]), encode_array(labels, task, class_names)[1]
