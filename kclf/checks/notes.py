"""Remarks on the data as a whole: the balance of the classes, and sizes that give the class away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

FEW_PHOTOS = 10  # of one class: too few to hold some back for validation
UNEVEN = 3  # times as many photos of the largest class as of the smallest
TELLING = 0.10  # by how much the size may beat the guess of the largest class before it is a leak


def balance_notes(labels: Sequence[str], sets: Sequence[str]) -> list[str]:
    """What is uneven: classes with few photos, with many, or absent from train or valid."""
    counts = Counter(label for label in labels if label)
    if not counts:
        return ["no labels were found, so classes are not checked"]
    (largest, most), (smallest, least) = counts.most_common(1)[0], counts.most_common()[-1]
    notes = []
    if most >= UNEVEN * least:
        notes.append(
            f"uneven classes: {most:,} photos of {largest}, {least:,} of {smallest}; "
            "weight the classes, or look at the recall of each"
        )
    few = sorted(name for name, count in counts.items() if count < FEW_PHOTOS)
    if few:
        notes.append(f"fewer than {FEW_PHOTOS} photos of {_some(few)}")
    for set_name in ("train", "valid"):
        present = {label for label, where in zip(labels, sets, strict=True) if where == set_name}
        absent = sorted(set(counts) - present)
        if present and absent:
            notes.append(f"no photo in {set_name} of {_some(absent)}")
    return notes


def size_notes(labels: Sequence[str], facts: np.ndarray) -> list[str]:
    """A remark where the class can be told from width, height and length of the file alone.

    A shallow decision tree guesses each photo's class from those of the other folds.

    Args:
        labels: names of the classes.
        facts: width, height and bytes of each photo, (n, 3).
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    names, classes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.min() < FEW_PHOTOS:
        return []
    shape = np.log(np.maximum(facts.astype(np.float64), 1))
    signs = np.column_stack([shape, shape[:, 0] - shape[:, 1], shape[:, 2] - shape[:, 0] - shape[:, 1]])
    tree = DecisionTreeClassifier(max_depth=5, min_samples_leaf=5, random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    right = cross_val_predict(tree, signs, classes, cv=folds) == classes
    told, guess = right.mean(), counts.max() / len(right)
    chance = 2 * np.sqrt(guess * (1 - guess) / len(right))  # two standard errors of a guess
    if told < guess + chance + TELLING:
        return []
    return [
        f"size gives the class away: width, height and file length alone tell the class of {told:.0%} "
        f"of the photos (the largest class is {guess:.0%}); a model may learn that and fail on other photos"
    ]


def _some(names: Sequence[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
