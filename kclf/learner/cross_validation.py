"""Several runs on other splits of the data, and the file a competition wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import ImageData
from ..prediction.ensembles import average_predictions
from ..prediction.predictions import Predictions

if TYPE_CHECKING:
    from .learner import Learner


@dataclass(frozen=True)
class Folds:
    """What k models say that were trained on k splits.

    Args:
        valid: each photo's prediction by the model that did not train on it, fold after fold.
        test: mean of the models' probabilities for the test photos, or None where there are none.
        accuracies: of each fold on its validation photos.
    """

    valid: Predictions
    test: Predictions | None
    accuracies: tuple[float, ...]


def cross_validate(
    folds: Iterable[ImageData],
    train: Callable[[ImageData], Learner],
    *,
    predict: Callable[[Learner, str], Predictions] | None = None,
) -> Folds:
    """Train one model a fold, one after another; only their predictions are kept.

    Args:
        folds: data with another validation part each, such as
            `ImageData.from_csv(..., valid_indices=cv_indices(n, fold=i))` for i from 0 to 4.
        train: makes a learner for the data of one fold and trains it.
        predict: gives a trained learner's predictions of "valid" or "test"; None for the plain ones.
    """
    predict = predict or (lambda learner, split: learner.predictions(split))
    valid, test = [], []
    for data in folds:
        learner = train(data)
        valid.append(predict(learner, "valid"))
        if data.test is not None:
            test.append(predict(learner, "test"))
    if not valid:
        raise ValueError("Expected the data of one fold or more. Received: folds with nothing in it")
    accuracies = tuple(part.accuracy() for part in valid) if valid[0].task != "regression" else ()
    return Folds(_one_after_another(valid), average_predictions(test) if test else None, accuracies)


def _one_after_another(parts: list[Predictions]) -> Predictions:
    columns: dict[str, Any] = {
        name: None if getattr(parts[0], name) is None else np.concatenate([getattr(p, name) for p in parts])
        for name in ("probabilities", "labels", "paths")
    }
    return replace(parts[0], **columns)
