"""What a check found, as a ledger that a person can edit in a spreadsheet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import overload

from .._core.csv_files import read_csv, write_csv
from ..errors import FileFormatError

ACTIONS = ("keep", "delete", "relabel", "move")
MEANING = {  # of each problem, the worst first
    "unreadable": "cannot be decoded: training would stop or skip it",
    "leak": "the same photo lies in another set: validation figures come out too good",
    "duplicate": "the same file as another photo",
    "near_duplicate": "looks the same as another photo (re-encoded, resized, mirrored)",
    "label": "a model trained on the other photos is sure of another class",
    "wrong_extension": "its content is of another format than its name says",
    "odd": "animated, CMYK or not an image file",
    "small": "so few pixels that little can be seen",
    "long": "so long that a square crop loses most of it",
}
PROBLEMS = tuple(MEANING)


@dataclass(frozen=True)
class Finding:
    """One photo with one problem; a row of the ledger.

    Args:
        path: of the photo, below `folder`.
        problem: one of `PROBLEMS`.
        score: how bad, in [0, 1]; within a problem the worst come first.
        detail: what was seen, in a few words.
        label: class of the photo, or "".
        other: the photo that this one repeats, below `folder`, or "".
        advice: the action that seems right; "keep" where only a person can tell.
        action: what to do: "keep", "delete", "relabel" or "move". A check writes "keep"; a person edits it.
        target: the new class for "relabel", the other set's folder for "move".
        folder: the folder that holds all photos.
        num_bytes, digest: length and SHA-256 of the file that was checked; -1 and "" where not known.
    """

    path: str
    problem: str
    score: float
    detail: str
    label: str = ""
    other: str = ""
    advice: str = "keep"
    action: str = "keep"
    target: str = ""
    folder: str = ""
    num_bytes: int = -1
    digest: str = ""


COLUMNS = [column.name for column in fields(Finding)]


@dataclass
class Findings(Sequence[Finding]):
    """All that a check found: photos with a problem, worst kinds first, and remarks on the whole.

    Args:
        items: the photos.
        notes: remarks on the whole data: balance of the classes, sizes that give the class away.
        num_photos: how many photos were looked at.
    """

    items: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_photos: int = 0

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, place: int) -> Finding: ...
    @overload
    def __getitem__(self, place: slice) -> list[Finding]: ...
    def __getitem__(self, place: int | slice) -> Finding | list[Finding]:
        return self.items[place]

    def of(self, *problems: str) -> list[Finding]:
        """The findings of some kinds, worst first."""
        if unknown := set(problems) - set(PROBLEMS):
            raise ValueError(f"Expected problems of {', '.join(PROBLEMS)}. Received: {sorted(unknown)}")
        return [finding for finding in self.items if finding.problem in problems]

    def summary(self) -> str:
        """How many photos have which problem, what it means, and the remarks on the whole."""
        counts = Counter(finding.problem for finding in self.items)
        lines = [f"{counts[p]:6,} {p.replace('_', ' '):16} {MEANING[p]}" for p in PROBLEMS if counts[p]]
        head = f"{self.num_photos:,} photos looked at, {len({f.path for f in self.items}):,} with a problem"
        return "\n".join([head, *lines, *(f"note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.summary()

    def to_csv(self, path: str | os.PathLike[str], *, accept: Collection[str] = ()) -> None:
        """Write the ledger, one row a finding.

        Args:
            path: the CSV file to write.
            accept: problems whose `advice` is written as `action`; all others get their own `action`,
                "keep" after a check.
        """
        self.of(*accept)
        rows = [_cells(item, item.advice if item.problem in accept else item.action) for item in self]
        write_csv(path, [COLUMNS, *rows], encoding="utf-8-sig")


def _cells(item: Finding, action: str) -> list[object]:
    written = {"score": f"{item.score:.4f}", "action": action}
    return [written.get(name, getattr(item, name)) for name in COLUMNS]


def read_ledger(path: str | os.PathLike[str]) -> list[Finding]:
    """Read a ledger back, edited or not, with commas or semicolons, in any order of columns.

    Names come back as they are, with their blanks and line ends.

    Raises:
        FileFormatError: columns are missing, a row has too many cells, or its action is none.
    """
    header, *rows = list(read_csv(path, delimiter=None)) or [[]]
    if missing := {"path", "action", "target", "folder"} - set(header):
        raise FileFormatError(
            f"{path}: no ledger, it has no column {', '.join(sorted(missing))}. Received: columns {header}"
        )
    return [_finding(header, row, f"{path}, row {number}") for number, row in enumerate(rows, start=2)]


def _finding(header: Sequence[str], row: Sequence[str], where: str) -> Finding:
    if len(row) > len(header):
        raise FileFormatError(
            f"{where}: expected {len(header)} cells, as in the header. Received: {len(row)}"
        )
    found = dict(zip(header, row, strict=False))  # spreadsheets leave out the last cells of a row
    given = {name: found.get(name, "") for name in COLUMNS}
    action = given["action"].strip().lower() or "keep"
    if action not in ACTIONS:
        raise FileFormatError(
            f"{where}: expected an action of {', '.join(ACTIONS)}. Received: {given['action']!r}"
        )
    try:
        score = float(given["score"].replace(",", ".") or 0)
        num_bytes = int(given["num_bytes"] or -1)
    except ValueError as error:
        raise FileFormatError(
            f"{where}: expected a number as score and as num_bytes, or nothing. "
            f"Received: {given['score']!r}, {given['num_bytes']!r}"
        ) from error
    return Finding(**(given | {"action": action, "score": score, "num_bytes": num_bytes}))  # type: ignore[arg-type]
