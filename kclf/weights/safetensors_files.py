"""Read `.safetensors`: tensors and nothing else, which no file can make run code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import FileFormatError, WeightsError

LENGTH = 8  # bytes at the start that hold the length of the header, little-endian
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as safetensors do, or has their ending."""
    if Path(path).suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(LENGTH + 1)
    length = int.from_bytes(start[:LENGTH], "little")
    return len(start) == LENGTH + 1 and start[LENGTH:] == b"{" and 2 <= length <= LONGEST_HEADER


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, on the CPU.

    Raises:
        FileFormatError: the file is damaged or cut short.
        WeightsError: the package safetensors is not installed.
    """
    library = _library()
    try:
        return dict(library.torch.load_file(path, device="cpu"))
    except (library.SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{os.fspath(path)}: not safetensors, or cut short ({error}).") from error


def safetensors_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The content of a file of these tensors.

    Raises:
        WeightsError: the package safetensors is not installed.
    """
    content: bytes = _library().torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return content


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise WeightsError("Safetensors need an extra: pip install 'kclf[safetensors]'") from error
    return safetensors
