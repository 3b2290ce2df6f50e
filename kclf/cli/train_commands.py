"""`kclf train` and `kclf demo`: their words, and which of them go together."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


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


DATA = "Data"
MODEL = "Model"
TRAINING = "Training"
OUTPUT = "Output"


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
