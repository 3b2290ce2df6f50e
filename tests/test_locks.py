"""A folder has one writer at a time, and a dead one does not count."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kclf._core import locks
from kclf._core.locks import HOLDER_FILE, LOCK_FILE, FolderLock, make_folder
from kclf.errors import FolderLockedError

fcntl = pytest.importorskip("fcntl")
ROOT = Path(__file__).parent.parent

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def foreign(tmp_path):
    """An open file of its own that holds the lock, as another process would have it."""
    with open(tmp_path / LOCK_FILE, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def test_a_dead_holder_does_not_count(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / LOCK_FILE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(FolderLockedError, match="Another run works in"):
            FolderLock(tmp_path).acquire()
        holder.kill()
        holder.wait()

    with FolderLock(tmp_path) as lock:
        assert lock.held
        assert f"process {os.getpid()} " in (tmp_path / HOLDER_FILE).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


WRITER = """
import os, sys
from kclf._core.locks import FolderLock
from kclf.errors import FolderLockedError
lock = FolderLock(sys.argv[1])
try:
    lock.acquire()
    print(os.getpid(), "writes", flush=True)
    sys.stdin.read()
except FolderLockedError:
    print(os.getpid(), "is refused", flush=True)
"""


def test_two_writers_in_two_namespaces_with_one_process_id(tmp_path):
    contained = ["unshare", "-Urpf", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*contained, "true"], check=False).returncode:
        pytest.skip("no namespaces of processes for this user")
    script = tmp_path / "kclf"  # by this name it imports no torch
    script.write_text(WRITER)
    command = [*contained, sys.executable, script, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT)}

    with subprocess.Popen(command, env=environment, **pipes) as first:
        assert first.stdout.readline() == "1 writes\n"
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert second.stdout == "1 is refused\n"
        first.communicate("")
    third = subprocess.run(command, env=environment, input="", capture_output=True, text=True, check=True)
    assert third.stdout == "1 writes\n"


def test_a_program_that_gives_no_name_is_refused_at_once(foreign, tmp_path):
    with pytest.raises(FolderLockedError, match="a program that does not give its name"):
        FolderLock(tmp_path).acquire()


def test_a_container_with_the_same_host_name_and_process_id_is_another_writer(foreign, tmp_path):
    me = f"process {os.getpid()} on {platform.node()}"
    foreign.write(me)
    foreign.flush()
    (tmp_path / HOLDER_FILE).write_text(me)

    with pytest.raises(FolderLockedError, match=me):
        FolderLock(tmp_path).acquire()


def test_a_process_may_take_its_own_lock_again(tmp_path):
    with FolderLock(tmp_path):
        with FolderLock(tmp_path):
            pass
        with open(tmp_path / LOCK_FILE) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / LOCK_FILE) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_nobody_here_can_write_to_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a read-only mount

    FolderLock(tmp_path, wait=True).acquire()

    assert list(tmp_path.iterdir()) == []


def test_threads_make_a_folder_once_and_leave_each_other_s_work(tmp_path):
    made = []

    def fill(folder):
        made.append(folder)
        time.sleep(0.05)
        (folder / "photo.jpg").write_bytes(b"x")

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(make_folder, tmp_path / name, fill) for name in "aabb"]:
            done.result()
    assert len(made) == 2
    assert sorted(path.name for path in tmp_path.glob("*/*.jpg")) == ["photo.jpg"] * 2
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"a", "b"}


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def none(self, **_):
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.FileLock, "acquire", none)

    with pytest.warns(UserWarning, match="only one run works in it"):
        FolderLock(tmp_path).acquire()
