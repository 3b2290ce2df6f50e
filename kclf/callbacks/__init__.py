"""Callbacks for `model.fit`: schedules of the rate, snapshots, and what a run did."""

from .checkpoint import Checkpoint
from .delivered import DeliveredModel
from .guards import CollapseDetector, FiniteGuard
from .lr_finder import LearningRateFinder, RangeTest, RangeTestRun, Suggestion, find_learning_rate
from .lr_schedules import CosineRestarts, FlatCosine, OneCycle, Schedule
from .microbatches import MemoryGuard
from .recording import EpochTable, ProgressBar, Recorder, smooth
from .snapshots import SnapshotSaver, load_snapshot

__all__ = [
    "Checkpoint",
    "CollapseDetector",
    "CosineRestarts",
    "DeliveredModel",
    "EpochTable",
    "FiniteGuard",
    "FlatCosine",
    "LearningRateFinder",
    "MemoryGuard",
    "OneCycle",
    "ProgressBar",
    "RangeTest",
    "RangeTestRun",
    "Recorder",
    "Schedule",
    "SnapshotSaver",
    "Suggestion",
    "find_learning_rate",
    "load_snapshot",
    "smooth",
]
