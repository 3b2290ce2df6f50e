"""`kclf train` and `kclf demo`: their words, and which of them go together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .._core.settings import ONLY_OF, RunSettings
from .._core.sizes import Size, covers, same_shape, size_text
from .flags import given, is_given, size_of, with_flags

LOGS = ("tensorboard", "csv", "wandb", "mlflow")
STARTED = time.monotonic()  # of the command, whose packages load from here on


def _output(text: str, *words: str) -> Any:
    return typer.Option(*words, help=text, rich_help_panel="Output")


@with_flags(RunSettings)
def train(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(help="The folder of photos.")] = None,
    *,
    out: Annotated[
        Path | None,
        _output("Folder for the classifier and what belongs to it. Default: FOLDER's name and -classifier."),
    ] = None,
    repeat: Annotated[
        Path | None, _output("Train anew with the settings of this run, into another --out.")
    ] = None,
    force: Annotated[bool, _output("Write into an --out that exists.", "--force")] = False,
    resume: Annotated[
        Path | None, _output("Continue the interrupted run in this folder; takes no other options.")
    ] = None,
    **values: Any,
) -> None:
    """Train a classifier on FOLDER and save it.

    FOLDER holds train/ and valid/ with a folder for each class, or a folder for each class alone, which is
    split by --seed; photos in one flat folder need --label-regex or --csv.

    Continue an interrupted run with --resume RUN; the result is the same.

    Exit status: 0 done; 2 bad input; 3 training cannot continue; 4 a file cannot be written (disk full,
    read-only); 130 stopped by Ctrl-C and 143 by SIGTERM, with all saved.
    """
    from ..distributed import is_main
    from .run_folder import tidy
    from .train import SETTINGS, read_settings, train_run, unfinished_run

    if resume is not None:
        _refuse_more_than(context, "resume")
        unfinished = unfinished_run(resume)
        if unfinished is None:
            if is_main():
                tidy(resume)
            again = f"kclf train --repeat {resume} --out NEW, or kclf train FOLDER with other options"
            typer.echo(f"The run in {resume} is finished. To train anew: {again}")
        else:
            train_run(unfinished, resume=True, started=STARTED)
        return
    if repeat is not None:
        _refuse_more_than(context, "repeat", but=("out", "force"))
        if out is None:
            raise typer.BadParameter("the new run needs a folder of its own", param_hint="--out")
        train_run(replace(read_settings(repeat / SETTINGS), out=out), force=force)
        return
    if folder is None:
        raise typer.BadParameter("the folder of photos is missing", param_hint="FOLDER")
    out = out or Path(f"{folder.resolve().name}-classifier")
    settings = RunSettings(folder.absolute(), out, **_settings(given(context, values)))
    train_run(settings, force=force, started=STARTED)


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
    from .run_folder import check_out
    from .train import train_run

    check_out(out, force=force)
    photos = write_digits(out / "photos")
    settings = RunSettings(
        folder=photos.absolute(),
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


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that the words on the command line ask for.

    Raises:
        typer.BadParameter: they do not go together.
    """
    course = [name for name in ONLY_OF["course"] if name in values]
    recipe = values.setdefault("recipe", "course" if course else "lp-ft")
    others = ONLY_OF["lp-ft" if recipe == "course" else "course"]
    if foreign := [name for name in others if name in values]:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
        raise typer.BadParameter(f"expected options of --recipe {recipe}. Received: {words}")
    if values.get("epochs") == 0 and values.get("freeze_epochs") == 0:
        raise typer.BadParameter("there is nothing to train with --epochs 0 and --freeze-epochs 0")
    if "csv" in values and "label_regex" in values:
        raise typer.BadParameter("choose one of --csv and --label-regex: each says where the class is")
    read: dict[str, Any] = {"csv": Path.absolute, "weights": _weights, "batch_size": _batch_size, "log": _log}
    read |= {name: partial(_size, name) for name in ("size", "presize")}
    settings = {name: read[name](value) if name in read else value for name, value in values.items()}
    _check_sizes(settings.get("size", 224), settings.get("presize"))
    return settings


def _size(name: str, word: str) -> Size:
    limits = next(one.metadata for one in fields(RunSettings) if one.name == name)
    return size_of(f"--{name}", word, limits["least"], limits["most"])


def _check_sizes(size: Size, presize: Size | None) -> None:
    """Refuse a size that photos cannot be brought to from what they are read at."""
    if presize is None:
        return
    words = f"Received: --presize {size_text(presize)}"
    if not covers(presize, size):
        raise typer.BadParameter(f"expected --size {size_text(size)} or more. {words}")
    if not same_shape(presize, size):
        raise typer.BadParameter(f"expected the shape of --size {size_text(size)}. {words}")


def _weights(word: str) -> str | None:
    """What `RunSettings` takes; a file by its absolute path, since a run may be resumed from elsewhere."""
    if word == "none":
        return None
    return word if word == "imagenet" else str(Path(word).absolute())


def _batch_size(word: str) -> int | None:
    if word == "auto":
        return None
    if not word.isdecimal() or int(word) < 1:
        raise typer.BadParameter(f"expected auto, or 1 or more photos. Received: --batch-size {word}")
    return int(word)


def _log(word: str) -> str:
    if unknown := sorted(set(word.split(",")) - set(LOGS)):
        raise typer.BadParameter(f"expected {', '.join(LOGS)}. Received: --log {','.join(unknown)}")
    return word


def _refuse_more_than(context: typer.Context, allowed: str, but: Sequence[str] = ()) -> None:
    """Refuse options beside one that decides all, `but` some."""
    if more := [name for name in context.params if name not in (allowed, *but) and is_given(context, name)]:
        raise typer.BadParameter(
            f"--{allowed} takes the settings of its run. Received: {', '.join(more)}. "
            "To train with others: kclf train FOLDER --out NEW"
        )
