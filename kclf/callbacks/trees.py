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


def to_arrays(tree: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, JSON]]:
    """Take a tree apart.

    Args:
        tree: nested dicts with names as keys, lists and tuples, down to tensors, arrays and plain values.

    Returns:
        The arrays by name, and the same tree with the names in place of the arrays. Arrays on the CPU share
        the memory of what they were.

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
        if isinstance(node, np.ndarray):
            arrays[name] = node
            return {ARRAY: name}
        tensor, form = _flat(node.detach())
        arrays[name] = tensor.cpu().numpy()
        return {ARRAY: name, **form}

    rest = {key: walk(value, key) for key, value in tree.items()}
    return arrays, rest


def from_arrays(arrays: Mapping[str, np.ndarray], rest: Mapping[str, JSON]) -> dict[str, Any]:
    """Put a tree together again.

    Raises:
        FileFormatError: an array is missing.
    """

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(value) for value in node]
        if not isinstance(node, Mapping):
            return node
        if ARRAY in node:
            return _shaped(arrays, node)
        if FLOAT in node:
            return float(node[FLOAT])
        return {key: walk(value) for key, value in node.items()}

    return {key: walk(value) for key, value in rest.items()}


def _flat(tensor: torch.Tensor) -> tuple[torch.Tensor, dict[str, JSON]]:
    """A tensor as the plain memory that it is, and how it lies there.

    Kernels are kept in the order that torch reads them in: to write them in Keras' order takes a hundred
    times as long.
    """
    form: dict[str, JSON] = {"dtype": str(tensor.dtype).removeprefix("torch.")}
    if not tensor.is_contiguous() and torch._debug_has_internal_overlap(tensor) == 0:
        form |= {"shape": list(tensor.shape), "strides": list(tensor.stride())}
        tensor = tensor.as_strided((tensor.numel(),), (1,))
    return tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor, form


def _shaped(arrays: Mapping[str, np.ndarray], node: Mapping[str, Any]) -> np.ndarray | torch.Tensor:
    """The array or tensor that `to_arrays` met."""
    if node[ARRAY] not in arrays:
        raise FileFormatError(f"refused: it has no array {node[ARRAY]!r}.")
    array = arrays[node[ARRAY]]
    if "dtype" not in node:
        return array
    tensor = torch.from_numpy(array)
    if node["dtype"] == "bfloat16":  # which NumPy lacks: its bits travel as int16
        tensor = tensor.view(torch.bfloat16)
    return tensor.as_strided(node["shape"], node["strides"]) if "strides" in node else tensor


def assign(tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Copy values into tensors of the same shapes and dtypes, bit for bit.

    Raises:
        ValueError: they do not fit.
    """
    ours = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
    theirs = [(tuple(tensor.shape), tensor.dtype) for tensor in values]
    if ours != theirs:
        different = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), "")
        raise ValueError(
            f"{len(ours)} tensors expected. Received: {len(theirs)}; the first that differ: {different}"
        )
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
