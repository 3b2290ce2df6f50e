"""Fine-tuning that begins at the solved last layer and never ends below it.

Linear probing, then fine-tuning (LP-FT): Kumar et al. 2022, https://arxiv.org/abs/2202.10054. A last layer
that is right from the first step sends the backbone small gradients, which keep what its features are worth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np

from .._core.sizes import Size, size_text
from ..callbacks import OneCycle, Schedule
from ..callbacks.steps import steps_of_run
from ..data import ImageData
from ..distributed import run_on_main
from ..interpret.statistics import wilson_interval
from ..models import ImageClassifier
from ..optimizers import LayerGroupOptimizer
from ..prediction.predictions import Predictions, mean_gain
from .budget import Plan
from .deciding import at_temperature, cross_fitted, fit_temperature, halves

Fit = Callable[[ImageData, int, Schedule], Any]


@dataclass(frozen=True)
class Comparison:
    """The solved classifier and the tuned one on the same photos, which neither was trained on.

    Args:
        probe: predictions of the solved classifier.
        readings: predictions of the tuned one by the size that it reads photos at, pixels.
    """

    probe: Predictions
    readings: Mapping[Size, Predictions]

    def choose(self, rows: np.ndarray) -> Size | None:
        """What has the lowest loss on some of the photos, each at the temperature that they ask for.

        Args:
            rows: int (m,), places of the photos.

        Returns:
            The size at which the tuned classifier has it; None where the solved one has.
        """
        candidates: dict[Size | None, Predictions] = {None: self.probe} | dict(self.readings)
        figures = {size: _tempered_loss(found.take(rows)) for size, found in candidates.items()}
        return min(figures, key=lambda size: figures[size])

    @cached_property
    def choice(self) -> Size | None:
        """What is best on all photos, where the same choice on one half of them holds on the other half.

        One that wins by no more than a standard error, or only where it was chosen, may have won by chance:
        the solved classifier is then kept.
        """
        mean, error = self._gain
        return self.choose(np.arange(len(self.probe))) if mean < -error else None

    @property
    def tuned_is_better(self) -> bool:
        """Whether the tuned classifier has the lower loss by more than its standard error."""
        return self.choice is not None

    @property
    def kept(self) -> Predictions:
        """Predictions of the better one, as they come."""
        choice = self.choice
        return self.probe if choice is None else self.readings[choice]

    @property
    def cross_fitted(self) -> Predictions:
        """What to expect of the better one: each half as it is predicted by what is best on the other half.

        What is chosen on photos looks better on them than it is; this does not.
        """
        return self.probe if self.choice is None else self._halves

    @cached_property
    def _gain(self) -> tuple[float, float]:
        """What tuning adds to the loss, and the standard error of that; nan of a single photo."""
        return mean_gain(_calibrated(self._halves).losses(), _calibrated(self.probe).losses())

    @cached_property
    def _halves(self) -> Predictions:
        values = self.probe.probabilities.copy()
        for half, other in halves(len(self.probe), seed=0):
            choice = self.choose(other)
            if choice is not None:
                values[half] = self.readings[choice].probabilities[half]
        return replace(self.probe, probabilities=values)

    def __str__(self) -> str:
        before, (mean, error), choice = _calibrated(self.probe).losses().mean(), self._gain, self.choice
        kept = "linear probe" if choice is None else f"tuned, read at {size_text(choice)} px"
        return (
            f"{loss_name(self.probe.task)} {before:.4f} -> {before + mean:.4f} by tuning "
            f"({mean:+.4f} ± {error:.4f}) on {len(self.probe):,} photos; kept: {kept}"
        )


def _tempered_loss(predictions: Predictions) -> float:
    """Mean loss at the temperature with the lowest; numbers have none."""
    if predictions.task != "regression":
        predictions = at_temperature(predictions, fit_temperature(predictions))
    return float(predictions.losses().mean())


def _calibrated(predictions: Predictions) -> Predictions:
    return predictions if predictions.task == "regression" else cross_fitted(predictions)


def loss_name(task: str) -> str:
    """What the losses of photos are called."""
    return "mean absolute error" if task == "regression" else "log loss"


def describe_estimate(predictions: Predictions) -> str:
    """What to expect on new photos, with the interval that 95 of 100 such figures hold the truth in."""
    losses = predictions.losses()
    error = 1.96 * losses.std(ddof=1) / np.sqrt(len(losses)) if len(losses) > 1 else np.nan
    loss = f"{loss_name(predictions.task)} {losses.mean():.4f} ± {error:.4f}"
    if predictions.task == "regression":
        return f"{loss} ({len(losses):,} photos)"
    accuracy = wilson_interval(predictions.hits().sum(), len(predictions))
    return f"accuracy {accuracy}, {loss} ({len(losses):,} photos)"


def tune(
    model: ImageClassifier,
    data: ImageData,
    plan: Plan,
    *,
    fit: Fit | None = None,
    until: float | None = None,
) -> None:
    """Train everything gently from the solved last layer, for the passes of a plan.

    The features are normalised as when the last layer was solved, in training too, so that the first step
    finds the classifier as it is.

    Args:
        model: an `ImageClassifier` whose last layer `fit_linear_probe` has solved.
        data: its photos.
        plan: passes, rates and batch size.
        fit: trains the model on data for so many epochs under a schedule; None is `model.fit`.
        until: the moment by `time.monotonic()` at which everything must be over; None leaves it the time that
            it takes.
    """
    model.unfreeze()
    with _stored_statistics(model):
        train = data.replace(batch_size=plan.batch_size)
        schedule = one_cycle(plan, len(model.layer_groups), until=until)
        if fit is not None:
            fit(train, plan.passes, schedule)
            return
        optimizer = keras.optimizers.AdamW(beta_2=0.99, epsilon=1e-5, weight_decay=0.01)
        model.compile(LayerGroupOptimizer(optimizer, model))
        model.fit(train.train, epochs=plan.passes, callbacks=[schedule], verbose=0)


class OneCycleInTime(OneCycle):
    """One cycle that ends on time: where steps take longer than was planned, each covers more of the cycle.

    What comes after it is thought to be late by the same factor. In time, it is `OneCycle`, step by step.

    Args:
        *rates: as for `OneCycle`.
        plan: says how long the steps, and what comes after them, should take.
        until: the moment, by `clock`, at which everything must be over; None sets no limit.
        clock: tells the time in seconds.
        **options: as for `OneCycle`.
    """

    def __init__(
        self,
        *rates: Any,
        plan: Plan,
        until: float | None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        super().__init__(*rates, **options)
        self._plan, self._until, self._clock = plan, until, clock
        self._place, self._ahead = 0.0, 0.0
        self._began: tuple[int, float] | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Learn the length of the run."""
        super().on_train_begin(logs)
        self._num_steps = steps_of_run(self.params)[0]

    def place(self, step: int) -> float:
        """The number of the batch, and what those before it have covered besides."""
        if (until := self._until) is not None:
            self._ahead = run_on_main(lambda: self._late(step, until))
        self._place = min(step + self._ahead, self._num_steps - 1.0)
        return self._place

    def _late(self, step: int, until: float) -> float:
        """Steps to be ahead of the batch's number."""
        now = self._clock()
        if self._began is None or step <= self._began[0]:
            self._began = (step, now)  # the first step, which compiles what it needs, says nothing
            return self._ahead
        pace = (now - self._began[1]) / (step - self._began[0])
        slower = pace * self._num_steps / max(self._plan.tuning_seconds, 1e-9)
        left = until - now - self._plan.end_seconds * max(1.0, slower)
        to_do, possible = self._num_steps - step - self._ahead, max(1.0, left / max(pace, 1e-9))
        return self._ahead + max(0.0, to_do / possible - 1)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop where the cycle is over before its steps are."""
        if self._ahead and self._place >= self._num_steps - 1:
            self.model.stop_training = True

    def state_dict(self) -> dict[str, float]:
        """How far the cycle is ahead of its steps."""
        return {"ahead": self._ahead}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from there."""
        self._ahead, self._began = float(state["ahead"]), None


def one_cycle(plan: Plan, num_groups: int, *, until: float | None = None) -> OneCycle:
    """The schedule of a plan: discriminative rates, from those of the first layer group to the head's."""
    shares = np.linspace(1.0, 0.0, num_groups - 1) if num_groups > 2 else np.zeros(num_groups - 1)
    rates = [*(plan.body_rate * plan.first_group**shares).tolist(), plan.head_rate]
    options: dict[str, Any] = {"pct_start": plan.warmup, "div": 25.0, "div_final": 1e4, "momentum": None}
    return OneCycleInTime(rates, plan=plan, until=until, **options)


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
