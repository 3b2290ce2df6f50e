"""Test-time augmentation: several views of each photo, averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import torch

from .._core.arguments import at_least, in_closed, one_of
from .._core.keywords import PREDICT, answering
from .._core.warning import warn_caller
from ..layers import Augmentation, geometry
from ..metrics import safe_log
from .inference import Views, predict_views
from .predictions import Predictions, TTAReport, mean_gain

VIEWS = ("random", "flip", "five_crops", "dihedral")
AVERAGES = ("arithmetic", "geometric", "max")
_CROP_SHARE = 0.875  # side of each of the five crops: 224 of 256 pixels, as in Krizhevsky et al. 2012


@answering(PREDICT)
def predict_tta(
    model: keras.Model,
    dataset: Any,
    n: int = 4,
    *,
    views: str = "random",
    average: str = "arithmetic",
    weight: float | None = None,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    from_logits: bool | None = None,
    together: bool = False,
    progress: bool = False,
) -> Predictions:
    """Average the predictions of several views of each photo: test-time augmentation.

    Each photo is read once. Nothing is drawn from the generator that training uses.

    Args:
        model: a model that begins with an `Augmentation`, or any model of images with `augmentation`.
        dataset: as for `predict`.
        n: number of random views.
        views: "random" (the training augmentation), "flip" (mirrored), "five_crops" (centre and corners, each
            also mirrored: 10 views) or "dihedral" (the 7 other symmetries of the square; the 3 of another
            rectangle).
        average: "arithmetic" mean of the probabilities, "geometric" (of their logarithms) or "max"; the
            last two are brought back to sum 1.
        weight: share of the plain view; None is 0.25 for random views, as in fastai 2, and as much as any
            other view for the fixed sets. Not used by "max".
        augmentation: draws the views; None takes the model's own.
        seed: of the random views.
        from_logits: whether the model gives logits; None sees it, as in `predict`.
        together: let the processes of `torchrun` divide the batches among them, as in `predict`.
        progress: show a bar.

    Returns:
        Averaged probabilities; what it gained over the plain view, and cost, is in `.tta`.
    """
    one_of("average", average, AVERAGES)
    seen = views_of(model, n, views, augmentation, seed)
    (plain, *augmented), seconds = predict_views(
        model, dataset, seen, from_logits, together=together, progress=progress
    )
    count = len(augmented)
    share = _plain_share(weight, views, count)
    averaged = average_views(
        plain.probabilities, [view.probabilities for view in augmented], share, average, plain.task
    )
    result = replace(plain, probabilities=averaged)
    report = TTAReport(count, average, share, sum(seconds), seconds[0], *_gains(plain, result))
    return replace(result, tta=report)


def average_views(
    plain: np.ndarray,
    others: Sequence[np.ndarray],
    weight: float = 0.25,
    average: str = "arithmetic",
    task: str = "single_label",
) -> np.ndarray:
    """Average the plain view of each photo with its other views.

    Args:
        plain: probabilities (n, classes) of the plain view.
        others: those of the other views, which count alike.
        weight: share of the plain view; not used by "max".
        average: "arithmetic", "geometric" or "max".
        task: "single_label" rows have sum 1; the columns of "multi_label" are independent.

    Returns:
        Float32 (n, classes).

    Example:
        >>> average_views(np.array([[1.0, 0.0]]), [np.array([[0.5, 0.5]])]).tolist()
        [[0.625, 0.375]]
    """
    if task == "regression" and average != "arithmetic":
        raise ValueError(f"Numbers can only be averaged arithmetically. Received: average={average!r}")
    views = np.stack([plain, *others]).astype(np.float64)
    shares = np.array([weight, *[(1 - weight) / len(others)] * len(others)])
    if average == "arithmetic":
        return np.tensordot(shares, views, axes=1).astype(np.float32)
    independent = task == "multi_label"
    if average == "max":
        return (views.max(axis=0) if independent else _to_sum_one(views.max(axis=0))).astype(np.float32)
    logs = np.tensordot(shares, safe_log(views), axes=1)
    if not independent:
        return _to_sum_one(np.exp(logs)).astype(np.float32)
    other_logs = np.tensordot(shares, safe_log(1 - views), axes=1)
    return (1 / (1 + np.exp(other_logs - logs))).astype(np.float32)


def _to_sum_one(rows: np.ndarray) -> np.ndarray:
    return rows / rows.sum(axis=1, keepdims=True)


def _augmentation_of(model: keras.Model) -> Augmentation:
    """The model's own augmentation."""
    candidates = [getattr(model, "augmentation", None), *getattr(model, "layers", [])]
    found = next((layer for layer in candidates if isinstance(layer, Augmentation)), None)
    if found is None:
        raise ValueError(
            "The model has no `Augmentation` to draw views from: pass `augmentation=aug_transforms(size)`. "
            f"Received: model={model.name!r}"
        )
    return found


def views_of(
    model: keras.Model,
    n: int,
    views: str = "random",
    augmentation: Augmentation | None = None,
    seed: int = 0,
) -> Views:
    """The views that `predict_tta` averages, the plain one first; arguments as there."""
    one_of("views", views, VIEWS)
    layer = _augmentation_of(model) if augmentation is None else augmentation
    if views == "random":
        at_least("n", n, 1)
        if not layer.is_random:
            warn_caller(
                "The model's augmentation draws nothing, so that its views are all the plain one: build the "
                'model with `augmentation=aug_transforms(size)`, or take `views="flip"`'
            )
        drawing = type(layer).from_config({**layer.get_config(), "seed": seed})

        def drawn(images: torch.Tensor) -> Iterator[torch.Tensor]:
            yield images
            for _ in range(n):
                yield drawing(images, training=True)

        def skip(count: int, height: int, width: int) -> None:
            for _ in range(n):
                drawing.draw(count, height, width, training=True)

        return Views(drawn, skip, n + 1)
    maps = _fixed_maps(views, is_square=layer.size is None or layer.size[0] == layer.size[1])

    def fixed(images: torch.Tensor) -> Iterator[torch.Tensor]:
        yield images
        plain = layer.draw(len(images), *images.shape[1:3], training=False)
        for view in maps:
            yield layer.apply(images, replace(plain, maps=plain.maps @ view))

    return Views(fixed, count=len(maps) + 1)


def _fixed_maps(views: str, *, is_square: bool) -> torch.Tensor:
    """Maps (views, 3, 3) of a fixed set, float64."""
    if views == "flip":
        return geometry.dihedral(torch.tensor([1]))
    if views == "dihedral":
        return geometry.dihedral(torch.arange(1, 8) if is_square else torch.tensor(geometry.OF_RECTANGLE[1:]))
    x, y = torch.tensor([[0.5, 0.5], [0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64).T
    side = torch.full((5,), _CROP_SHARE, dtype=torch.float64)
    crops = geometry.crop(side, side, x, y)
    return torch.cat([crops, crops @ geometry.dihedral(torch.tensor([1]))])


def _plain_share(weight: float | None, views: str, count: int) -> float:
    if weight is None:
        return 0.25 if views == "random" else 1 / (count + 1)
    return in_closed("weight", weight, 0, 1)


def _gains(plain: Predictions, averaged: Predictions) -> tuple[float, ...]:
    """Gain in accuracy over the plain view and its standard error, and those of the log loss."""
    if plain.labels is None or plain.task == "regression" or not len(plain):
        return ()
    accuracy = mean_gain(averaged.hits(), plain.hits())
    return (*accuracy, *mean_gain(averaged.losses(), plain.losses()))
