"""Published weights from the network: cached, checked, and quick to say so where there is none."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._core.atomic import replacing
from ..errors import WeightsError, WeightsUnavailableError
from .published import (
    CLASS_INDEX,
    WEIGHTS_FOLDER,
    PublishedFile,
    find_weights,
    keras_cache,
    published_files,
    torch_cache,
)

NETWORK_TIMEOUT = 10.0  # seconds without a byte before a download counts as failed
BLOCK = 1 << 20  # bytes read at once
SHA256 = r"[0-9a-f]{64}"
HUB_DIGEST = "X-Linked-ETag"  # in which Hugging Face says the sha256 of a file, before it redirects


def fetch_weights(name: str) -> Path:
    """The published weights of a backbone, from this machine or the network, checked where a sha256 is known.

    torchvision's files have the start of it in their names. Hugging Face says it with a download, and its
    cache calls the files by it.

    Args:
        name: one of `backbone_names()` whose weights Keras does not fetch.

    Raises:
        WeightsUnavailableError: they are not here and cannot be downloaded.
        WeightsError: the file here is not what its name says.
    """
    path = find_weights(name)
    if path is None:
        return _downloaded(name, published_files(name)[0])
    check_digest(path)
    return path


def check_digest(path: Path) -> None:
    """Refuse a file whose content does not have the sha256 that its name, or its name in a cache, says.

    Raises:
        WeightsError: it has not.
    """
    blob = path.resolve().name
    expected = blob if re.fullmatch(SHA256, blob) else PublishedFile("", path.name).digest
    if expected and not _sha256(path).startswith(expected):
        raise WeightsError(f"{path} is damaged: its sha256 does not start with {expected[:8]}. Delete it.")


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _downloaded(name: str, file: PublishedFile) -> Path:
    """The file in torch.hub's cache, put there whole or not at all."""
    path = torch_cache() / file.file
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with network_timeout(), replacing(path) as temporary:
            digest = _receive(file.url, temporary) or file.digest
            found = _sha256(temporary)
            if not found.startswith(digest):
                raise OSError(f"what came has the sha256 {found[:8]}..., expected {digest[:8]}...")
    except OSError as error:
        raise unavailable(name, file.url, path.parent, str(error), file.file) from error
    return path


class _KeepDigest(urllib.request.HTTPRedirectHandler):
    """Follows redirections, and remembers the sha256 that came with one."""

    digest = ""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.digest = self.digest or _digest_in(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _digest_in(headers: Any) -> str:
    digest = str(headers.get(HUB_DIGEST, "")).strip('"')
    return digest if re.fullmatch(SHA256, digest) else ""


def _receive(url: str, path: Path) -> str:
    """Write what is at an address to a path; returns its sha256 where the server says it."""
    redirects = _KeepDigest()
    request = urllib.request.Request(url, headers={"User-Agent": "kclf"})
    with urllib.request.build_opener(redirects).open(request) as answer, path.open("wb") as out:
        shutil.copyfileobj(answer, out, BLOCK)
        size, announced = out.tell(), answer.headers.get("Content-Length")
        if announced is not None and size != int(announced):
            raise OSError(f"{size} of {announced} bytes came")
        return redirects.digest or _digest_in(answer.headers)


def unavailable(name: str, url: str, folder: Path, reason: str, file: str = "") -> WeightsUnavailableError:
    """The one message about weights that are neither here nor to be had: which file, and where to put it."""
    file = file or url.rpartition("/")[2] or "its no-top weights file"
    folder = Path(os.environ.get(WEIGHTS_FOLDER) or folder)
    return WeightsUnavailableError(
        f"The ImageNet weights of {name} are not on this machine, and the download failed ({reason}). "
        f"Put {file} ({url}) in the folder {folder}, or pass weights=PATH to a weights file. "
        "weights=None starts from random values, and EfficientNetLite0 needs no download."
    )


def fetch_class_index() -> Path:
    """Keras' list of ImageNet's classes, from the folder KCLF_WEIGHTS, Keras' cache or the network.

    Raises:
        WeightsUnavailableError: it is not here and cannot be downloaded.
    """
    path = keras_cache() / CLASS_INDEX.file
    for folder in (os.environ.get(WEIGHTS_FOLDER), path.parent):
        if folder and (here := Path(folder) / CLASS_INDEX.file).is_file():
            return here
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with network_timeout(), replacing(path) as temporary:
            _receive(CLASS_INDEX.url, temporary)
    except OSError as error:
        raise WeightsUnavailableError(
            f"The names of ImageNet's classes are not on this machine, and the download failed ({error}). "
            f"Put {CLASS_INDEX.file} ({CLASS_INDEX.url}) in the folder {path.parent}, or pass its path."
        ) from error
    return path


@contextmanager
def network_timeout() -> Iterator[None]:
    """Let connections made in the block fail after `NETWORK_TIMEOUT` of silence."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
