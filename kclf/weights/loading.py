"""One function that loads any weights file into a model."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import keras

from .h5 import open_saved
from .keys import class_word, layers_with_variables
from .matching import LoadReport, assign_saved
from .torch_exchange import from_torch, is_torch_file, read_state_dict


def load_weights(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    skip: Collection[str] = (),
    report: bool = False,
) -> LoadReport:
    """Load a weights file into a model by layer names, after checking every variable.

    Reads Keras 3 `.weights.h5` and `.keras`, legacy `.h5` (weights alone or a whole model, of which only the
    weights are read) and torch state dicts (see `from_torch`). Whether layers were or are frozen makes no
    difference, nor does the data format. No code from a file is run.

    Args:
        model: a built model; it stays as it was if anything does not fit.
        path: the file.
        skip: layer names or patterns ("predictions", "top_*") to leave out on both sides: the model keeps
            its values there, as for a head with another number of classes.
        report: print what matched and what did not.

    Returns:
        What was matched and skipped.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, hostile or of no known kind.
        WeightsError: the file does not fit the model; the message lists every misfit.

    Example:
        >>> import keras
        >>> model = keras.applications.MobileNetV2(weights=None, classes=37)
        >>> load_weights(model, "imagenet.h5", skip=["predictions"])  # doctest: +SKIP
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No such weights file: {os.fspath(path)!r}.")
    source = os.fspath(path)
    if is_torch_file(path):
        return from_torch(model, read_state_dict(path), skip=skip, report=report, source=source)
    words = {class_word(layer) for layer in layers_with_variables(model)}
    with open_saved(path, words, model) as saved:
        return assign_saved(model, saved, skip=skip, report=report, source=source)
