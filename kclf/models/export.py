"""Classifiers for other runtimes: ONNX and torch.export, from photos to probabilities, checked before use."""

from __future__ import annotations

import logging
import math
import os
import warnings
from typing import Any

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.atomic import replacing
from .._core.devices import full_float32
from .._core.h5_store import whole_file
from ..acceleration import unpacked
from ..data.tasks import probabilities_of
from ..errors import WeightsError
from .clone import in_policy

OPSET = 18  # of ONNX; what torch's exporter writes without converting
TOLERANCE = 1e-4  # largest difference of a probability between the export and the model


class PhotosToProbabilities(torch.nn.Module):
    """What an exported file computes: uint8 photos in, probabilities out, preprocessing inside.

    Args:
        model: a classifier with `.augmentation`, `.normalization`, `.backbone`, `.head`, `.size`, `.task`.
        side: side of the square photos that come in, in pixels.
    """

    def __init__(self, model: keras.Model, side: int) -> None:
        super().__init__()
        # In a tuple torch does not see them: the export then holds the tensors that a prediction reads, the
        # kernels with their batch norms folded in, and not every variable of the model beside them.
        self.parts = (model.normalization, model.backbone, model.head)
        self.task = model.task
        self.temperature = _temperature(model)
        mode = getattr(model.augmentation, "interpolation", "bilinear")
        self.resize = ResizeOfWholeNumbers(side, model.size, mode) if side != model.size else None

    def forward(self, photos: Tensor) -> Tensor:
        """Probabilities (batch, classes), float32, of photos (batch, side, side, 3), uint8."""
        normalization, backbone, head = self.parts
        images = self.resize(photos) if self.resize is not None else photos.to(torch.float32)
        features = backbone(normalization(images), training=False)
        logits = head(features, training=False)
        return probabilities_of(logits / self.temperature if self.temperature != 1 else logits, self.task)


class ResizeOfWholeNumbers(torch.nn.Module):
    """torch's antialiased resize of uint8 photos on a CPU, bit for bit, as two products of matrices.

    Each axis is one constant matrix, which every runtime multiplies by alike, where their own antialiased
    resizes differ or are absent. torch holds weights in 16 bits and rounds after each axis, columns first.

    Args:
        source: side of the square photos that come in, in pixels.
        target: side of those that go out.
        mode: "bilinear" or "bicubic".

    Example:
        >>> photos = torch.randint(0, 256, (1, 9, 9, 3), dtype=torch.uint8)
        >>> same = F.interpolate(photos.permute(0, 3, 1, 2), (6, 6), mode="bilinear", antialias=True)
        >>> bool((ResizeOfWholeNumbers(9, 6)(photos) == same.permute(0, 2, 3, 1)).all())
        True
    """

    def __init__(self, source: int, target: int, mode: str = "bilinear") -> None:
        super().__init__()
        identity = torch.eye(source, dtype=torch.float64).reshape(1, 1, source, source)
        weights = F.interpolate(identity, size=(target, source), mode=mode, antialias=True)[0, 0]
        bits = int(math.log2((2**15 - 0.5) / float(weights.max())))  # the largest weight fills 16 bits
        self.one = float(2**bits)
        # Whole numbers up to 2^15, whose sums of products with pixels are exact in float64 alone.
        self.register_buffer("weights", torch.trunc(weights * self.one + 0.5 * weights.sign()))

    def forward(self, photos: Tensor) -> Tensor:
        """Photos (batch, source, source, 3), uint8, at (batch, target, target, 3), float32."""
        images = photos.to(torch.float64).permute(0, 3, 1, 2)  # (batch, 3, source, source)
        images = self._rounded(torch.matmul(images, self.weights.T))
        images = self._rounded(torch.matmul(self.weights, images))
        return images.permute(0, 2, 3, 1).to(torch.float32)

    def _rounded(self, sums: Tensor) -> Tensor:
        return torch.floor(sums / self.one + 0.5).clamp(0, 255)


def to_torch_export(
    model: keras.Model, path: str | os.PathLike[str], *, side: int | None = None
) -> torch.export.ExportedProgram:
    """Write a classifier for `torch.export.load`: no Keras and no kclf are needed to run it.

    Args:
        model: an `ImageClassifier`.
        path: where to, usually `.pt2`. It computes in float32, whatever the model's dtype policy.
        side: side of the square photos that come in, in pixels; None takes the model's presize, or its size.

    Returns:
        The program, whose `.module()` maps uint8 photos (batch, side, side, 3) to probabilities.

    Raises:
        WeightsError: the program does not give the model's probabilities.
    """
    model = _in_float32(model)
    wrapped, photos = _wrapped(model, side)
    program = _exported(wrapped, photos)
    with torch.no_grad():
        with full_float32():
            found = program.module()(photos).cpu().numpy()
        _check(found, _expected(model, photos), path)
    with whole_file(path) as file, warnings.catch_warnings():
        # To torch kernels in channels_last memory are not "complete"; it saves and loads them all the same.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(program, file)
    return program


def to_onnx(model: keras.Model, path: str | os.PathLike[str], *, side: int | None = None) -> None:
    """Write a classifier for ONNX runtimes; input "photos", output "probabilities", any batch size.

    The file carries the class names and the side as metadata. Where onnxruntime is installed the file is
    run against the model before it gets its name.

    Args:
        model: an `ImageClassifier`.
        path: where to, usually `.onnx`. It computes in float32, whatever the model's dtype policy.
        side: side of the square photos that come in, in pixels; None takes the model's presize, or its size.

    Raises:
        ImportError: the packages of the extra `[onnx]` are not installed.
        WeightsError: the file does not give the model's probabilities.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}. ONNX needs an extra: pip install 'kclf[onnx]'") from error
    model = _in_float32(model)
    wrapped, photos = _wrapped(model, side)
    with torch.no_grad():
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
    details = {"class_names": "\n".join(model.class_names), "side": str(photos.shape[1]), "task": model.task}
    onnx.helper.set_model_props(file, details)
    with replacing(path) as temporary:
        temporary.write_bytes(file.SerializeToString())
        found = _run_onnx(temporary, photos.cpu().numpy())
        if found is not None:
            _check(found, _expected(model, photos), path)


def _in_float32(model: keras.Model) -> keras.Model:
    """The model, or its twin in float32: other runtimes lack half precision for much of what it takes."""
    if model.dtype_policy.compute_dtype == "float32":
        return model
    twin = type(model).from_config(in_policy(model.get_config(), "float32") | {"dtype": "float32"})
    for ours, theirs in zip(twin.weights, model.weights, strict=True):
        ours.assign(theirs)
    return twin


def _wrapped(model: keras.Model, side: int | None) -> tuple[PhotosToProbabilities, Tensor]:
    """The module to export, and two photos to try it with."""
    if not all(hasattr(model, part) for part in ("normalization", "backbone", "head", "size")):
        raise TypeError(
            "Expected an ImageClassifier. Another Keras model is written by model.export(path, format=...). "
            f"Received: {type(model).__name__} {model.name!r}"
        )
    side = side or getattr(model, "presize", None) or model.size
    device = model.head.weights[0].value.device
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=generator)
    return PhotosToProbabilities(model, side).to(device).eval(), photos.to(device)


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
    decision = getattr(model, "decision", None)
    return 1.0 if decision is None else decision.temperature


def _run_onnx(path: os.PathLike[str], photos: np.ndarray) -> np.ndarray | None:
    try:
        import onnxruntime
    except ImportError:
        logging.getLogger(__name__).warning("onnxruntime is not installed: the ONNX file was not checked.")
        return None
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"photos": photos})[0]


def _check(found: np.ndarray, expected: np.ndarray, path: str | os.PathLike[str]) -> None:
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise WeightsError(
            f"{os.fspath(path)} was not written: its probabilities are {difference:.2g} off the model's."
        )
