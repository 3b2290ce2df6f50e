"""Image files, their labels and their splits: pure functions of paths, labels and a seed; numpy only."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import DataError

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
            f"Expected files that end in {_words(sorted(IMAGE_SUFFIXES), limit=20)}"
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
    return _words(names) or "nothing, it is empty"


def _words(names: Sequence[object], limit: int = 8) -> str:
    """The first names in a row, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


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
    start = os.path.join(os.fspath(root), "")
    parts = [path[len(start) :].split(os.sep, 1) for path in paths]
    loose = [path for path, part in zip(paths, parts, strict=True) if len(part) == 1]
    if loose:
        raise DataError(
            f"{len(loose):,} of {len(paths):,} images lie in {root} itself, outside any class folder: "
            f"{_words(loose, 3)}. Move them into a folder named after their class, or take the label from "
            'the name: ImageData.from_folder(folder, label_regex=r"(.+)_\\d+"), or '
            "ImageData.from_files(paths, label)"
        )
    return [part[0] for part in parts]


def regex_label(pattern: str) -> Callable[[str | os.PathLike[str]], str]:
    r"""Make a function that finds the label in a file's name.

    Args:
        pattern: a regular expression, searched in the file's name without its folder. The label is its
            first group, or the whole match where it has no group.

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
            raise DataError(f"{path}: the name {name!r} does not match the pattern {pattern!r}")
        return str(match.group(min(1, compiled.groups)))

    return label


def class_table(labels: Iterable[str]) -> list[str]:
    """The class names: each label once, sorted."""
    return sorted(set(labels))


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
        f"{_words(class_names)}"
    )


def _place(at: int, paths: Sequence[str] | None) -> str:
    return f"Image {at}" if paths is None else str(paths[at])


# Tables


@contextmanager
def reading_csv(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let a file that is no CSV in UTF-8 end in a `DataError` that names it."""
    try:
        yield
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected CSV in UTF-8 ({error}). Save it as such") from error


def read_table(csv_file: str | os.PathLike[str], delimiter: str = ",") -> dict[str, list[str]]:
    """Columns of a CSV file with a header row, as text.

    Raises:
        DataError: no such file, no rows, a column name twice, or a row with another number of fields.
    """
    if not Path(csv_file).is_file():
        raise DataError(f"No such file. Received: csv_file={str(csv_file)!r}")
    with reading_csv(csv_file), open(csv_file, newline="", encoding="utf-8-sig") as file:
        rows = (row for row in csv.reader(file, delimiter=delimiter) if row)
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise DataError(f"{csv_file}: a column name stands twice in the header: {_words(header)}")
        columns: list[list[str]] = [[] for _ in header]  # a row is not kept: a table may have millions
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise DataError(
                    f"{csv_file}, row {number}: expected {len(header)} fields as in the header "
                    f"({_words(header)}). Found {len(row)}: {_words(row)}"
                )
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    if not columns or not columns[0]:
        raise DataError(
            f"{csv_file}: expected a header row and a row for each image. Found {len(header[:1])} rows"
        )
    return dict(zip(header, columns, strict=True))


# Splits


def random_split(n: int, valid_fraction: float = 0.2, seed: int = 0) -> Split:
    """Split n images at random.

    Args:
        n: number of images.
        valid_fraction: fraction for validation, in (0, 1); `int(valid_fraction * n)` images.
        seed: the same seed gives the same split.

    Returns:
        Indices of the training and of the validation images, int64, ascending.

    Example:
        >>> train, valid = random_split(10, valid_fraction=.3, seed=1)
        >>> len(train), len(valid), sorted([*train, *valid]) == list(range(10))
        (7, 3, True)
    """
    _require_fraction(valid_fraction)
    order = np.random.default_rng(seed).permutation(n)
    return index_split(n, order[: int(valid_fraction * n)])


def index_split(n: int, valid_indices: Sequence[int] | np.ndarray) -> Split:
    """Split n images by the indices of those for validation.

    Raises:
        DataError: an index is not an integer in [0, n), or stands twice.
    """
    valid = np.asarray(valid_indices)
    if valid.size and not np.issubdtype(valid.dtype, np.integer):
        raise DataError(f"Expected integer indices. Received: valid_indices of type {valid.dtype}")
    valid = valid.astype(np.int64)
    outside = valid[(valid < 0) | (valid >= n)]
    if outside.size:
        raise DataError(
            f"Expected indices in [0, {n}). Received: valid_indices with {_words(outside.tolist())}"
        )
    is_valid = np.zeros(n, dtype=bool)
    is_valid[valid] = True
    if is_valid.sum() < len(valid):
        raise DataError(f"{len(valid) - is_valid.sum()} of the {len(valid)} valid_indices stand twice")
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


def stratified_split(
    labels: Sequence[Hashable] | np.ndarray, valid_fraction: float = 0.2, seed: int = 0
) -> Split:
    """Split so that every class has its share in validation.

    Each class gives `round(valid_fraction * count)` images, at least one, and keeps at least one for
    training.

    Args:
        labels: one label an image.
        valid_fraction: fraction for validation, in (0, 1).
        seed: the same seed gives the same split.

    Returns:
        Indices of the training and of the validation images, int64, ascending.

    Raises:
        DataError: a class has a single image, which cannot be on both sides.

    Example:
        >>> labels = ["cat"] * 8 + ["dog"] * 4
        >>> train, valid = stratified_split(labels, valid_fraction=.25)
        >>> [labels[i] for i in valid]
        ['cat', 'cat', 'dog']
    """
    _require_fraction(valid_fraction)
    rng = np.random.default_rng(seed)
    names, members = _members(labels)
    require_two_of_each(names, [len(indices) for indices in members])
    shares = [min(len(m) - 1, max(1, round(valid_fraction * len(m)))) for m in members]
    chosen = [rng.permutation(m)[:share] for m, share in zip(members, shares, strict=True)]
    return index_split(len(labels), np.concatenate(chosen))


def grouped_split(groups: Sequence[Hashable], valid_fraction: float = 0.2, seed: int = 0) -> Split:
    """Split so that all images of a group (one animal, one patient, one burst) are on one side.

    Groups are taken in random order until `valid_fraction` of the images are in validation; at least one
    group is on each side.

    Example:
        >>> train, valid = grouped_split(["rex", "rex", "tom", "tom", "kit", "kit"], valid_fraction=.33)
        >>> len(train), len(valid)
        (4, 2)
    """
    _require_fraction(valid_fraction)
    names, members = _members(groups)
    if len(names) < 2:
        raise DataError(f"Expected at least 2 groups to split. Received: {len(names)} ({_words(names)})")
    order = np.random.default_rng(seed).permutation(len(members))
    totals = np.cumsum([len(members[i]) for i in order])
    nearest = int(np.abs(totals - valid_fraction * len(groups)).argmin()) + 1
    taken = order[: min(nearest, len(members) - 1)]
    return index_split(len(groups), np.concatenate([members[i] for i in taken]))


def cv_indices(n: int, fold: int = 4, valid_fraction: float = 0.2, seed: int = 42) -> np.ndarray:
    """Validation indices of one fold, equal to fastai's `get_cv_idxs` to the last index.

    Args:
        n: number of images.
        fold: which slice of the shuffled indices, from 0.
        valid_fraction: length of a slice as a fraction of n.
        seed: seed of numpy's legacy generator, which fixes the order for good.

    Returns:
        int64 (int(valid_fraction * n),), in shuffled order.

    Example:
        >>> cv_indices(10222, 4)[:3].tolist(), len(cv_indices(10222, 4))
        ([3694, 1573, 6281], 2044)
    """
    _require_fraction(valid_fraction)
    size = int(valid_fraction * n)
    folds = n // size if size else 0
    if not 0 <= fold < folds:
        raise DataError(f"Expected a fold in [0, {folds}). Received: fold={fold}")
    shuffled = np.random.RandomState(seed).permutation(n)
    return shuffled[fold * size : (fold + 1) * size]


def k_fold(labels: Sequence[Hashable], k: int = 5, seed: int = 0) -> list[Split]:
    """Split k times so that every image is in validation once, each class spread evenly over the folds.

    Args:
        labels: one label an image.
        k: number of folds, at least 2.
        seed: the same seed gives the same folds.

    Returns:
        k pairs (training indices, validation indices).

    Example:
        >>> folds = k_fold(["cat", "dog"] * 6, k=3)
        >>> [valid.tolist() for train, valid in folds]
        [[5, 6, 8, 9], [0, 1, 4, 11], [2, 3, 7, 10]]
    """
    if not 2 <= k <= len(labels):
        raise DataError(f"Expected 2 <= k <= {len(labels)} images. Received: k={k}")
    rng = np.random.default_rng(seed)
    dealt = np.concatenate([rng.permutation(m) for m in _members(labels)[1]])
    return [index_split(len(labels), dealt[fold::k]) for fold in range(k)]


def _members(labels: Sequence[Hashable] | np.ndarray) -> tuple[list[Hashable], list[np.ndarray]]:
    """The different labels, in order of their text, and the indices of each."""
    if isinstance(labels, np.ndarray):
        found, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        members = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
        order = sorted(range(len(found)), key=lambda i: str(found[i]))
        return [found[i].item() for i in order], [members[i] for i in order]
    indices: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        indices.setdefault(label, []).append(i)
    names = sorted(indices, key=str)
    return names, [np.array(indices[name], dtype=np.int64) for name in names]


def _require_fraction(valid_fraction: float) -> None:
    if not 0 < valid_fraction < 1:
        raise DataError(f"Expected 0 < valid_fraction < 1. Received: valid_fraction={valid_fraction!r}")


def require_two_of_each(names: Sequence[Hashable], counts: Sequence[int] | np.ndarray) -> None:
    """Raise `DataError` where a class has one image alone."""
    lonely = [name for name, count in zip(names, counts, strict=True) if count == 1]
    if lonely:
        raise DataError(
            f"{len(lonely)} of {len(names)} classes have a single image, which cannot be in training and in "
            f"validation: {_words(lonely)}. Add images, or merge or remove the class"
        )


def require_classes(labels: Sequence[str], valid_labels: Sequence[str], where: str) -> None:
    """Raise `DataError` unless there are two classes at least, each with an image in validation."""
    counts = Counter(labels)
    if len(counts) < 2:
        raise DataError(
            f"Expected at least 2 classes in {where}. Found one, {next(iter(counts))!r}, "
            f"with {len(labels):,} images"
        )
    missing = sorted(set(counts) - set(valid_labels))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(counts)} classes have no validation image in {where}: "
            f"{_words(missing)}. Add some, or remove that folder: training images are then set aside"
        )
