"""Predictions: plain, averaged over views, of several snapshots, and on cached activations."""

from .activation_cache import ActivationData, ActivationDataset, activations, precompute
from .ensembles import (
    EnsembleTable,
    SnapshotEnsemble,
    average_predictions,
    average_weights,
    recompute_batchnorm,
)
from .inference import predict, predict_files
from .predictions import Predictions, TTAReport, write_submission
from .tta import average_views, predict_tta

__all__ = [
    "ActivationData",
    "ActivationDataset",
    "EnsembleTable",
    "Predictions",
    "SnapshotEnsemble",
    "TTAReport",
    "activations",
    "average_predictions",
    "average_views",
    "average_weights",
    "precompute",
    "predict",
    "predict_files",
    "predict_tta",
    "recompute_batchnorm",
    "write_submission",
]
