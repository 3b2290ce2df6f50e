"""The files that a table names: as they stand, or found where one file alone can be meant."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import unquote

from .._core.arguments import listed
from ..errors import DataError
from .files import image_suffixes, is_system, list_folders, scan

ESCAPES = ("\\", "://", "//", "/./", "/../")


@dataclass
class Found:
    """The files of a table.

    Args:
        files: one a row; those that are not there as they were named.
        missing: how many are not there.
        first: the first of those.
        notes: what was mended.
    """

    files: list[str]
    missing: int = 0
    first: str = ""
    notes: list[str] = field(default_factory=list)


def find_files(folder: str | os.PathLike[str], names: Sequence[str], suffix: str = "") -> Found:
    """The files of those names in a folder; names that are not there are looked for by what they end in.

    Mended are a missing or another suffix, the case of letters, backslashes, blanks around, another
    spelling in Unicode or with percent signs, zeros in front of a number, and folders in front that this
    machine does not have, where one file below `folder` alone can be meant.

    Raises:
        DataError: none of them is there.
    """
    named = join_paths(folder, names, suffix)
    is_there = _looking_once()
    missing = [row for row, file in enumerate(named) if not is_there(file)]
    if not missing:
        return Found(named)
    index, mended = _Index(folder), Counter[str]()
    for row in missing:
        file = index.find(names[row] + suffix)
        if file is not None:
            mended[_how(named[row], file)] += 1
            named[row] = file
    lost = len(missing) - sum(mended.values())
    if lost == len(named):
        here = listed([os.path.relpath(p, folder or ".") for p in index.images], 4) or "no image"
        raise DataError(
            f"None of the {lost:,} files exists. The first: {named[missing[0]]}. "
            f"In {os.fspath(folder) or 'this folder'} there is: {here}. "
            "Look at `folder`, and at `suffix` (such as '.jpg') where the names come without one"
        )
    notes = [f"{count:,} file names were mended: {how}" for how, count in mended.most_common()]
    first = next((named[row] for row in missing if not is_there(named[row])), "")
    return Found(named, lost, first, notes)


def join_paths(folder: str | os.PathLike[str], names: Iterable[object], suffix: str = "") -> list[str]:
    """The files of those names in a folder, as `os.path.join` has them, for millions.

    Example:
        >>> join_paths("photos", ["a", "/b"], ".jpg")
        ['photos/a.jpg', '/b.jpg']
    """
    start, is_absolute = os.path.join(folder, ""), os.path.isabs
    files = (f"{name}{suffix}" for name in names)
    return [file if is_absolute(file) else start + file for file in files]


def _looking_once() -> Callable[[str], bool]:
    """What tells whether a file is there; it looks once at each folder in place of once at each file."""

    @cache
    def names_in(folder: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(folder))
        except (OSError, ValueError):  # a zero byte, or half a character, is in no name of a folder
            return frozenset()

    def is_there(file: str) -> bool:
        folder, slash, name = file.rpartition("/")
        return name in names_in(folder or slash or ".")

    return is_there


class _Index:
    """The images below a folder, by the last part of their path without case and suffix."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(folder)
        self.images = scan(folder or ".").images
        self._folders = {name.casefold() for name in list_folders(folder or ".")}
        self._by_stem: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for path in self.images:
            parts = tuple(part for part in _folded(os.path.abspath(path)).split(os.sep) if part)
            self._by_stem.setdefault(_stem(parts[-1]), []).append((path, parts))

    def find(self, name: str) -> str | None:
        """The one file that a name can mean; None where there is none or several."""
        return self._find(name) or (self._find(unquote(name)) if "%" in name else None)

    def _find(self, name: str) -> str | None:
        clean = _folded(name.strip().replace("\\", "/"))
        parts = [part for part in clean.split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            return None
        foreign = "://" in clean or clean.startswith("/") or parts[0].endswith(":")
        foreign = foreign or (len(parts) > 1 and parts[0] not in self._folders)
        below = len([part for part in self.root.split(os.sep) if part])
        found = []
        for path, own in self._by_stem.get(_stem(parts[-1]), ()):
            same = _common(parts, own)
            if same == len(parts) or (foreign and same >= len(own) - below):
                found.append(path)
        named = [_folded(os.path.basename(path)) for path in found]
        exact = [path for path, own in zip(found, named, strict=True) if own == parts[-1]]
        whole = [p for p, own in zip(found, named, strict=True) if _unsuffixed(own) == _unsuffixed(parts[-1])]
        best = exact or whole or found
        return best[0] if len(best) == 1 else None


def _folded(name: str) -> str:
    """A name without the case of letters, in composed Unicode: archives of macOS have it apart."""
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    """A name without its suffix; a number without zeros in front, which tables lose."""
    stem = _unsuffixed(name)
    return stem.lstrip("0") or "0" if stem.isdecimal() else stem


def _unsuffixed(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in image_suffixes() else name


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts at the end are the same, the last one without its suffix."""
    count = 1  # their stems are
    while count < min(len(one), len(other)) and one[-count - 1] == other[-count - 1]:
        count += 1
    return count


def _how(named: str, file: str) -> str:
    """What was mended."""
    if "\\" in named:
        return "backslashes for slashes"
    if named.casefold() == file.casefold():
        return "case of letters"
    if "%" in named and "%" not in file:
        return "percent signs for other characters"
    if _folded(named) == _folded(file):
        return "another spelling in Unicode"
    stems = [_unsuffixed(os.path.basename(path)) for path in (named, file)]
    if stems[0] != stems[1] and _stem(stems[0]) == _stem(stems[1]):
        return "zeros in front of a number"
    suffixes = [os.path.splitext(path)[1].lower() for path in (named, file)]
    if suffixes[0] not in image_suffixes():
        return f"no suffix, {suffixes[1]} added"
    if suffixes[0] != suffixes[1]:
        return f"{suffixes[0]} is {suffixes[1]}"
    return "files in another folder than they are named in"


def require_no_second_label(files: Sequence[str], labels: Sequence[object]) -> None:
    """Refuse a file with two labels, naming its rows."""
    if len(set(files)) == len(files):
        return
    first: dict[str, int] = {}
    for row, file in enumerate(files):
        before = first.setdefault(file, row)
        if labels[before] != labels[row]:
            raise DataError(
                f"{file} has two labels: {labels[before]!r} in row {before + 1} and {labels[row]!r} in row "
                f"{row + 1} (counted from 1, without a header). Remove one, or give them in one row with "
                "`label_delimiter`"
            )


def one_spelling(files: Sequence[str]) -> list[str]:
    """The files with one spelling of each path, so that the same file is known as such."""
    absolute = [os.path.isabs(file) for file in files]
    if any(absolute) and not all(absolute):
        return [os.path.abspath(file) for file in files]
    return [os.path.normpath(file) if any(mark in file for mark in ESCAPES) else file for file in files]


def is_photo_in(folder: str | os.PathLike[str], name: str, suffix: str) -> bool:
    """Whether a cell names a photo in a folder, with its suffix or without."""
    cell = name.strip()
    if not cell or is_system(cell):
        return False
    endings = [suffix] if suffix else ["", *sorted(image_suffixes())]
    return any(os.path.isfile(os.path.join(folder, cell + ending)) for ending in endings)
