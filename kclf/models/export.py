"""Classifiers for other runtimes: ONNX and torch.export, from photos to probabilities, checked before use."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.arguments import one_of
from .._core.atomic import replacing
from .._core.devices import full_float32
from .._core.h5_store import whole_file
from .._core.sizes import Size, as_size, require_same_shape, sides, size_text
from ..acceleration import unpacked
from ..data.decision import Decision
from ..data.tasks import probabilities_of
from ..errors import WeightsError
from .clone import in_policy
from .quantization import quantize

PRECISIONS = ("fp32", "fp16", "int8")
OPSET = 18  # of ONNX; what torch's exporter writes without converting
EXACT = 2**24  # whole numbers below it are exact in float32
TOLERANCE = 1e-4  # largest difference of a probability between the export and the model
# Of int8 only that it runs: what noise differs by says nothing, and photos are for the caller to measure.
TOLERANCES = {"fp32": TOLERANCE, "fp16": 0.05, "int8": math.inf}


class PhotosToProbabilities(torch.nn.Module):
    """What an exported file computes: uint8 photos in, probabilities out, preprocessing inside.

    Args:
        model: a classifier with `.augmentation`, `.normalization`, `.backbone`, `.head`, `.size`, `.task`.
        side: of the photos that come in, in pixels: the side of a square, or (height, width).
    """

    def __init__(self, model: keras.Model, side: Size) -> None:
        super().__init__()
        # In a tuple torch does not see them: the export then holds the tensors that a prediction reads, the
        # kernels with their batch norms folded in, and not every variable of the model beside them.
        self.parts = (model.normalization, model.backbone, model.head)
        self.task = model.task
        self.temperature = _temperature(model)
        mode = getattr(model.augmentation, "interpolation", "bilinear")
        self.resize = ResizeOfWholeNumbers(side, model.size, mode) if side != model.size else None

    def forward(self, photos: Tensor) -> Tensor:
        """Probabilities (batch, classes), float32, of photos (batch, height, width, channels), uint8."""
        normalization, backbone, head = self.parts
        images = self.resize(photos) if self.resize is not None else photos.to(torch.float32)
        features = backbone(normalization(images), training=False)
        logits = head(features, training=False).to(torch.float32)
        return probabilities_of(logits / self.temperature if self.temperature != 1 else logits, self.task)


class ResizeOfWholeNumbers(torch.nn.Module):
    """torch's antialiased resize of uint8 photos on a CPU, bit for bit, as two products of matrices.

    Each axis is one constant matrix, which every runtime multiplies by alike, where their own antialiased
    resizes differ or are absent. torch holds weights in 16 bits and rounds after each axis, columns first.

    Args:
        source: of the photos that come in, in pixels: the side of a square, or (height, width).
        target: of those that go out.
        mode: "bilinear" or "bicubic".

    Example:
        >>> photos = torch.randint(0, 256, (1, 9, 9, 3), dtype=torch.uint8)
        >>> same = F.interpolate(photos.permute(0, 3, 1, 2), (6, 6), mode="bilinear", antialias=True)
        >>> bool((ResizeOfWholeNumbers(9, 6)(photos) == same.permute(0, 2, 3, 1)).all())
        True
    """

    def __init__(self, source: Size, target: Size, mode: str = "bilinear") -> None:
        super().__init__()
        self.axes = tuple(zip(sides(source), sides(target), strict=True))
        self.ones: dict[tuple[int, int], float] = {}
        for axis in dict.fromkeys(self.axes):  # those of a square are one matrix
            weights, self.ones[axis] = _axis_weights(*axis, mode)
            self.register_buffer("weights{}to{}".format(*axis), weights)

    def forward(self, photos: Tensor) -> Tensor:
        """Photos (batch, *source, channels), uint8, at (batch, *target, channels), float32."""
        rows, columns = (getattr(self, "weights{}to{}".format(*axis)) for axis in self.axes)
        one_of_rows, one_of_columns = (self.ones[axis] for axis in self.axes)
        images = photos.to(columns.dtype).permute(0, 3, 1, 2)  # (batch, channels, height, width)
        images = _rounded(torch.matmul(images, columns.T) / one_of_columns)
        images = _rounded(torch.matmul(rows, images.to(rows.dtype)) / one_of_rows)
        return images.permute(0, 2, 3, 1).to(torch.float32)


def _axis_weights(source: int, target: int, mode: str) -> tuple[Tensor, float]:
    """What each place of an axis is made of, (target, source), in whole numbers, and which of them is 1."""
    identity = torch.eye(source, dtype=torch.float64).reshape(1, 1, source, source)
    weights = F.interpolate(identity, size=(target, source), mode=mode, antialias=True)[0, 0]
    one = float(2 ** int(math.log2((2**15 - 0.5) / float(weights.max()))))  # the largest fills 16 bits
    whole = torch.trunc(weights * one + 0.5 * weights.sign())  # numbers up to 2^15
    largest = 255 * float(whole.abs().sum(dim=1).max())  # of the sums of products with pixels
    return whole.to(torch.float32 if largest < EXACT else torch.float64), one


def _rounded(values: Tensor) -> Tensor:
    return torch.floor(values + 0.5).clamp(0, 255)


def to_torch_export(
    model: keras.Model, path: str | os.PathLike[str], *, side: Size | None = None
) -> torch.export.ExportedProgram:
    """Write a classifier for `torch.export.load`: no Keras and no kclf are needed to run it.

    Args:
        model: an `ImageClassifier`.
        path: where to, usually `.pt2`. It computes in float32, whatever the model's dtype policy. Its extra
            file `classifier.json` says class names, task, side, decision and the depth of photos.
        side: of the photos that come in, in pixels: the side of a square, or (height, width); None takes the
            model's presize, or its size.

    Returns:
        The program, whose `.module()` maps uint8 photos (batch, height, width, channels) to probabilities.

    Raises:
        WeightsError: the program does not give the model's probabilities.
    """
    model = _in_dtype(model, "float32")
    wrapped, photos = _wrapped(model, side)
    program = _exported(wrapped, photos)
    with torch.no_grad(), full_float32():
        found = program.module()(photos).cpu().numpy()
    _check(found, _expected(model, photos), path)
    with whole_file(path) as file, warnings.catch_warnings():
        # To torch kernels in channels_last memory are not "complete"; it saves and loads them all the same.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        details = _details(model, photos, "fp32")["classifier"]
        torch.export.save(program, file, extra_files={"classifier.json": details})
    return program


def to_onnx(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    side: Size | None = None,
    precision: str = "fp32",
    calibration: np.ndarray | None = None,
) -> None:
    """Write a classifier for ONNX runtimes; input "photos", output "probabilities", any batch size.

    The file carries class names, task, side, decision and the depth of photos as metadata; `load_onnx` reads
    it back. Where onnxruntime is installed the file is run against the model before it gets its name.

    Args:
        model: an `ImageClassifier`.
        path: where to, usually `.onnx`.
        side: of the photos that come in, in pixels: the side of a square, or (height, width); None takes the
            model's presize, or its size.
        precision: "fp32" computes in float32, whatever the model's dtype policy; "fp16" halves the file and
            is for GPUs and phones; "int8" quarters it and is for CPUs with 8-bit products. Measure both on
            labelled photos: they cost accuracy.
        calibration: of "int8": training photos uint8 (n, height, width, channels), a hundred or so, which
            show how large the numbers between the layers become.

    Raises:
        ImportError: the packages of the extra `[onnx]` are not installed.
        ValueError: "int8" without photos.
        WeightsError: the file does not give the model's probabilities.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}. ONNX needs an extra: pip install 'kclf[onnx]'") from error
    one_of("precision", precision, PRECISIONS)
    if (precision == "int8") != (calibration is not None):
        raise ValueError(
            f'Expected photos as `calibration` with "int8" and with it alone. Received: {precision=}, '
            f"calibration={'photos' if calibration is not None else None}"
        )
    model = _in_dtype(model, "float16" if precision == "fp16" else "float32")
    wrapped, photos = _wrapped(model, side)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _exported(wrapped, photos),
            (),
            input_names=["photos"],
            output_names=["probabilities"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    file = program.model_proto
    if calibration is not None:
        file = quantize(file, calibration)
    onnx.helper.set_model_props(file, _details(model, photos, precision))
    with replacing(path) as temporary:
        temporary.write_bytes(file.SerializeToString())
        found = _run_onnx(temporary, photos.cpu().numpy())
        if found is not None:
            _check(found, _expected(model, photos), path, TOLERANCES[precision])


@contextmanager
def _quiet() -> Iterator[None]:
    """Let torch's exporter keep to itself which packages it does without and what it deprecates in itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        logger.setLevel(before)


def _details(model: keras.Model, photos: Tensor, precision: str) -> dict[str, str]:
    """What a file says of itself: plain words for any program, and all as JSON for `load_onnx`."""
    side = as_size("side", tuple(photos.shape[1:3]))
    decision = decision_without_temperature(model)
    described = {
        "class_names": list(model.class_names),
        "task": model.task,
        "side": side,
        "resize_method": getattr(model, "resize_method", "crop"),
        "channels": model.channels,
        "depth": getattr(model, "depth", None),
        "precision": precision,
        "decision": decision and decision.get_config(),
    }
    plain = {"class_names": "\n".join(model.class_names), "side": size_text(side), "task": model.task}
    return plain | {"classifier": json.dumps(described)}


def to_litert(model: keras.Model, path: str | os.PathLike[str], *, side: Size | None = None) -> Any:
    """Write a classifier for LiteRT (TensorFlow Lite), by the converter that Keras uses.

    The file takes one photo a call. Class names and the rest of what it says of itself are appended as a zip
    archive, as TFLite's own metadata are: `unzip -p classifier.tflite labels.txt`.

    Args:
        model: an `ImageClassifier`.
        path: where to, usually `.tflite`. It computes in float32, whatever the model's dtype policy.
        side: of the photos that come in, in pixels: the side of a square, or (height, width); None takes the
            model's presize, or its size.

    Returns:
        What gives probabilities of photos uint8 (n, height, width, channels): the file, run by LiteRT.

    Raises:
        ImportError: the package `litert-torch` is not installed.
        WeightsError: the file does not give the model's probabilities.
    """
    try:
        import litert_torch
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            f"{error}. LiteRT needs packages that kclf does not bring, as they bring jax and more: "
            "pip install litert-torch"
        ) from error
    model = _in_dtype(model, "float32")
    wrapped, photos = _wrapped(model, side)
    with torch.no_grad(), unpacked():
        wrapped(photos)
        program = litert_torch.convert(wrapped, (photos[:1],))
    with replacing(path) as temporary:
        program.export(str(temporary))
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr("labels.txt", "\n".join(model.class_names))
            archive.writestr("classifier.json", _details(model, photos, "fp32")["classifier"])
        _check(_run_litert(Interpreter, temporary)(photos.numpy()), _expected(model, photos), path)
    return _run_litert(Interpreter, path)


def _run_litert(interpreter_type: Any, path: str | os.PathLike[str]) -> Callable[[np.ndarray], np.ndarray]:
    """What runs a file, photo by photo."""
    interpreter = interpreter_type(model_path=os.fspath(path))
    runner = interpreter.get_signature_runner()
    (given,) = runner.get_input_details()

    def run(photos: np.ndarray) -> np.ndarray:
        answers = (runner(**{given: photo[None]}) for photo in photos)
        return np.concatenate([value for answer in answers for value in answer.values()])

    return run


def decision_without_temperature(model: keras.Model) -> Decision | None:
    """Thresholds and scores of a classifier, beside an export whose network has the temperature in it."""
    decision = getattr(model, "decision", None)
    return decision and dataclasses.replace(decision, temperature=1.0)


def _in_dtype(model: keras.Model, dtype: str) -> keras.Model:
    """The model, or its twin that computes in float32 or float16: not all runtimes mix number formats."""
    if model.dtype_policy.compute_dtype == dtype:
        return model
    twin = type(model).from_config(in_policy(model.get_config(), dtype) | {"dtype": dtype})
    for ours, theirs in zip(twin.weights, model.weights, strict=True):
        ours.assign(theirs)
    return twin


def _wrapped(model: keras.Model, side: Size | None) -> tuple[PhotosToProbabilities, Tensor]:
    """The module to export, and two photos to try it with."""
    if not all(hasattr(model, part) for part in ("normalization", "backbone", "head", "size")):
        raise TypeError(
            "Expected an ImageClassifier. Another Keras model is written by model.export(path, format=...). "
            f"Received: {type(model).__name__} {model.name!r}"
        )
    size = as_size("side", side or getattr(model, "presize", None) or model.size)
    require_same_shape("side", size, model.size)
    device = model.head.weights[0].value.device
    generator = torch.Generator().manual_seed(0)
    shape = (2, *sides(size), model.channels)
    photos = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return PhotosToProbabilities(model, size).to(device).eval(), photos.to(device)


def _exported(module: PhotosToProbabilities, photos: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), unpacked():
        module(photos)  # folds batch norms into kernels: what an accelerated model reads is then at hand
        return torch.export.export(module, (photos,), dynamic_shapes={"photos": {0: batch}}, strict=False)


@torch.no_grad()
def _expected(model: keras.Model, photos: Tensor) -> np.ndarray:
    """The model's own probabilities."""
    with full_float32():
        logits = torch.as_tensor(model(photos, training=False))
    return probabilities_of(logits / _temperature(model), model.task).cpu().numpy()


def _temperature(model: keras.Model) -> float:
    return (getattr(model, "decision", None) or Decision()).temperature


def _run_onnx(path: os.PathLike[str], photos: np.ndarray) -> np.ndarray | None:
    try:
        import onnxruntime
    except ImportError:
        logging.getLogger(__name__).warning("onnxruntime is not installed: the ONNX file was not checked.")
        return None
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"photos": photos})[0]


def _check(
    found: np.ndarray, expected: np.ndarray, path: str | os.PathLike[str], tolerance: float = TOLERANCE
) -> None:
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:
        raise WeightsError(
            f"{os.fspath(path)} was not written: its probabilities are {difference:.2g} off the model's."
        )
