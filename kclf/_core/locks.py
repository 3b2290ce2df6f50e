"""One writer to a folder: a lock that the kernel drops when its process dies, however it dies."""

from __future__ import annotations

import errno
import os
import platform
import tempfile
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import FolderLockedError
from .atomic import PREFIX, sweep

LOCK_FILE = ".lock"
HOLDER_FILE = ".lock.holder"  # who holds it, for people to read; it decides nothing
LOCK_FILES = (LOCK_FILE, HOLDER_FILE)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class FolderLock:
    """Keeps two runs out of one folder.

    The kernel knows who holds the lock of the file `.lock`, in whichever container. That the file exists
    means nothing, so it stays. The process that holds the lock may take it again. On a file system without
    locks a warning says so, and nothing is locked; a folder that this process cannot write to needs none.

    Args:
        folder: the folder; made where it is missing.
        wait: wait until another process is done, in place of the error.

    Example:
        >>> import tempfile
        >>> with FolderLock(tempfile.mkdtemp()) as lock:
        ...     lock.held
        True
    """

    def __init__(self, folder: str | os.PathLike[str], *, wait: bool = False) -> None:
        self.folder = Path(folder)
        self._timeout = -1 if wait else 0
        self._lock: BaseFileLock | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FolderLockedError: another process holds it.
        """
        if self.held:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            return
        # One object for all of this process, so that it may take its own lock again.
        lock = FileLock(self.folder.resolve() / LOCK_FILE, is_singleton=True, thread_local=False)
        try:
            lock.acquire(timeout=self._timeout)
        except Timeout:
            raise FolderLockedError(
                f"Another run works in {self.folder} ({self._holder()}). Wait for it, stop it, or choose "
                "another folder."
            ) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"{self.folder} cannot be locked ({error}): make sure that only one run works in it.",
                stacklevel=2,
            )
            return
        self._lock = lock
        with suppress(OSError):  # as on a full disk: it is for people only
            (self.folder / HOLDER_FILE).write_text(f"process {os.getpid()} on {platform.node()}")

    def release(self) -> None:
        """Let others in."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if lock.lock_counter == 1:
            with suppress(OSError):
                (self.folder / HOLDER_FILE).unlink(missing_ok=True)
        lock.release()

    def _holder(self) -> str:
        with suppress(OSError):
            return (self.folder / HOLDER_FILE).read_text(errors="replace")[:200].strip() or "unknown"
        return "a program that does not give its name"

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


_ONE_THREAD = threading.Lock()  # a folder's lock lets its own process in


def make_folder(target: Path, fill: Callable[[Path], None], *, place: Path | None = None) -> None:
    """Make a folder that is there whole or not at all, even after a kill; one process and thread at a time.

    Args:
        target: the folder; where it is there, nothing is done.
        fill: called with an empty folder to write to, which takes the place of the target afterwards.
        place: the folder to work in, on the same disk; None for the one that the target lies in.
    """
    place = place or target.parent
    with _ONE_THREAD, FolderLock(place, wait=True):
        sweep(place)
        if target.is_dir():
            return
        with tempfile.TemporaryDirectory(prefix=PREFIX, suffix=".partial", dir=place) as temporary:
            inside = Path(temporary) / target.name
            inside.mkdir()
            fill(inside)
            try:
                os.replace(inside, target)
            except OSError:
                if not target.is_dir():  # another process was first, where files have no locks
                    raise
