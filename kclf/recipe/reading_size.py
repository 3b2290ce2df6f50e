"""The size that photos are read at, chosen in folds of the training photos.

Objects look larger in training, by its crops, than in a prediction; read a little larger, photos look as they
did: Touvron et al. 2019, https://arxiv.org/abs/1906.06423.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._core.sizes import Size, presize_for
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


def at_size(model: ImageClassifier, data: ImageData, size: Size) -> tuple[ImageClassifier, ImageData]:
    """A classifier and its photos for another size; themselves for the same.

    Args:
        model: the classifier.
        data: its photos.
        size: of the images that the backbone sees, pixels.
    """
    if size == model.size:
        return model, data
    sizes = {"size": size, "presize": presize_for(size, data.presize)}
    return clone_with(model, **sizes), data.replace(**sizes)


def choose_reading(readings: Sequence[Reading]) -> Reading:
    """The largest size that folds of the training photos speak for: a larger one costs more for good.

    That is, whose cross-validated loss is more than one standard error below that of the size chosen until
    then, from the differences photo by photo. Without folds, the first.

    Args:
        readings: at rising sizes.
    """
    chosen = readings[0]
    for reading in readings[1:]:
        before, after = chosen.probe.held_out, reading.probe.held_out
        if before is None or after is None:
            return readings[0]
        gains = before.losses() - after.losses()
        if gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)):
            chosen = reading
    return chosen
