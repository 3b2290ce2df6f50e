"""`Learner`: the course's commands, each a few lines over `model.fit` and the parts of kclf."""

from .best import BestModel, better_direction
from .folds import Folds, cross_validate, write_submission
from .learner import Learner, load_learner
from .options import Training

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
