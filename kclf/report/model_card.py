"""`MODEL_CARD.md` of a run, with the fields that Hugging Face reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._core.atomic import replacing
from .._core.sizes import size_text
from ..backbones import backbone_info, backbone_names
from ..errors import FileFormatError
from ..interpret import AnyInterpretation, Interpretation, RegressionInterpretation
from .inputs import CLASSIFIER, SETTINGS, ReportInputs, as_mapping, read_run

MOST_CLASSES = 200  # rows of the table of classes
MOST_CONFUSED = 10
# SPDX identifiers that are Hugging Face's own in small letters; all else is "other" there.
KNOWN_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0")
TASK_WORDS = {
    "single_label": "one class for each photo",
    "multi_label": "any number of classes for each photo",
    "regression": "numbers for each photo",
}

USE = f"""\
```bash
kclf predict {CLASSIFIER} photos/
```

```python
import kclf

model = kclf.load("{CLASSIFIER}")
predictions, unreadable = kclf.predict_files(model, ["photo.jpg"])
print(predictions.top(3))
```"""
LIMITS = (
    "The figures are of validation photos from the same source as the training photos. Photos from elsewhere "
    "(another camera, season, country) can be harder: measure on labelled ones with `kclf evaluate`. A photo "
    "of none of the classes is given one of them all the same, but for `kclf predict --threshold`."
)


def write_model_card(run: str | os.PathLike[str] | ReportInputs, path: str | os.PathLike[str]) -> Path:
    """Write the card of a classifier: data, classes, figures with intervals, calibration, licence and use.

    Args:
        run: the folder of a run, or its parts.
        path: the Markdown file to write.

    Returns:
        The path written.
    """
    inputs = run if isinstance(run, ReportInputs) else read_run(run, heat=False)
    with replacing(path) as temporary:
        temporary.write_text("\n".join(_lines(inputs)) + "\n", encoding="utf-8")
    return Path(path)


def _lines(inputs: ReportInputs) -> Iterable[str]:
    settings, data = (as_mapping(inputs.settings.get(name)) for name in ("settings", "data"))
    licence = _licence(settings)
    yield from _front_matter(inputs, licence)
    yield from [f"# {plain(inputs.title)}", ""]
    task = str(data.get("task", "single_label"))
    reads = {**settings, **as_mapping(inputs.settings.get("reads"))}  # what the run has chosen
    size, presize = (size_text(reads.get(name, "?")) for name in ("size", "presize"))
    levels = ", several levels of it," if reads.get("multi_level") is True else ""
    shape = "square" if "x" not in presize else "rectangle (height x width)"
    backbone = plain(settings.get("backbone", "a backbone"))
    yield (
        f"An image classifier that gives {TASK_WORDS.get(task, task)}, trained with kclf by transfer "
        f"learning: {backbone}{levels} at {size} pixels. "
        f"Photos are cropped to a {shape} and read at {presize} pixels."
    )
    yield from ["", "## Data", "", *_data(data, inputs.interpretation, task), ""]
    yield from ["## Figures", "", *_figures(inputs.interpretation), ""]
    yield from ["## Use", "", USE, ""]
    yield from ["## Licence", "", _licence_words(licence), ""]
    yield from ["## Limits", "", LIMITS]


def _front_matter(inputs: ReportInputs, licence: str | None) -> list[str]:
    """What Hugging Face reads: library, task, licence, and the results."""
    found = inputs.interpretation
    name = "other" if licence is None or licence.lower() not in KNOWN_LICENCES else licence.lower()
    lines = ["---", f"license: {name}", "library_name: keras", "pipeline_tag: image-classification"]
    lines += ["tags:", "- image-classification", "- keras", "- kclf", "- transfer-learning"]
    if isinstance(found, Interpretation):
        title = json.dumps(inputs.title)
        lines += ["model-index:", f"- name: {title}", "  results:"]
        lines += ["  - task:", "      type: image-classification"]
        lines += [
            "    dataset:",
            f"      name: {title}",
            "      type: imagefolder",
            "      split: validation",
        ]
        lines += ["    metrics:", "    - type: accuracy", f"      value: {found.accuracy.value:.4f}"]
    return [*lines, "---", ""]


def _data(data: Mapping[str, Any], found: AnyInterpretation | None, task: str) -> Iterable[str]:
    names = [str(name) for name in data.get("class_names", ())]
    photos = _counts(data)
    counts = ", ".join(f"{photos[split]:,} for {word}" for split, word in SPLITS.items() if split in photos)
    what = "outputs" if task == "regression" else "classes"
    lost = f"; {photos['unreadable']:,} of them cannot be read" if photos.get("unreadable") else ""
    yield f"Photos: {counts or 'unknown'}{lost}. {len(names)} {what}."
    if not names or task == "regression":
        return
    trained = as_mapping(data.get("class_counts"))
    valid = _valid_counts(found, len(names))
    yield from ["", "| class | training photos | validation photos |", "|---|---|---|"]
    rows = zip(names, valid, strict=True)
    yield from [f"| {plain(n)} | {trained.get(n, '?')} | {count} |" for n, count in list(rows)[:MOST_CLASSES]]
    if len(names) > MOST_CLASSES:
        yield f"\nand {len(names) - MOST_CLASSES:,} more."


SPLITS = {"train": "training", "valid": "validation", "test": "test"}


def _counts(data: Mapping[str, Any]) -> dict[str, int]:
    """How many photos each split has, and how many could not be read."""
    counts = {name: data[name] for name in (*SPLITS, "unreadable") if name in data}
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise FileFormatError(f"{SETTINGS}: expected a number of photos. Received: {name}={count!r}")
    return counts


def _valid_counts(found: AnyInterpretation | None, classes: int) -> list[Any]:
    if found is None:
        return ["?"] * classes
    labels = np.asarray(found.predictions.labels)
    if labels.ndim > 1:
        return labels.sum(axis=0).astype(int).tolist()
    return np.bincount(labels, minlength=classes).tolist()


def _figures(found: AnyInterpretation | None) -> Iterable[str]:
    if isinstance(found, Interpretation):
        yield from _single_label_figures(found)
    elif not found:
        yield "No validation photos were measured."
    elif isinstance(found, RegressionInterpretation):
        yield f"Mean error of {len(found):,} validation photos: {found.losses.mean():.4g}."
    else:
        yield (
            f"On {len(found):,} validation photos: share of right yes-or-no answers (is the class in "
            f"the photo?) {found.predictions.accuracy():.4f}. Log loss {found.losses.mean():.4f}."
        )


def _single_label_figures(found: Interpretation) -> Iterable[str]:
    accuracy, reliability = found.accuracy, found.calibration()
    yield from ["| figure | value |", "|---|---|"]
    yield f"| accuracy | {accuracy.value:.4f} (95 % interval {accuracy.low:.4f} to {accuracy.high:.4f}) |"
    yield f"| validation photos | {len(found):,} |"
    yield f"| log loss | {found.losses.mean():.4f} |"
    yield f"| calibration error | {reliability.error:.3f} |"
    yield from ["", f"Probabilities: {found.sureness()}."]
    confused = found.most_confused()[:MOST_CONFUSED]
    yield from ["", "What it confuses most:" if confused else "No validation photo was confused."]
    if confused:
        yield from ["", "| photo of | taken for | photos |", "|---|---|---|"]
        yield from [f"| {plain(p.actual)} | {plain(p.predicted)} | {p.photos} |" for p in confused]


def _licence(settings: Mapping[str, Any]) -> str | None:
    """Licence of the weights that training began from; None where they are the user's own or random."""
    backbone = settings.get("backbone")
    if settings.get("weights") != "imagenet" or backbone not in backbone_names():
        return None
    return backbone_info(str(backbone)).licence


def _licence_words(licence: str | None) -> str:
    if licence is None:
        return "Training began from weights whose licence kclf does not know. Say here what holds for them."
    return (
        f"Training began from published weights under {licence}. What holds for the training photos is for "
        "their owners to say."
    )


def plain(text: Any) -> str:
    """A name as Markdown and HTML show it, whatever it holds."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(str(text).split()))
