"""torch state dicts in and out of Keras models: names by table, layouts by layer, nothing left over."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Collection, Mapping

import keras
import numpy as np
import torch

from ..errors import FileFormatError
from .keys import layer_keys
from .matching import LoadReport, assign_saved
from .torch_names import keras_name_function

LEGACY_PICKLE = b"\x80\x02"  # how torch.save began before torch 1.6
COUNTER = "num_batches_tracked"  # BatchNorm's step counter; Keras has none


def is_torch_file(path: str | os.PathLike[str]) -> bool:
    """True for what `torch.save` writes, today's zip archive and the bare pickle of old."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("data.pkl") for name in archive.namelist())
        except zipfile.BadZipFile:
            return False
    with open(path, "rb") as file:
        return file.read(2) == LEGACY_PICKLE


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a state dict without running code from the file (`weights_only=True`).

    Args:
        path: a `.pth` or `.pt` file that holds tensors by name, or a checkpoint that holds such a dict under
            "state_dict", "model" or "state_dict_ema".

    Raises:
        FileFormatError: the file is damaged, or holds anything but tensors by name.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise FileFormatError(f"{os.fspath(path)}: not a torch state dict, or damaged ({error}).") from error
    for wrapper in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = isinstance(content, Mapping) and all(isinstance(t, torch.Tensor) for t in content.values())
    if not tensors:
        raise FileFormatError(f"{os.fspath(path)}: expected tensors by name, found {type(content).__name__}.")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def from_torch(
    model: keras.Model,
    state_dict: Mapping[str, torch.Tensor],
    *,
    skip: Collection[str] = (),
    report: bool = False,
    source: str = "the state dict",
) -> LoadReport:
    """Load a torch state dict into a Keras model of the same architecture.

    Args:
        model: a built model whose layers bear the names of Keras Applications or of kclf's own backbones.
        state_dict: tensors by name, as `torch_model.state_dict()` gives them.
        skip: names or patterns of Keras layers to leave out on both sides.
        report: print what matched and what did not.
        source: what to call the state dict in a message.

    Returns:
        What was matched and skipped.

    Raises:
        WeightsError: the layout of the names is unknown, or anything does not fit; the model stays as it was.
    """
    keras_name = keras_name_function(state_dict)
    layers = layer_keys(model)
    saved: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in state_dict.items():
        module, _, parameter = name.rpartition(".")
        if parameter == COUNTER:
            continue
        key = keras_name(module) or module
        variable, array = to_keras_layout(parameter, tensor.detach().cpu().numpy(), layers.get(key))
        saved.setdefault(key, {})[variable] = array
    return assign_saved(model, saved, skip=skip, report=report, source=source)


def to_keras_layout(
    parameter: str, array: np.ndarray, layer: keras.layers.Layer | None
) -> tuple[str, np.ndarray]:
    """Keras' name and layout for one torch parameter of a layer."""
    normalises = isinstance(layer, (keras.layers.BatchNormalization, keras.layers.LayerNormalization))
    if parameter == "weight" and (normalises or array.ndim == 1):
        return "gamma", array
    if parameter == "bias" and normalises:
        return "beta", array
    if parameter != "weight":
        return parameter, array
    if array.ndim == 2:
        return "kernel", array.T
    if isinstance(layer, keras.layers.DepthwiseConv2D):  # (channels, 1, h, w) -> (h, w, channels, 1)
        return "kernel", array.transpose(2, 3, 0, 1)
    return "kernel", array.transpose(2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)
