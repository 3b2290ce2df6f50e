"""A folder has one writer at a time, and a dead one does not count."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kclf._core.locks import LOCK_FILE, FolderLock
from kclf.errors import FolderLockedError

HOLD = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print(f"process {os.getpid()} on some machine", file=file, flush=True)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / LOCK_FILE], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate()


def test_two_processes_do_not_share_a_folder(holder, tmp_path):
    with pytest.raises(FolderLockedError, match=f"process {holder.pid} "):
        FolderLock(tmp_path).acquire()

    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with FolderLock(tmp_path) as lock:
        assert lock.held
        assert f"process {os.getpid()} " in lock.path.read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_process_may_take_its_own_lock_again(tmp_path):
    with FolderLock(tmp_path) as lock:
        with FolderLock(tmp_path) as again:
            assert not again.held
        assert lock.path.exists()
