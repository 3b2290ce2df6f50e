"""Fine-tuning that begins at the solved last layer and never ends below it.

Linear probing, then fine-tuning (LP-FT): Kumar et al. 2022, https://arxiv.org/abs/2202.10054. A last layer
that is right from the first step sends the backbone small gradients, which keep what its features are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from ..callbacks import OneCycle, Schedule
from ..data import ImageData
from ..interpret.calibration import apply_temperature, fit_temperature
from ..interpret.statistics import wilson_interval
from ..models import ImageClassifier
from ..optimizers import LayerGroupOptimizer
from ..prediction.predictions import Predictions
from .budget import Plan

TEMPERATURES = (0.5, 3.0)
PRIOR_PHOTOS = 20
Fit = Callable[[ImageData, int, Schedule], Any]


@dataclass(frozen=True)
class Comparison:
    """The solved classifier and the tuned one on the same photos, which neither was trained on.

    Args:
        probe: predictions of the solved classifier.
        readings: predictions of the tuned one by the size that it reads photos at, pixels.
    """

    probe: Predictions
    readings: Mapping[int, Predictions]

    def choose(self, rows: np.ndarray) -> tuple[int, float]:
        """Size and temperature with which the tuned classifier has the lowest loss on some of the photos.

        Args:
            rows: bool (n,).
        """
        temperatures = {size: temperature_of(found.take(rows)) for size, found in self.readings.items()}
        tempered = {size: self._tempered(size, t).take(rows) for size, t in temperatures.items()}
        best = min(tempered, key=lambda size: photo_losses(tempered[size]).mean())
        return best, temperatures[best]

    def _tempered(self, size: int, temperature: float) -> Predictions:
        return with_temperature(self.readings[size], temperature)

    @property
    def choice(self) -> tuple[int, float]:
        """Size and temperature of the tuned classifier, by all photos."""
        return self.choose(np.ones(len(self.probe), bool))

    @property
    def tuned(self) -> Predictions:
        """Predictions of the tuned classifier at its size and temperature."""
        return self._tempered(*self.choice)

    @property
    def tuned_is_better(self) -> bool:
        """Whether the tuned classifier has the lower loss."""
        return bool(photo_losses(self.tuned).mean() < photo_losses(self.probe).mean())

    @property
    def kept(self) -> Predictions:
        """Predictions of the better one."""
        return self.tuned if self.tuned_is_better else self.probe

    @property
    def cross_fitted(self) -> Predictions:
        """Each half of the photos as it is predicted by what is best on the other half.

        What is chosen on photos looks better on them than it is; this does not.
        """
        first = np.random.default_rng(0).permutation(len(self.probe)) < len(self.probe) / 2
        values = self.probe.probabilities.copy()
        for half in (first, ~first):
            if not half.any() or half.all():
                continue
            tuned = self._tempered(*self.choose(~half))
            if photo_losses(tuned.take(~half)).mean() < photo_losses(self.probe.take(~half)).mean():
                values[half] = tuned.probabilities[half]
        return replace(self.probe, probabilities=values)

    def __str__(self) -> str:
        before, after = photo_losses(self.probe), photo_losses(self.cross_fitted)
        gain = after - before
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
        size, temperature = self.choice
        kept = f"tuned, read at {size} px" if self.tuned_is_better else "linear probe"
        if self.tuned_is_better and temperature != 1:
            kept += f", temperature {temperature:.2f}"
        return (
            f"{loss_name(self.probe.task)} {before.mean():.4f} -> {after.mean():.4f} by tuning "
            f"({gain.mean():+.4f} ± {error:.4f}) on {len(gain):,} photos; kept: {kept}"
        )


def temperature_of(predictions: Predictions) -> float:
    """The temperature that photos ask for, drawn towards 1 where they are few; 1 for numbers.

    The geometric mean of the best one (Guo et al. 2017, https://arxiv.org/abs/1706.04599) and 1, which weighs
    as much as 20 photos. Without errors among the photos the best one has no end.
    """
    if predictions.task != "single_label" or not len(predictions):
        return 1.0
    labels = np.asarray(predictions.labels)
    best = float(np.clip(fit_temperature(predictions.probabilities, labels), *TEMPERATURES))
    return float(best ** (len(labels) / (len(labels) + PRIOR_PHOTOS)))


def with_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """Predictions softer (above 1) or surer (below 1)."""
    if temperature == 1:
        return predictions
    return replace(predictions, probabilities=apply_temperature(predictions.probabilities, temperature))


def write_temperature(model: ImageClassifier, temperature: float) -> None:
    """Divide the logits of a classifier, by way of its last layer."""
    for variable in model.head.get_layer("logits").variables:
        variable.assign(variable.value / temperature)


def loss_name(task: str) -> str:
    """What `photo_losses` are called."""
    return "mean absolute error" if task == "regression" else "log loss"


def photo_losses(predictions: Predictions) -> np.ndarray:
    """Loss of each photo, float64 (n,): log loss, or the absolute error of numbers."""
    if predictions.task != "regression":
        return predictions.losses()
    labels = np.asarray(predictions.labels, np.float64).reshape(len(predictions), -1)
    return np.abs(predictions.probabilities - labels).mean(axis=1)


def describe_estimate(predictions: Predictions) -> str:
    """What to expect on new photos, with the interval that 95 of 100 such figures hold the truth in."""
    losses = photo_losses(predictions)
    error = 1.96 * losses.std(ddof=1) / np.sqrt(len(losses)) if len(losses) > 1 else np.nan
    loss = f"{loss_name(predictions.task)} {losses.mean():.4f} ± {error:.4f}"
    if predictions.task == "regression":
        return f"{loss} ({len(losses):,} photos)"
    accuracy = wilson_interval(predictions.hits().sum(), len(predictions))
    return f"accuracy {accuracy}, {loss} ({len(losses):,} photos)"


def tune(model: ImageClassifier, data: ImageData, plan: Plan, *, fit: Fit | None = None) -> None:
    """Train everything gently from the solved last layer, for the passes of a plan.

    The features are normalised as when the last layer was solved, in training too, so that the first step
    finds the classifier as it is.

    Args:
        model: an `ImageClassifier` whose last layer `fit_linear_probe` has solved.
        data: its photos.
        plan: passes, rates and batch size.
        fit: trains the model on data for so many epochs under a schedule; None is `model.fit`.
    """
    model.unfreeze()
    with _stored_statistics(model):
        train = data.replace(batch_size=plan.batch_size)
        (fit or _plain_fit(model))(train, plan.passes, one_cycle(plan, len(model.layer_groups)))


def one_cycle(plan: Plan, num_groups: int) -> OneCycle:
    """The schedule of a plan: discriminative rates, from those of the first layer group to the head's."""
    shares = np.linspace(1.0, 0.0, num_groups - 1) if num_groups > 2 else np.zeros(num_groups - 1)
    rates = [*(plan.body_rate * plan.first_group**shares).tolist(), plan.head_rate]
    return OneCycle(rates, pct_start=plan.warmup, div=25.0, div_final=1e4, momentum=None)


def _plain_fit(model: ImageClassifier, callbacks: Sequence[keras.callbacks.Callback] = ()) -> Fit:
    def fit(data: ImageData, passes: int, schedule: Schedule) -> None:
        optimizer = keras.optimizers.AdamW(beta_2=0.99, epsilon=1e-5, weight_decay=0.01)
        model.compile(LayerGroupOptimizer(optimizer, model))
        model.fit(data.train, epochs=passes, callbacks=[schedule, *callbacks], verbose=0)

    return fit


@contextmanager
def _stored_statistics(model: ImageClassifier) -> Iterator[None]:
    """Let the head's norm use its stored mean and variance in training; scale and shift learn."""
    norm = model.head.get_layer("norm")
    norm.trainable = False
    for variable in (norm.gamma, norm.beta):
        variable.trainable = True
    try:
        yield
    finally:
        norm.trainable = True
