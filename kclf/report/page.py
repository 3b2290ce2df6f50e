"""One self-contained HTML page of a run, and the page on which a person edits a ledger."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from .._core.atomic import replacing
from .._core.settings import ONLY_OF
from .._core.sizes import size_text
from ..callbacks.recording import smooth, smoothing_of
from ..checks import Finding, Findings
from ..interpret import (
    AnyInterpretation,
    ConfusionMatrix,
    Example,
    Interpretation,
    Interval,
    MultiLabelInterpretation,
    RegressionInterpretation,
)
from ..interpret.calibration import Calibration
from ..interpret.similar import Neighbour, SimilarPhotos
from .charts import Curve, line_chart
from .inputs import ReportInputs, as_mapping, read_run
from .thumbnails import Thumbnail, thumbnails
from .verdict import verdict

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_PHOTOS = 120  # in the gallery; about 9 KB each
MOST_WRONG = 96  # of them, wrong answers
MOST_EXPLAINED, NEIGHBOURS, NEIGHBOUR_SIDE = 24, 4, 64  # mistakes; their neighbours; pixels of these
MOST_LEDGER_THUMBNAILS = 200
LEDGER_SIDE = 112  # pixels
SMOOTHING = 0.98  # at most, as in fastai
TARGET_PRECISIONS = (0.9, 0.95, 0.99, 0.995)  # precisions to ask for


def write_report(
    run: str | os.PathLike[str] | ReportInputs,
    path: str | os.PathLike[str],
    *,
    heat: bool = True,
    similar: SimilarPhotos | None = None,
) -> Path:
    """Write the report of a run: one HTML file that needs no network and no other file.

    Args:
        run: the folder of a run, or its parts.
        path: the HTML file to write.
        heat: show where the model looked (Grad-CAM), if its classifier is there.
        similar: training photos, of which the nearest stand beside the worst mistakes.

    Returns:
        The path written.
    """
    inputs = run if isinstance(run, ReportInputs) else read_run(run, heat=heat)
    return _write(path, "report.html.j2", _content(inputs, inputs.model if heat else None, similar))


def write_ledger_page(
    findings: Findings, path: str | os.PathLike[str], *, ledger: str = "ledger.csv"
) -> Path:
    """Write a page that shows the findings with their photos, to be edited and saved as a ledger.

    Args:
        findings: of a check.
        path: the HTML file to write.
        ledger: name of the file that the page saves.

    Returns:
        The path written.
    """
    content = _ledger(findings) | {"file": os.path.basename(ledger)}
    return _write(path, "ledger.html.j2", {"title": "Check of the data", "ledger": content})


def _write(path: str | os.PathLike[str], template: str, content: Mapping[str, Any]) -> Path:
    page = _environment().get_template(template).render(content)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("kclf", "report/templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"embed": _embed, "breakable": _breakable, "share": _share, "value": _value}
    return environment


def _embed(value: Any) -> Markup:
    """JSON that can stand inside a script element whatever the names hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _breakable(name: str) -> Markup:
    """A name that may be broken after its underscores."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))


def _share(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value[:20]) + (" …" if len(value) > 20 else "")
    return str(value)


def _content(inputs: ReportInputs, model: Any, similar: SimilarPhotos | None) -> dict[str, Any]:
    answers = inputs.interpretation
    return {
        "title": inputs.title,
        "subtitle": _subtitle(inputs),
        "verdict": verdict(answers),
        "settings": list(_flat(_used(inputs.settings))),
        "repeat": f"kclf train --repeat {shlex.quote(inputs.title)} --out NEW" if inputs.is_run else "",
        "epochs": _epochs(inputs.history),
        "charts": [Markup(chart) for chart in _charts(inputs) if chart],
        "minutes": _minutes(inputs.history),
        "notes": inputs.findings.notes if inputs.findings else [],
        "ledger": _ledger(inputs.findings) | {"file": "ledger.csv"} if inputs.findings else None,
        **(_answers(answers, model, similar) if answers is not None else {"answers": None}),
    }


def _subtitle(inputs: ReportInputs) -> str:
    """Backbone, size and date, as far as they are known."""
    settings = as_mapping(inputs.settings.get("settings"))
    backbone, size = settings.get("backbone", ""), settings.get("size")
    at_size = f"{backbone} at {size_text(size)} px" if backbone and size else str(backbone)
    return " · ".join(filter(None, (at_size, inputs.date)))


def _answers(answers: AnyInterpretation, model: Any, similar: SimilarPhotos | None) -> dict[str, Any]:
    photos = _photos(answers)
    shown = [Thumbnail()] * len(photos)
    if answers.paths is not None:
        shown = thumbnails([str(photo.path) for photo in photos], model)
    near = _near(answers, similar)
    return {
        "answers": answers,
        "gallery": [(*pair, near.get(pair[0].index, [])) for pair in zip(photos, shown, strict=True)],
        "has_heat": any(one.heat for one in shown),
        **_of_the_task(answers),
    }


def _of_the_task(answers: AnyInterpretation) -> dict[str, Any]:
    if isinstance(answers, MultiLabelInterpretation):
        return _several_labels(answers)
    return _numbers(answers) if isinstance(answers, RegressionInterpretation) else _one_label(answers)


def _one_label(answers: Interpretation) -> dict[str, Any]:
    matrix = answers.confusion_matrix()
    reliability, temperature = answers.calibration(), answers.fit_temperature()
    accuracy, errors = answers.accuracy, int((~answers.right).sum())
    return {
        "figures": [
            ("Accuracy", _share(accuracy.value), _interval(accuracy)),
            ("Errors", f"{errors:,}", f"of {len(answers):,} validation photos"),
            ("Log loss", f"{answers.losses.mean():.4f}", ""),
            ("Calibration error", f"{reliability.error:.3f}", ""),
            ("Classes", str(len(answers.class_names)), ""),
        ],
        "ece": reliability.error,
        "temperature": temperature if answers.judges_probabilities else None,
        "sureness": answers.sureness(),
        "cooled_ece": answers.with_temperature(temperature).calibration().error,
        "reliability": _reliability_chart(reliability),
        "promises": [answers.abstain(precision) for precision in TARGET_PRECISIONS],
        "scores": _score_table(answers.class_scores(), {}),
        "confused": matrix.most_confused()[:30],
        "matrix": _matrix(matrix),
    }


def _near(
    answers: AnyInterpretation, similar: SimilarPhotos | None
) -> dict[int, list[tuple[Neighbour, Thumbnail]]]:
    """The nearest training photos of the worst mistakes, by the place of the mistake."""
    if similar is None or not isinstance(answers, Interpretation) or answers.paths is None:
        return {}
    found = answers.similar(similar, MOST_EXPLAINED, count=NEIGHBOURS)
    pictures = iter(thumbnails([n.path for _, near in found for n in near], side=NEIGHBOUR_SIDE))
    return {example.index: [(one, next(pictures)) for one in near] for example, near in found}


def _several_labels(answers: MultiLabelInterpretation) -> dict[str, Any]:
    scores, exact, reliability = answers.class_scores(), answers.exact, answers.calibration()
    more = {
        "Given from": [f"{score.threshold:.2f}" for score in scores],
        "Average precision": [f"{score.average_precision:.4f}" for score in scores],
    }
    return {
        "figures": [
            ("All labels right", _share(exact.value), _interval(exact)),
            ("Photos", f"{len(answers):,}", "of validation"),
            ("Mean average precision", f"{answers.mean_average_precision:.4f}", "of the labels"),
            ("F1", f"{answers.f1():.4f}", f"all answers together {answers.f1('micro'):.4f}"),
            ("Log loss", f"{answers.losses.mean():.4f}", ""),
            ("Calibration error", f"{reliability.error:.3f}", ""),
            ("Labels", str(len(answers.class_names)), ""),
        ],
        "ece": reliability.error,
        "reliability": _reliability_chart(reliability),
        "scores": _score_table(scores, more),
    }


def _numbers(answers: RegressionInterpretation) -> dict[str, Any]:
    error, true, said = answers.mean_absolute_error, answers.actual.ravel(), answers.predicted.ravel()
    ends = (float(min(true.min(), said.min())), float(max(true.max(), said.max())))
    both = {} if ends[0] == ends[1] else {"x_range": ends, "y_range": ends, "diagonal": True}
    return {
        "figures": [
            (
                "Mean absolute error",
                f"{error.value:.4g}",
                f"95 % interval {error.low:.4g} to {error.high:.4g}",
            ),
            ("Root mean squared error", f"{answers.root_mean_squared_error:.4g}", ""),
            ("Bias", f"{answers.bias:+.4g}", "mean of predicted minus actual"),
            ("R²", f"{answers.r_squared:.4f}", "0 is what the mean would give"),
            ("Photos", f"{len(answers):,}", "of validation"),
        ],
        "residuals": [
            _dots("Predicted over actual numbers", "actual", "predicted", true, said, **both),
            _dots("Residuals", "predicted", "predicted - actual", said, said - true),
        ],
    }


def _dots(
    title: str, x_label: str, y_label: str, x: np.ndarray, y: np.ndarray, *ends: np.ndarray, **how: Any
) -> Markup:
    """A chart of points, with the lower and upper ends of an interval around each where they are given."""
    curve = Curve("photos", x, y, True, *ends)
    return Markup(line_chart([curve], title=title, x_label=x_label, y_label=y_label, **how))


def _interval(interval: Interval) -> str:
    return f"95 % interval {_share(interval.low)} to {_share(interval.high)}"


def _score_table(scores: Sequence[Any], more: Mapping[str, list[str]]) -> dict[str, Any]:
    """Heads, and for each class its name, photos, intervals and further cells."""
    further = zip(*more.values(), strict=True) if more else [()] * len(scores)
    return {
        "heads": ["Class", "Photos", "Precision", "Recall", "F1", *more],
        "rows": [
            (score.name, score.photos, (score.precision, score.recall, score.f1), cells)
            for score, cells in zip(scores, further, strict=True)
        ],
    }


def _photos(answers: AnyInterpretation) -> list[Example]:
    """The photos of the gallery, largest loss first: wrong answers, and the least sure of the right ones."""
    if isinstance(answers, RegressionInterpretation):
        return list(answers.top_losses(MOST_PHOTOS))
    ranked = np.argsort(-answers.losses, kind="stable")
    wrong = ranked[~answers.right[ranked]][:MOST_WRONG]
    right = ranked[answers.right[ranked]][: max(24, MOST_PHOTOS - len(wrong)) if len(wrong) else 48]
    chosen = set(wrong.tolist()) | set(right[: MOST_PHOTOS - len(wrong)].tolist())
    return [answer for answer in answers.top_losses(len(answers)) if answer.index in chosen]


def _matrix(matrix: ConfusionMatrix) -> dict[str, Any]:
    """What the page's script draws: the filled cells, and the orders of the classes."""
    names = list(matrix.class_names)
    place = {name: number for number, name in enumerate(names)}
    orders = {
        "confusion": [place[name] for name in matrix.ordered("confusion").class_names],
        "name": sorted(range(len(names)), key=lambda number: names[number].casefold()),
        "accuracy": [place[name] for name in matrix.ordered("accuracy").class_names],
    }
    rows, columns = np.nonzero(matrix.counts)
    cells = [[int(a), int(p), int(matrix.counts[a, p])] for a, p in zip(rows, columns, strict=True)]
    worst = [place[name] for name in matrix.worst(20).class_names] if len(names) > 24 else []
    return {"names": names, "cells": cells, "orders": orders, "worst": worst}


def _charts(inputs: ReportInputs) -> Iterable[str]:
    history, batches = inputs.history, inputs.batches
    epochs = np.arange(1, len(next(iter(history.values()), [])) + 1)
    for label, columns, ends in (
        ("loss", ("train_loss", "valid_loss"), (-math.inf, math.inf)),
        ("accuracy", ("accuracy",), (0, 1)),
    ):
        curves = [Curve(name.replace("_", " "), epochs, history[name]) for name in columns if name in history]
        title = f"{label.capitalize()} by epoch"
        yield line_chart(curves, title=title, x_label="epoch", y_label=label, y_within=ends)
    if "loss" in batches:
        raw = [float(loss) for loss in batches["loss"]]
        batches = {**batches, "smoothed_loss": smooth(raw, min(SMOOTHING, smoothing_of(len(raw))))}
    names = {"smoothed_loss": "Loss by batch", "learning_rate": "Learning rate", "momentum": "Momentum"}
    for column, title in names.items():
        if column in batches:
            steps, label = batches.get("step", np.arange(len(batches[column]))), column.replace("_", " ")
            curves = [Curve(label, steps, batches[column])]
            yield line_chart(curves, title=title, x_label="batch", y_label=label)
    if {"learning_rate", "loss"} <= set(inputs.range_test):
        yield _range_test_chart(np.asarray(inputs.range_test["learning_rate"]), inputs.range_test["loss"])


def _range_test_chart(rates: np.ndarray, losses: Any) -> str:
    """The loss over the rate; first 10 and last 5 points left out, as they say little."""
    shown = slice(10, -5) if len(rates) > 30 else slice(None)
    curve = Curve("loss", rates[shown], np.asarray(losses)[shown])
    title = "Learning-rate range test"
    return line_chart([curve], title=title, x_label="learning rate", y_label="loss", log_x=True)


def _reliability_chart(reliability: Calibration) -> Markup:
    title = "Confidence against the share that is right"
    whole: dict[str, Any] = {"x_range": (0, 1), "y_range": (0, 1), "diagonal": True}
    return _dots(title, "confidence", "share right", *reliability.filled(), **whole)


def _epochs(history: Mapping[str, Any]) -> dict[str, Any]:
    names = list(history)
    return {"names": names, "rows": list(zip(*(list(history[name]) for name in names), strict=True))}


def _minutes(history: Mapping[str, Any]) -> float | None:
    times = history.get("time")
    return None if times is None or not len(times) else float(np.nansum(np.asarray(times, float))) / 60


def _used(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings without those of the other recipe, and without a batch size that the plan chose."""
    own = settings.get("settings")
    if not isinstance(own, Mapping):
        return settings
    unused = {name for recipe, names in ONLY_OF.items() if recipe != own.get("recipe") for name in names}
    unused |= set() if own.get("batch_size") else {"batch_size"}
    kept = {name: value for name, value in own.items() if "recipe" not in own or name not in unused}
    return {**settings, "settings": kept}


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """Nested settings as rows: "data size" and its value; what was left open is left out."""
    for name, value in settings.items():
        words = f"{above}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, "" if name == "settings" else f"{words} ")
        elif value not in (None, "", ()):
            yield words, size_text(value) if name in ("size", "presize") else value


def _ledger(findings: Findings) -> dict[str, Any]:
    """The rows of the editable ledger with thumbnails of the photo and of the one it repeats."""
    pictured = findings.items[:MOST_LEDGER_THUMBNAILS]
    paths = sorted(
        {path for row in pictured for path in (_place(row, row.path), _place(row, row.other)) if path}
    )
    shown = dict(zip(paths, thumbnails(paths, side=LEDGER_SIDE), strict=True))
    return {
        "summary": findings.summary(),
        "rows": [
            (row, *(shown.get(_place(row, name), Thumbnail()) for name in (row.path, row.other)))
            for row in findings.items
        ],
        "records": [asdict(row) for row in findings.items],
        "targets": sorted(
            {row.label for row in findings.items} | {row.target for row in findings.items} - {""}
        ),
    }


def _place(row: Finding, name: str) -> str:
    return os.path.join(row.folder, name) if name else ""
