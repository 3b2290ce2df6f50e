"""The whole recipe: plan, solve the last layer, tune from there, and keep the better of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch

from ..callbacks.run_state import assign
from ..data import ImageData, ImageDataset
from ..errors import DataError, NotFiniteError, RunStopped
from ..models import ImageClassifier
from ..prediction.inference import predict
from ..prediction.predictions import Predictions
from .budget import Plan, plan_best
from .linear_probe import LinearProbe, fit_linear_probe
from .solving import make_folds
from .tuning import Comparison, Fit, describe_estimate, tune


@dataclass(frozen=True)
class BestFit:
    """What `fit_best` did.

    Args:
        plan: what it set out to do.
        probe: the solved last layer.
        comparison: of solved and tuned classifier on the validation photos; None where one was not made.
        predictions: of the validation photos by the classifier that was kept; None where there are none.
        estimate: what to expect on new photos: of validation photos, cross-fitted where they made a choice,
            or cross-validated training photos; None where there are too few.
    """

    plan: Plan
    probe: LinearProbe
    comparison: Comparison | None
    predictions: Predictions | None
    estimate: Predictions | None

    @property
    def kept(self) -> str:
        """Which classifier the model is now: "probe" or "tuned"."""
        return "tuned" if self.comparison is not None and self.comparison.tuned_is_better else "probe"

    def __str__(self) -> str:
        lines = [str(self.probe)] if self.comparison is None else [str(self.comparison)]
        if self.estimate is not None:
            lines.append(f"On new photos: {describe_estimate(self.estimate)}")
        return "\n".join(lines)


def fit_best(
    model: ImageClassifier,
    data: ImageData,
    *,
    effort: str = "standard",
    minutes: float | None = None,
    plan: Plan | None = None,
    folder: str | PathLike[str] | None = None,
    fit: Fit | None = None,
    say: Callable[[str], None] = print,
    solved: Callable[[], None] | None = None,
    progress: bool = False,
) -> BestFit:
    """Train the best classifier that these photos and this time allow.

    The last layer is solved (`fit_linear_probe`), everything is tuned from there, and of the two classifiers
    the one with the lower loss on the validation photos is kept. Whatever ends the tuning early, the model
    is left as the better one.

    Args:
        model: an `ImageClassifier`, best with `hidden=()`.
        data: its photos; without validation photos a fifth of the training photos takes their place.
        effort: "quick" solves the last layer alone; "standard" and "best" tune.
        minutes: how long it may take; None leaves it to the effort.
        plan: what to do, in place of effort and minutes; from `plan_best`.
        folder: keep the activations there; None computes them each time.
        fit: trains the model on data for some epochs under a schedule; None is `model.fit`.
        say: takes the lines that are printed.
        solved: called when the model is the solved classifier.
        progress: show a progress bar while the backbone looks at the photos.

    Returns:
        What was done, and what to expect of the classifier.

    Example:
        >>> import numpy as np, kclf
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
        >>> data = kclf.ImageData.from_arrays((images, ["cat", "dog"] * 10))
        >>> model = ImageClassifier("MobileNetV2", data.class_names, size=32, weights=None, hidden=())
        >>> fit_best(model, data, effort="quick", say=lambda line: None).kept
        'probe'
    """
    held_apart = data.valid is None and effort != "quick" and (plan is None or plan.passes > 0)
    data = _with_validation(data) if held_apart else data
    plan = plan or plan_best(model, data, effort=effort, minutes=minutes)
    say(plan.describe(model.size))
    probe = fit_linear_probe(model, data, views=plan.views, folder=folder, progress=progress)
    before = None if data.valid is None else predict(model, data.valid)
    say(str(probe) if before is None else f"{probe}; validation: {before}")
    if solved is not None:
        solved()
    if not plan.passes or before is None:
        return BestFit(plan, probe, None, before, before or probe.held_out)
    comparison = _tuned(model, data, plan, before, fit)
    if held_apart:
        return BestFit(plan, probe, comparison, None, probe.held_out)
    return BestFit(plan, probe, comparison, comparison.kept, comparison.cross_fitted)


def _tuned(
    model: ImageClassifier, data: ImageData, plan: Plan, before: Predictions, fit: Fit | None
) -> Comparison:
    """Tune, and leave the model as the better of what it was and what it became, even when stopped."""
    solved = [variable.value.detach().clone() for variable in model.variables]
    try:
        tune(model, data, plan, fit=fit)
    except NotFiniteError:
        assign([variable.value for variable in model.variables], solved)
        raise
    except (RunStopped, KeyboardInterrupt):
        _keep_better(model, data, before, solved)
        raise
    return _keep_better(model, data, before, solved)


def _keep_better(
    model: ImageClassifier, data: ImageData, before: Predictions, solved: list[torch.Tensor]
) -> Comparison:
    """Compare the model with what it was, and give it the weights of then where that was better."""
    comparison = Comparison(before, predict(model, data.valid))
    if not comparison.tuned_is_better:
        assign([variable.value for variable in model.variables], solved)
    return comparison


def _with_validation(data: ImageData) -> ImageData:
    """The data with a fifth of the training photos as validation photos."""
    train = data.train
    if train.labels is None:
        raise DataError(f"Expected training photos with labels. Received: {train!r}")
    labels = train.labels
    held_out = make_folds(labels, train.task, 5, train.seed) == 0

    def part(rows: np.ndarray, **changes: Any) -> ImageDataset:
        source = train.dataset.take(np.flatnonzero(rows))
        return train.replace(images=source, labels=labels[rows], **changes)

    plain = {"shuffle": False, "random_crop": False, "drop_last": False, "class_weight": None}
    chances = train.sampling_weights
    rest = part(~held_out, sampling_weights=None if chances is None else chances[~held_out])
    return ImageData(rest, part(held_out, **plain, sampling_weights=None), data.test, size=data.size)
