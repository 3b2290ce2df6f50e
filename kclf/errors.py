"""The errors kclf raises on purpose, drawn as a tree.

    KclfError
    ├── DataError (ValueError)             files, labels and splits that cannot be used
    │   └── ImageError                     one photo that cannot be read; has `.path` and `.reason`
    ├── BackboneError (ValueError)         an unknown backbone, or one that cannot be built here
    ├── WeightsError (ValueError)          weights that do not fit a model
    │   └── WeightsUnavailableError        weights that are not on this machine and cannot be fetched
    ├── FileFormatError (ValueError)       a saved file that is damaged, foreign, newer or hostile
    ├── OutputExistsError (FileExistsError)  a result that would overwrite another
    └── TrainingError (RuntimeError)       a run that cannot start or go on

Wrong arguments are plain `ValueError` or `TypeError`. Every message says what was expected, what came
(`Received: name=value`) and what to do.
"""

from __future__ import annotations

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


class TrainingError(KclfError, RuntimeError):
    """A training run cannot start or cannot go on."""
