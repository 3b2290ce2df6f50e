"""The size that photos are read at, chosen in folds of the training photos.

Objects look larger in training, by its crops, than in a prediction; read a little larger, photos look as they
did: Touvron et al. 2019, https://arxiv.org/abs/1906.06423.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data import ImageData
from ..models import ImageClassifier
from ..models.clone import clone_with
from .linear_probe import LinearProbe


@dataclass(frozen=True)
class Reading:
    """A classifier at the size that it reads photos at, with its last layer solved there.

    Args:
        model: the classifier.
        data: its photos, for that size.
        probe: the solution.
    """

    model: ImageClassifier
    data: ImageData
    probe: LinearProbe


def at_size(model: ImageClassifier, data: ImageData, size: int) -> tuple[ImageClassifier, ImageData]:
    """A classifier and its photos for another size; themselves for the same.

    Args:
        model: the classifier.
        data: its photos.
        size: side of the square that the backbone sees, pixels.
    """
    if size == model.size:
        return model, data
    side = max(data.presize, size)
    return clone_with(model, size=size, presize=side), data.replace(size=size, presize=side)


def choose_reading(readings: Sequence[Reading]) -> Reading:
    """The largest size that folds of the training photos do not speak against.

    That is, whose cross-validated loss is at most one standard error above the lowest, from the differences
    photo by photo. Without folds, the first.

    Args:
        readings: at rising sizes.
    """
    held_out = [reading.probe.held_out for reading in readings]
    known = [part for part in held_out if part is not None]
    if len(known) < len(readings):
        return readings[0]
    losses = [part.losses() for part in known]
    best = min(losses, key=np.mean)
    for reading, loss in zip(reversed(readings), reversed(losses), strict=True):
        differences = loss - best
        if differences.mean() <= differences.std(ddof=1) / np.sqrt(len(differences)):
            return reading
    return readings[0]
