"""`kclf export`: a classifier for programs without kclf, measured on the photos of its run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .._core.sizes import sides
from ..errors import DataError, KclfError
from .use_commands import Run, load_classifier

if TYPE_CHECKING:
    from ..data import ImageData
    from ..prediction.exported import ExportedClassifier
    from ..prediction.predictions import Predictions

CALIBRATION = 128  # training photos, after which the ranges of int8 hardly widen


Target = Literal["onnx", "torch", "tflite", "coreml"]
ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "tflite": ".tflite"}


def export(
    run: Run,
    to: Annotated[Target, typer.Option("--to", help="What to write.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: classifier.onnx, ... in the run.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Of ONNX: fp16 halves the file, int8 quarters it.")
    ] = "fp32",
    photos: Annotated[
        int, typer.Option(help="Validation photos to measure the file on; 0 for none.", min=0)
    ] = 1000,
) -> None:
    """Write a classifier for another runtime: from photos to probabilities, checked after writing."""
    if precision != "fp32" and to != "onnx":
        raise typer.BadParameter(f"--precision {precision} is of --to onnx. Received: --to {to}")
    if to == "coreml":
        raise KclfError(
            "Core ML files are not written: coremltools takes no 8-bit pixels from torch. On Apple machines "
            "onnxruntime runs the file of --to onnx by Core ML: its CoreMLExecutionProvider"
        )
    from ..prediction.inference import predict
    from .train import first_photos

    model = load_classifier(run)
    file = out or (run if run.is_dir() else run.parent) / f"classifier{ENDINGS[to]}"
    data = data_of_run(run, "nothing is measured") if run.is_dir() and photos else None
    try:
        exported = write(model, file, to, precision, data)
    except ImportError as error:
        raise KclfError(str(error)) from error
    height, width = sides(model.presize or model.size)
    typer.echo(
        f"{file}: {file.stat().st_size / 1e6:.1f} MB, {precision}, photos {height} x {width} to "
        f"{len(model.class_names)} {'numbers' if model.task == 'regression' else 'classes'}"
    )
    if data is not None and data.valid is not None:
        valid = first_photos(data.valid, photos)
        typer.echo(compared(predict(exported, valid), predict(model, valid)))


def write(model: Any, file: Path, to: Target, precision: str, data: ImageData | None) -> ExportedClassifier:
    """Write the file; what runs it."""
    from ..models import export as exports
    from ..prediction.exported import ExportedClassifier, load_onnx

    if to == "onnx":
        calibration = _calibration(data) if precision == "int8" else None
        exports.to_onnx(model, file, precision=precision, calibration=calibration)
        return load_onnx(file)
    run = exports.to_litert(model, file) if to == "tflite" else _torch_program(model, file)
    decision, size = exports.decision_without_temperature(model), model.presize or model.size
    return ExportedClassifier(
        run, model.class_names, model.task, size, model.resize_method, decision, model.channels, model.depth
    )


def _torch_program(model: Any, file: Path) -> Callable[[Any], Any]:
    import torch

    from ..models.export import to_torch_export

    module = to_torch_export(model, file).module()

    def run(photos: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(photos)).cpu().numpy()

    return run


def _calibration(data: ImageData | None) -> Any:
    """Training photos as the network takes them."""
    import numpy as np

    from .train import first_photos

    if data is None:
        raise KclfError(
            "int8 needs the training photos of the run, to see how large activations become. Export the "
            "folder of a run whose photos are where it found them, with --photos 1 or more"
        )
    batches = first_photos(data.train, CALIBRATION)
    return np.concatenate([np.asarray(batch[0]) for batch in batches])


def data_of_run(run: Path, without: str) -> ImageData | None:
    """The photos of a run; None where they are not there any more, and a word on what is then left out."""
    from .train import SETTINGS, find_data, read_settings

    try:
        return find_data(read_settings(run / SETTINGS))
    except DataError as error:
        typer.echo(f"The photos of the run are not there ({without}): {error}", err=True)
        return None


def compared(exported: Predictions, model: Predictions) -> str:
    """What the file says of labelled photos beside what the model says."""
    import numpy as np

    difference = float(np.abs(exported.probabilities - model.probabilities).max())
    photos = f"{len(model):,} validation photos"
    if model.task == "regression":
        errors = [predictions.losses().mean() for predictions in (exported, model)]
        return f"{photos}: largest difference {difference:.2g}, mean error {errors[0]:.6g} ({errors[1]:.6g})"
    differ = int((exported.predicted != model.predicted).reshape(len(model), -1).any(axis=1).sum())
    return (
        f"{photos}: largest difference of a probability {difference:.2g}, {differ} other answers; accuracy "
        f"{exported.accuracy():.4f} (the classifier {model.accuracy():.4f}), log loss "
        f"{exported.log_loss():.4f} ({model.log_loss():.4f})"
    )
