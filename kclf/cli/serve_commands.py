"""`kclf serve` and `kclf similar`: a trained classifier in use."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import KclfError
from .export_commands import data_of_run
from .use_commands import Run, Threshold, load_classifier

if TYPE_CHECKING:
    from ..interpret.similar import SimilarPhotos


def serve(
    run: Run,
    port: Annotated[int, typer.Option(help="The port.", min=1, max=65535)] = 8000,
    host: Annotated[
        str, typer.Option(help="The address to listen on. 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(help="What requests have to bring.", envvar="KCLF_TOKEN")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A name under which other machines reach it.")
    ] = None,
    with_similar: Annotated[
        bool, typer.Option("--similar/--no-similar", help="Show the nearest training photos.")
    ] = True,
    threshold: Threshold = None,
) -> None:
    """Try a classifier on a local web page, and use it over HTTP."""
    try:
        from ..serve import serve as start
    except ImportError as error:
        raise KclfError(f"{error}. Serving needs an extra: pip install 'kclf[serve]'") from error
    folder = run if run.is_dir() else run.parent
    model = load_classifier(run)
    photos = training_photos(model, folder) if with_similar and run.is_dir() else None
    typer.echo(f"http://{host}:{port}  ({len(model.class_names)} classes; Ctrl-C ends it)")
    start(
        model,
        title=folder.resolve().name,
        host=host,
        port=port,
        token=token,
        hosts=name or (),
        similar=None if photos is None else partial(_neighbours, photos),
        threshold=threshold,
    )


def similar(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    count: Annotated[int, typer.Option(help="How many to print a photo.", min=1)] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the training photos that the classifier sees as most alike."""
    from ..data.files import image_files

    found = training_photos(load_classifier(run), run)
    if found is None:
        raise KclfError(f"{run}: the training photos are no longer where the run found them")
    files = [file for photo in photos for file in image_files(photo)]
    rows = {file: found.nearest(file, count) for file in files}
    if as_json:
        listed = [{"path": path, "similar": [one._asdict() for one in near]} for path, near in rows.items()]
        typer.echo(json.dumps(listed, indent=2))
        return
    for path, near in rows.items():
        typer.echo("\n".join([path, *(f"  {one.similarity:.3f}  {one.label}  {one.path}" for one in near)]))


def training_photos(model: Any, run: Path) -> SimilarPhotos | None:
    """The training photos of a run by their features; None where they are not there any more."""
    from ..interpret.similar import SimilarPhotos

    data = data_of_run(run, "no similar photos")
    return None if data is None else SimilarPhotos.of(model, data.train, run / "activations")


def similar_of_run(run: Path) -> SimilarPhotos | None:
    """The training photos for the report of a run; None where it lacks them or its classifier."""
    from ..interpret.similar import SimilarPhotos
    from ..report.inputs import CLASSIFIER, SETTINGS
    from .train import MOST_COMPARED, first_photos

    if not (run / CLASSIFIER).is_file() or not (run / SETTINGS).is_file():
        return None
    data = data_of_run(run, "no similar photos")
    if data is None or data.task != "single_label":
        return None
    photos = first_photos(data.train, MOST_COMPARED)
    return SimilarPhotos.of(load_classifier(run), photos, run / "activations")


def _neighbours(photos: SimilarPhotos, photo: Any, count: int) -> list[dict[str, Any]]:
    """The nearest of the training photos to one, as the page shows them."""
    from ..report.thumbnails import thumbnails

    found = photos.nearest(photo, count)
    pictures = thumbnails([one.path for one in found])
    return [
        {"label": one.label, "similarity": round(one.similarity, 4), "thumbnail": picture.photo}
        for one, picture in zip(found, pictures, strict=True)
        if not picture.error
    ]
