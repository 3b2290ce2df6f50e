"""Classifiers in files of other runtimes, read back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._core.sizes import Size, as_size
from ..data.decision import Decision
from ..data.decoding import check_depth
from ..data.images import RESIZE_METHODS
from ..data.tasks import TASKS
from ..errors import DataError, FileFormatError

LARGEST_SIDE = 8192  # pixels; a file that claims more is refused


@dataclass(frozen=True)
class ExportedClassifier:
    """A classifier without its Keras model: photos in, probabilities out. `predict` takes it like a model.

    Args:
        run: gives probabilities float32 (n, classes) of photos uint8 (n, height, width, channels).
        class_names: one for each output.
        task: "single_label", "multi_label" or "regression".
        size: of the photos that it takes, in pixels: the side of a square, or (height, width).
        resize_method: how photos are brought to it.
        decision: thresholds and scores; its temperature is 1, as `run` has applied it.
        channels: of the photos.
        depth: bits of the values of deep images that it was trained with; None for those that a file says.
    """

    run: Callable[[np.ndarray], np.ndarray]
    class_names: Sequence[str]
    task: str
    size: Size
    resize_method: str = "crop"
    decision: Decision | None = None
    channels: int = 3
    depth: int | None = None
    presize = None  # photos are read at `size`

    def __call__(self, photos: np.ndarray | torch.Tensor) -> np.ndarray:
        """Probabilities float32 (n, classes) of photos uint8 (n, height, width, channels)."""
        return self.run(photos.cpu().numpy() if isinstance(photos, torch.Tensor) else photos)


def load_onnx(path: str | os.PathLike[str]) -> ExportedClassifier:
    """Read a classifier that `to_onnx` or `kclf export` wrote; onnxruntime runs it on the CPU.

    Args:
        path: the file.

    Raises:
        DataError: there is no such file.
        FileFormatError: it is damaged, or kclf did not write it.
        ImportError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states
    except ImportError as error:
        raise ImportError(f"{error}. ONNX needs an extra: pip install 'kclf[onnx]'") from error
    if not Path(path).is_file():
        raise DataError(f"No such file: {os.fspath(path)}")
    damaged = (states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; the others are about nodes that no user knows
    try:
        # Of its bytes: a file then cannot name others that hold its weights.
        session: Any = onnxruntime.InferenceSession(
            Path(path).read_bytes(), options, ["CPUExecutionProvider"]
        )
    except (*damaged, states.NotImplemented, states.RuntimeException) as error:
        raise FileFormatError(f"{os.fspath(path)}: no ONNX file that runs here ({error!s:.200})") from error
    details = _details(path, session.get_modelmeta().custom_metadata_map)
    return ExportedClassifier(lambda photos: session.run(None, {"photos": photos})[0], **details)


def _details(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of `ExportedClassifier` that a file tells."""
    try:
        told = json.loads(metadata["classifier"])
        names, task, side, method = (told[n] for n in ("class_names", "task", "side", "resize_method"))
        if task not in TASKS or method not in RESIZE_METHODS:
            raise ValueError(f"{task=!s}, {method=!s}")
        return {
            "class_names": [str(name) for name in names],
            "task": task,
            "size": as_size("side", side, most=LARGEST_SIDE),
            "resize_method": method,
            "decision": Decision.from_config(told["decision"]),
            # Older files say neither of these.
            "channels": int(told.get("channels", 3)),
            "depth": check_depth(told.get("depth")),
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{os.fspath(path)}: not a classifier that `kclf export` wrote ({error!r:.200})"
        ) from error
