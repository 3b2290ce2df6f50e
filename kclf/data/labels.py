"""Labels: from paths, file names and tables, as classes, several classes or numbers."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .._core.arguments import listed
from ..errors import DataError
from .splits import require_classes
from .tasks import Task

# What no one sees around a name: every blank, and marks of width zero or of the direction.
UNSEEN = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) + "\u200b\u200e\u200f\u2060\ufeff"


def is_missing(value: Any) -> bool:
    """Whether a field is None, NaN, or what data frames have for a missing value."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(value != value)


def text_of(label: Any) -> str:
    """A field of a table as text; empty where it is missing."""
    if isinstance(label, bytes):  # as HDF5 and TFRecords have text
        return label.decode(errors="replace")
    return "" if is_missing(label) else str(label)


def plain_label(label: Any) -> Any:
    """A label as text, a list of texts or a number: also from arrays, sets, paths, bytes and missing values.

    Example:
        >>> plain_label(np.array(["a", "b"])), plain_label({"x"}), plain_label(None)
        (['a', 'b'], ['x'], '')
    """
    if isinstance(label, np.ndarray | np.generic):
        label = label.tolist()
    if isinstance(label, list | tuple | set | frozenset):
        parts = sorted(label, key=str) if isinstance(label, set | frozenset) else label
        return [text_of(part) for part in parts if not is_missing(part)]
    if isinstance(label, os.PathLike):
        return os.fspath(label)
    return text_of(label) if isinstance(label, bytes) or is_missing(label) else label


def column_name(table: Mapping[str, Sequence[Any]], column: str | int) -> str:
    """The name of a column that is told by its name or number."""
    names = list(table)
    if isinstance(column, int) and 0 <= column < len(names):
        return names[column]
    if column in table:
        return str(column)
    raise DataError(f"No such column. Received: {column!r}. The table has: {', '.join(map(str, names))}")


def label_parts(label: str, delimiter: str) -> list[str]:
    """The labels of an image whose field holds several, or none."""
    return [part for part in map(str.strip, label.split(delimiter)) if part]


def task_of(labels: Sequence[Any], files: Sequence[str]) -> Task:
    """The task that labels of this kind are for."""
    if all(isinstance(label, str) for label in labels):
        return "single_label"
    if all(isinstance(label, list) for label in labels):
        return "multi_label"
    at = next(i for i, label in enumerate(labels) if not isinstance(label, str))
    raise DataError(
        f"{files[at]}: its label is {labels[at]!r}. Expected text (one class), or a list of texts (several). "
        'Numbers need task="regression", or str() where they are classes'
    )


def encode_labels(
    labels: Sequence[Any], task: Task, files: Sequence[str], report: Callable[[str], None]
) -> tuple[list[str], np.ndarray]:
    """Class names and encoded labels; `report` takes what is wrong with the names."""
    if task == "regression":
        return [], encode_numbers(labels, files)
    if task == "multi_label":
        given = (_several(row, file) for row, file in zip(labels, files, strict=True))
        rows = [[normal_label(str(part)) for part in row] for row in given]
        names = sorted({name for row in rows for name in row})
        require_no_twins(names, report)
        return names, encode_many(rows, names, files)
    spelled = {label: normal_label(str(label)) for label in set(map(str, labels))}
    texts = [spelled[str(label)] for label in labels]
    empty = [file for file, text in zip(files, texts, strict=True) if not text.strip()]
    if empty:
        raise DataError(
            f"{len(empty):,} of {len(files):,} images have no label: {', '.join(empty[:3])}. "
            "Label them, or leave them out"
        )
    names = sorted(set(texts))
    require_no_twins(names, report)
    require_classes(texts, texts, f"{len(texts):,} images")
    return names, encode(texts, names, files)


def _several(labels: Any, file: str) -> Sequence[Any]:
    """The labels of an image that may have several; text is one label where it can be no more."""
    if not isinstance(labels, str):
        return labels if isinstance(labels, list) else [labels]
    mark = next((mark for mark in ";|,/ " if mark in labels.strip()), None)
    if mark is not None:
        raise DataError(
            f"{file}: expected a list of labels, or text with a delimiter that is named. Received: "
            f"{labels!r}. Pass label_delimiter={mark!r} (--label-delimiter), or give lists"
        )
    return [labels] if labels.strip() else []


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
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise DataError(f"Expected class names, no two alike. Received: class_names={list(class_names)}")
    if task == "regression":
        return [], labels.astype(np.float32)
    if task == "multi_label":
        names = list(class_names or [str(i) for i in range(labels.shape[1])])
        return names, labels.astype(np.float32)
    if labels.dtype.kind in "UO":
        texts = [text_of(label) for label in labels.tolist()]
        if "" in texts:
            raise DataError(
                f"{texts.count('')} of {len(texts)} images have no label, the first: {texts.index('')}"
            )
        names = list(class_names or sorted(set(texts)))
        return names, encode(texts, names)
    numbers = class_numbers(labels, len(class_names or ()))
    if class_names is None and (
        absent := sorted(set(range(numbers.max(initial=-1) + 1)) - set(numbers.tolist()))
    ):
        raise DataError(
            f"Expected labels from 0 on without a gap. Received: labels up to {numbers.max()}, and none of "
            f"{listed(absent)}. Number the classes anew, or name them all in `class_names`"
        )
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


# Labels


def parent_label(path: str | os.PathLike[str]) -> str:
    """The label is the name of the folder the file lies in.

    Example:
        >>> parent_label("train/cats/12.jpg")
        'cats'
    """
    return os.path.basename(os.path.dirname(os.fspath(path)))


def folder_labels(paths: Sequence[str], root: str | os.PathLike[str]) -> list[str]:
    """The label of each path is the folder directly below `root` it lies in, however deep.

    Raises:
        DataError: files lie in `root` itself, so that they have no class folder.
    """
    labels = class_folders(paths, root)
    loose = [path for path, label in zip(paths, labels, strict=True) if not label]
    if loose:
        raise DataError(loose_images(loose, len(paths), root))
    return labels


def class_folders(paths: Sequence[str], root: str | os.PathLike[str]) -> list[str]:
    """The name of the folder directly below `root` that each path lies in; "" for those in `root` itself."""
    start, spelled = len(os.path.join(os.fspath(root), "")), cache(normal_label)
    parts = (path[start:].partition(os.sep) for path in paths)
    return [spelled(folder) if is_below else "" for folder, is_below, _ in parts]


def loose_images(loose: Sequence[str], count: int, root: str | os.PathLike[str]) -> str:
    """What to say of images that lie outside the class folders."""
    folder = Path(root).resolve()
    hint = f"If {folder.name} is one class of several, give {folder.parent}. " if len(loose) == count else ""
    return (
        f"{len(loose):,} of {count:,} images lie in {os.fspath(root)} itself, outside any class folder: "
        f"{listed(loose, 3)}. {hint}Move them into a folder named after their class, or take the label from "
        'the name: ImageData.from_folder(folder, label_regex=r"(.+)_\\d+") (--label-regex), or '
        "ImageData.from_files(paths, label)"
    )


def normal_label(text: str) -> str:
    """A label in one spelling: composed (NFC), without blanks and unseen marks around it.

    Example:
        >>> normal_label("cafe\u0301 ") == "caf\u00e9"
        True
    """
    if text.isascii() and text == text.strip():
        return text
    return unicodedata.normalize("NFC", text).strip(UNSEEN)


def require_no_twins(class_names: Sequence[str], report: Callable[[str], None]) -> None:
    """Report classes whose names differ in the case of letters alone; single letters may."""
    folded: dict[str, list[str]] = {}
    for name in class_names:
        if len(name) > 1:
            folded.setdefault(name.casefold(), []).append(name)
    twins = [same for same in folded.values() if len(same) > 1]
    if twins:
        pairs = "; ".join(", ".join(map(repr, same)) for same in twins[:3])
        report(
            f"{len(twins)} classes have names that differ in the case of letters alone: {pairs}. "
            "Give the photos of one class one name"
        )


def regex_label(pattern: str, *, missing: str | None = None) -> Callable[[str | os.PathLike[str]], str]:
    r"""Make a function that finds the label in a file's name.

    Args:
        pattern: a regular expression, searched in the file's name without its folder. The label is its
            first group, or the whole match where it has no group.
        missing: the label where the pattern does not match; None to refuse that.

    Returns:
        A function path -> label, which raises `DataError` where the pattern does not match.

    Example:
        >>> label = regex_label(r"(.+)_\d+\.jpg$")
        >>> label("images/great_pyrenees_173.jpg")
        'great_pyrenees'
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"Not a regular expression: {error}. Received: pattern={pattern!r}") from error

    def label(path: str | os.PathLike[str]) -> str:
        name = os.path.basename(os.fspath(path))
        match = compiled.search(name)
        if match is None or match.group(min(1, compiled.groups)) is None:
            if missing is not None:
                return missing
            raise DataError(f"{path}: the name {name!r} does not match the pattern {pattern!r}")
        return str(match.group(min(1, compiled.groups)))

    return label


def encode(
    labels: Sequence[str], class_names: Sequence[str], paths: Sequence[str] | None = None
) -> np.ndarray:
    """Class numbers of labels.

    Args:
        labels: n labels.
        class_names: the classes in order.
        paths: n files, to name the one at fault.

    Returns:
        int32 (n,).

    Raises:
        DataError: a label is not among the classes.

    Example:
        >>> encode(["dog", "cat", "dog"], ["cat", "dog"])
        array([1, 0, 1], dtype=int32)
    """
    number = {name: i for i, name in enumerate(class_names)}
    try:
        return np.array([number[label] for label in labels], dtype=np.int32)
    except KeyError:
        at = next(i for i, label in enumerate(labels) if label not in number)
        raise _unknown_label(labels[at], class_names, at, paths) from None


def encode_many(
    labels: Sequence[Sequence[str]], class_names: Sequence[str], paths: Sequence[str] | None = None
) -> np.ndarray:
    """N-hot rows of label sets, for images that show several classes or none.

    Returns:
        float32 (n, number of classes), 1 where the class is present.

    Example:
        >>> encode_many([["sky", "sea"], []], ["sand", "sea", "sky"])
        array([[0., 1., 1.],
               [0., 0., 0.]], dtype=float32)
    """
    number = {name: i for i, name in enumerate(class_names)}
    rows = np.zeros((len(labels), len(class_names)), dtype=np.float32)
    for at, names in enumerate(labels):
        for name in names:
            if name not in number:
                raise _unknown_label(name, class_names, at, paths)
            rows[at, number[name]] = 1
    return rows


def encode_for(
    labels: Sequence[Any], task: Task, class_names: Sequence[str], paths: Sequence[str] | None = None
) -> np.ndarray:
    """Labels for the outputs of a classifier that stands; one label is the only one of several.

    Args:
        labels: n labels: names, lists of names, or numbers.
        task: of the classifier.
        class_names: its classes in order.
        paths: n files, to name the one at fault.
    """
    if task == "regression":
        return encode_numbers(labels, paths)
    if task == "single_label":
        return encode(labels, class_names, paths)
    return encode_many([[one] if isinstance(one, str) else one for one in labels], class_names, paths)


def encode_numbers(labels: Sequence[object], paths: Sequence[str] | None = None) -> np.ndarray:
    """Numbers of labels that are numbers, for regression: float32 (n,)."""
    numbers = np.empty(len(labels), dtype=np.float32)
    for at, label in enumerate(labels):
        try:
            numbers[at] = float(label)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise DataError(f"{_place(at, paths)}: expected a number as label. Received: {label!r}") from None
        if not np.isfinite(numbers[at]):
            raise DataError(f"{_place(at, paths)}: expected a finite number as label. Received: {label!r}")
    return numbers


def _unknown_label(
    label: object, class_names: Sequence[str], at: int, paths: Sequence[str] | None
) -> DataError:
    return DataError(
        f"{_place(at, paths)}: its label {label!r} is not among the {len(class_names)} classes: "
        f"{listed(class_names)}"
    )


def _place(at: int, paths: Sequence[str] | None) -> str:
    return f"Image {at}" if paths is None else str(paths[at])
