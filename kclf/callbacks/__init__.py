"""Callbacks for `model.fit`: schedules of the rate, snapshots, and what a run did."""

from .checkpoint import Checkpoint
from .collapse import CollapseDetector
from .cycles import CosineRestarts, FlatCosine, OneCycle, Schedule
from .finite import FiniteGuard
from .memory import MemoryGuard
from .progress import ProgressBar
from .range_test import LearningRateFinder, RangeTest, RangeTestRun, Suggestion, find_learning_rate
from .recording import EpochTable, Recorder, smooth
from .snapshots import SnapshotSaver, load_snapshot

__all__ = [
    "Checkpoint",
    "CollapseDetector",
    "CosineRestarts",
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
