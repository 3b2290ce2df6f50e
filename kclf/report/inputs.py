"""What a report is made of, and how to read it from the folder of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from .._core.csv_files import read_csv
from ..checks import Findings, read_ledger
from ..data.decision import Decision
from ..data.labels import encode, encode_many
from ..data.tasks import SEPARATOR
from ..errors import DataError, FileFormatError
from ..interpret import AnyInterpretation, interpretation_of
from ..models import load
from ..prediction.predictions import Predictions

Columns = Mapping[str, Sequence[float] | np.ndarray]
CLASSIFIER, HISTORY, BATCHES, SETTINGS = "classifier.h5", "history.csv", "batches.csv", "settings.json"
PREDICTIONS, RANGE_TEST, LEDGER = "predictions.csv", "range_test.csv", "ledger.csv"
LARGEST = 1e39  # of a number in a table: float32 ends before it
DEEPEST = 20  # objects of settings inside one another
BEFORE_CLASSES = ["path", "label", "predicted", "confidence"]  # columns of predictions.csv, then the classes


@dataclass(frozen=True)
class ReportInputs:
    """All a report can show; what is missing is left out of the page.

    Args:
        title: heading of the page.
        settings: name -> value, nested or not: arguments, versions, data, machine.
        history: columns of the epochs: epoch, stage, train_loss, valid_loss, accuracy, time (seconds).
        batches: columns of the steps: step, learning_rate, momentum, smoothed_loss.
        range_test: columns learning_rate and loss of a learning-rate range test.
        interpretation: of the validation photos.
        findings: of a check of the data.
        model: the classifier, for Grad-CAM; None leaves the heat maps out.
        date: day of the run, as text.
        is_run: `kclf train --repeat` can repeat it.
    """

    title: str = "Training report"
    settings: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Sequence[Any] | np.ndarray] = field(default_factory=dict)
    batches: Columns = field(default_factory=dict)
    range_test: Columns = field(default_factory=dict)
    interpretation: AnyInterpretation | None = None
    findings: Findings | None = None
    model: Any = None
    date: str = ""
    is_run: bool = False


def read_run(run: str | os.PathLike[str], *, heat: bool = True, model: Any = None) -> ReportInputs:
    """Read the folder that a training run left; any of its files may be missing, but not all.

    Args:
        run: the folder.
        heat: with its classifier, for Grad-CAM.
        model: the classifier of the run, where it is at hand; None loads it where it is wanted.

    Raises:
        DataError: there is no such folder, or none of the files of a run in it.
        FileFormatError: one of the files is damaged.
    """
    folder = Path(run)
    names = (HISTORY, PREDICTIONS, SETTINGS, BATCHES)
    if not any((folder / name).is_file() for name in names):
        raise DataError(f"Expected the folder of a run, with one of {', '.join(names)}. Received: {run}")
    settings = _read_json(folder / SETTINGS)
    data = settings.get("data", {})
    if not isinstance(data, dict):
        raise FileFormatError(f"{folder / SETTINGS}: expected an object as data. Received: {data!r:.60}")
    task = data.get("task", "single_label")
    wanted = heat or task == "multi_label"  # whose thresholds the classifier keeps
    if model is None and wanted and (folder / CLASSIFIER).is_file():
        model = load(folder / CLASSIFIER)
    predictions, ledger, decision = folder / PREDICTIONS, folder / LEDGER, model and model.decision
    return ReportInputs(
        title=folder.resolve().name,
        settings=settings,
        history=_read_numbers(folder / HISTORY, but=("stage",)),
        batches=_read_numbers(folder / BATCHES),
        range_test=_read_numbers(folder / RANGE_TEST),
        interpretation=read_predictions(predictions, task, decision) if predictions.is_file() else None,
        findings=Findings(read_ledger(ledger)) if ledger.is_file() else None,
        model=model if heat else None,
        date=_day_of([folder / name for name in names]),
        is_run="settings" in settings,
    )


def as_mapping(value: Any) -> Mapping[str, Any]:
    """An object of a JSON file; {} for what should be one and is not."""
    return value if isinstance(value, Mapping) else {}


def _day_of(files: Sequence[Path]) -> str:
    """The day on which the newest of some files was written."""
    newest = datetime.fromtimestamp(max(file.stat().st_mtime for file in files if file.is_file()))
    return f"{newest.day} {newest:%B %Y}"


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file: numbers where all are numbers (empty is nan), else text; {} without the file."""
    if not path.is_file():
        return {}
    names, *rows = list(read_csv(path)) or [[]]
    if any(len(row) != len(names) for row in rows):
        raise FileFormatError(f"{path}: expected {len(names)} fields a row, as in its first line")
    return {name: _numbers_or_text([row[place] for row in rows]) for place, name in enumerate(names)}


def _read_numbers(path: Path, but: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Columns of numbers that a run can have had; `but` are those of text."""
    columns = read_columns(path)
    for name, column in columns.items():
        is_number = column.dtype.kind == "f"
        if name not in but and not (is_number and (np.abs(column[np.isfinite(column)]) <= LARGEST).all()):
            raise FileFormatError(f"{path}: expected numbers of at most {LARGEST:g} in the column {name!r}")
    return columns


def read_predictions(
    path: Path, task: str = "single_label", decision: Decision | None = None
) -> AnyInterpretation | None:
    """Read what `Predictions.to_csv` wrote: path, label, predicted, confidence, then a column a class.

    Args:
        path: the file.
        task: of the predictions; numbers have no column of confidence.
        decision: the thresholds of several labels.

    Returns:
        None where the photos have no labels.
    """
    header, *rows = list(read_csv(path)) or [[]]
    before = [name for name in BEFORE_CLASSES if task != "regression" or name != "confidence"]
    if "label" not in header[:2]:
        before.remove("label")
    class_names = header[len(before) :]
    if header[: len(before)] != before or not class_names:
        raise FileFormatError(
            f"{path}: expected columns {', '.join(before)} and one a class. Received: {header[:8]}"
        )
    if "label" not in before:
        return None
    try:
        values = np.array([row[len(before) :] for row in rows], np.float32).reshape(len(rows), -1)
        labels = _labels([row[1] for row in rows], class_names, task)
        paths = np.array([row[0] for row in rows])
        return interpretation_of(Predictions(values, labels, paths, class_names, task, decision=decision))
    except (IndexError, ValueError) as error:
        raise FileFormatError(f"{path}: a label or a probability cannot be read ({error})") from error


def _labels(texts: list[str], class_names: Sequence[str], task: str) -> np.ndarray:
    """Labels from the words that `label_text` made of them."""
    if task == "regression":
        return np.array([text.split() for text in texts], np.float64)
    if task == "single_label":
        return encode(texts, class_names)
    return encode_many([text.split(SEPARATOR) if text else [] for text in texts], class_names)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if _depth(content) > DEEPEST:
            raise ValueError(f"more than {DEEPEST} objects inside one another")
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: no JSON of a run ({error})") from error
    return content if isinstance(content, dict) else {path.stem: content}


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _numbers_or_text(values: list[str]) -> np.ndarray:
    try:
        return np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return np.array(values)
