"""Whole Keras models from `.keras` files, with the loss scaling that they were trained with."""

from __future__ import annotations

import json
import os
import zipfile
from typing import Any

import keras

from ..errors import FileFormatError
from .h5 import weights_of_archive


def load_model(path: str | os.PathLike[str], **arguments: Any) -> keras.Model:
    """As `keras.saving.load_model`, with the loss scaling of the saved model under any global policy.

    Under the policy mixed_float16 `compile` puts a `LossScaleOptimizer` around the optimizer. Keras saves its
    state but not that it is there, and makes it anew only where the global policy is mixed_float16 again;
    elsewhere the model loads without its loss scaling and its momenta. Here such a file loads under the
    policy that it was compiled under, and the global policy is the same afterwards as before.
    (`ImageClassifier`, accelerated models and optimizers wrapped by hand save their loss scaling, so that
    any loader gives it back.)

    Args:
        path: a `.keras` file, or whatever else `keras.saving.load_model` takes.
        **arguments: go to `keras.saving.load_model`.

    Returns:
        The model, compiled if it was.

    Raises:
        FileFormatError: an archive is damaged or has no Keras model in it.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> path = tempfile.mkdtemp() + "/model.keras"
        >>> model.save(path)
        >>> load_model(path).input_shape
        (None, 4)
    """
    policy = keras.config.dtype_policy()
    if zipfile.is_zipfile(path) and _scaled_by_compile(path):
        keras.config.set_dtype_policy("mixed_float16")
    try:
        return keras.saving.load_model(path, **arguments)
    finally:
        keras.config.set_dtype_policy(policy)


def _scaled_by_compile(path: str | os.PathLike[str]) -> bool:
    """Whether the file has the state of one optimizer around those that its configuration tells of."""
    with weights_of_archive(path) as file, zipfile.ZipFile(path) as archive:
        try:
            config = json.loads(archive.read("config.json"))
            described = (config.get("compile_config") or {}).get("optimizer")
        except (KeyError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{os.fspath(path)}: not a saved Keras model ({error!r}).") from error
        stored = file.get("optimizer")
        while isinstance(described, dict):
            inside = described.get("config", {})
            described = inside.get("inner_optimizer", inside.get("optimizer"))  # of LayerGroupOptimizer
            stored = stored and stored.get("inner_optimizer")
        return stored is not None
