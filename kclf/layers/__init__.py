"""Layers: augmentation in one resample, the backbone's normalisation, pooling, and the mixing of images."""

from .augmentation import Augmentation, Transformation
from .mixing import CutMix, MixUp, RandomErasing
from .normalization import InputNormalization
from .pooling import ConcatPooling
from .presets import aug_transforms, basic, none, side_on, top_down, trivial
from .stack import AugmentationStack, as_augmentation
from .targets import TargetUnits

__all__ = [
    "Augmentation",
    "AugmentationStack",
    "ConcatPooling",
    "CutMix",
    "InputNormalization",
    "MixUp",
    "RandomErasing",
    "TargetUnits",
    "Transformation",
    "as_augmentation",
    "aug_transforms",
    "basic",
    "none",
    "side_on",
    "top_down",
    "trivial",
]
