"""The main job: from a folder of photos to a folder that holds a classifier and what belongs to it."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch

from . import layers
from .atomic import replacing
from .callbacks import EpochTable, ProgressBar, Recorder
from .data import ImageData
from .errors import DataError, OutputExistsError
from .files import regex_label
from .learner import Learner
from .models import ImageClassifier
from .precision import best_precision
from .predict import Predictions
from .report import write_report

AUGMENTATIONS = {
    "standard": layers.aug_transforms,
    "side_on": layers.side_on,
    "top_down": layers.top_down,
    "basic": layers.basic,
    "none": layers.none,
}


RESULTS = ("classifier.h5", "report.html", "curves.png", "history.csv", "settings.json")


@dataclass(frozen=True)
class RunSettings:
    """All that decides what a training run gives; written to `settings.json`.

    Args:
        folder: the photos.
        out: folder for the results.
        label_regex: takes the class from the file name: the pattern's first group.
        csv: a table with file names and classes in its first two columns.
        valid_fraction: share of the photos kept for validation, where the layout does not say.
        strict: stop at the first photo that cannot be read.
        backbone: a name of `backbone_names()`.
        weights: "imagenet", None or the path of a weights file without top.
        size: side of the square the backbone sees, pixels.
        presize: side of the square photos are read at, pixels.
        batchnorm: "frozen", "train" or "inference", as `ImageClassifier` has it.
        augment: a key of `AUGMENTATIONS`.
        epochs: epochs with everything trainable.
        freeze_epochs: epochs before them with only the head trainable.
        batch_size: photos a step.
        learning_rate: peak rate of the head while it trains alone.
        thawed_rate: peak rate of the head while everything trains, 100 times that of the first layer group;
            None for a tenth of `learning_rate`: a few hundred photos lose by more.
        mixed_precision: a dtype policy, or "auto".
        seed: governs split, order, augmentation and initial weights.
    """

    folder: Path
    out: Path
    label_regex: str | None = None
    csv: Path | None = None
    valid_fraction: float = 0.2
    strict: bool = False
    backbone: str = "EfficientNetLite0"
    weights: str | None = "imagenet"
    size: int = 224
    presize: int = 280
    batchnorm: str = "inference"
    augment: str = "standard"
    epochs: int = 3
    freeze_epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 2e-3
    thawed_rate: float | None = None
    mixed_precision: str = "float32"
    seed: int = 0


def train_run(settings: RunSettings, *, force: bool = False) -> Learner:
    """Find the data, train the head, fine-tune the whole, and write the results; says so as it goes.

    Nothing is written before training has ended well, and each file whole or not at all: `classifier.h5`,
    `history.csv`, `batches.csv`, `predictions.csv` (of the validation photos), `settings.json`, `curves.png`
    and `report.html`.

    Args:
        settings: what to do.
        force: write into a folder that exists.

    Returns:
        The learner, trained.

    Raises:
        OutputExistsError: `settings.out` exists and `force` is False.
        DataError: the photos cannot be used as they lie.
        BackboneError, WeightsError: the backbone or its weights cannot be had.
    """
    check_out(settings.out, force=force)
    keras.utils.set_random_seed(settings.seed)
    data = find_data(settings)
    print(data.summary())
    table = EpochTable()
    learner = build_learner(settings, data, callbacks=[ProgressBar(), table])
    print(describe_model(learner.model))
    fine_tune(learner, settings)
    predictions = learner.predictions()
    write_run(learner, data, predictions, table, settings)
    print(describe_skipped(data))
    print(f"{predictions}\nSaved in {settings.out}: {', '.join(RESULTS)}")
    return learner


def fine_tune(learner: Learner, settings: RunSettings) -> None:
    """Train the head alone, then everything: `Learner.fine_tune` with its own rate for the second stage."""
    if settings.freeze_epochs:
        learner.freeze()
        learner.fit_one_cycle(settings.freeze_epochs, slice(settings.learning_rate), pct_start=0.99)
    if settings.epochs:
        learner.unfreeze()
        rate = settings.thawed_rate or settings.learning_rate / 10
        learner.fit_one_cycle(settings.epochs, slice(rate / 100, rate), pct_start=0.3, div=5.0)


def check_out(out: Path, *, force: bool) -> None:
    """Refuse, before any work, a folder that holds something or that cannot be written.

    Raises:
        OutputExistsError: it exists and `force` is False.
        DataError: it cannot be made or written.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file. Choose another --out.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise OutputExistsError(f"{out} exists. Choose another --out, or pass --force to write into it.")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    if not os.access(parent, os.W_OK):
        raise DataError(f"{out} cannot be written: no permission in {parent}")


def find_data(settings: RunSettings) -> ImageData:
    """The labelled, split photos, by whichever of the layouts the settings ask for."""
    options: dict[str, Any] = {
        "valid_fraction": settings.valid_fraction,
        "seed": settings.seed,
        "size": settings.size,
        "presize": settings.presize,
        "batch_size": settings.batch_size,
        "on_error": "raise" if settings.strict else "skip",
    }
    if settings.csv is not None:
        return ImageData.from_csv(settings.csv, folder=settings.folder, **options)
    if settings.label_regex is not None:
        return ImageData.from_files(settings.folder, regex_label(settings.label_regex), **options)
    return ImageData.from_folder(settings.folder, **options)


def build_learner(
    settings: RunSettings, data: ImageData, callbacks: Sequence[keras.callbacks.Callback]
) -> Learner:
    """The learner of a new classifier for the data."""
    precision = settings.mixed_precision
    return Learner(
        data,
        settings.backbone,
        weights=settings.weights,
        augmentation=AUGMENTATIONS[settings.augment](),
        batchnorm=settings.batchnorm,
        dtype=best_precision() if precision == "auto" else precision,
        callbacks=callbacks,
        verbose=False,
    )


def describe_model(model: ImageClassifier) -> str:
    """One line: the backbone, its size and the parameters of each layer group."""
    counts = [sum(int(np.prod(v.shape)) for layer in g for v in layer.weights) for g in model.layer_groups]
    groups = " + ".join(f"{count:,}" for count in counts)
    policy = model.dtype_policy.name
    return f"{model.backbone_name} at {model.size} px, {policy}; parameters by layer group: {groups}\n"


def describe_skipped(data: ImageData) -> str:
    """How many photos could not be read, and each with its reason; empty where all could."""
    if not data.skipped:
        return ""
    photos = "1 photo" if len(data.skipped) == 1 else f"{len(data.skipped)} photos"
    named = "".join(f"  {path}: {reason}\n" for path, reason in data.skipped)
    return f"\nSkipped {photos} that cannot be read:\n{named}"


# ---- results ------------------------------------------------------------


def write_run(
    learner: Learner, data: ImageData, predictions: Predictions, table: EpochTable, settings: RunSettings
) -> None:
    """Write the results of a run into its folder."""
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)
    learner.model.save(out / "classifier.h5")
    predictions.to_csv(out / "predictions.csv")
    learner.recorder.to_csv(out / "batches.csv")
    write_history(table, settings.freeze_epochs, out / "history.csv")
    with replacing(out / "settings.json") as temporary:
        temporary.write_text(json.dumps(describe_settings(settings, data), indent=2) + "\n")
    with replacing(out / "curves.png") as temporary:
        plot_curves(learner.recorder).savefig(temporary, dpi=120)
    write_report(out, out / "report.html")


def write_history(table: EpochTable, freeze_epochs: int, path: Path) -> None:
    """The course's table as CSV, with the stage each epoch belongs to and its time in seconds."""
    rows = [
        {"stage": "head" if number < freeze_epochs else "all", **row, "time": round(row["time"], 1)}
        for number, row in enumerate(table.rows)
    ]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def describe_settings(settings: RunSettings, data: ImageData) -> dict[str, Any]:
    """Settings, data and versions as JSON can hold them."""
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(settings).items()}
    return {
        "settings": plain,
        "data": {
            "class_names": data.class_names,
            "task": data.task,
            **{name: split.num_images for name, split in data.splits.items()},
        },
        "versions": {
            "kclf": version("kclf"),
            "python": platform.python_version(),
            "keras": keras.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def plot_curves(recorder: Recorder) -> Any:
    """Losses beside the learning rate, over the batches of the whole run.

    Returns:
        A matplotlib figure, not shown.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, rates = figure.subplots(1, 2)
    recorder.plot_loss(ax=losses)
    recorder.plot_lr(ax=rates)
    return figure
