"""Temperature, thresholds and conformal scores from photos that a classifier was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from ..data.decision import Decision
from ..metrics import best_thresholds, safe_log
from ..prediction.predictions import Predictions

FEWEST = 20  # photos; from fewer, nothing is decided
MOST_SCORES = 2000
PRIOR = 0.3  # standard deviation of log temperature; without it, photos that are all right ask for 0


def fit_decision(held_out: Predictions | None) -> Decision | None:
    """What a classifier should make of its logits, by photos that it was not trained on.

    Args:
        held_out: predictions of these photos at temperature 1, with labels.

    Returns:
        None where there are too few photos, or where they are numbers.

    Example:
        >>> rows = np.tile([[0.99, 0.01], [0.01, 0.99]], (50, 1))
        >>> sure = Predictions(rows, np.arange(100) % 2 ^ (np.arange(100) % 5 == 0))
        >>> fit_decision(sure).temperature > 2
        True
    """
    if held_out is None or held_out.labels is None or held_out.task == "regression" or len(held_out) < FEWEST:
        return None
    temperature = fit_temperature(held_out)
    calibrated = at_temperature(held_out, temperature)
    if held_out.task == "multi_label":
        thresholds = best_thresholds(calibrated.probabilities, held_out.labels)
        return Decision(temperature, thresholds=tuple(thresholds.tolist()))
    scores = 1 - calibrated.probabilities[np.arange(len(calibrated)), held_out.labels]
    if len(scores) > MOST_SCORES:
        scores = np.random.default_rng(0).choice(scores, MOST_SCORES, replace=False)
    return Decision(temperature, conformity=tuple(np.sort(scores.astype(np.float64).clip(0, 1)).tolist()))


def fit_temperature(held_out: Predictions) -> float:
    """The temperature with the lowest log loss, drawn towards 1 by a prior: log T ~ N(0, .3).

    Args:
        held_out: predictions at temperature 1, with labels.
    """

    def cost(log_temperature: float) -> float:
        losses = at_temperature(held_out, float(np.exp(log_temperature))).losses()
        return float(losses.sum()) + log_temperature**2 / (2 * PRIOR**2)

    return float(np.exp(minimize_scalar(cost, bounds=(-3, 3), method="bounded").x))


def at_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """Predictions with their logits divided by a temperature."""
    p = np.asarray(predictions.probabilities, np.float64)
    if predictions.task == "multi_label":
        logits = (safe_log(p) - safe_log(1 - p)) / temperature
        return replace(predictions, probabilities=1 / (1 + np.exp(-logits)))
    return replace(predictions, probabilities=softmax(safe_log(p) / temperature, axis=1))


def cross_fitted(held_out: Predictions) -> Predictions:
    """Each half of the photos at the temperature of the other half: what calibration does on new ones."""
    values = np.array(held_out.probabilities, np.float64)
    for half, other in halves(len(held_out), seed=1):
        temperature = fit_temperature(held_out.take(other))
        values[half] = at_temperature(held_out.take(half), temperature).probabilities
    return replace(held_out, probabilities=values)


def halves(count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of a random half of the photos and of the other half, and the other way round; none of one."""
    first = np.random.default_rng(seed).permutation(count) < count / 2
    for half in (first, ~first):
        if count > 1:
            yield np.flatnonzero(half), np.flatnonzero(~half)
