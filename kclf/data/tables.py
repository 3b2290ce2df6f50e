"""Tables of file names and labels."""

from __future__ import annotations

import os
from pathlib import Path

from .._core.arguments import listed
from .._core.csv_files import read_csv
from ..errors import DataError


def read_table(csv_file: str | os.PathLike[str], delimiter: str = ",") -> dict[str, list[str]]:
    """Columns of a CSV file with a header row, as text.

    Raises:
        DataError: no such file, no rows, a column name twice, or a row with another number of fields.
    """
    if not Path(csv_file).is_file():
        raise DataError(f"No such file. Received: csv_file={str(csv_file)!r}")
    rows = read_csv(csv_file, delimiter=delimiter, escaped=False)
    header = next(rows, [])
    if len(set(header)) < len(header):
        raise DataError(f"{csv_file}: a column name stands twice in the header: {listed(header)}")
    columns: list[list[str]] = [[] for _ in header]  # a row is not kept: a table may have millions
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(
                f"{csv_file}, row {number}: expected {len(header)} fields as in the header "
                f"({listed(header)}). Found {len(row)}: {listed(row)}"
            )
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    if not columns or not columns[0]:
        raise DataError(
            f"{csv_file}: expected a header row and a row for each image. Found {len(header[:1])} rows"
        )
    return dict(zip(header, columns, strict=True))
