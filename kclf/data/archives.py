"""Zip files in the place of a folder: unpacked once, into a cache, and nothing outside it."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from functools import partial
from pathlib import Path

from .._core.locks import make_folder
from ..errors import DataError
from .files import has_images, is_system, list_folders, split_named

MOST_RATIO = 200  # unpacked to packed bytes; photos hardly shrink at all
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack a few bytes to gigabytes at once
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, OSError, EOFError)


def unpacked(folder: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> str:
    """The folder itself; of a zip file the folder that it was unpacked to.

    A single folder at the top of the archive is gone down into.

    Args:
        folder: a folder, or a zip file.
        cache: where archives are unpacked; `~/.cache/kclf/archives`, or below `XDG_CACHE_HOME`, if None.

    Raises:
        DataError: the archive is encrypted, damaged, leads out of its folder, or unpacks to far too much.
    """
    if not os.path.isfile(folder) or not zipfile.is_zipfile(folder):
        return os.fspath(folder)
    status = os.stat(folder)
    state = f"{os.path.abspath(folder)} {status.st_size} {status.st_mtime_ns}"
    name = f"{Path(folder).stem}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"
    if not cache:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kclf" / "archives"
    target = Path(cache) / name
    if not target.is_dir():
        make_folder(target, partial(_unpack, Path(folder)))
    return _inner(str(target))


def _unpack(file: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            kept = (m for m in archive.infolist() if not any(map(is_system, m.filename.split("/"))))
            members = [_checked(file, member) for member in kept]
            _require_room(file, sum(member.file_size for member in members), folder)
            archive.extractall(folder, members)
    except ZIP_ERRORS as error:
        raise DataError(f"{file}: cannot be unpacked ({error}). Unpack it by hand") from error


def _checked(file: Path, member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    parts = member.filename.replace("\\", "/").split("/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if member.flag_bits & 1:
        raise DataError(f"{file}: it is encrypted. Unpack it by hand")
    if member.compress_type not in BOUNDED:
        raise DataError(f"{file}: {member.filename!r} is packed otherwise than by deflate. Unpack it by hand")
    is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
    if ".." in parts or member.filename[:1] in ("", "/") or ":" in parts[0] or not is_plain:
        raise DataError(
            f"{file}: {member.filename!r} leads out of the archive, or is a link. Unpack it by hand"
        )
    return member


def _require_room(file: Path, size: int, folder: Path) -> None:
    if size > MOST_RATIO * max(1, file.stat().st_size) or size > shutil.disk_usage(folder).free:
        raise DataError(f"{file}: it unpacks to {size:,} bytes, which is too much. Unpack it by hand")


def _inner(folder: str) -> str:
    """The one folder at the top, as deep as there is one; but not that of a split."""
    names = list_folders(folder)
    one = len(names) == 1 and not split_named(names[0])
    inside = os.path.join(folder, names[0]) if one else folder
    return _inner(inside) if one and list_folders(inside) and has_images(inside) else folder
