"""Pieces of work on one core each, and the memory they find."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from kclf._core.cpu import one_core_each


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_piece_is_done_once_on_one_core(two_threads):
    done, threads, cores = [], set(), set()

    def work(piece):
        done.append(piece)
        threads.add(threading.get_ident())
        cores.add(torch.get_num_threads())

    one_core_each(work, range(100))

    assert sorted(done) == list(range(100))
    assert threading.get_ident() not in threads
    assert cores == {1}


def test_torch_keeps_its_threads_everywhere_else(two_threads):
    one_core_each(lambda piece: None, range(4))
    found = [torch.get_num_threads()]
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [2, 2]


def test_the_mode_of_the_caller_holds(two_threads):
    found = []
    with torch.inference_mode():
        one_core_each(lambda piece: found.append(torch.is_inference_mode_enabled()), range(4))
    assert found == [True] * 4


def test_an_error_of_a_piece_is_raised(two_threads):
    def work(piece):
        if piece == 3:
            raise ValueError("piece 3")

    with pytest.raises(ValueError, match="piece 3"):
        one_core_each(work, range(8))


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, and glibc, which alone keeps freed memory")
def test_freed_memory_is_kept_and_a_forked_process_works_on():
    script = """
import os, resource, torch
from kclf._core.cpu import keep_freed_memory, one_core_each
print(keep_freed_memory())
for _ in range(8):  # the heap settles within the first few
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages)
torch.set_num_threads(2)
one_core_each(lambda piece: None, range(4))
child = os.fork()
if child == 0:
    done = []
    one_core_each(done.append, range(4))
    os._exit(len(done))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    kept, pages, pieces = answer.stdout.split()
    assert kept == "True"
    assert int(pages) < 100  # 9,766 where the memory comes from the system each time
    assert pieces == "4", answer.stderr
