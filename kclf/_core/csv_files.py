"""CSV: one writer and one reader, exact to the byte, whose cells no spreadsheet takes for formulas.

A cell of text that a spreadsheet would compute (it begins with `=`, `+`, `-` or `@`) is written with an
apostrophe before it, as a person would type it there, and read back without. So a photo called
`=HYPERLINK(...).jpg` stays a name, and comes back as the same name. Numbers are written as they are.
"""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from .atomic import replacing

# What spreadsheets compute: OWASP's list for "CSV injection", with the full-width signs that some convert.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
DELIMITERS = (",", ";", "\t", "|")
BLANK = " "  # of lists such as "n01440764/1.JPEG 0"
_MARK = "'"


def escape_cell(cell: Any) -> Any:
    """The cell as it is written: text that would be computed gets an apostrophe.

    Example:
        >>> escape_cell("=1+1"), escape_cell("-0.5"), escape_cell(-0.5), escape_cell("cat")
        ("'=1+1", '-0.5', -0.5, 'cat')
    """
    text = os.fspath(cell) if isinstance(cell, os.PathLike) else cell
    return _MARK + text if isinstance(text, str) and _is_computed(text) else text


def unescape_cell(cell: str) -> str:
    """The text that `escape_cell` wrote as this cell: its inverse for every text."""
    return cell[1:] if cell.startswith(_MARK) and _is_computed(cell[1:]) else cell


def _is_computed(text: str) -> bool:
    # Apostrophes and blanks before the sign count for nothing, so that a name with one is marked as well.
    return text.lstrip(_MARK + " ").startswith(FORMULA_SIGNS) and not _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


def write_rows(
    file: TextIO, rows: Iterable[Iterable[Any]], *, line_end: str = "\r\n", escaped: bool = True
) -> None:
    """Write rows to an open file or stream.

    Args:
        file: open for text, with `newline=""`.
        rows: written as they come.
        line_end: of each row.
        escaped: write no cell that a spreadsheet computes; False for a program that takes cells as they are.
    """
    writer = csv.writer(file, lineterminator=line_end)
    writer.writerows([escape_cell(cell) for cell in row] if escaped else row for row in rows)


def write_csv(
    path: str | os.PathLike[str],
    rows: Iterable[Iterable[Any]],
    *,
    encoding: str = "utf-8",
    escaped: bool = True,
) -> None:
    """Write a CSV file, complete or not at all.

    Args:
        path: the file.
        rows: its rows, the header first.
        encoding: "utf-8", or "utf-8-sig" for a file that people open in a spreadsheet.
        escaped: as `write_rows`.
    """
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding=encoding) as file:
        write_rows(file, rows, escaped=escaped)


def read_csv(
    path: str | os.PathLike[str], *, delimiter: str | None = ",", escaped: bool = True
) -> Iterator[list[str]]:
    """Rows of a CSV file as text, without the empty ones; read as they are asked for.

    Nothing is stripped. A byte-order mark is taken off; UTF-16 and UTF-32 are told from UTF-8.

    Args:
        path: the file.
        delimiter: between the cells; None for what a line `sep=;` names, as Excel has it, or else for the one
            that `find_delimiter` finds in the first line.
        escaped: take off the apostrophes that `write_csv` put before formulas; False for tables of others.

    Raises:
        DataError: the file is no CSV in one of these.
        FileNotFoundError: there is no such file.
    """
    try:
        with open(path, newline="", encoding=_encoding(path)) as file:
            if delimiter is None:
                delimiter = _delimiter_of(file)
            for row in csv.reader(file, delimiter=delimiter):
                if delimiter == BLANK:
                    row = [cell for cell in row if cell]  # several blanks part two cells as one does
                if row:
                    yield [unescape_cell(cell) for cell in row] if escaped else row
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: expected CSV in UTF-8 ({error}). Save it as such") from error


def find_delimiter(line: str) -> str:
    """The one of `DELIMITERS` that stands most often in a line outside quotes; else a blank, or a comma.

    Example:
        >>> find_delimiter('"a,b";c;d'), find_delimiter("a.jpg 0"), find_delimiter("file")
        (';', ' ', ',')
    """
    outside = "".join(line.split('"')[::2])
    found = max(DELIMITERS, key=outside.count)
    return BLANK if found not in outside and BLANK in outside.strip() else found


def _delimiter_of(file: TextIO) -> str:
    """The delimiter of a file, which is left at its first row."""
    line = next((line for line in iter(file.readline, "") if line.strip()), "")
    text = line.rstrip("\r\n").strip('"')
    if text.lower().startswith("sep=") and text[4:] in DELIMITERS:
        return text[4:]
    file.seek(0)
    return find_delimiter(line)


_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _encoding(path: str | os.PathLike[str]) -> str:
    """By the byte-order mark, or by every other byte that is 0 in UTF-16 without one."""
    with Path(path).open("rb") as file:
        start = file.read(4)
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    zeros = [byte == 0 for byte in start]
    if zeros in ([False, True] * 2, [True, False] * 2):
        return "utf-16-be" if zeros[0] else "utf-16-le"
    return "utf-8-sig"
