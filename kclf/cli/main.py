"""The `kclf` command. It parses words and prints; the work is done elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from .. import __version__
from .._core.signals import end_on_signals
from .._core.terminal import guard_streams, output_error
from ..errors import DataError, KclfError, OutputError, RunStopped, TrainingError
from .export_commands import export
from .flags import SizeSeen, size_of
from .photo_commands import check, clean, require_place
from .runs_commands import runs
from .serve_commands import serve, similar, similar_of_run
from .train_commands import demo, train
from .use_commands import choose, evaluate, predict
from .weights_commands import app as weights_app
from .wording import complaint, reworded

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BAD_INPUT, CANNOT_TRAIN, CANNOT_WRITE, INTERRUPTED = 2, 3, 4, 130


def _print_versions(asked: bool) -> None:
    if asked:
        typer.echo(f"kclf {__version__}, keras {version('keras')}, torch {version('torch')}")
        raise typer.Exit()


@app.callback()
def options(
    versions: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Say the versions and exit."),
    ] = False,
) -> None:
    """Image classifiers from a folder of photos, by transfer learning."""


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a training run.")],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file to write. Default: report.html in the run.")
    ] = None,
    with_similar: Annotated[
        bool, typer.Option("--similar/--no-similar", help="Show the nearest training photos beside mistakes.")
    ] = True,
) -> None:
    """Write the report of a run: one HTML page that needs no network."""
    from ..report import write_report

    require_place(out)
    neighbours = similar_of_run(run) if with_similar else None
    typer.echo(write_report(run, out or run / "report.html", similar=neighbours))


def doctor(
    folder: Annotated[
        Path | None, typer.Argument(help="Photos to measure with; made-up ones without.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="The network to measure with.")] = "EfficientNetLite0",
    size: SizeSeen = "224",
    batch_size: Annotated[int, typer.Option(help="Photos a step.", min=1)] = 32,
) -> None:
    """Say what this machine has, how fast each stage runs, and whether learning works at all."""
    from .doctor import diagnose

    say = partial(typer.echo, err=True)
    seen = size_of("--size", size)
    diagnosis = diagnose(folder, backbone=backbone, size=seen, batch_size=batch_size, say=say)
    typer.echo(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(CANNOT_TRAIN)


TRAINING = (train, demo, report, runs, choose)
USE = (predict, evaluate, similar, serve, export)
PHOTOS = (check, clean, doctor)
for command in (*TRAINING, *USE, *PHOTOS):
    app.command()(command)
app.add_typer(weights_app, name="weights")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; an error ends with one message and an exit status that says its kind.

    The status is 2 for bad input, 3 where training fails, 4 where a result cannot be written, and 128
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
    words = sys.argv[1:] if words is None else words
    command = reworded(typer.main.get_command(app))
    try:
        status = command(words, prog_name="kclf", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except TyperException as wrong:
        if str(wrong):
            raise DataError(complaint(wrong, words)) from None
        status = BAD_INPUT  # without a command, the help has been printed
    finally:
        if (error := output_error()) is not None:
            raise OutputError(f"standard output cannot be written: {error.strerror}") from None
    sys.exit(status or 0)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"kclf{_which()}: {message}", err=True)
    sys.exit(status)


def _which() -> str:
    """Which of several processes speaks."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ""
    from ..distributed import rank, world_size

    return f" (rank {rank()} of {world_size()})" if world_size() > 1 else ""
