"""The `kclf` command. It parses words and prints; the work is done elsewhere."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .._core.csv_files import CsvWriter
from .._core.signals import end_on_signals
from .._core.terminal import guard_streams, one_line, output_error
from ..errors import KclfError, OutputError, OutputExistsError, RunStopped, TrainingError
from .serve_commands import serve, similar
from .use_commands import choose, evaluate
from .weights_commands import app as weights_app

if TYPE_CHECKING:
    from ..models import ImageClassifier

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BAD_INPUT, CANNOT_TRAIN, CANNOT_WRITE, INTERRUPTED = 2, 3, 4, 130


class Augment(StrEnum):
    """The augmentation presets, by the course's names."""

    standard = "standard"
    side_on = "side_on"
    top_down = "top_down"
    basic = "basic"
    none = "none"


class Effort(StrEnum):
    """How much is trained, from seconds to minutes."""

    quick = "quick"
    standard = "standard"
    best = "best"


class Recipe(StrEnum):
    """How it is trained."""

    lp_ft = "lp-ft"
    course = "course"


class Task(StrEnum):
    """What is asked of a photo."""

    single_label = "single_label"
    multi_label = "multi_label"
    regression = "regression"


class Precision(StrEnum):
    """The number formats that a model can compute in."""

    float32 = "float32"
    mixed_float16 = "mixed_float16"
    mixed_bfloat16 = "mixed_bfloat16"
    auto = "auto"


def _print_versions(asked: bool) -> None:
    if asked:
        typer.echo(", ".join(f"{name} {version(name)}" for name in ("kclf", "keras", "torch")))
        raise typer.Exit()


@app.callback()
def options(
    versions: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Say the versions and exit."),
    ] = False,
) -> None:
    """Image classifiers from a folder of photos, by transfer learning."""


DATA = "Data"
MODEL = "Model"
TRAINING = "Training"
OUTPUT = "Output"


@app.command()
def train(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(help="The folder of photos.", show_default=False)] = None,
    label_regex: Annotated[
        str | None,
        typer.Option(
            help="Take the class from the file name: the first group of this pattern.", rich_help_panel=DATA
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="Take file names and classes from the first two columns.", rich_help_panel=DATA),
    ] = None,
    label_delimiter: Annotated[
        str | None,
        typer.Option(
            help="In the table: what stands between several labels of a photo.",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(
            help="In the table: regression where the labels are numbers to predict.",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ] = None,
    valid_fraction: Annotated[
        float,
        typer.Option(
            help="Share of the photos kept for validation.", min=0.01, max=0.9, rich_help_panel=DATA
        ),
    ] = 0.2,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Stop at the first photo that cannot be read.", rich_help_panel=DATA),
    ] = False,
    lenient: Annotated[
        bool,
        typer.Option(
            "--lenient",
            help="Warn of what is wrong with the layout (an empty class folder, loose photos) and train.",
            rich_help_panel=DATA,
        ),
    ] = False,
    max_unreadable: Annotated[
        float,
        typer.Option(help="Share of the photos that may be unreadable.", min=0, max=1, rich_help_panel=DATA),
    ] = 0.05,
    suffix: Annotated[
        str, typer.Option(help="Of a table: added to its file names, such as .jpg.", rich_help_panel=DATA)
    ] = "",
    delimiter: Annotated[
        str | None,
        typer.Option(help="Of a table: between its fields; tab for a tab.", rich_help_panel=DATA),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Of a table: FILE,LABEL by name or number from 0.", rich_help_panel=DATA),
    ] = None,
    valid_column: Annotated[
        str | None,
        typer.Option(help="Of a table: the column that says what validates.", rich_help_panel=DATA),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(help="Bits of deep images, such as 12.", min=1, max=32, rich_help_panel=DATA),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Most pixels of a photo, as decoded.", min=1, rich_help_panel=DATA)
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="The pretrained network.", rich_help_panel=MODEL)
    ] = "EfficientNetLite0",
    weights: Annotated[
        str, typer.Option(help="imagenet, none, or a weights file without top.", rich_help_panel=MODEL)
    ] = "imagenet",
    size: Annotated[
        int, typer.Option(help="Side of the square the network sees, pixels.", min=16, rich_help_panel=MODEL)
    ] = 224,
    presize: Annotated[
        int | None,
        typer.Option(
            help="Side of the square photos are read at, before augmentation. Default: 1.25 x --size.",
            min=16,
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    augment: Annotated[
        Augment, typer.Option(help="What happens to training photos.", rich_help_panel=MODEL)
    ] = Augment.standard,
    effort: Annotated[
        Effort,
        typer.Option(
            help="quick solves the last layer on frozen features; standard and best tune everything.",
            rich_help_panel=TRAINING,
        ),
    ] = Effort.standard,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="How long it may take, in place of what the effort would.",
            min=0.01,
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    recipe: Annotated[
        Recipe | None,
        typer.Option(
            help="lp-ft solves, then tunes; course trains the head and then everything, for epochs. Default: "
            "lp-ft, or course where one of --epochs, --freeze-epochs and --learning-rate is given.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Of course: epochs with everything trainable. Default: 3.",
            min=0,
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    freeze_epochs: Annotated[
        int | None,
        typer.Option(
            help="Of course: epochs before, with only the head trainable. Default: 1.",
            min=0,
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of course: peak rate of the head's cycle. Default: 2e-3.",
            min=1e-9,
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            help="Photos a step; auto for the most that the GPU has memory for. Default: by the number of "
            "photos, up to 32; 64 of course.",
            show_default=False,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    mixed_precision: Annotated[
        Precision, typer.Option(help="auto takes what this device is fastest with.", rich_help_panel=TRAINING)
    ] = Precision.float32,
    seed: Annotated[
        int,
        typer.Option(
            help="Governs split, order, augmentation and initial weights.",
            min=0,
            max=2**32 - 1,
            rich_help_panel=TRAINING,
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the classifier and what belongs to it. Default: FOLDER's name and -classifier.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into an --out that exists.", rich_help_panel=OUTPUT)
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue the interrupted run in this folder; takes no other options.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Train a classifier on FOLDER and save it.

    FOLDER holds train/ and valid/ with a folder for each class, or a folder for each class alone, which is
    split by --seed; photos in one flat folder need --label-regex or --csv.

    Continue an interrupted run with --resume RUN; the result is the same.

    Exit status: 0 done; 2 bad input; 3 training cannot go on; 4 a file cannot be written (disk full,
    read-only); 130 stopped by Ctrl-C and 143 by SIGTERM, with all saved.
    """
    from .train import RunSettings, train_run, unfinished_run

    if resume is not None:
        _refuse_more_than(context, "resume")
        unfinished = unfinished_run(resume)
        if unfinished is None:
            typer.echo(f"The run in {resume} is finished.")
        else:
            train_run(unfinished, resume=True)
        return
    if folder is None:
        raise typer.BadParameter("the folder of photos is missing", param_hint="FOLDER")
    options = {"epochs": epochs, "freeze_epochs": freeze_epochs, "learning_rate": learning_rate}
    course: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    chosen = recipe or (Recipe.course if course else Recipe.lp_ft)
    _check_recipe(chosen, course, context)
    if csv is not None and label_regex is not None:
        raise typer.BadParameter("choose one of --csv and --label-regex: each says where the class is")
    if presize is not None and presize < size:
        raise typer.BadParameter(f"expected --size {size} or more. Received: --presize {presize}")
    train_run(
        RunSettings(
            folder=folder.absolute(),
            out=out or Path(f"{folder.resolve().name}-classifier"),
            label_regex=label_regex,
            csv=csv and csv.absolute(),
            valid_fraction=valid_fraction,
            strict=strict,
            lenient=lenient,
            max_unreadable=max_unreadable,
            suffix=suffix,
            delimiter=delimiter,
            columns=columns,
            valid_column=valid_column,
            depth=depth,
            max_pixels=max_pixels,
            backbone=backbone,
            weights=_weights(weights),
            size=size,
            presize=presize or round(size * 1.25),
            augment=augment.value,
            label_delimiter=label_delimiter,
            task=task and task.value,
            recipe=chosen.value,
            effort=effort.value,
            minutes=minutes,
            batch_size=_batch_size(batch_size),
            mixed_precision=mixed_precision.value,
            seed=seed,
            **course,
        ),
        force=force,
    )


@app.command()
def predict(
    classifier: Annotated[
        Path, typer.Argument(help="A classifier.h5, or the folder of its run.", show_default=False)
    ],
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photos, or folders of photos.", show_default=False)
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="'imagenet': its 1,000 classes by published weights; all arguments are photos then.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help="With --labels: whose weights.")] = "EfficientNetLite0",
    weights: Annotated[
        str, typer.Option(help="With --labels: 'imagenet', or a file of them with top.")
    ] = "imagenet",
    top: Annotated[int, typer.Option(help="How many classes to print a photo.", min=1)] = 1,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    batch_size: Annotated[int, typer.Option(help="Photos a step.", min=1)] = 64,
    depth: Annotated[int | None, typer.Option(help="Bits of deep images.", min=1, max=32)] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a photo, as decoded.", min=1)] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Print as many classes as hold the right one in this share of photos.",
            min=0.01,
            max=0.999,
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Say 'none of these' where no class is as probable.", min=0, max=1, show_default=False
        ),
    ] = None,
) -> None:
    """Print class and probability of each photo."""
    from ..data.decoding import set_decoding
    from ..prediction.inference import predict_files
    from .use_commands import of_imagenet, with_coverage, with_threshold

    if as_csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json")
    if labels is None and not photos:
        raise typer.BadParameter("expected photos after the classifier", param_hint="PHOTOS")
    set_decoding(depth=depth, max_pixels=max_pixels or "pillow")
    paths = (photos or []) if labels is None else [classifier, *(photos or [])]
    model = _load(classifier) if labels is None else of_imagenet(labels, backbone, weights)
    predictions, unreadable = predict_files(model, paths, batch_size=batch_size)
    for path, reason in unreadable:
        typer.echo(f"skipped {one_line(path)}: {one_line(reason)}", err=True)
    ranked = predictions.top(top) if coverage is None else with_coverage(predictions, coverage)
    rows = [
        {"path": path, "classes": [{"class": name, "probability": p} for name, p in classes]}
        for path, classes in zip(predictions.files, ranked, strict=True)
    ]
    if threshold is not None:
        rows = with_threshold(rows, predictions, threshold)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif as_csv:
        _print_csv(rows)
    else:
        _print_lines(rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the photos and the classifier.")] = Path("kclf-demo"),
    epochs: Annotated[int, typer.Option(help="Epochs with everything trainable.", min=0)] = 5,
    seed: Annotated[
        int,
        typer.Option(help="Governs split, order, augmentation and initial weights.", min=0, max=2**32 - 1),
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write into an --out that exists.")] = False,
) -> None:
    """Train on handwritten digits: no data and no network needed, under two minutes on a laptop."""
    from ..datasets import write_digits
    from .train import RunSettings, check_out, train_run

    check_out(out, force=force)
    photos = write_digits(out / "photos")
    settings = RunSettings(
        folder=photos,
        out=out,
        backbone="EfficientNetLite0",
        size=64,
        presize=64,
        augment="basic",
        recipe="course",
        epochs=epochs,
        learning_rate=8e-3,  # digits are far from ImageNet's photos, and there are enough of them
        unfrozen_learning_rate=2e-3,
        seed=seed,
    )
    train_run(settings, force=True)
    typer.echo(f"\nTry it:  kclf predict {out / 'classifier.h5'} {photos / '3'} --top 2")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a training run.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file to write. Default: report.html in the run.", show_default=False),
    ] = None,
) -> None:
    """Write the report of a run: one HTML page that needs no network."""
    from ..report import write_report

    _require_place(out)
    typer.echo(write_report(run, out or run / "report.html"))


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="The folder of photos.", show_default=False)],
    label_regex: Annotated[
        str | None, typer.Option(help="Take the class from the file name: the first group of this pattern.")
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(help="A classifier.h5 or its run: its backbone then looks for wrong labels as well."),
    ] = None,
    ledger: Annotated[Path, typer.Option(help="Where to write the findings, to be edited.")] = Path(
        "ledger.csv"
    ),
    page: Annotated[
        Path | None, typer.Option(help="Also write an HTML page on which the ledger is edited.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a ledger that exists.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Take file names and classes from this table.")] = None,
    suffix: Annotated[str, typer.Option(help="Of a table: added to its file names.")] = "",
    delimiter: Annotated[str | None, typer.Option(help="Of a table: between its fields.")] = None,
    columns: Annotated[str | None, typer.Option(help="Of a table: FILE,LABEL.")] = None,
    label_delimiter: Annotated[str | None, typer.Option(help="Of a table: between labels.")] = None,
    valid_column: Annotated[str | None, typer.Option(help="Of a table: what validates.")] = None,
    depth: Annotated[int | None, typer.Option(help="Bits of deep images.", min=1, max=32)] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a photo, as decoded.", min=1)] = None,
) -> None:
    """Look for what is wrong with photos and labels; nothing is changed."""
    from ..checks import check as check_photos
    from ..data.decoding import set_decoding
    from ..data.labels import regex_label

    _require_place(ledger, page)
    if ledger.exists() and not force:
        raise OutputExistsError(f"{ledger} exists. Choose another --ledger, or pass --force to replace it.")
    set_decoding(depth=depth, max_pixels=max_pixels or "pillow")
    data: Any = folder
    if csv is not None:
        from .train import RunSettings, read_csv_data

        words = {"suffix": suffix, "delimiter": delimiter, "columns": columns, "valid_column": valid_column}
        words_of_run = RunSettings(folder, ledger, label_delimiter=label_delimiter, **words)  # type: ignore[arg-type]
        data = read_csv_data(csv, folder, words_of_run, lenient=True, max_unreadable=None)
    findings = check_photos(
        data,
        _load(classifier) if classifier else None,
        label=regex_label(label_regex, missing="") if label_regex else None,
    )
    typer.echo(findings.summary())
    findings.to_csv(ledger)
    typer.echo(f"\nWritten to {ledger}. Edit its column action, then: kclf clean {ledger}")
    if page is not None:
        from ..report import write_ledger_page

        typer.echo(f"The page to edit it on: {write_ledger_page(findings, page)}")


@app.command()
def clean(
    ledger: Annotated[Path, typer.Argument(help="The edited ledger, or an undo log.", show_default=False)],
    apply: Annotated[
        bool, typer.Option("--apply", help="Move the files; else only say what would be.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Move back what an undo log tells of.")] = False,
) -> None:
    """Do what an edited ledger says. Nothing is deleted: photos move to a folder `removed`."""
    from ..checks import apply_ledger, undo_ledger

    typer.echo(undo_ledger(ledger) if undo else apply_ledger(ledger, apply=apply))


@app.command()
def doctor(
    folder: Annotated[
        Path | None, typer.Argument(help="Photos to measure with; made-up ones without.", show_default=False)
    ] = None,
    backbone: Annotated[str, typer.Option(help="The network to measure with.")] = "MobileNetV2",
    size: Annotated[int, typer.Option(help="Side of the square the network sees, pixels.", min=32)] = 224,
    batch_size: Annotated[int, typer.Option(help="Photos a step.", min=1)] = 32,
) -> None:
    """Say what this machine has, how fast each stage runs, and whether learning works at all."""
    from .doctor import diagnose

    diagnosis = diagnose(folder, backbone=backbone, size=size, batch_size=batch_size)
    typer.echo(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(CANNOT_TRAIN)


app.command()(evaluate)
app.command()(choose)
app.command()(serve)
app.command()(similar)
app.add_typer(weights_app, name="weights")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; an error ends with one message and an exit status that tells its kind.

    The status is 2 for bad input, 3 where training cannot go on, 4 where a result cannot be written, and 128
    with the number of the signal that stopped it.

    Args:
        words: the command's words; None takes those of the process.
    """
    guard_streams()
    logging.getLogger("kclf").addHandler(logging.NullHandler())  # what it warns of, the commands print
    if threading.current_thread() is threading.main_thread():
        end_on_signals()
    try:
        run_app(words)
    except RunStopped as stopped:
        _fail(str(stopped), 128 + stopped.signal)
    except TrainingError as error:
        _fail(str(error), CANNOT_TRAIN)
    except OutputError as error:
        _fail(str(error), CANNOT_WRITE)
    except (KclfError, OSError) as error:
        _fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        _fail("stopped", INTERRUPTED)


def run_app(words: Sequence[str] | None) -> None:
    """Run the command; where its output could not be written, it ends with that."""
    try:
        app(words)
    finally:
        if (error := output_error()) is not None:
            raise OutputError(f"standard output cannot be written: {error.strerror}") from None


def _load(classifier: Path) -> ImageClassifier:
    """Read a classifier from its file or from the folder of its run."""
    from ..models import load
    from ..report.inputs import CLASSIFIER

    return load(classifier / CLASSIFIER if classifier.is_dir() else classifier)


def _require_place(*files: Path | None) -> None:
    """Refuse files that cannot be written, before any work is done for them."""
    for file in (file for file in files if file is not None):
        folder = file.absolute().parent
        if file.is_dir():
            raise OutputError(f"{file} is a folder. Give the name of a file in it")
        if not folder.is_dir():
            raise OutputError(f"No such folder: {file.parent}. Make it, or write {file.name} elsewhere")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{file} cannot be written: no permission in {folder}")


def _weights(word: str) -> str | None:
    """What `RunSettings` takes; a file by its absolute path, since a run may go on from elsewhere."""
    if word == "none":
        return None
    return word if word == "imagenet" else str(Path(word).absolute())


def _check_recipe(recipe: Recipe, course: dict[str, Any], context: typer.Context) -> None:
    """Refuse options of the recipe that was not chosen, and nothing to train."""
    given = {name for name in context.params if _is_given(context, name)}
    foreign = given & ({"effort", "minutes"} if recipe is Recipe.course else set(course))
    if foreign:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
        raise typer.BadParameter(f"expected options of --recipe {recipe.value}. Received: {words}")
    if course.get("epochs") == 0 and course.get("freeze_epochs") == 0:
        raise typer.BadParameter("there is nothing to train with --epochs 0 and --freeze-epochs 0")


def _is_given(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name).name == "COMMANDLINE"  # type: ignore[union-attr]


def _batch_size(word: str | None) -> int | None:
    if word is None or word == "auto":
        return 0 if word is None else None
    if not word.isdecimal() or int(word) < 1:
        raise typer.BadParameter(f"expected auto, or 1 or more photos. Received: --batch-size {word}")
    return int(word)


def _refuse_more_than(context: typer.Context, allowed: str) -> None:
    """Refuse options beside one that decides all."""
    given = [name for name in context.params if name != allowed and _is_given(context, name)]
    if given:
        raise typer.BadParameter(f"--{allowed} takes the settings of its run. Received: {', '.join(given)}")


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"kclf{_which()}: {message}", err=True)
    sys.exit(status)


def _which() -> str:
    """Which of several processes speaks."""
    from ..distributed import rank, world_size

    return f" (rank {rank()} of {world_size()})" if world_size() > 1 else ""


def _print_csv(rows: list[dict[str, Any]]) -> None:
    most = max(len(row["classes"]) for row in rows)
    writer = CsvWriter(sys.stdout, line_end="\n")
    ranks = [""] if most == 1 else [f"_{rank}" for rank in range(1, most + 1)]
    writer.write(["path", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))])
    for row in rows:
        cells = [cell for c in row["classes"] for cell in (c["class"], f"{c['probability']:.6f}")]
        writer.write([row["path"], *cells])


def _print_lines(rows: list[dict[str, Any]]) -> None:
    paths = [one_line(row["path"]) for row in rows]
    width = max(map(len, paths))
    for path, row in zip(paths, rows, strict=True):
        classes = "   ".join(f"{one_line(c['class'])} {c['probability']:.4f}" for c in row["classes"])
        typer.echo(f"{path:<{width}}  {classes}")
