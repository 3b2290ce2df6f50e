"""The errors kclf raises on purpose, drawn as a tree.

    KclfError
    ├── DataError (ValueError)             files, labels and splits that cannot be used
    │   └── ImageError                     one photo that cannot be read; has `.path` and `.reason`
    ├── BackboneError (ValueError)         an unknown backbone, or one that cannot be built here
    ├── WeightsError (ValueError)          weights that do not fit a model
    │   └── WeightsUnavailableError        weights that are not on this machine and cannot be fetched
    ├── FileFormatError (ValueError)       a saved file that is damaged, foreign, newer or hostile
    ├── OutputExistsError (FileExistsError)  a result that would overwrite another
    │   └── FolderLockedError              a folder that another run works in
    ├── OutputError (OSError)              a result that cannot be written: disk full, read-only, folder gone
    └── TrainingError (RuntimeError)       a run that cannot start or continue
        ├── NotFiniteError                 a run whose loss or weights became infinite or NaN
        └── RunStopped                     a run that was asked to stop, and did so between two batches

Wrong arguments are plain `ValueError` or `TypeError`. Every message says what was expected, what came
(`Received: name=value`) and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike


class KclfError(Exception):
    """Base of all errors that kclf raises on purpose."""


class DataError(KclfError, ValueError):
    """Files, labels or splits cannot be used as they are."""


class ImageError(DataError):
    """One photo cannot be read.

    Args:
        path: the file at fault.
        reason: what is wrong with it, in a few words.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class BackboneError(KclfError, ValueError):
    """The backbone is unknown, or cannot be built on this machine."""


class WeightsError(KclfError, ValueError):
    """Weights do not fit the model they were meant for."""


class WeightsUnavailableError(WeightsError):
    """Weights are neither on this machine nor can they be fetched."""


class FileFormatError(KclfError, ValueError):
    """A saved file is damaged, not one of ours, newer than this version, or hostile."""


class OutputExistsError(KclfError, FileExistsError):
    """A result would overwrite another one."""


class FolderLockedError(OutputExistsError):
    """Another run works in a folder."""


class OutputError(KclfError, OSError):
    """A result cannot be written: the disk is full, read-only, or the folder is gone."""


class TrainingError(KclfError, RuntimeError):
    """A training run cannot start or cannot continue."""


class NotFiniteError(TrainingError):
    """The loss, its gradients or the weights of a run became infinite or NaN.

    Args:
        message: where, and what to do.
        inputs: what was so before any layer saw it, such as paths of photos.
    """

    def __init__(self, message: str, inputs: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.inputs = list(inputs)


class RunStopped(TrainingError):
    """A run was asked to stop, by a signal, and did so between two batches.

    Args:
        message: where it stopped, and how to resume.
        signal: number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[type[RunStopped], tuple[str, int]]:
        return type(self), (str(self), self.signal)
