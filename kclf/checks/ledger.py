"""Do what an edited ledger says; whatever it moves can be moved back."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from .._core.arguments import listed
from .._core.atomic import half_moved, move_file
from .._core.csv_files import read_csv, write_rows
from ..data.files import image_suffixes, list_folders, split_folders
from ..data.labels import normal_label
from ..errors import DataError, FileFormatError, OutputError, OutputExistsError
from .file_info import file_digest
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
        undone = all(item.action == "undo" for item in self.items)
        foot = [f"to undo: kclf clean --undo {self.log}"] if self.applied and not undone else []
        return "\n".join([head, *map(str, self.items), *foot])


def apply_ledger(
    path: str | os.PathLike[str], *, apply: bool = False, removed: str | os.PathLike[str] | None = None
) -> Changes:
    """Do what the `action` column of a ledger says. Nothing is deleted: "delete" moves to a folder `removed`.

    "relabel" moves a photo to the folder of the class in `target`, which must exist; "move" to the set
    (`train`, `valid`, `test`) in `target`. All rows are checked before anything moves; each move is written
    to the log before it is done, so that a killed run can be undone, or finished by another call.

    Args:
        path: the ledger, a CSV file.
        apply: move the files; without it, only say what would be moved.
        removed: where "delete" moves to; `removed/NAME` beside the data folder NAME, if None.

    Returns:
        The changes; their text form lists them.

    Raises:
        DataError: rows contradict each other or lead out of the data folder, or a photo is not there, not the
            one that was checked, or not in a class folder.
        OutputExistsError: a photo would take the place of another.
        OutputError: a photo cannot be moved; it then is where it was.
    """
    ledger = Path(path)
    log = ledger.with_name(f"{ledger.stem}.undo.csv")
    logged = _logged(log) if log.is_file() else []
    places = dict(logged)
    rows = [row for row in _one_row_a_photo(read_ledger(ledger)) if not _is_done(row, places, removed)]
    changes = [_change(row, removed) for row in rows]
    # A kill between copy and removal leaves the last photo of a log in both its places.
    _require_free_targets(changes, [target for source, target in logged[-1:] if _is_copy(source, target)])
    if apply and changes:
        bounds = _places(rows, removed)
        if half := _half_line(log):
            os.truncate(log, log.stat().st_size - half)
        with open(log, "a", newline="", encoding="utf-8") as file:
            _write(file, "moved within", *bounds)
            for change in changes:
                _write(file, str(change.source), str(change.target))
                _move_or_say(change, log)
    return Changes(changes, apply, log)


def _places(rows: list[Finding], removed: str | os.PathLike[str] | None) -> tuple[str, str]:
    """The data folder and the folder of what is removed: all that a ledger may touch."""
    folders = {row.folder for row in rows}
    if len(folders) > 1:
        raise DataError(f"Expected rows of one data folder. Received: folder={listed(sorted(folders), 3)}")
    folder = os.path.abspath(folders.pop())
    return folder, str(_removed(Path(folder), removed))


def _removed(folder: Path, removed: str | os.PathLike[str] | None) -> Path:
    return Path(os.path.abspath(removed)) if removed is not None else folder.parent / "removed" / folder.name


def _write(file: TextIO, *cells: str) -> None:
    """A line of the log, on the disk before the move it is about."""
    write_rows(file, [cells])
    file.flush()
    os.fsync(file.fileno())


def undo_ledger(log: str | os.PathLike[str]) -> Changes:
    """Move back whatever a log says was moved, the last first, and remove the log.

    What cannot be moved back now (a disk that is away, no permission) stays in the log for another call.

    Raises:
        OutputExistsError: something else has taken the place of a photo.
        DataError: a photo is neither in its old nor in its new place; all others are moved back.
        FileFormatError: this is no undo log, or it names places outside the data and its removed photos.
    """
    logged = _logged(log)
    moved, away = _moved(logged)
    changes = [Change("undo", target, source) for source, target in moved]
    _require_free_targets([change for change in changes if not _is_copy(change.source, change.target)])
    for change in changes:
        if _is_copy(change.source, change.target):
            change.source.unlink()
        else:
            _move_or_say(change, Path(log))
    for half in (half_moved(target) for _, target in logged):
        if half.parent.is_dir():
            half.unlink(missing_ok=True)
    if away:
        raise DataError(
            f"{len(changes)} photos were moved back; {len(away)} are in neither place: {listed(away, 3)}. "
            f"Bring back the disk or folder that holds them, then: kclf clean --undo {log}"
        )
    Path(log).unlink()
    return Changes(changes, True, Path(log))


def _logged(log: str | os.PathLike[str]) -> list[tuple[Path, Path]]:
    """The moves (source, target) of a log, each within the places that the line before them names."""
    rows = list(read_csv(log))
    if _half_line(Path(log)):
        if not rows:
            raise FileFormatError(f"{log}: no undo log, it has no row")
        rows.pop()  # its move had not begun
    moves, places = [], None
    for number, row in enumerate(rows, start=1):
        if "\0" in "".join(row):
            raise FileFormatError(f"{log}, row {number}: damaged; no path has a NUL in it")
        if len(row) == 3 and row[0] == "moved within":
            places = [Path(place) for place in row[1:]]
            continue
        if len(row) != 2 or places is None:
            raise FileFormatError(f"{log}, row {number}: no undo log, which has two paths a row")
        source, target = Path(row[0]), Path(row[1])
        if os.path.lexists(target) and not (_is_in(source, places[:1]) and _is_in(target, places)):
            raise FileFormatError(f"{log}, row {number}: leads outside {places[0]} and {places[1]}: {row}")
        moves.append((source, target))
    return moves


def _moved(moves: list[tuple[Path, Path]]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """The moves to take back, the last first, and the photos that are in neither place."""
    back, away = [], []
    later: dict[Path, bool] = {}  # what is there once the moves before are taken back

    def is_there(path: Path) -> bool:
        return later.get(path, os.path.lexists(path))

    for source, target in reversed(moves):
        if is_there(target):
            back.append((source, target))
            later |= {source: True, target: False}
        elif not is_there(source):
            away.append(target)
    return back, away


def _is_in(path: Path, folders: list[Path]) -> bool:
    """Whether a file lies below one of the folders, links of its folder followed."""
    parent = os.path.realpath(path.parent)
    return any(Path(parent).is_relative_to(os.path.realpath(folder)) for folder in folders)


def _is_copy(one: Path, other: Path) -> bool:
    """Whether both are there with the same content: an interrupted move across file systems."""
    if one.is_symlink() or other.is_symlink() or not (one.is_file() and other.is_file()):
        return False
    return filecmp.cmp(one, other, shallow=False)


def _half_line(log: Path) -> int:
    """Bytes at the end of a log that are no whole line: a kill or a full disk cut it off."""
    content = log.read_bytes() if log.is_file() else b""
    return len(content) - content.rfind(b"\n") - 1


def _one_row_a_photo(rows: Iterable[Finding]) -> list[Finding]:
    chosen: dict[str, Finding] = {}
    for row in rows:
        if row.action == "keep":
            continue
        first = chosen.setdefault(os.path.join(row.folder, row.path), row)
        if first.action != row.action or (row.action != "delete" and first.target != row.target):
            raise DataError(
                f"{row.path}: expected one action a photo. "
                f"Received: {first.action} {first.target} and {row.action} {row.target}"
            )
    return list(chosen.values())


def _source(row: Finding) -> Path:
    return Path(os.path.normpath(Path(row.folder, row.path)))


def _is_done(row: Finding, logged: dict[Path, Path], removed: str | os.PathLike[str] | None) -> bool:
    """Whether an earlier call, as its log says, has done what a row asks for."""
    source = _source(row)
    if source not in logged or os.path.lexists(source):
        return False
    return logged[source] == _target(row, source, removed) and os.path.lexists(logged[source])


def _change(row: Finding, removed: str | os.PathLike[str] | None) -> Change:
    folder = Path(row.folder)
    source = _source(row)
    if not row.folder or not source.is_relative_to(folder) or source == folder:
        raise DataError(f"Expected a photo below the data folder. Received: {row.path!r} in {row.folder!r}")
    if not source.is_file() and not source.is_symlink():
        raise DataError(f"No such photo (moved since the check?). Received: path={str(source)!r}")
    if not _is_in(source, [folder]):
        raise DataError(f"{row.path}: a link leads out of the data folder {row.folder}; move it by hand")
    _require_same(row, source)
    target = _target(row, source, removed)
    if row.action != "delete" and not _is_in(target, [folder]):
        raise DataError(f"{row.path}: the target {target} leads out of the data folder {row.folder}")
    return Change(row.action, source, target)


def _target(row: Finding, source: Path, removed: str | os.PathLike[str] | None) -> Path:
    """Where a row wants its photo."""
    folder = Path(row.folder)
    inside = source.relative_to(folder)
    if row.action == "delete":
        return _removed(folder, removed) / inside
    in_folder = _in_class_folder if row.action == "relabel" else _in_set_folder
    return in_folder(row, inside.parts, folder)


def _require_same(row: Finding, source: Path) -> None:
    """Refuse a file that is not the one that was checked."""
    if row.num_bytes < 0 and not row.digest:  # a row that no check wrote
        if source.suffix.lower() not in image_suffixes():
            raise DataError(f"{row.path}: expected a photo, by its name, in a row without a digest")
        return
    size, digest = file_digest(str(source))
    if (size, digest) != (row.num_bytes, row.digest):
        raise DataError(
            f"{row.path}: the file has changed since the check ({row.num_bytes:,} bytes then, {size:,} now). "
            "Check again: kclf check"
        )


def _class_place(row: Finding, parts: Sequence[str], folder: Path) -> int:
    """Which part of the path below the data folder is the class."""
    place = int(len(parts) > 2 and parts[0] in _split_roots(folder))
    if place and len(parts) > 3 and parts[1] == parts[0]:  # train/train/cat, as archives have it
        place = 2
    if len(parts) < place + 2 or normal_label(parts[place]) != normal_label(row.label):
        raise DataError(
            f"{row.path}: its class {row.label!r} is not the folder it lies in, so moving it does not "
            "relabel it; change the label where your labels come from"
        )
    return place


def _split_roots(folder: Path) -> set[str]:
    """The names of the folders of splits."""
    return {name for same in split_folders(list_folders(folder)).values() for name in same}


def _in_class_folder(row: Finding, parts: Sequence[str], folder: Path) -> Path:
    place = _class_place(row, parts, folder)
    above = folder.joinpath(*parts[:place])
    name = _plain_name(row)
    same = [n for n in list_folders(above) if normal_label(n) == normal_label(name)]
    if name not in same and len(same) != 1:
        raise DataError(
            f"{row.path}: expected the folder of a class as target. Received: {row.target!r}, which is not "
            f"in {above}; make it first if the class is new"
        )
    return above.joinpath(name if name in same else same[0], *parts[place + 1 :])


def _in_set_folder(row: Finding, parts: Sequence[str], folder: Path) -> Path:
    first, *rest = parts
    roots, target = _split_roots(folder), _plain_name(row)
    if first not in roots or not rest or target not in roots:
        raise DataError(
            f"{row.path}: expected a move from one set's folder to another (train, valid, test). "
            f"Received: target={row.target!r}"
        )
    return folder.joinpath(target, *rest)


def _plain_name(row: Finding) -> str:
    if row.target in {"", ".", ".."} or "/" in row.target or "\\" in row.target:
        raise DataError(f"{row.path}: expected the name of a folder as target. Received: {row.target!r}")
    return row.target


def _require_free_targets(changes: list[Change], half_done: Iterable[Path] = ()) -> None:
    taken: set[Path] = set()
    left = set(half_done)
    for change in changes:
        if change.target in taken or (os.path.lexists(change.target) and change.target not in left):
            raise OutputExistsError(
                f"{change.target} is there already; {change.source} cannot take its place"
            )
        taken.add(change.target)
        left.add(change.source)


def _move_or_say(change: Change, log: Path) -> None:
    try:
        move_file(change.source, change.target)
    except OSError as error:
        raise OutputError(
            f"{change.source} cannot be moved to {change.target}: {error.strerror or error}. What was moved "
            f"before is in the log: kclf clean --undo {log}"
        ) from error
