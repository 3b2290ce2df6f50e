"""The levels of the backbone that are read, and the size of photos, chosen in folds of the training photos.

Objects look larger in training, by its crops, than in a prediction; read a little larger, photos look as they
did: Touvron et al. 2019, https://arxiv.org/abs/1906.06423. Photos unlike those of the pretraining are told
apart by what earlier levels see: `kclf.backbones.multi_level`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._core.sizes import Size, presize_for
from ..data import ImageData
from ..models import ImageClassifier
from ..models.clone import clone_with
from ..prediction.predictions import mean_gain
from .linear_probe import LinearProbe


@dataclass(frozen=True)
class Reading:
    """A classifier that reads photos at a size, by its last map or several levels; its last layer is solved.

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
    """The last reading that folds of the training photos speak for: each costs more than those before it.

    That is, whose cross-validated loss is more than one standard error below that of the one chosen until
    then, from the differences photo by photo. Without folds, the first.

    Args:
        readings: at rising cost.
    """
    chosen = readings[0]
    for reading in readings[1:]:
        before, after = chosen.probe.held_out, reading.probe.held_out
        if before is None or after is None:
            return readings[0]
        gain, error = mean_gain(before.losses(), after.losses())
        if gain > error:
            chosen = reading
    return chosen
