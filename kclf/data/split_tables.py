"""Folders of splits that hold photos and a table of them, as Roboflow and Hugging Face write them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from .._core.arguments import listed
from ..errors import DataError
from .folders import find_layout, only_table
from .table_splits import Columns
from .tables import column_of_files, read_csv_table

COLUMN = "folder"  # of the joined table: the split that a row stands in


@dataclass
class SplitTables:
    """The tables of the splits as one.

    Args:
        columns: of all rows; names of files are relative to the folder, and `COLUMN` names the split.
        test: the folder of test photos that no table lists, or None.
        notes: what was found out, and what lies there and is not used.
    """

    columns: Columns
    test: str | None = None
    notes: list[str] = field(default_factory=list)


def tables_of_splits(folder: str | os.PathLike[str]) -> SplitTables | None:
    """The tables in the folders of splits; None where training or validation has no single table of its own.

    Raises:
        DataError: the tables have different columns, or one cannot be read.
    """
    layout = find_layout(folder)
    tables = {split: only_table(root) for split, root in layout.splits.items()}
    if not layout.is_split or not tables.get("train") or not tables.get("valid", "none there"):
        return None
    joined = SplitTables({}, None if tables.get("test", "none there") else layout.splits["test"])
    used = {split: table for split, table in tables.items() if table}
    for split, table in used.items():
        _append(joined, split, table, os.path.relpath(layout.splits[split], folder))
    joined.notes.append(f"Labels are read from {listed([os.path.relpath(t, folder) for t in used.values()])}")
    if layout.unused:
        joined.notes.append(f"Not used: {listed(layout.unused)}")
    return joined


def _append(joined: SplitTables, split: str, table: str, place: str) -> None:
    columns, notes = read_csv_table(table)
    path = column_of_files(columns)
    columns[path] = [os.path.join(place, str(name).strip()) for name in columns[path]]
    columns[COLUMN] = [split] * len(columns[path])
    if joined.columns and set(columns) != set(joined.columns):
        raise DataError(
            f"{table}: expected the columns of the other splits, {listed(list(joined.columns))}. "
            f"Found {listed(list(columns))}"
        )
    for name, values in columns.items():
        joined.columns.setdefault(name, []).extend(values)
    joined.notes += notes
