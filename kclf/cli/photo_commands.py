"""`kclf check` and `kclf clean`: what is wrong with photos and labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .._core.arguments import listed
from .._core.terminal import one_line
from ..errors import DataError, OutputError, OutputExistsError
from .use_commands import load_classifier

FEW = 12  # findings that are named one by one


def check(
    folder: Annotated[Path, typer.Argument(help="The folder of photos.")],
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
    from ..checks.findings import ACTIONS
    from ..data.decoding import set_decoding
    from ..data.labels import regex_label

    require_place(ledger, page)
    if ledger.exists() and not force:
        raise OutputExistsError(f"{ledger} exists. Choose another --ledger, or pass --force to replace it.")
    model = load_classifier(classifier) if classifier else None
    depth = depth or (model.depth if model else None)
    set_decoding(depth=depth, max_pixels=max_pixels or "pillow")
    data: Any = folder
    if csv is not None:
        from .train import RunSettings, read_csv_data

        words = {"suffix": suffix, "delimiter": delimiter, "columns": columns, "valid_column": valid_column}
        words_of_run = RunSettings(folder, ledger, label_delimiter=label_delimiter, **words)  # type: ignore[arg-type]
        data = read_csv_data(csv, folder, words_of_run, lenient=True, max_unreadable=None)
    findings = check_photos(data, model, label=regex_label(label_regex, missing="") if label_regex else None)
    typer.echo(findings.summary())
    findings.to_csv(ledger)
    for finding in findings if len(findings) <= FEW else ():
        typer.echo(f"  {finding.problem.replace('_', ' ')}: {one_line(finding.path)}")
    typer.echo(
        f"\nWritten to {ledger}. Set its column action to {listed(ACTIONS)}, then: kclf clean {ledger}"
    )
    if page is not None:
        from ..report import write_ledger_page

        typer.echo(f"The page to edit it on: {write_ledger_page(findings, page, ledger=ledger.name)}")


def clean(
    ledger: Annotated[Path, typer.Argument(help="The edited ledger, or an undo log.")],
    apply: Annotated[
        bool, typer.Option("--apply", help="Move the files; else only say what would be.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Move back what an undo log lists.")] = False,
) -> None:
    """Do what an edited ledger says. Nothing is deleted: photos move to a folder `removed`."""
    from ..checks import apply_ledger, undo_ledger

    if ledger.is_dir():
        raise DataError(f"{ledger} is a folder. Expected a ledger: kclf check {ledger} writes ledger.csv")
    typer.echo(undo_ledger(ledger) if undo else apply_ledger(ledger, apply=apply))


def require_place(*files: Path | None) -> None:
    """Refuse files that cannot be written, before any work is done for them."""
    for file in (file for file in files if file is not None):
        folder = file.absolute().parent
        if file.is_dir():
            raise OutputError(f"{file} is a folder. Give the name of a file in it")
        if not folder.is_dir():
            raise OutputError(f"No such folder: {file.parent}. Make it, or write {file.name} elsewhere")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{file} cannot be written: no permission in {folder}")
