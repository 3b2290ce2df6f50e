"""One writer to a folder: a lock that the system drops when its process dies, however it dies."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from pathlib import Path
from types import TracebackType

from ..errors import FolderLockedError

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
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock.

        Args:
            wait: wait until another process is done, in place of the error.

        Raises:
            FolderLockedError: another process holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if _lock(descriptor, self.path, wait=wait) and _still_there(descriptor, self.path):
                self._descriptor = descriptor
                break
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if holder == _me():
                return
            if holder and not wait and self.path.exists():
                raise FolderLockedError(
                    f"Another run works in {self.path.parent} ({holder}). Wait for it, stop it, or choose "
                    "another folder."
                )
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, _me().encode(), 0)

    def release(self) -> None:
        """Let others in, and remove the file."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self._close()

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _lock(descriptor: int, path: Path, *, wait: bool) -> bool:
    """Lock an open file; False where another one has it locked."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no file locks on this system")
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
        warnings.warn(
            f"{path} cannot be locked here ({error.strerror}): see to it that only one run works in its "
            "folder.",
            stacklevel=4,
        )
    return True


def _still_there(descriptor: int, path: Path) -> bool:
    """Whether the path still names the open file: its holder may have removed it in the meantime."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
