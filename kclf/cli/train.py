"""The main job: from a folder of photos to a folder that holds a classifier and what belongs to it."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch

from .. import layers
from .._core.atomic import replacing, sweep
from .._core.csv_files import write_csv
from .._core.locks import FolderLock
from .._core.settings import RunSettings
from .._core.signals import StopRequest
from .._core.sizes import sides, size_text
from .._core.terminal import one_line
from ..backbones import backbone_names, backbone_spec
from ..callbacks import Checkpoint, EpochTable, ProgressBar, Recorder
from ..callbacks.microbatches import LARGEST, largest_batch
from ..callbacks.run_log import RunLog, open_logs
from ..data import ImageData, ImageDataset
from ..data.archives import unpacked
from ..data.decoding import set_decoding
from ..distributed import (
    barrier,
    describe,
    gather,
    is_main,
    locked_by_main,
    print_on_main,
    restarts,
    run_on_main,
    single_process,
    world_size,
)
from ..errors import DataError, FileFormatError, KclfError, NotFiniteError, OutputError, RunStopped
from ..interpret import Interpretation
from ..interpret.similar import SimilarPhotos
from ..learner import Learner
from ..models import ImageClassifier
from ..precision import best_precision
from ..prediction.predictions import Predictions
from ..recipe import BestFit
from ..report import read_run, write_model_card, write_report
from ..report.inputs import BATCHES, CLASSIFIER, HISTORY, PREDICTIONS, SETTINGS
from .run_folder import (
    ACTIVATIONS,
    CHECKPOINTS,
    CURVES,
    MODEL_CARD,
    REPORT,
    RESULTS,
    WRITTEN,
    abandon,
    check_out,
    finish,
    is_unfinished,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AUGMENTATIONS = {
    "standard": layers.aug_transforms,
    "side_on": layers.side_on,
    "top_down": layers.top_down,
    "basic": layers.basic,
    "none": layers.none,
}
BATCH_SIZE = 64
MOST_COMPARED = 1000  # training photos among which the report looks for neighbours: seconds on a CPU
LAST_LAYER_DROPOUT = 0.2  # of "lp-ft": the last layer is learnt by a regression that has its own penalty


def train_run(
    settings: RunSettings, *, force: bool = False, resume: bool = False, started: float | None = None
) -> Learner:
    """Find the data, train the head, fine-tune the whole, and write the results; says so as it goes.

    Each file is written whole or not at all. `settings.json` and the folder `checkpoints` come first, and
    `classifier.h5` after each epoch, so that a run can always be resumed and there is a classifier;
    the others (`RESULTS`, `batches.csv`, `predictions.csv` of the validation photos) when training is over.
    Then `checkpoints` is removed: a run that has it is not finished.

    Args:
        settings: what to do.
        force: write into a folder that exists.
        resume: continue the run that was interrupted in `settings.out`. It does by itself where `torchrun`
            has started the processes again.
        started: when the command began, by `time.monotonic()`: the plan and `minutes` count from there; None
            is now.

    Returns:
        The learner, trained.

    Raises:
        OutputExistsError: `settings.out` exists and `force` is False, or another run works in it.
        DataError: the photos cannot be used as they lie.
        BackboneError, WeightsError: the backbone or its weights cannot be had.
        RunStopped: SIGTERM or Ctrl-C came; classifier and checkpoint are saved.
        NotFiniteError: the loss or the weights became infinite or NaN.
        OutputError: a file cannot be written.
    """
    started = time.monotonic() if started is None else started
    if not resume:
        cut_off = run_on_main(lambda: restarted_run(settings.out))
        settings, resume = cut_off or settings, cut_off is not None
    if not resume:
        run_on_main(lambda: check_out(settings.out, force=force))
    backbone_spec(settings.backbone)  # its name is looked at before any photo
    keras.utils.set_random_seed(settings.seed)
    data = find_data(settings)
    print_on_main(f"{data.summary(None)}\n")
    table = EpochTable()
    learner = build_learner(settings, data, callbacks=[ProgressBar(data.batch_size), table])
    print_on_main(describe_model(learner.model))
    if note := data.train.gpu_note():
        print_on_main(note)
    if settings.batch_size is None:
        settings = dataclasses.replace(settings, batch_size=fit_batch_size(learner))
    if world_size() > 1:
        print_on_main(describe(data.batch_size, settings.seed))
    with writing(settings.out), locked_by_main(FolderLock(settings.out)), StopRequest() as stop:
        learner.checkpoint = begin(settings, data, stop, resume=resume)
        names = settings.log.split(",") if settings.log and is_main() else []
        run_log = RunLog(open_logs(names, settings.out, settings.to_json()), data.train.num_images)
        learner.callbacks.append(run_log)
        found = train_to_end(learner, settings, stop, started)
    skipped = dict(found for of_rank in gather(data.skipped) for found in of_rank)
    predictions = (found and found.predictions) or learner.predictions(together=True)
    lost = skipped | dict(data.skipped)
    if is_main():
        with writing(settings.out), FolderLock(settings.out):
            parts = learner.memory.parts
            more = {"batch_parts": parts} if parts > 1 else {}
            more |= {} if found is None else describe_best(found)
            if more or lost:
                write_settings(settings.out, describe_settings(settings, data, len(lost)) | more)
            write_run(learner, predictions, table, settings)
            run_log.finish(*results_of(predictions))
            finish(settings.out)
        if lost:
            print(describe_skipped(lost))
        written = ", ".join(name for name in RESULTS if (settings.out / name).exists())
        print(f"\n{predictions if found is None else found}\nSaved in {settings.out}: {written}")
    barrier()
    return learner


def train_to_end(
    learner: Learner, settings: RunSettings, stop: StopRequest, started: float
) -> BestFit | None:
    """Train by the recipe; when that is cut short, leave the classifier so far."""
    out, is_course = settings.out, settings.recipe == "course"
    so_far = f"The classifier so far: {out / CLASSIFIER}"
    try:
        if is_course:
            saving = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: save_so_far(learner.model, out))
            learner.callbacks.append(saving)
        found = learner.train(
            settings,
            keep=lambda model: save_so_far(model, out),
            say=print_on_main,
            resume=True,
            started=started,
        )
        if stop() is not None:
            raise RunStopped("Stopped when training was over.", stop() or 0)
    except (RunStopped, NotFiniteError) as error:
        if is_course:
            save_so_far(learner.model, out)
        if isinstance(error, NotFiniteError):
            raise NotFiniteError(f"{error}. {so_far}") from None
        again = f"Continue with: kclf train --resume {out}"
        raise RunStopped(f"{error} {so_far}. {again}", error.signal) from None
    except KclfError:
        if is_main() and learner.checkpoint is not None and learner.checkpoint.position is None:
            abandon(out)
        raise
    return found


def find_data(settings: RunSettings) -> ImageData:
    """The labelled, split photos, by whichever of the layouts the settings ask for."""
    options: dict[str, Any] = {
        "valid_fraction": settings.valid_fraction,
        "seed": settings.seed,
        "size": settings.size,
        "presize": settings.presize,
        "batch_size": settings.batch_size or BATCH_SIZE,
        "on_error": "raise" if settings.strict else "skip",
        "max_unreadable": settings.max_unreadable,
        "lenient": settings.lenient,
        "channels": settings.channels,
    }
    set_decoding(depth=settings.depth, max_pixels=settings.max_pixels or "pillow")
    if settings.csv is not None:
        return read_csv_data(settings.csv, settings.folder, settings, **options)
    return ImageData.from_folder(settings.folder, label_regex=settings.label_regex, **options)


def read_csv_data(csv_file: Path, folder: Path, words: RunSettings, **options: Any) -> ImageData:
    """The data of a table, its columns as the command names them."""
    path, *labels = [_column(word) for word in words.columns.split(",")] if words.columns else [None]
    return ImageData.from_csv(
        csv_file,
        folder=unpacked(folder),
        delimiter={"tab": "\t", "\\t": "\t"}.get(words.delimiter or "", words.delimiter),
        path_column=path,
        label_column=None if not labels else labels[0] if len(labels) == 1 else labels,
        valid_column=None if words.valid_column is None else _column(words.valid_column),
        suffix=words.suffix,
        label_delimiter=words.label_delimiter,
        task=words.task,
        **options,
    )


def _column(word: str) -> str | int:
    """A column by its name, or by its number from 0."""
    return int(word) if word.isdecimal() else word


def build_learner(
    settings: RunSettings, data: ImageData, callbacks: Sequence[keras.callbacks.Callback]
) -> Learner:
    """The learner of a new classifier for the data."""
    precision = settings.mixed_precision
    head: dict[str, Any] = {"hidden": (), "dropout": LAST_LAYER_DROPOUT} if settings.recipe == "lp-ft" else {}
    return Learner(
        data,
        settings.backbone,
        weights=settings.weights,
        augmentation=AUGMENTATIONS[settings.augment](),
        batchnorm=settings.batchnorm,
        dtype=best_precision() if precision == "auto" else precision,
        path=settings.out,
        callbacks=callbacks,
        verbose=False,
        **head,
    )


def fit_batch_size(learner: Learner) -> int:
    """Give the learner the largest batches that its GPU has memory for when everything trains."""
    data, model = learner.data, learner.model
    if data is None or data.train.labels is None or not torch.cuda.is_available():
        print_on_main(f"Batch size: {BATCH_SIZE}, as there is no GPU whose memory would be the limit.")
        return BATCH_SIZE
    label, num_images = data.train.labels[0], data.train.num_images
    photo = np.zeros((*sides(data.presize), data.channels), np.uint8)
    frozen = model.first_trainable_group
    model.unfreeze()
    learner.training.compile(model, model.layer_groups, model.task)

    def most() -> int:
        with single_process():
            return largest_batch(model, photo, label, most=min(LARGEST, num_images // ranks))

    ranks = world_size()
    size = run_on_main(most) * ranks
    model.freeze_to(frozen)
    learner.set_data(data.replace(batch_size=size))
    print_on_main(f"Batch size: {size}, the most that the GPU has memory for.")
    return size


def describe_model(model: ImageClassifier) -> str:
    """One line: the backbone, its size and the parameters of each layer group."""
    counts = [sum(int(np.prod(v.shape)) for layer in g for v in layer.weights) for g in model.layer_groups]
    groups = " + ".join(f"{count:,}" for count in counts)
    policy, size = model.dtype_policy.name, size_text(model.size)
    return f"{model.backbone_name} at {size} px, {policy}; parameters by layer group: {groups}"


def describe_skipped(skipped: dict[str, str]) -> str:
    """How many photos could not be read, and each with its reason."""
    photos = "1 photo" if len(skipped) == 1 else f"{len(skipped)} photos"
    named = "".join(f"\n  {one_line(path)}: {one_line(reason)}" for path, reason in skipped.items())
    return f"\nSkipped {photos} that cannot be read:{named}"


# ---- a run's folder ------------------------------------------------------------


def begin(settings: RunSettings, data: ImageData, stop: StopRequest, *, resume: bool) -> Checkpoint:
    """Make the folder a run that is not finished, or find it so; the checkpoint that its fits share."""
    out = settings.out
    if is_main():
        sweep(out)
    if is_main() and not resume:
        finish(out)
        for name in WRITTEN:  # of an earlier run, which would pass for this one's
            (out / name).unlink(missing_ok=True)
        (out / CHECKPOINTS).mkdir(exist_ok=True)
        for folder in (out / CHECKPOINTS, out):
            write_settings(folder, describe_settings(settings, data))
    checkpoint = Checkpoint(out / CHECKPOINTS, stop=stop)
    if resume and (found := checkpoint.look()):
        print_on_main(f"Going on from {found.name}\n")
    return checkpoint


def write_settings(folder: Path, described: dict[str, Any]) -> None:
    """Write `settings.json`."""
    with replacing(folder / SETTINGS) as temporary:
        temporary.write_text(json.dumps(described, indent=2) + "\n")


def restarted_run(out: Path) -> RunSettings | None:
    """The settings of the run in a folder where it was interrupted and `torchrun` began it again."""
    return unfinished_run(out) if restarts() and is_unfinished(out) else None


def unfinished_run(out: Path) -> RunSettings | None:
    """The settings of the interrupted run in a folder; None where it was finished.

    Raises:
        DataError: there is no run.
        FileFormatError: its `settings.json` is damaged.
    """
    if not is_unfinished(out):
        read_settings(out / SETTINGS)
        return None
    try:
        settings = read_settings(out / SETTINGS)
    except (DataError, FileFormatError):  # missing, or damaged
        settings = read_settings(out / CHECKPOINTS / SETTINGS)
        with replacing(out / SETTINGS) as temporary:
            shutil.copyfile(out / CHECKPOINTS / SETTINGS, temporary)
    return dataclasses.replace(settings, out=out)


def read_settings(path: Path) -> RunSettings:
    """The settings in a `settings.json`.

    Raises:
        DataError: there is no such file.
        FileFormatError: it is not one, or holds values that no run could have had.
    """
    if not path.is_file():
        raise DataError(f"{path.parent} holds no run that could be resumed: it has no {path.name}.")
    try:
        found = RunSettings.from_json(json.loads(path.read_text(encoding="utf-8"))["settings"])
        if found.backbone not in backbone_names():
            raise ValueError(f"no run can have had backbone={found.backbone!r}")
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise FileFormatError(f"{path}: no settings of a run ({error!r})") from error
    return found


def save_so_far(classifier: ImageClassifier, out: Path) -> None:
    """Save the classifier of a run that ends early."""
    if is_main():
        classifier.save(out / CLASSIFIER)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Let an error of the disk say which folder it is about, and what to do."""
    try:
        yield
    except KclfError:
        raise
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {error.strerror or error}. What was written before stands; make room, "
            f"then continue with: kclf train --resume {out}"
        ) from error


# ---- results ------------------------------------------------------------


def write_run(learner: Learner, predictions: Predictions, table: EpochTable, settings: RunSettings) -> None:
    """Write the results of a run into its folder; no curves where the last layer was solved alone."""
    out = settings.out
    learner.model.save(out / CLASSIFIER)
    predictions.to_csv(out / PREDICTIONS)
    if table.rows:
        learner.recorder.to_csv(out / BATCHES)
        head_epochs = settings.freeze_epochs if settings.recipe == "course" else 0
        write_history(table, head_epochs, out / HISTORY)
        with replacing(out / CURVES) as temporary:
            plot_curves(learner.recorder).savefig(temporary, dpi=120)
    run = read_run(out, model=learner.model)
    write_report(run, out / REPORT, similar=neighbours(learner, predictions, out))
    write_model_card(run, out / MODEL_CARD)


def neighbours(learner: Learner, predictions: Predictions, out: Path) -> SimilarPhotos | None:
    """Training photos that the report can show beside mistakes; None where there is no mistake to explain."""
    if learner.data is None or predictions.task != "single_label" or not (predictions.hits() < 1).any():
        return None
    with single_process():
        photos = first_photos(learner.data.train, MOST_COMPARED)
        return SimilarPhotos.of(learner.model, photos, out / ACTIVATIONS, progress=False)


def describe_best(found: BestFit) -> dict[str, Any]:
    """What was done, and what to expect, as `settings.json` holds it."""
    model = found.model
    reads = {"size": model.size, "presize": model.presize or model.size, "multi_level": model.multi_level}
    described: dict[str, Any] = {"plan": dataclasses.asdict(found.plan), "kept": found.kept, "reads": reads}
    described |= {"refitted_on": found.refitted_on} if found.refitted_on else {}
    if found.estimate is None:
        return described
    figures = {"photos": len(found.estimate), "loss": float(found.estimate.losses().mean())}
    if found.estimate.task != "regression":
        figures["accuracy"] = found.estimate.accuracy()
    return described | {"estimate": figures}


def write_history(table: EpochTable, freeze_epochs: int, path: Path) -> None:
    """The course's table as CSV, with the stage each epoch belongs to and its time in seconds."""
    rows = [
        {"stage": "head" if number < freeze_epochs else "all", **row, "time": round(row["time"], 1)}
        for number, row in enumerate(table.rows)
    ]
    write_csv(path, [rows[0], *(row.values() for row in rows)])


def results_of(predictions: Predictions) -> tuple[dict[str, float], dict[str, Figure]]:
    """Figures and pictures of a finished run, for its logs; of numbers to predict there are none."""
    if predictions.labels is None or predictions.task == "regression" or not len(predictions):
        return {}, {}
    figures = {"accuracy": predictions.accuracy(), "log_loss": predictions.log_loss()}
    if predictions.task == "multi_label":
        return figures, {}
    drawn = Interpretation(predictions).plot_confusion_matrix().figure_
    return figures, {} if drawn is None else {"confusion matrix": drawn}


def class_counts(data: ImageData) -> dict[str, dict[str, int]]:
    """Training photos of each class; none where numbers are predicted."""
    if data.task == "regression" or data.train.labels is None:
        return {}
    counts = data.train.class_counts().tolist()
    return {"class_counts": dict(zip(data.class_names, counts, strict=True))}


def first_photos(photos: ImageDataset, count: int) -> ImageDataset:
    """So many photos of a split, spread over it, in its order and as a prediction reads them."""
    chosen = np.linspace(0, photos.num_images - 1, min(count, photos.num_images)).round().astype(int)
    return photos.replace(
        images=photos.dataset.take(chosen),
        labels=None if photos.labels is None else photos.labels[chosen],
        shuffle=False,
        random_crop=False,
        drop_last=False,
        class_weight=None,
        sampling_weights=None,
        shard=(0, 1),
    )


def describe_settings(settings: RunSettings, data: ImageData, unreadable: int = 0) -> dict[str, Any]:
    """Settings, data and versions as JSON can hold them; of the photos, how many could not be read."""
    return {
        "settings": settings.to_json(),
        "data": {
            "class_names": data.class_names,
            "task": data.task,
            **{name: split.num_images for name, split in data.splits.items()},
            **class_counts(data),
            **({"unreadable": unreadable} if unreadable else {}),
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
    """Losses and learning rate over the batches of the whole run, and the accuracy of its epochs, if any.

    Returns:
        A matplotlib figure, not shown.
    """
    from matplotlib.figure import Figure

    has_accuracy = any("accuracy" in name for logs in recorder.epochs for name in logs)
    figure = Figure(figsize=(15 if has_accuracy else 10, 4), layout="constrained")
    losses, rates, *more = figure.subplots(1, 2 + has_accuracy)
    recorder.plot_loss(ax=losses)
    recorder.plot_lr(ax=rates)
    for axes in more:
        recorder.plot_metric(ax=axes)
    return figure
