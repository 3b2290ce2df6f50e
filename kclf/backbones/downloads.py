"""ImageNet weights from the network: cached, checked, and quick to say so where there is none."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import WeightsError, WeightsUnavailableError

NETWORK_TIMEOUT = 10.0  # seconds without a byte before a download counts as failed
TORCH_URL = "https://download.pytorch.org/models/"


def fetch_torch_weights(name: str, file: str) -> Path:
    """A weights file of torchvision, from torch's cache or the network, its checksum verified either way.

    Args:
        name: the backbone, for the message.
        file: the file's name, which ends in the start of its sha256.

    Raises:
        WeightsUnavailableError: it is not cached and cannot be downloaded.
        WeightsError: the cached file is not what its name says.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    digest = path.stem.rpartition("-")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with network_timeout():
                torch.hub.download_url_to_file(
                    TORCH_URL + file, str(path), hash_prefix=digest, progress=False
                )
        except (OSError, RuntimeError) as error:
            raise unavailable(name, TORCH_URL + file, path.parent, str(error)) from error
    with path.open("rb") as content:
        if not hashlib.file_digest(content, "sha256").hexdigest().startswith(digest):
            raise WeightsError(f"{path} is damaged: its sha256 does not start with {digest}. Delete it.")
    return path


def unavailable(name: str, url: str, folder: Path, reason: str) -> WeightsUnavailableError:
    """The one message about weights that are neither here nor to be had: which file, and where to put it."""
    file = url.rpartition("/")[2] or "its no-top weights file"
    return WeightsUnavailableError(
        f"The ImageNet weights of {name} are not on this machine, and the download failed ({reason}). "
        f"Put {file} ({url}) in the folder {folder}, or pass weights=PATH to a weights file. "
        "weights=None starts from random values, and EfficientNetLite0 needs no download."
    )


def keras_cache() -> Path:
    """Where Keras keeps the weights that it downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


@contextmanager
def network_timeout(seconds: float = NETWORK_TIMEOUT) -> Iterator[None]:
    """Let connections made in the block fail after so many seconds of silence."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
