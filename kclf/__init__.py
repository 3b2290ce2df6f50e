"""World-class image classifiers in Keras 3 on torch: the fast.ai workflow as parts of `model.fit`."""

import os as _os
import sys as _sys

if "keras" not in _sys.modules:
    _os.environ.setdefault("KERAS_BACKEND", "torch")
    _backend = _os.environ["KERAS_BACKEND"]
else:
    _backend = _sys.modules["keras"].backend.backend()

# The command imports what it needs when it needs it: `kclf --help` waits for no torch.
_WORDS = [_os.path.basename(word).removesuffix(".exe") for word in _sys.orig_argv]
_IS_COMMAND = "kclf" in _WORDS[:2] or "-m kclf" in " ".join(_WORDS[:6])

if _backend != "torch":
    _message = (
        "kclf needs Keras' torch backend: leave KERAS_BACKEND out or set it to torch, and import kclf before "
        f"keras. Received: {_backend!r}"
    )
    if _IS_COMMAND:
        _sys.exit(_message)
    raise ImportError(_message)

if not _IS_COMMAND:
    from . import datasets, schedules
    from ._core.settings import TrainSettings
    from .acceleration import accelerate, deaccelerate
    from .backbones import backbone_info, backbone_names, backbone_table, build_backbone
    from .callbacks import (
        Checkpoint,
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
    from .checks import apply_ledger, check
    from .data import ImageData, ImageDataset
    from .data.labels import regex_label
    from .data.splits import cv_indices
    from .errors import (
        BackboneError,
        DataError,
        FileFormatError,
        FolderLockedError,
        ImageError,
        KclfError,
        NotFiniteError,
        OutputError,
        OutputExistsError,
        RunStopped,
        TrainingError,
        WeightsError,
        WeightsUnavailableError,
    )
    from .interpret import Interpretation, compare, grad_cam
    from .layers import (
        Augmentation,
        ConcatPooling,
        CutMix,
        InputNormalization,
        MixUp,
        aug_transforms,
        side_on,
        top_down,
    )
    from .learner import Learner, load_learner
    from .models import ImageClassifier, imagenet_classifier, load
    from .models.export import to_onnx
    from .optimizers import FusedLossScaleOptimizer, LayerGroupOptimizer, layer_decay
    from .precision import set_precision
    from .prediction.ensembles import SnapshotEnsemble
    from .prediction.exported import ExportedClassifier, load_onnx
    from .prediction.inference import predict, predict_files
    from .prediction.predictions import Predictions
    from .prediction.tta import predict_tta
    from .recipe import BestFit, LinearProbe, fit_best, fit_linear_probe
    from .report import write_report
    from .weights import from_torch, load_weights, to_torch

__version__ = "0.2.0"

__all__ = [
    "Augmentation",
    "BackboneError",
    "BestFit",
    "Checkpoint",
    "CollapseDetector",
    "ConcatPooling",
    "CosineRestarts",
    "CutMix",
    "DataError",
    "EpochTable",
    "ExportedClassifier",
    "FileFormatError",
    "FlatCosine",
    "FolderLockedError",
    "FusedLossScaleOptimizer",
    "ImageClassifier",
    "ImageData",
    "ImageDataset",
    "ImageError",
    "InputNormalization",
    "Interpretation",
    "KclfError",
    "LayerGroupOptimizer",
    "Learner",
    "LearningRateFinder",
    "LinearProbe",
    "MixUp",
    "NotFiniteError",
    "OneCycle",
    "OutputError",
    "OutputExistsError",
    "Predictions",
    "Recorder",
    "RunStopped",
    "Schedule",
    "SnapshotEnsemble",
    "TrainSettings",
    "TrainingError",
    "WeightsError",
    "WeightsUnavailableError",
    "accelerate",
    "apply_ledger",
    "aug_transforms",
    "backbone_info",
    "backbone_names",
    "backbone_table",
    "build_backbone",
    "check",
    "compare",
    "cv_indices",
    "datasets",
    "deaccelerate",
    "find_learning_rate",
    "fit_best",
    "fit_linear_probe",
    "from_torch",
    "grad_cam",
    "imagenet_classifier",
    "layer_decay",
    "load",
    "load_learner",
    "load_onnx",
    "load_weights",
    "predict",
    "predict_files",
    "predict_tta",
    "regex_label",
    "schedules",
    "set_precision",
    "side_on",
    "to_onnx",
    "to_torch",
    "top_down",
    "write_report",
]
