"""One way to write a file: complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFTOVERS = ".*.partial*"  # how the temporary files of `replacing` are called


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place when the block ends without an error.

    The data reach the disk (`fsync`) before the name changes (`os.replace`), so that a reader, a kill or a
    power cut sees the old file or the new one, never a part. After an error the temporary file is removed
    and the old file stands; after a kill it stays, for `sweep` to remove. The temporary name keeps the
    suffixes of `path`, since savers look at them.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        The path to write to.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "settings.json"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("{}")
        >>> target.read_text()
        '{}'
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(
        prefix=".", suffix=f".partial{''.join(target.suffixes)}", dir=target.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def move_file(source: Path, target: Path) -> None:
    """Move a file, or a link as it is; afterwards it is in one of the two places whole, also after a kill.

    Across file systems it is copied beside `target` under another name, renamed, and only then removed.

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


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        shutil.copy2(source, temporary, follow_symlinks=False)
        if not temporary.is_symlink():
            _sync(temporary)
        os.rename(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what writers that were killed left half written in a folder; return what was removed.

    Only for a folder that nobody else writes to now.

    Args:
        folder: the folder; those below it are left alone.
    """
    leftovers = sorted(Path(folder).glob(LEFTOVERS))
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    return leftovers


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Bring the new name itself to the disk; Windows does so without being asked, and opens no folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    """The mask that new files get here; reading it means setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
