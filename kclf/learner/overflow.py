"""Numbers that float16 does not hold: a run goes on in a format that does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import keras

from ..errors import NotFiniteError
from ..models.clone import rebuilt

if TYPE_CHECKING:
    from .learner import Learner

FLOAT16 = "mixed_float16"
T = TypeVar("T")


class Overflow:
    """Whether a run in float16 has come upon numbers that are too large for that.

    It goes with the run's checkpoints.

    Attributes:
        fell: True since it goes on in another format.
    """

    def __init__(self) -> None:
        self.fell = False

    def state_dict(self) -> dict[str, bool]:
        """What a checkpoint keeps."""
        return {"fell": self.fell}

    def load_state_dict(self, state: Mapping[str, bool]) -> None:
        """Refuse to go on in float16 where the run has left it.

        Raises:
            FellBefore: the checkpoint was saved after that.
        """
        if state["fell"] and not self.fell:
            raise FellBefore("The run went on in another format, as its numbers are too large for float16")


class FellBefore(NotFiniteError):
    """A run that goes on had left float16 before it was cut off."""


def through_overflow(
    learner: Learner, callbacks: Sequence[keras.callbacks.Callback], fit: Callable[[], T]
) -> T:
    """Fit; and where float16 does not suffice, go on from the last checkpoint as `on_overflow` says.

    The loss is scaled as before, which changes nothing in the other formats, so that the optimizer's state
    stays what it is.

    Args:
        learner: what is trained; its model is another one afterwards if it came to that.
        callbacks: of the fit; those with a `classifier` get the new one.
        fit: trains the learner's model.

    Returns:
        What `fit` gives.

    Raises:
        NotFiniteError: another format would not help, or does not.
    """
    try:
        return fit()
    except NotFiniteError as error:
        to, before = learner.training.on_overflow, learner.model
        if to == "stop" or before.dtype_policy.name != FLOAT16 or error.inputs or learner.checkpoint is None:
            raise
        learner.checkpoint.go_back()
        if not isinstance(error, FellBefore):
            place, said = learner.checkpoint.position, str(error).rstrip(".")
            warnings.warn(f"{said}. Going on from {place} in {to}, as on_overflow says.", stacklevel=4)
    learner.model = rebuilt(before, dtype=to)
    learner.overflow.fell = True
    for callback in callbacks:
        if getattr(callback, "classifier", None) is before:
            vars(callback)["classifier"] = learner.model
    return fit()
