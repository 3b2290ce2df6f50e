"""The single file of a classifier: weights, settings, and a probe batch with its logits.

docs/file-format.md describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch

from .._core.devices import full_float32
from .._core.h5_store import write_arrays
from .._core.keras_private import get_global_attribute
from ..errors import FileFormatError, WeightsError
from ..weights import array_of, layer_keys, named_variables

FILE_FORMAT = "kclf-classifier"
FILE_VERSION = 2


def write_single_file(model: keras.Model, path: Path) -> None:
    """Write a classifier whose backbone has a name, whole or not at all."""
    images = probe_images(model.channels)
    config = model.get_config()
    config["augmentation"]["config"].pop("layers", None)  # of others, and of no use in predictions
    first_trainable_group = config.pop("trainable_from_group")
    write_arrays(
        path,
        {
            **{key: array_of(variable) for key, variable in _keyed_weights(model).items()},
            "probe/images": images,
            "probe/logits": logits_of(model, images),
        },
        {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "config": config,
            "trainable_from_group": first_trainable_group,
            "versions": {"keras": keras.__version__, "numpy": np.__version__},
        },
    )


def check_readable(backbone: keras.Model) -> None:
    """Raise where Keras' safe mode could not build a backbone of one's own from its description.

    Raises:
        WeightsError: it has code that no file may bring, such as a Lambda, or a class that is not registered.
    """
    try:
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(backbone), safe_mode=True)
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"The backbone {backbone.name!r} could not be read back, so nothing was saved: Keras' safe mode "
            "takes layers of Keras, and classes under @keras.saving.register_keras_serializable() whose "
            "module is imported before loading; no Lambda. "
            f"Received: {str(error).splitlines()[0]}"
        ) from error


def refuse_legacy_file() -> None:
    """Refuse to be described for Keras' legacy .h5, whose writer asks just now: nobody could read it back.

    Raises:
        ValueError: naming what writes a file that can be read.
    """
    if get_global_attribute("use_legacy_config"):
        raise ValueError(
            "Expected model.save(path), which writes a classifier as .h5 (kclf.load reads it) or .keras. "
            "Received: keras.saving.save_model to Keras' legacy .h5, which holds none"
        )


def assign_arrays(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Set all weights of a classifier from arrays by key, which `check_fit` has found to fit."""
    for key, variable in _keyed_weights(model).items():
        variable.assign(arrays[key])


def check_fit(model: keras.Model, arrays: Mapping[str, np.ndarray], path: Any) -> None:
    """Raise a FileFormatError that lists what differs between arrays and the weights of a classifier."""
    weights = _keyed_weights(model)
    problems = [f"missing: {key}" for key in weights.keys() - arrays.keys()]
    problems += [f"unexpected: {key}" for key in arrays.keys() - weights.keys()]
    problems += [
        f"{key}: shape {arrays[key].shape}, expected {tuple(v.shape)}"
        for key, v in weights.items()
        if key in arrays and tuple(v.shape) != arrays[key].shape
    ]
    if problems:
        listed = "\n  ".join(sorted(problems)[:20])
        raise FileFormatError(
            f"{path}: the weights do not fit the architecture that the file names:\n  {listed}"
        )


def _keyed_weights(model: keras.Model) -> dict[str, keras.Variable]:
    return {
        f"{part}/{key}/{name}": variable
        for part in ("backbone", "head")
        for key, layer in layer_keys(getattr(model, part)).items()
        for name, variable in named_variables(layer).items()
    }


def logits_of(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Logits of images (n, height, width, channels), one after another, as an array (n, outputs)."""
    with torch.no_grad(), full_float32():
        return np.concatenate([model(image[None], training=False).cpu().numpy() for image in images])


def probe_images(channels: int = 3) -> np.ndarray:
    """Two smooth images, uint8 (2, 64, 64, channels), the same everywhere; channels repeat every three."""
    y, x = np.mgrid[0:64, 0:64] / 64
    waves = [
        np.sin(2 * np.pi * (fx * x + fy * y)) for fx, fy in ((1, 0), (0, 2), (3, 1), (2, 2), (5, 3), (1, 7))
    ]
    images = 127.5 + 127 * np.stack(waves).reshape(2, 3, 64, 64)
    return images.transpose(0, 2, 3, 1).astype("uint8")[..., np.arange(channels) % 3]
