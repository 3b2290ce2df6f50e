"""Looking inside: where a model errs, how sure the figures are, whether its probabilities are true."""

from .calibration import Abstention, Calibration
from .confusion import Confusion, ConfusionMatrix
from .gallery import Example, Gallery
from .gradcam import GradCam, grad_cam
from .interpretation import (
    AnyInterpretation,
    ClassScore,
    Interpretation,
    ScoreTable,
    compare,
    interpretation_of,
)
from .numbers import RegressionInterpretation
from .several_labels import LabelScore, MultiLabelInterpretation
from .similar import Neighbour, SimilarPhotos
from .statistics import Comparison, Interval, wilson_interval

__all__ = [
    "Abstention",
    "AnyInterpretation",
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
    "LabelScore",
    "MultiLabelInterpretation",
    "Neighbour",
    "RegressionInterpretation",
    "ScoreTable",
    "SimilarPhotos",
    "compare",
    "grad_cam",
    "interpretation_of",
    "wilson_interval",
]
