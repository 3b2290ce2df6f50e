"""Remarks on the data as a whole: the balance of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .._core.arguments import listed

FEW_PHOTOS = 10  # of one class: too few to hold some back for validation
UNEVEN = 3  # times as many photos of the largest class as of the smallest


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
    if few := sorted(name for name, count in counts.items() if count < FEW_PHOTOS):
        notes.append(f"fewer than {FEW_PHOTOS} photos of {listed(few)}")
    for set_name in ("train", "valid"):
        present = {label for label, where in zip(labels, sets, strict=True) if where == set_name}
        absent = sorted(set(counts) - present)
        if present and absent:
            notes.append(f"no photo in {set_name} of {listed(absent)}")
    return notes
