"""Tables of file names and labels, from CSV files, data frames or lists: what their columns are."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._core.arguments import listed
from .._core.csv_files import find_delimiter, read_csv
from ..errors import DataError
from .files import image_suffixes
from .labels import column_name, is_missing, label_parts, plain_label, text_of
from .table_splits import FALSE, TRUE, Columns, key_of, sides_of, split_columns
from .tasks import Task

PATH_NAMES = frozenset(
    {"file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "img", "photo"}
)
LABEL_NAMES = frozenset(
    {"label", "labels", "class", "classes", "category", "target", "tag", "tags", "species", "breed", "y"}
)
WHOLE, NUMBER = re.compile(r"-?\d+(\.0)?"), re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
OFF = FALSE - {""} | {"-1", "-1.0"}  # in a column of a class

Column = str | int


def columns_of(table: Any) -> Columns:
    """The columns of a table as lists.

    Args:
        table: a mapping of columns, a data frame of pandas or polars, a table of pyarrow, a list of mappings
            or of rows, or an array of rows or of records. Nothing is imported for any of them.

    Example:
        >>> columns_of([{"file": "a.jpg", "label": "cat"}])
        {'file': ['a.jpg'], 'label': ['cat']}
    """
    if isinstance(table, np.ndarray) and (table.dtype.names or table.ndim == 2):
        table = {n: table[n] for n in table.dtype.names} if table.dtype.names else table.tolist()
    if isinstance(table, Mapping):
        return {str(name): _values(column) for name, column in table.items()}
    if hasattr(table, "collect"):  # a lazy frame
        table = table.collect()
    names = getattr(table, "column_names", None) or getattr(table, "columns", None)
    if names is not None and not callable(names):
        if len(set(names)) < len(names):
            raise DataError(f"Expected columns of different names. Received: {listed(list(names))}")
        return {str(name): _values(table[name]) for name in names}
    rows = list(table) if isinstance(table, Sequence) and not isinstance(table, str) else []
    if rows and all(isinstance(row, Mapping) for row in rows):
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        return {name: [row.get(name) for row in rows] for name in names}
    if rows and all(isinstance(row, list | tuple) and len(row) == len(rows[0]) for row in rows):
        return {str(place): [row[place] for row in rows] for place in range(len(rows[0]))}
    raise DataError(
        "Expected a table: columns by name, a data frame, a table of pyarrow, or a list of rows or of "
        f"mappings. Received: {type(table).__name__}"
    )


def _values(column: Any) -> list[Any]:
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, name):
            return list(getattr(column, name)())
    return list(column)


def read_table(csv_file: str | os.PathLike[str], delimiter: str | None = None) -> Columns:
    """Columns of a CSV file, as text; see `read_csv_table`."""
    return read_csv_table(csv_file, delimiter)[0]


def read_csv_table(
    csv_file: str | os.PathLike[str],
    delimiter: str | None = None,
    is_file: Callable[[str], bool] = lambda name: False,
) -> tuple[Columns, list[str]]:
    """Columns of a CSV file, as text, and what was found out of it.

    Args:
        csv_file: the file, with a header row or without.
        delimiter: between the fields; None for the one that `read_csv` finds.
        is_file: whether a cell of the first row names a photo, so that there is no header.

    Rows and columns that are empty, as spreadsheets leave them, are passed over.

    Raises:
        DataError: no such file, no rows, a column name twice, or a row with another number of fields.
    """
    if not Path(csv_file).is_file():
        raise DataError(f"No such file. Received: csv_file={str(csv_file)!r}")
    rows = read_csv(csv_file, delimiter=delimiter, escaped=False)
    header, notes = next(rows, []), []
    columns: list[list[Any]]  # a row is not kept: a table may have millions
    if any(_is_photo(cell) or is_file(cell) for cell in header):
        notes.append(f"{csv_file} has no header row: its columns are called {listed(range(len(header)))}")
        columns, header = [[cell] for cell in header], [str(place) for place in range(len(header))]
    else:
        header = _filled(header)
        columns = [[] for _ in header]
    if len(set(header)) < len(header):
        raise DataError(f"{csv_file}: a column name stands twice in the header: {listed(header)}")
    for number, row in enumerate(rows, start=2):
        if len(row) > len(header):
            row = [*row[: len(header)], *_filled(row[len(header) :])]
        if not any(row):
            continue
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
    if len(header) == 1 and (other := find_delimiter(header[0])) in header[0]:
        notes.append(f"{csv_file} has one column; is its delimiter {other!r} (--delimiter)?")
    return dict(zip(header, columns, strict=True)), notes


def _filled(row: list[str]) -> list[str]:
    """The cells of a row up to the last that is not empty."""
    return row[: max((place for place, cell in enumerate(row, start=1) if cell.strip()), default=0)]


def _is_photo(cell: Any) -> bool:
    return os.path.splitext(str(cell).strip())[1].lower() in image_suffixes()


# What the columns are


@dataclass
class Meaning:
    """What a table says, row by row.

    Args:
        names: of the files, as they stand.
        labels: text, lists of text or numbers.
        task: what the labels are for.
        valid: rows for validation; None where the table does not say.
        test: rows of the test set.
        notes: what was understood without being said.
    """

    names: list[str]
    labels: list[Any]
    task: Task
    valid: list[int] | None = None
    test: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def understand(
    columns: Columns,
    *,
    path_column: Column | None,
    label_column: Column | Sequence[Column] | None,
    valid_column: Column | None,
    label_delimiter: str | None,
    task: Task | None,
    is_split: bool,
) -> Meaning:
    """Files, labels and splits of a table; columns that are not named are known by name and content."""
    names, notes = list(columns), []
    if len(names) < 2:
        raise DataError(
            f"Expected a column of file names and one of labels. Received: {listed(names) or 'none'} alone. "
            "If there are more, say what stands between them (--delimiter); the index of a data "
            "frame becomes a column by reset_index()"
        )
    if not columns[names[0]]:
        raise DataError("Expected a row for each image. Received: a table without rows")
    path = column_name(columns, path_column) if path_column is not None else column_of_files(columns)
    if path_column is None and path != names[0]:
        notes.append(f"File names are taken from column {path!r}")
    splitting: list[str] = []
    if not is_split and valid_column is not None:
        splitting = [column_name(columns, valid_column)]
    elif not is_split:
        splitting, said = split_columns(columns, {path})
        notes += said
    others = [name for name in names if name not in (path, *splitting)]
    meaning = Meaning(_file_names(columns[path], path), [], task or "single_label", notes=notes)
    chosen = _label_columns(columns, label_column, others, path, label_delimiter, task)
    if len(chosen) > 1:
        _read_n_hot(meaning, columns, chosen, task)
    else:
        _read_labels(meaning, columns[chosen[0]], label_delimiter, task)
        if label_column is None and len(others) > 1 and key_of(chosen[0]) not in LABEL_NAMES:
            unused = listed([name for name in others if name != chosen[0]])
            notes.append(
                f"Labels are taken from column {chosen[0]!r}; not used: {unused} (--columns FILE,LABEL)"
            )
    if splitting:
        sides, said = sides_of(columns, splitting)
        meaning.valid = [row for row, side in enumerate(sides) if side == "valid"] or None
        meaning.test = [row for row, side in enumerate(sides) if side == "test"]
        notes += said
    return meaning


def column_of_files(columns: Columns) -> str:
    """The first column that holds names of photos, else the first that is called so, else the first."""
    for name, values in columns.items():
        if any(_is_photo(value) for value in values[:20]):
            return name
    return next((name for name in columns if key_of(name) in PATH_NAMES), next(iter(columns)))


def _file_names(values: Sequence[Any], column: str) -> list[str]:
    empty = [row for row, value in enumerate(values, start=1) if not text_of(value).strip()]
    if empty:
        raise DataError(
            f"{len(empty):,} of {len(values):,} rows name no file in column {column!r}: rows {listed(empty)} "
            "(counted from 1, without a header). Remove them"
        )
    return [os.fsdecode(v) if isinstance(v, os.PathLike | bytes) else str(v) for v in _whole(values)]


def _whole(values: Sequence[Any]) -> Sequence[Any]:
    """Floats that are all whole as integers: those met a missing value in their column."""
    floats = [v for v in values if isinstance(v, float) and not is_missing(v)]
    if floats and all(v.is_integer() for v in floats):
        return [int(v) if isinstance(v, float) and not is_missing(v) else v for v in values]
    return values


def _label_columns(
    columns: Columns,
    given: Column | Sequence[Column] | None,
    others: list[str],
    path: str,
    delimiter: str | None,
    task: Task | None,
) -> list[str]:
    if isinstance(given, list | tuple):
        return [column_name(columns, column) for column in given]
    if given is not None:
        return [column_name(columns, given)]  # type: ignore[arg-type]
    known = [name for name in others if key_of(name) in LABEL_NAMES]
    if known or not others:
        return [known[0] if known else column_name(columns, 1)]
    after = list(columns)[list(columns).index(path) + 1 :]
    first = next((name for name in after if name in others), others[0])
    rest = [name for name in others if not _is_number_of_rows(columns[name])]
    hot = [name for name in rest if _is_n_hot(columns[name])]
    if len(hot) < 2 or delimiter is not None or task == "regression":
        return [first]
    if len(hot) == len(rest):
        return hot
    if first in hot:
        raise DataError(
            f"Expected to see which columns hold the classes. {listed(hot)} hold 0 and 1, and there are "
            f"others: {listed([name for name in rest if name not in hot])}. Name them: label_column=[...] "
            "(--columns FILE,LABEL or FILE,CLASS,CLASS,...)"
        )
    return [first]


def _is_number_of_rows(values: Sequence[Any]) -> bool:
    """Whether a column tells its rows apart, and so no classes."""
    return len({text_of(value) for value in values}) == len(values) > 2


def _is_n_hot(values: Sequence[Any]) -> bool:
    return all(text_of(value).strip().lower() in TRUE | OFF for value in values)


def _read_n_hot(meaning: Meaning, columns: Columns, chosen: list[str], task: Task | None) -> None:
    """A column a class, with 0 and 1: one class an image where each row has one 1."""
    wrong = [name for name in chosen if not _is_n_hot(columns[name])]
    if wrong:
        raise DataError(f"Expected 0 and 1 in columns of classes. Received: other values in {listed(wrong)}")
    hot = [[text_of(value).strip().lower() in TRUE for value in columns[name]] for name in chosen]
    rows = [[n.strip() for n, on in zip(chosen, row, strict=True) if on] for row in zip(*hot, strict=True)]
    single = task == "single_label" or (task is None and all(len(row) == 1 for row in rows))
    bad = [i for i, row in enumerate(rows, start=1) if len(row) != 1]
    if single and bad:
        raise DataError(
            f"Expected one 1 a row for one class an image. Rows {listed(bad)} have none or several"
        )
    meaning.task = "single_label" if single else "multi_label"
    meaning.labels = [row[0] for row in rows] if single else rows
    kind = "one class" if single else "any number of classes"
    meaning.notes.append(f"Columns {listed([n.strip() for n in chosen])} hold 0 and 1: {kind} an image")


def _read_labels(meaning: Meaning, values: Sequence[Any], delimiter: str | None, task: Task | None) -> None:
    labels = [plain_label(value) for value in values]
    texts = [label for label in labels if isinstance(label, str) and label]
    if texts and all(text.startswith("[") and text.endswith("]") for text in texts):
        labels = [_listed_in(label) if isinstance(label, str) else label for label in labels]
    if task == "regression":
        meaning.labels = list(labels)
        return
    several = any(isinstance(label, list) for label in labels) or delimiter is not None
    meaning.task = task or ("multi_label" if several else "single_label")
    if meaning.task == "multi_label":
        meaning.labels = [_parts(label, delimiter) for label in labels]
    else:
        meaning.labels = [text_of(value) for value in _whole_texts(_whole(values))]
        if task is None:
            _refuse_fractions(meaning.labels)


def _whole_texts(values: Sequence[Any]) -> Sequence[Any]:
    """Texts like "1.0" as "1" where all are whole numbers: some program wrote them as floats."""
    texts = [v for v in values if isinstance(v, str) and v]
    if len(texts) and all(WHOLE.fullmatch(text) for text in texts):
        return [v.partition(".")[0] if isinstance(v, str) else v for v in values]
    return values


def _refuse_fractions(labels: Sequence[str]) -> None:
    """Numbers that are not whole are rather to be predicted than classes."""
    given = [label for label in labels if label]
    if given and all(NUMBER.fullmatch(label) for label in given):
        broken = next((label for label in given if not float(label).is_integer()), None)
        if broken is not None:
            raise DataError(
                f"Expected classes. Received: numbers such as {broken}. Pass task='regression' (--task "
                "regression) to predict them, or task='single_label' where each is a class"
            )


def _listed_in(text: str) -> list[str]:
    try:
        found = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError):
        found = text[1:-1].split()
    return [str(label) for label in found]


def _parts(label: Any, delimiter: str | None) -> Any:
    if isinstance(label, list):
        return label
    return label_parts(text_of(label), delimiter) if delimiter is not None else text_of(label)
