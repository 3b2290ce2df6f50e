"""One writer to a folder: a lock that the system drops when its process dies, however it dies."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO

from .errors import FolderLockedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_BUSY = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class FolderLock:
    """Keeps two runs out of one folder.

    The lock belongs to the open file `.lock`, not to its being there: after a `kill -9` the file is left, and
    the next run takes it over. The process that holds the lock may take it again. Where the system has no
    such locks (Windows, some network file systems) a warning says so, and nothing is locked.

    Args:
        folder: the folder; made where it is missing.

    Example:
        >>> import tempfile
        >>> with FolderLock(tempfile.mkdtemp()) as lock:
        ...     lock.held
        True
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / LOCK_FILE
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock.

        Args:
            wait: wait until another process is done, in place of the error.

        Raises:
            FolderLockedError: another process holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as it is held
            if _lock(file, wait=wait) and _still_there(file, self.path):
                self._file = file
                break
            file.seek(0)
            holder = file.read().strip()
            file.close()
            if holder == _me():
                return
            if holder and not wait and self.path.exists():
                raise FolderLockedError(
                    f"Another run works in {self.path.parent} ({holder}). Wait for it, stop it, or choose "
                    "another folder."
                )
        self._file.seek(0)
        self._file.truncate()
        self._file.write(_me())
        self._file.flush()

    def release(self) -> None:
        """Let others in, and remove the file."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _lock(file: IO[str], *, wait: bool) -> bool:
    """Lock an open file; False where another one has it locked."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no file locks on this system")
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{file.name} cannot be locked here ({error.strerror}): see to it that only one run works in "
            "its folder.",
            stacklevel=4,
        )
    return True


def _still_there(file: IO[str], path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
