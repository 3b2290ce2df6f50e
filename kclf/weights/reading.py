"""Weights into a model, and what a file holds."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .._core.h5_store import is_sealed, read_arrays
from .keras_files import open_saved
from .layer_keys import class_word, layers_with_variables
from .matching import LoadReport, assign_saved
from .torch_exchange import from_torch, is_torch_file, read_state_dict


def load_weights(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    skip: Collection[str] = (),
    report: bool = False,
    part: bool = False,
    dry_run: bool = False,
) -> LoadReport:
    """Load a weights file into a model by layer names, after checking every variable.

    Reads Keras 3 `.weights.h5` and `.keras`, legacy `.h5` (weights alone or a whole model, of which only the
    weights are read), classifiers that kclf saved and torch state dicts (see `from_torch`). Whether layers
    were or are frozen makes no difference, nor does the data format. No code from a file is run.

    Args:
        model: a built model; it stays as it was if anything does not fit.
        path: the file.
        skip: layer names or patterns ("predictions", "top_*") to leave out on both sides: the model keeps
            its values there, as for a head with another number of classes.
        report: print what matched and what did not.
        part: the model may be a part of the saved one, such as the backbone of a saved classifier or of a
            Keras model with a head of its own: other layers of the file are left out.
        dry_run: only look whether it fits: nothing is assigned, and a misfit is no error.

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
    options: dict[str, Any] = {"skip": skip, "report": report, "dry_run": dry_run, "source": os.fspath(path)}
    if is_torch_file(path):
        return from_torch(model, read_state_dict(path), **options)
    if is_sealed(path):
        return assign_saved(model, _layers_of_classifier(path, part), part=part, **options)
    words = {class_word(layer) for layer in layers_with_variables(model)}
    with open_saved(path, words, model) as saved:
        return assign_saved(model, saved, part=part, **options)


def _layers_of_classifier(path: str | os.PathLike[str], part: bool) -> dict[str, dict[str, np.ndarray]]:
    """The layers in a classifier's single file, by key; of a part, those of the backbone alone."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, array in read_arrays(path)[0].items():
        room, _, rest = name.partition("/")
        key, _, variable = rest.rpartition("/")
        if room == "backbone" or (room == "head" and not part):
            layers.setdefault(key, {})[variable] = array
    return layers


@dataclass(frozen=True)
class Overview:
    """What a weights file holds.

    Attributes:
        kind: "kclf", "torch" or "keras".
        shapes: shape of each array, by "layer/variable" (a torch name for "torch"), in the order of the file.
        attributes: what else the file says; empty but for "kclf".
    """

    kind: str
    shapes: dict[str, tuple[int, ...]]
    attributes: Mapping[str, Any]

    @property
    def num_parameters(self) -> int:
        """Numbers in all arrays."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values())

    def __str__(self) -> str:
        width = max((len(name) for name in self.shapes), default=0)
        rows = [f"{name:<{width}}  {' x '.join(map(str, shape))}" for name, shape in self.shapes.items()]
        return "\n".join(
            [*rows, f"{self.kind}: {len(self.shapes)} arrays, {self.num_parameters:,} parameters"]
        )


def overview(path: str | os.PathLike[str]) -> Overview:
    """Look into a weights file of any kind that kclf reads.

    Args:
        path: a saved classifier, a Keras file or a torch state dict.

    Returns:
        Its arrays' names and shapes.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, hostile or of no known kind.

    Example:
        >>> import pathlib, tempfile, numpy
        >>> from kclf._core.h5_store import write_arrays
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "two.h5"
        >>> write_arrays(path, {"head/kernel": numpy.zeros((4, 2))})
        >>> print(overview(path))
        head/kernel  4 x 2
        kclf: 1 arrays, 8 parameters
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No such weights file: {os.fspath(path)!r}.")
    if is_sealed(path):
        arrays, attributes = read_arrays(path)
        return Overview("kclf", {name: array.shape for name, array in arrays.items()}, attributes)
    if is_torch_file(path):
        return Overview("torch", {k: tuple(v.shape) for k, v in read_state_dict(path).items()}, {})
    with open_saved(path, ()) as layers:
        found = {f"{key}/{name}": a.shape for key, arrays in layers.items() for name, a in arrays.items()}
        return Overview("keras", found, {})
