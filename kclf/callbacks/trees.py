"""Nested dicts and lists as `write_arrays` takes them: the arrays apart from the JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import FileFormatError
from ..storage import JSON

ARRAY = "$array"
FLOAT = "$float"  # infinity and NaN, for which JSON has no words
HALF = "$bfloat16"  # which NumPy lacks: its bits travel as int16


def to_arrays(tree: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, JSON]]:
    """Take a tree apart.

    Args:
        tree: nested dicts with names as keys, lists and tuples, down to tensors, arrays and plain values.

    Returns:
        The arrays by name, and the same tree with the names in place of the arrays.

    Example:
        >>> arrays, rest = to_arrays({"rate": np.ones(2), "epoch": 3})
        >>> list(arrays), rest
        (['rate/0'], {'rate': {'$array': 'rate/0'}, 'epoch': 3})
    """
    arrays: dict[str, np.ndarray] = {}

    def walk(node: Any, top: str) -> JSON:
        if isinstance(node, Mapping):
            return {str(key): walk(value, top) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(value, top) for value in node]
        if isinstance(node, np.generic):
            node = node.item()
        if isinstance(node, float) and not math.isfinite(node):
            return {FLOAT: str(node)}
        if not isinstance(node, np.ndarray | torch.Tensor):
            return node
        name = f"{top}/{len(arrays)}"
        kind = ARRAY
        if isinstance(node, torch.Tensor):
            node = node.detach()
            if node.dtype is torch.bfloat16:
                node, kind = node.view(torch.int16), HALF
            node = node.cpu().numpy()
        arrays[name] = np.array(node)
        return {kind: name}

    rest = {key: walk(value, key) for key, value in tree.items()}
    return arrays, rest


def from_arrays(arrays: Mapping[str, np.ndarray], rest: Mapping[str, JSON]) -> dict[str, Any]:
    """Put a tree together again; what was a tensor is an array, but for bfloat16.

    Raises:
        FileFormatError: an array is missing.
    """

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(value) for value in node]
        if not isinstance(node, Mapping):
            return node
        for kind in (ARRAY, HALF):
            if kind in node:
                return _array(arrays, node[kind], kind)
        if FLOAT in node:
            return float(node[FLOAT])
        return {key: walk(value) for key, value in node.items()}

    return {key: walk(value) for key, value in rest.items()}


def _array(arrays: Mapping[str, np.ndarray], name: object, kind: str) -> Any:
    if not isinstance(name, str) or name not in arrays:
        raise FileFormatError(f"refused: it has no array {name!r}.")
    return torch.from_numpy(arrays[name]).view(torch.bfloat16) if kind == HALF else arrays[name]


def assign(tensors: Sequence[torch.Tensor], values: Sequence[Any]) -> None:
    """Copy values into tensors of the same shapes and dtypes, bit for bit.

    Raises:
        ValueError: they do not fit.
    """
    taken = [value if isinstance(value, torch.Tensor) else torch.from_numpy(value) for value in values]
    ours = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
    theirs = [(tuple(tensor.shape), tensor.dtype) for tensor in taken]
    if ours != theirs:
        different = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), "")
        raise ValueError(f"{len(ours)} tensors expected. Received: {len(theirs)}; the first that differ: {different}")
    with torch.no_grad():
        for tensor, value in zip(tensors, taken, strict=True):
            tensor.copy_(value)
