"""Tables of file names and labels, from CSV files, data frames or lists: what their columns are."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._core.arguments import listed
from .._core.csv_files import find_delimiter, read_csv
from ..errors import DataError
from .files import image_suffixes, split_named
from .labels import column_of, is_missing, label_parts, plain_label, text_of
from .tasks import Task

PATH_NAMES = frozenset(
    {"file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "img", "photo"}
)
LABEL_NAMES = frozenset(
    {"label", "labels", "class", "classes", "category", "target", "tag", "tags", "species", "breed", "y"}
)
VALID_NAMES = frozenset({"is_valid", "isvalid", "valid", "is_val", "is_validation", "in_valid", "val"})
SPLIT_NAMES = frozenset({"split", "set", "subset", "partition", "phase", "usage", "data set", "data_set"})
FOLD_NAMES = frozenset({"fold", "kfold", "folds", "cv_fold"})
TRUE, FALSE = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no", ""})
MOST_FOLDS = 50

Column = str | int
Columns = dict[str, list[Any]]


def columns_of(table: Any) -> Columns:
    """The columns of a table as lists.

    Args:
        table: a mapping of columns, a data frame of pandas or polars, a table of pyarrow, or a list of
            mappings or of rows. Nothing is imported for any of them.

    Example:
        >>> columns_of([{"file": "a.jpg", "label": "cat"}])
        {'file': ['a.jpg'], 'label': ['cat']}
    """
    if isinstance(table, Mapping):
        return {str(name): _values(column) for name, column in table.items()}
    if hasattr(table, "collect") and not hasattr(table, "__getitem__"):
        table = table.collect()
    names = getattr(table, "column_names", None) or getattr(table, "columns", None)
    if names is not None and not callable(names):
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
        delimiter: between the fields; None for the one that the first line has most of.
        is_file: whether a cell of the first row names a photo, so that there is no header.

    Raises:
        DataError: no such file, no rows, a column name twice, or a row with another number of fields.
    """
    if not Path(csv_file).is_file():
        raise DataError(f"No such file. Received: csv_file={str(csv_file)!r}")
    rows = read_csv(csv_file, delimiter=delimiter, escaped=False)
    header, notes, first = next(rows, []), [], 2
    columns: list[list[Any]] = [[] for _ in header]  # a row is not kept: a table may have millions
    if any(_is_photo(cell) or is_file(cell) for cell in header):
        notes.append(f"{csv_file} has no header row: its columns are called {listed(range(len(header)))}")
        columns, header = [[cell] for cell in header], [str(place) for place in range(len(header))]
    if len(set(header)) < len(header):
        raise DataError(f"{csv_file}: a column name stands twice in the header: {listed(header)}")
    for number, row in enumerate(rows, start=first):
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
    path = _name(columns, path_column) if path_column is not None else _path_column(columns)
    if path_column is None and path != names[0]:
        notes.append(f"File names are taken from column {path!r}")
    splitting = None if is_split else _split_column(columns, valid_column, {path})
    others = [name for name in names if name not in (path, splitting)]
    meaning = Meaning(_file_names(columns[path], path), [], task or "single_label", notes=notes)
    chosen = _label_columns(columns, label_column, others, path, label_delimiter, task)
    if len(chosen) > 1:
        _read_n_hot(meaning, columns, chosen, task)
    else:
        _read_labels(meaning, columns[chosen[0]], label_delimiter, task)
    if splitting is not None:
        _read_split(meaning, columns[splitting], splitting, explicit=valid_column is not None)
    return meaning


def _name(columns: Columns, column: Column) -> str:
    column_of(columns, column)
    return list(columns)[column] if isinstance(column, int) else column


def _key(name: str) -> str:
    return name.strip().lower()


def _path_column(columns: Columns) -> str:
    """The first column that holds names of photos, else the first that is called so, else the first."""
    for name, values in columns.items():
        if any(_is_photo(value) for value in values[:20]):
            return name
    return next((name for name in columns if _key(name) in PATH_NAMES), next(iter(columns)))


def _file_names(values: Sequence[Any], column: str) -> list[str]:
    empty = [row for row, value in enumerate(values, start=1) if not text_of(value).strip()]
    if empty:
        raise DataError(
            f"{len(empty):,} of {len(values):,} rows name no file in column {column!r}: rows {listed(empty)} "
            "(counted from 1, without a header). Remove them"
        )
    return [os.fspath(v) if isinstance(v, os.PathLike) else str(v) for v in _whole(values)]


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
        return [_name(columns, column) for column in given]
    if given is not None:
        return [_name(columns, given)]  # type: ignore[arg-type]
    known = [name for name in others if _key(name) in LABEL_NAMES]
    if known or not others:
        return [known[0] if known else _name(columns, 1)]
    hot = [name for name in others if _is_n_hot(columns[name])]
    if len(hot) > 1 and len(hot) == len(others) and delimiter is None and task != "regression":
        return hot
    after = list(columns)[list(columns).index(path) + 1 :]
    return [next((name for name in after if name in others), others[0])]


def _is_n_hot(values: Sequence[Any]) -> bool:
    return all(text_of(value).strip().lower() in TRUE | FALSE - {""} for value in values)


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


def _whole_texts(values: Sequence[Any]) -> Sequence[Any]:
    """Texts like "1.0" as "1" where all are so: whole numbers that a program wrote as floats."""
    texts = [v for v in values if isinstance(v, str) and v]
    if len(texts) and all(t.endswith(".0") and t[:-2].lstrip("-").isdigit() for t in texts):
        return [v[:-2] if isinstance(v, str) and v else v for v in values]
    return values


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


# Splits


def _split_column(columns: Columns, given: Column | None, taken: set[str]) -> str | None:
    """The column that says which split a row is in."""
    if given is not None:
        return _name(columns, given)
    for name, values in columns.items():
        key = _key(name)
        if name not in taken and (
            (key in VALID_NAMES and _is_flag(values))
            or (key in SPLIT_NAMES and _are_splits(values))
            or (key in FOLD_NAMES and 2 <= len({text_of(v) for v in values}) <= MOST_FOLDS)
        ):
            return name
    return None


def _is_flag(values: Sequence[Any]) -> bool:
    return all(text_of(value).strip().lower() in TRUE | FALSE for value in values)


def _are_splits(values: Sequence[Any]) -> bool:
    return all(split_named(text) for text in {text_of(value) for value in values})


def _read_split(meaning: Meaning, values: Sequence[Any], name: str, *, explicit: bool) -> None:
    texts = [text_of(value).strip() for value in values]
    if _is_flag(values):
        sides = ["valid" if text.lower() in TRUE else "train" for text in texts]
    elif _are_splits(texts):
        sides = [split_named(text) for text in texts]
    elif explicit and _key(name) not in FOLD_NAMES and len(set(texts)) > MOST_FOLDS:
        raise DataError(
            f"Expected 0 and 1, or train, valid and test, or folds, in column {name!r}. "
            f"Received: {listed(sorted(set(texts)))}"
        )
    else:
        first = min(set(texts), key=lambda text: (len(text), text))
        sides = ["valid" if text == first else "train" for text in texts]
        meaning.notes.append(f"Column {name!r} holds folds: fold {first} validates")
    at = {side: [row for row, own in enumerate(sides) if own == side] for side in ("valid", "test")}
    meaning.valid, meaning.test = at["valid"] or None, at["test"]
    counts = ", ".join(
        f"{sides.count(side):,} {side}" for side in ("train", "valid", "test") if side in sides
    )
    meaning.notes.append(f"Column {name!r} says the split: {counts}")
