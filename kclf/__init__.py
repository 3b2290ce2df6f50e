"""World-class image classifiers in Keras 3 on torch: the fast.ai workflow as parts of `model.fit`."""

import os as _os
import sys as _sys

if "keras" not in _sys.modules:
    _os.environ.setdefault("KERAS_BACKEND", "torch")

from . import datasets
from .acceleration import accelerate, deaccelerate
from .backbones import backbone_names
from .callbacks import (
    CollapseDetector,
    CosineRestarts,
    EpochTable,
    FlatCosine,
    LearningRateFinder,
    OneCycle,
    Recorder,
    Schedule,
    find_learning_rate,
)
from .data import ImageData, ImageDataset
from .errors import (
    BackboneError,
    DataError,
    FileFormatError,
    ImageError,
    KclfError,
    OutputExistsError,
    TrainingError,
    WeightsError,
    WeightsUnavailableError,
)
from .files import cv_indices, regex_label
from .layers import (
    Augmentation,
    ConcatPooling,
    InputNormalization,
    aug_transforms,
    basic,
    none,
    side_on,
    top_down,
)
from .models import ImageClassifier, load
from .optimizers import FusedLossScaleOptimizer, LayerGroupOptimizer
from .predict import Predictions, predict, predict_files, predict_tta

__version__ = "0.1.0.dev0"

__all__ = [
    "Augmentation",
    "BackboneError",
    "CollapseDetector",
    "ConcatPooling",
    "CosineRestarts",
    "DataError",
    "EpochTable",
    "FileFormatError",
    "FlatCosine",
    "FusedLossScaleOptimizer",
    "ImageClassifier",
    "ImageData",
    "ImageDataset",
    "ImageError",
    "InputNormalization",
    "KclfError",
    "LayerGroupOptimizer",
    "LearningRateFinder",
    "OneCycle",
    "OutputExistsError",
    "Predictions",
    "Recorder",
    "Schedule",
    "TrainingError",
    "WeightsError",
    "WeightsUnavailableError",
    "accelerate",
    "aug_transforms",
    "backbone_names",
    "basic",
    "cv_indices",
    "datasets",
    "deaccelerate",
    "find_learning_rate",
    "load",
    "none",
    "predict",
    "predict_files",
    "predict_tta",
    "regex_label",
    "side_on",
    "top_down",
]
