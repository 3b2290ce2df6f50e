"""`kclf runs`: the runs of a folder side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError

if TYPE_CHECKING:
    from ..prediction.predictions import Predictions

SETTING_WIDTH = 28  # characters of a value
PLACES = {"out", "log"}  # settings that decide nothing


@dataclass(frozen=True)
class RunRow:
    """One run of the table.

    Args:
        name: of its folder.
        settings: name -> value.
        predictions: of the validation photos.
    """

    name: str
    settings: Mapping[str, Any]
    predictions: Predictions

    @property
    def score(self) -> float:
        """What runs are ordered by: accuracy, or of numbers the mean error with a minus."""
        if self.predictions.task == "regression":
            return -self.predictions.losses().mean()
        return self.predictions.accuracy()


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds folders of runs.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs: accuracy with its interval, whether the best is better by more than chance, settings."""
    if not folder.is_dir():
        raise DataError(f"No such folder: {folder}")
    rows = sorted(finished_runs(folder), key=lambda row: row.score, reverse=True)
    if not rows:
        raise DataError(f"{folder}: no finished run in it. Expected folders that kclf train wrote")
    differing = settings_that_differ(rows)
    table = [described(row, rows[0]) | {name: row.settings.get(name) for name in differing} for row in rows]
    typer.echo(json.dumps(table, indent=2) if as_json else as_text(table))


def finished_runs(folder: Path) -> list[RunRow]:
    """The runs with predictions of validation photos: the folder itself, or those up to two levels below."""
    from ..report.inputs import PREDICTIONS, SETTINGS, read_predictions
    from .run_folder import is_run

    found = []
    marked = [path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}{SETTINGS}")]
    for place in sorted({path.parent for path in marked}):
        if is_run(place) and (place / PREDICTIONS).is_file():
            described = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
            task = described.get("data", {}).get("task", "single_label")
            found_there = read_predictions(place / PREDICTIONS, task)
            if found_there is not None and len(found_there):
                name = folder.resolve().name if place == folder else str(place.relative_to(folder))
                found.append(RunRow(name, described.get("settings", {}), found_there.predictions))
    return found


def settings_that_differ(rows: list[RunRow]) -> list[str]:
    """Names of settings with more than one value, in the order of the settings."""
    names = dict.fromkeys(name for row in rows for name in row.settings)
    values = {name: {str(row.settings.get(name)) for row in rows} for name in names if name not in PLACES}
    return [name for name, found in values.items() if len(found) > 1]


def described(row: RunRow, best: RunRow) -> dict[str, Any]:
    """The figures of a run, and how likely chance alone gives what sets it apart from the best."""
    from ..interpret.statistics import wilson_interval

    predictions = row.predictions
    start: dict[str, Any] = {"run": row.name, "photos": len(predictions)}
    if predictions.task == "regression":
        return start | {"mean error": round(float(predictions.losses().mean()), 6)}
    hits = predictions.hits()
    interval = wilson_interval(float(hits.sum()), len(hits))
    figures = dict(zip(("accuracy", "from", "to"), (round(value, 4) for value in interval), strict=True))
    figures["log loss"] = round(predictions.log_loss(), 4)
    return start | figures | {"p": None if row is best else chance(best.predictions, predictions)}


def chance(best: Predictions, other: Predictions) -> float | None:
    """McNemar's p: how likely chance alone sets two runs so far apart; None where their photos differ."""
    import numpy as np

    from ..interpret.statistics import compare_answers

    if best.paths is None or other.paths is None or best.task != "single_label" or other.task != best.task:
        return None
    order, others = np.argsort(best.paths), np.argsort(other.paths)
    if not np.array_equal(best.paths[order], other.paths[others]):
        return None
    return round(compare_answers(best.hits()[order] > 0, other.hits()[others] > 0).p_value, 4)


def as_text(table: list[dict[str, Any]]) -> str:
    """The table in columns; a run that differs from the best by more than chance is marked."""
    names = list(dict.fromkeys(name for row in table for name in row))
    cells = [[_cell(name, row.get(name)) for name in names] for row in table]
    widths = [max(len(name), *(len(row[place]) for row in cells)) for place, name in enumerate(names)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [names, *cells]
    ]
    note = "p: how likely chance alone sets a run so far from the first one (McNemar), on the same photos."
    return "\n".join([*lines, *(["", note] if "p" in names else [])])


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if name in ("accuracy", "from", "to", "log loss", "p") else f"{value:g}"
    text = str(value)
    return text if len(text) <= SETTING_WIDTH else f"…{text[1 - SETTING_WIDTH :]}"
