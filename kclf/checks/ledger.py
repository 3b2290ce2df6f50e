"""Do what an edited ledger says; whatever it moves can be moved back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .._core.csv_files import CsvWriter, read_csv
from ..data.files import split_named
from ..errors import DataError, FileFormatError, OutputExistsError
from .findings import Finding, read_ledger


@dataclass(frozen=True)
class Change:
    """One file to move.

    Args:
        action: "delete", "relabel" or "move".
        source: where the file is.
        target: where it goes.
    """

    action: str
    source: Path
    target: Path

    def __str__(self) -> str:
        return f"{self.action}: {self.source} -> {self.target}"


@dataclass(frozen=True)
class Changes:
    """What a ledger asks for, done or only planned.

    Args:
        items: the files to move.
        applied: whether they were moved.
        log: the file from which `undo_ledger` moves them back.
    """

    items: list[Change]
    applied: bool
    log: Path

    def __str__(self) -> str:
        head = f"{len(self.items):,} photos {'moved' if self.applied else 'would be moved (nothing is yet)'}"
        foot = [f"to undo: kclf clean --undo {self.log}"] if self.applied and self.items else []
        return "\n".join([head, *map(str, self.items), *foot])


def apply_ledger(
    path: str | os.PathLike[str], *, apply: bool = False, removed: str | os.PathLike[str] | None = None
) -> Changes:
    """Do what the `action` column of a ledger says. Nothing is deleted: "delete" moves to a folder `removed`.

    "relabel" moves a photo to the folder of the class in `target`, which must exist; "move" to the set
    (`train`, `valid`, `test`) in `target`. All rows are checked before anything moves; each move is written
    to the log before it is done, so that a killed run can be undone as well.

    Args:
        path: the ledger, a CSV file.
        apply: move the files; without it, only say what would be moved.
        removed: where "delete" moves to; `removed/NAME` beside the data folder NAME, if None.

    Returns:
        The changes; their text form lists them.

    Raises:
        DataError: rows contradict each other, or a photo is not there or not in a class folder.
        OutputExistsError: a photo would take the place of another.
    """
    ledger = Path(path)
    changes = [_change(row, removed) for row in _one_row_a_photo(read_ledger(ledger))]
    _require_free_targets(changes)
    log = ledger.with_name(f"{ledger.stem}.undo.csv")
    if apply and changes:
        with open(log, "a", newline="", encoding="utf-8") as file:
            for change in changes:
                CsvWriter(file).write([str(change.source), str(change.target)])
                file.flush()
                os.fsync(file.fileno())
                _move(change.source, change.target)
    return Changes(changes, apply, log)


def undo_ledger(log: str | os.PathLike[str]) -> Changes:
    """Move back whatever a log says was moved, the last first, and remove the log.

    Raises:
        OutputExistsError: something else has taken the place of a photo.
    """
    rows = list(read_csv(log))
    if any(len(row) != 2 for row in rows):
        raise FileFormatError(f"{log}: no undo log, which has two paths a row")
    # A kill between the log's line and the move leaves a line for a photo that is still in its place.
    moved = [(Path(target), Path(source)) for source, target in reversed(rows) if Path(target).exists()]
    changes = [Change("undo", source, target) for source, target in moved]
    _require_free_targets(changes)
    for change in changes:
        _move(change.source, change.target)
    Path(log).unlink()
    return Changes(changes, True, Path(log))


def _one_row_a_photo(rows: Iterable[Finding]) -> list[Finding]:
    chosen: dict[str, Finding] = {}
    for row in rows:
        if row.action == "keep":
            continue
        first = chosen.setdefault(os.path.join(row.folder, row.path), row)
        if (first.action, first.action != "delete" and first.target) != (
            row.action,
            row.action != "delete" and row.target,
        ):
            raise DataError(
                f"{row.path}: expected one action a photo. "
                f"Received: {first.action} {first.target} and {row.action} {row.target}"
            )
    return list(chosen.values())


def _change(row: Finding, removed: str | os.PathLike[str] | None) -> Change:
    folder = Path(row.folder)
    source = Path(os.path.normpath(folder / row.path))
    if not row.folder or not source.is_relative_to(folder) or source == folder:
        raise DataError(f"Expected a photo below the data folder. Received: {row.path!r} in {row.folder!r}")
    if not source.is_file():
        raise DataError(f"No such photo (moved since the check?). Received: path={str(source)!r}")
    match row.action:
        case "delete":
            base = Path(removed) if removed is not None else folder.parent / "removed" / folder.name
            return Change("delete", source, base / source.relative_to(folder))
        case "relabel":
            return Change("relabel", source, _in_class_folder(row, source))
        case _:
            return Change("move", source, _in_set_folder(row, source, folder))


def _in_class_folder(row: Finding, source: Path) -> Path:
    if source.parent.name != row.label or source.parent == Path(row.folder):
        raise DataError(
            f"{row.path}: its class {row.label!r} is not the folder it lies in, so moving it does not "
            "relabel it; change the label where your labels come from"
        )
    target = source.parent.parent / _plain_name(row)
    if not target.is_dir():
        raise DataError(
            f"{row.path}: expected the folder of a class as target. Received: {row.target!r}, which is not "
            f"in {target.parent}; make it first if the class is new"
        )
    return target / source.name


def _in_set_folder(row: Finding, source: Path, folder: Path) -> Path:
    first, *rest = source.relative_to(folder).parts
    if not split_named(first) or not rest or not (folder / _plain_name(row)).is_dir():
        raise DataError(
            f"{row.path}: expected a move from one set's folder to another (train, valid, test). "
            f"Received: target={row.target!r}"
        )
    return folder.joinpath(row.target, *rest)


def _plain_name(row: Finding) -> str:
    if row.target in {"", ".", ".."} or "/" in row.target or "\\" in row.target:
        raise DataError(f"{row.path}: expected the name of a folder as target. Received: {row.target!r}")
    return row.target


def _require_free_targets(changes: list[Change]) -> None:
    taken: set[Path] = set()
    for change in changes:
        if change.target.exists() or change.target in taken:
            raise OutputExistsError(
                f"{change.target} is there already; {change.source} cannot take its place"
            )
        taken.add(change.target)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)
