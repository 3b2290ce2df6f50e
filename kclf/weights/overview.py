"""What a weights file holds, without a model to load it into."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import is_sealed, read_arrays
from .h5 import open_saved
from .torch_exchange import is_torch_file, read_state_dict


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
        >>> from kclf.storage import write_arrays
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
