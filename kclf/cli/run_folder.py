"""The folder of a run: which files are kclf's, and that nothing else is replaced or removed."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from .._core.atomic import LEFTOVERS, PREFIX, sweep
from .._core.locks import LOCK_FILES, FolderLock
from ..callbacks.checkpoint import REFIT, is_checkpoint_file
from ..callbacks.run_log import LOG_CSV
from ..errors import OutputError, OutputExistsError
from ..report.inputs import BATCHES, CLASSIFIER, HISTORY, PREDICTIONS, SETTINGS

CHECKPOINTS, REPORT, CURVES = "checkpoints", "report.html", "curves.png"
MODEL_CARD = "MODEL_CARD.md"
PLAN, ACTIVATIONS = "plan.json", "activations"  # among the checkpoints; a cache of the run
RESULTS = (CLASSIFIER, REPORT, MODEL_CARD, CURVES, HISTORY, SETTINGS)
WRITTEN = (*RESULTS[:-1], BATCHES, PREDICTIONS, LOG_CSV, SETTINGS)  # all files of a run; the last marks it


def check_out(out: Path, *, force: bool) -> None:
    """Refuse, before any work, a folder that holds something or that cannot be written.

    Raises:
        OutputExistsError: it exists and `force` is False.
        OutputError: it cannot be made or written.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file. Choose another --out.")
    if foreign := foreign_files(out):
        raise OutputExistsError(
            f"{out} holds what no run of kclf wrote and a new one would replace: {', '.join(foreign)}. "
            "Move it elsewhere, or choose another --out."
        )
    if is_unfinished(out) and not force:
        raise OutputExistsError(
            f"{out} holds a run that is not finished. Continue with: kclf train --resume {out}, or pass "
            "--force to begin anew."
        )
    if out.is_dir() and any(path.name not in LOCK_FILES for path in out.iterdir()) and not force:
        raise OutputExistsError(
            f"{out} exists. Choose another --out, or pass --force to write into it: files of an earlier run "
            "are replaced, others stay."
        )
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{out} cannot be written: no permission in {parent}")


def is_unfinished(out: Path) -> bool:
    """Whether a folder holds an interrupted run: the settings beside its checkpoints come first."""
    return (out / CHECKPOINTS / SETTINGS).is_file()


def is_run(folder: Path) -> bool:
    """Whether kclf's mark is in a folder: a `settings.json` with the version of kclf that wrote it."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        return bool(json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["versions"]["kclf"])
    return False


def foreign_files(out: Path) -> list[str]:
    """Files that a new run would replace, and that no run has written."""
    checkpoints = out / CHECKPOINTS
    is_marked = is_run(out) or is_run(checkpoints)
    foreign = [name for name in WRITTEN if not is_marked and (out / name).exists()]
    if checkpoints.is_symlink() or (checkpoints.exists() and not checkpoints.is_dir()):
        return [*foreign, CHECKPOINTS]
    return [*foreign, *(f"{CHECKPOINTS}/{name}" for name in _foreign_checkpoints(checkpoints))]


def _foreign_checkpoints(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if name not in (*LOCK_FILES, SETTINGS) and not _is_ours(name))


def _is_ours(name: str) -> bool:
    """Whether a file among the checkpoints bears a name that kclf gives."""
    return name in (PLAN, REFIT) or is_checkpoint_file(name) or fnmatch(name, LEFTOVERS)


def finish(out: Path) -> None:
    """Remove the checkpoints, at one stroke; what others put among them stays."""
    sweep(out)
    _remove_activations(out / ACTIVATIONS)
    _remove_checkpoints(out)


def tidy(out: Path) -> None:
    """Remove what a run left that was killed while it removed its checkpoints."""
    with FolderLock(out):
        sweep(out)
        _remove_checkpoints(out)


def _remove_checkpoints(out: Path) -> None:
    folder = out / CHECKPOINTS
    if not folder.is_dir() or folder.is_symlink():
        return
    if not _foreign_checkpoints(folder):
        folder.rename(out / f"{PREFIX}checkpoints.partial")
        sweep(out)
        return
    (folder / SETTINGS).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name == REFIT and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif _is_ours(path.name) or path.name in LOCK_FILES:
            path.unlink(missing_ok=True)


def _remove_activations(folder: Path) -> None:
    """Remove the caches in a folder, which are called by digests; what others put there stays."""
    if folder.is_dir() and not folder.is_symlink():
        for cache in folder.iterdir():
            if re.fullmatch(r"[0-9a-f]{32}|[0-9]+(x[0-9]+)?px-[0-9a-f]{16}", cache.name):
                shutil.rmtree(cache, ignore_errors=True)
        with suppress(OSError):  # not empty
            folder.rmdir()


def abandon(out: Path) -> None:
    """Leave nothing of a run that failed before its first batch, such as for a photo that cannot be read."""
    (out / SETTINGS).unlink()
    finish(out)
    if not [path for path in out.iterdir() if path.name not in LOCK_FILES]:
        shutil.rmtree(out)
