"""What a run's figures mean, in sentences."""

from __future__ import annotations

import numpy as np

from ..interpret import AnyInterpretation, Interpretation, RegressionInterpretation

FEW_PHOTOS = 100  # below, the interval of an accuracy is wider than 10 points
SURE = 0.05  # calibration error that no reader notices


def verdict(found: AnyInterpretation | None) -> list[str]:
    """How good a classifier is on its validation photos, and what to mind, as sentences.

    Args:
        found: the interpretation of the validation photos; None gives no sentence.
    """
    if not found:  # or of no photos
        return []
    photos = f"{len(found):,} validation photos"
    if isinstance(found, Interpretation):
        return _single_label(found, photos)
    if isinstance(found, RegressionInterpretation):
        return [f"The mean error on {photos} is {found.losses.mean():.4g}."]
    return [f"{found.predictions.accuracy():.1%} of the yes-or-no answers on {photos} are right."]


def _single_label(found: Interpretation, photos: str) -> list[str]:
    accuracy = found.accuracy
    counts = np.bincount(found.labels, minlength=len(found.class_names))
    guess = counts.max() / counts.sum()
    interval = f"95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}"
    lines = [f"{accuracy.value:.1%} of {photos} are right ({interval})."]
    if accuracy.low <= guess:
        often = found.class_names[int(counts.argmax())]
        lines.append(
            f"That is not surely better than always answering {often}, which is right on {guess:.1%}."
        )
    elif confused := found.most_confused()[:1]:
        one = confused[0]
        lines.append(f"Most confused: {one.actual} taken for {one.predicted} ({one.photos:,}).")
    if len(found) < FEW_PHOTOS:
        lines.append("There are few validation photos, so that the interval is wide.")
    return [*lines, *_calibration(found)]


def _calibration(found: Interpretation) -> list[str]:
    temperature = found.fit_temperature()
    if found.calibration().error <= SURE or 0.95 <= temperature <= 1.05:
        return []
    sure = "more sure of itself than it should be" if temperature > 1 else "less sure than it could be"
    return [f"The classifier is {sure}: see calibration."]
