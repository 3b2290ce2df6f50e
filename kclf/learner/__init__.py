"""`Learner`: the course's commands, each a few lines over `model.fit` and the parts of kclf."""

from ..callbacks.snapshots import BestModel, better_direction
from ..prediction.predictions import write_submission
from .cross_validation import Folds, cross_validate
from .learner import Learner, load_learner
from .training import Training

__all__ = [
    "BestModel",
    "Folds",
    "Learner",
    "Training",
    "better_direction",
    "cross_validate",
    "load_learner",
    "write_submission",
]
