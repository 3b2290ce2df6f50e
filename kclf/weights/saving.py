"""Write weights in the format that a file's ending names, complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import h5py
import keras
import numpy as np
import torch

from .._core.h5_store import whole_file
from ..errors import WeightsError
from .layer_keys import array_of
from .safetensors_files import safetensors_bytes
from .torch_exchange import to_torch

TORCH_ENDINGS = (".pth", ".pt", ".safetensors")


def save_weights(model: keras.Model, path: str | os.PathLike[str], *, library: str = "torchvision") -> None:
    """Write the weights of a model for Keras 3, older Keras or torch.

    Args:
        model: a built model.
        path: where to; the ending names the format: `.weights.h5` as Keras 3 writes it, `.keras` with the
            architecture, any other `.h5` as Keras 2 and Keras Applications lay it out, `.pth` or `.pt` a
            torch state dict, `.safetensors` the same without pickle.
        library: whose names a state dict gets, see `to_torch`.

    Raises:
        ValueError: the ending is none of these.
        WeightsError: the layers have no names in that torch library.

    Example:
        >>> import keras, pathlib, tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "head.h5"
        >>> save_weights(model, path)
        >>> sorted(h5py.File(path)["head/head"])
        ['bias:0', 'kernel:0']
    """
    name = Path(path).name
    if not name.endswith((".h5", ".keras", *TORCH_ENDINGS)):
        raise WeightsError(
            "Expected a path ending in .weights.h5, .h5, .keras, .pth or .safetensors. "
            f"Received: path={name!r}."
        )
    state = to_torch(model, library) if name.endswith(TORCH_ENDINGS) else {}
    with whole_file(path) as file:
        if name.endswith(".weights.h5"):
            model.save_weights(file)
        elif name.endswith(".keras"):
            keras.Model.save(model, file)
        elif name.endswith(".safetensors"):
            file.write(safetensors_bytes(state))
        elif state:
            torch.save(state, file)
        else:
            _save_legacy(model, file)


def _save_legacy(model: keras.Model, content: BinaryIO) -> None:
    """Keras 2's layout: a group for each layer, the order of layers and weights in attributes.

    Keras loads such a file by place. It expects the weights of a layer in the order trainable, then not
    trainable, of the moment: those of a nested model move when it is frozen. Names keep them apart for
    `kclf.weights.load_weights`.
    """
    with h5py.File(content, "w") as file:
        file.attrs["layer_names"] = _names([layer.name for layer in model.layers])
        file.attrs["backend"] = np.bytes_(b"tensorflow")  # the layouts of arrays are TensorFlow's
        file.attrs["keras_version"] = np.bytes_(keras.__version__.encode())
        for layer in model.layers:
            group = file.create_group(layer.name)
            weights = [*layer.trainable_weights, *layer.non_trainable_weights]
            names = [f"{_owner(weight, layer)}/{weight.name}:0" for weight in weights]
            group.attrs["weight_names"] = _names(names)
            for name, weight in zip(names, weights, strict=True):
                group.create_dataset(name, data=array_of(weight))


def _owner(weight: keras.Variable, layer: keras.layers.Layer) -> str:
    """Name of the layer inside `layer` that owns a weight, from the weight's path."""
    parts = weight.path.split("/")
    return parts[-2] if len(parts) > 1 else layer.name


def _names(names: list[str]) -> np.ndarray:
    return np.array([name.encode() for name in names], dtype="S")
