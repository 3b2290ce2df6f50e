"""Looking inside: where a model errs, how sure the figures are, whether its probabilities are true."""

from .calibration import Abstention, Calibration
from .confusion import Confusion, ConfusionMatrix
from .gallery import Example, Gallery
from .gradcam import GradCam, grad_cam
from .interpretation import ClassScore, Interpretation, ScoreTable, compare
from .similar import Neighbour, SimilarPhotos
from .statistics import Comparison, Interval, wilson_interval

__all__ = [
    "Abstention",
    "Calibration",
    "ClassScore",
    "Comparison",
    "Confusion",
    "ConfusionMatrix",
    "Example",
    "Gallery",
    "GradCam",
    "Interpretation",
    "Interval",
    "Neighbour",
    "ScoreTable",
    "SimilarPhotos",
    "compare",
    "grad_cam",
    "wilson_interval",
]
