"""Callbacks for `model.fit`: schedules of the rate, snapshots, and what a run did."""

from .cycles import CosineRestarts, FlatCosine, OneCycle, Schedule
from .recording import EpochTable, Recorder, smooth
from .snapshots import SnapshotSaver, load_snapshot

__all__ = [
    "CosineRestarts",
    "EpochTable",
    "FlatCosine",
    "OneCycle",
    "Recorder",
    "Schedule",
    "SnapshotSaver",
    "load_snapshot",
    "smooth",
]
