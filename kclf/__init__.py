"""World-class image classifiers in Keras 3 on torch: the fast.ai workflow as parts of `model.fit`."""

import os as _os
import sys as _sys

if "keras" not in _sys.modules:
    _os.environ.setdefault("KERAS_BACKEND", "torch")

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

__version__ = "0.1.0.dev0"

__all__ = [
    "BackboneError",
    "DataError",
    "FileFormatError",
    "ImageError",
    "KclfError",
    "OutputExistsError",
    "TrainingError",
    "WeightsError",
    "WeightsUnavailableError",
]
