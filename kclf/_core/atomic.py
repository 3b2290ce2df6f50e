"""One way to write a file: complete or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError

PREFIX = ".kclf-"  # of the temporary files of `replacing`: kclf's mark, without which nothing is swept away
LEFTOVERS = f"{PREFIX}*.partial*"
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF)
_TRIES = 20  # to rename onto a file that another program has open, on Windows
_PAUSE = 0.1  # seconds between them


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place when the block ends without an error.

    The data reach the disk (`fsync`) before the name changes (`os.replace`), so that a reader, a kill or a
    power cut sees the old file or the new one, never a part. After an error the temporary file is removed
    and the old file stays; after a kill the temporary one stays, for `sweep` to remove. Its name keeps the
    suffixes of `path`, since savers look at them. A link stays a link, whose target is replaced, and the mode
    of the old file stays; where a file system has no modes or no `fsync` of folders, it does without.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        The path to write to.

    Raises:
        OutputError: `path` is a device or a pipe.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "settings.json"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("{}")
        >>> target.read_text()
        '{}'
    """
    target = Path(os.path.realpath(path))
    mode = _mode_of(target)
    temporary = _create_beside(target)
    try:
        yield temporary
        if mode is not None:
            with suppress(OSError):  # the files of some mounts belong to somebody else
                temporary.chmod(mode)
        _sync(temporary, os.O_RDWR)
        _rename(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def move_file(source: Path, target: Path) -> None:
    """Move a file, or a link as it is; afterwards it is in one of the two places whole, also after a kill.

    Across file systems it is copied beside `target` to `half_moved`, renamed, and only then removed.

    Raises:
        OSError: it cannot be moved; it then is where it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)
        try:
            source.unlink()
        except OSError:
            target.unlink()
            raise


def half_moved(target: Path) -> Path:
    """Where `move_file` copies a file from another file system to, until it is whole; a kill may leave it."""
    return target.with_name(f"{PREFIX}{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.partial")


def _copy(source: Path, target: Path) -> None:
    temporary = half_moved(target)
    temporary.unlink(missing_ok=True)  # of a killed move, also a link, which cannot be written to
    try:
        shutil.copy2(source, temporary, follow_symlinks=False)
        if not temporary.is_symlink():
            _sync(temporary, os.O_RDWR)
        os.rename(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what writers that were killed left half written in a folder; return what was removed.

    Only for a folder that nobody else writes to now. In one that is read-only, nothing is removed.

    Args:
        folder: the folder; those below it are left alone.
    """
    if not os.access(folder, os.W_OK):
        return []
    leftovers = sorted(Path(folder).glob(LEFTOVERS))
    for leftover in leftovers:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    return leftovers


def _mode_of(target: Path) -> int | None:
    """Permissions of the file that will be replaced; None where there is none."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OutputError(f"{target} is a device or a pipe. Give the name of a file")
    return stat.S_IMODE(mode) if stat.S_ISREG(mode) else None


def _create_beside(target: Path) -> Path:
    """An empty file of a new name, as readable as `open` makes it."""
    suffix = f".partial{''.join(target.suffixes)}"
    while True:
        temporary = target.parent / f"{PREFIX}{secrets.token_hex(4)}{suffix}"
        with suppress(FileExistsError):
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
            return temporary


def _sync(path: Path, flags: int) -> None:
    """Bring a file, or the names in a folder, to the disk; where that is not to be had, do without."""
    try:
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; Windows does so by itself, and opens no folders."""
    if not _is_windows():
        _sync(folder, os.O_RDONLY)


def _is_windows() -> bool:
    return os.name == "nt"


def _rename(temporary: Path, target: Path) -> None:
    """Give the new file its name; Windows refuses that while somebody has the old one open."""
    for _ in range(_TRIES if _is_windows() else 0):
        with suppress(PermissionError):
            os.replace(temporary, target)
            return
        time.sleep(_PAUSE)
    os.replace(temporary, target)
