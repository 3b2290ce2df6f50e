"""Splits of photos into training and validation: random, stratified, grouped, by index, in folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from .._core.arguments import listed
from ..errors import DataError

Split = tuple[np.ndarray, np.ndarray]  # indices of the training and of the validation images


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
            f"Expected indices in [0, {n}). Received: valid_indices with {listed(outside.tolist())}"
        )
    is_valid = np.zeros(n, dtype=bool)
    is_valid[valid] = True
    if is_valid.sum() < len(valid):
        raise DataError(f"{len(valid) - is_valid.sum()} of the {len(valid)} valid_indices stand twice")
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


def stratified_split(
    labels: Sequence[Hashable] | np.ndarray,
    valid_fraction: float = 0.2,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> Split:
    """Split so that every class has its share in validation.

    Each class gives `round(valid_fraction * count)` images, at least one, and keeps at least one for
    training.

    Args:
        labels: one label an image.
        valid_fraction: fraction for validation, in (0, 1).
        seed: the same seed gives the same split.
        report: takes the message about classes with a single image, which then trains; None to refuse them.

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
    require_two_of_each(names, [len(indices) for indices in members], report)
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
        raise DataError(f"Expected at least 2 groups to split. Received: {len(names)} ({listed(names)})")
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


def require_two_of_each(
    names: Sequence[Hashable],
    counts: Sequence[int] | np.ndarray,
    report: Callable[[str], None] | None = None,
) -> None:
    """Raise `DataError`, or report, where a class has one image alone."""
    lonely = [name for name, count in zip(names, counts, strict=True) if count == 1]
    if lonely:
        (report or refuse)(
            f"{len(lonely)} of {len(names)} classes have a single image, which cannot be in training and in "
            f"validation: {listed(lonely)}. Add images, or merge or remove the class"
        )


def require_classes(
    labels: Sequence[str],
    valid_labels: Sequence[str],
    where: str,
    report: Callable[[str], None] | None = None,
) -> None:
    """Raise `DataError` unless there are two classes at least, each with an image in validation.

    Args:
        labels: of the training images.
        valid_labels: of the validation images.
        where: they were found.
        report: takes the message about classes without a validation image; None to refuse them.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        raise DataError(
            f"Expected at least 2 classes in {where}. Found one, {next(iter(counts))!r}, "
            f"with {len(labels):,} images"
        )
    missing = sorted(set(counts) - set(valid_labels))
    if missing:
        (report or refuse)(
            f"{len(missing)} of {len(counts)} classes have no validation image in {where}: "
            f"{listed(missing)}. Add some, or remove that folder: training images are then set aside"
        )


def refuse(message: str) -> None:
    """Raise `DataError` with a message."""
    raise DataError(message)
