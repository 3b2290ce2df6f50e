"""Which split each row of a table is in, where a column says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._core.arguments import listed
from ..errors import DataError
from .files import split_named
from .labels import text_of

SPLIT_NAMES = frozenset({"split", "set", "subset", "partition", "phase", "usage", "data set", "data_set"})
FOLD_NAMES = frozenset({"fold", "kfold", "folds", "cv_fold"})
# Columns of 0 and 1 that say which rows are in a split.
FLAG_NAMES = {
    "test": frozenset({"is_test", "istest", "is_testing", "in_test"}),
    "valid": frozenset({"is_valid", "isvalid", "valid", "is_val", "is_validation", "in_valid", "val"}),
    "train": frozenset({"is_train", "istrain", "is_training", "in_train"}),
}
TRUE, FALSE = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no", ""})
MOST_FOLDS = 50

Columns = dict[str, list[Any]]
Sides = list[str]  # "train", "valid" or "test" of each row


def split_columns(columns: Columns, taken: set[str]) -> tuple[list[str], list[str]]:
    """The columns that say which split a row is in, and a note on one that is called so and does not."""
    flags: list[str] = []
    notes: list[str] = []
    for name, values in columns.items():
        key = key_of(name)
        if name in taken:
            continue
        if key in FOLD_NAMES and 2 <= len({text_of(v) for v in values}) <= MOST_FOLDS:
            return [name], notes
        if key in SPLIT_NAMES:
            if "train" in _named(values):
                return [name], notes
            notes.append(f"Column {name!r} is not used: {_some(values)} name no splits (--valid-column)")
        elif _flag_of(name) and is_flag(values):
            flags.append(name)
    return flags, notes


def key_of(name: str) -> str:
    """The name of a column as those above are written."""
    return name.strip().lower()


def is_flag(values: Sequence[Any]) -> bool:
    """Whether a column holds 0 and 1 alone, in any of their spellings."""
    return all(text_of(value).strip().lower() in TRUE | FALSE for value in values)


def _flag_of(name: str) -> str:
    return next((split for split, names in FLAG_NAMES.items() if key_of(name) in names), "")


def _named(values: Sequence[Any]) -> set[str]:
    """The splits that values name; "" for those that name none."""
    return {split_named(text) for text in {text_of(value).strip() for value in values}}


def _some(values: Sequence[Any]) -> str:
    return listed(sorted({text_of(value).strip() for value in values}))


def sides_of(columns: Columns, names: Sequence[str]) -> tuple[Sides, list[str]]:
    """The split of each row by the columns that say it, and what to say of them.

    Raises:
        DataError: a column names other things than splits, or a row is in none.
    """
    notes: list[str] = []
    if len(names) > 1 or _flag_of(names[0]) == "train":
        sides = _by_flags({name: columns[name] for name in names})
    else:
        sides, notes = _by_words(columns[names[0]], names[0])
    counts = ", ".join(
        f"{sides.count(side):,} {side}" for side in ("train", "valid", "test") if side in sides
    )
    said = f"Column {names[0]!r} says" if len(names) == 1 else f"Columns {listed(names)} say"
    return sides, [*notes, f"{said} the split: {counts}"]


def _by_flags(flags: Columns) -> Sides:
    """A row that is not for training is for validation where no other column says more."""
    marked = {_flag_of(name): [text_of(v).strip().lower() in TRUE for v in flags[name]] for name in flags}
    rest = "train" if "train" not in marked else "valid" if len(marked) == 1 else ""
    rows = zip(*marked.values(), strict=True)
    sides = [next((side for side, on in zip(marked, row, strict=True) if on), rest) for row in rows]
    if "" in sides:
        raise DataError(
            f"Expected a 1 in one of the columns {listed(list(flags))}. Row {sides.index('') + 1} has none"
        )
    return sides


def _by_words(values: Sequence[Any], name: str) -> tuple[Sides, list[str]]:
    """By the names of splits, by 1 for validation, or by folds."""
    texts = [text_of(value).strip() for value in values]
    named = _named(texts)
    if is_flag(values):
        side = _flag_of(name) or "valid"
        return [side if text.lower() in TRUE else "train" for text in texts], []
    if "" not in named:
        return [split_named(text) for text in texts], []
    if named != {""} or (key_of(name) not in FOLD_NAMES and len(set(texts)) > MOST_FOLDS):
        raise DataError(
            f"Expected 0 and 1, or train, valid and test, or folds, in column {name!r}. "
            f"Received: {_some(values)}. Remove the rows that are not used, or name the split's column "
            "(`valid_column`, --valid-column)"
        )
    first = min(set(texts), key=lambda text: (len(text), text))
    note = f"Column {name!r} holds folds: fold {first} validates"
    return ["valid" if text == first else "train" for text in texts], [note]
