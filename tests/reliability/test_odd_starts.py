"""Every machine of the table ends as promised; the commonest of them in each run of the tests."""

from __future__ import annotations

import odd_machines
import pytest


@pytest.fixture
def base(tmp_path):
    odd_machines.write_photos(tmp_path)
    return tmp_path


def try_on(name, base):
    machine = odd_machines.MACHINES[name]
    if not odd_machines.allowed(machine):
        pytest.skip("no mounts for this user (unshare)")
    done = odd_machines.start(machine, base, 0)
    assert odd_machines.verdict(machine, done) == "as promised", done.stderr[-2000:]


@pytest.mark.heavy
@pytest.mark.skipif("sys.platform != 'linux'", reason="limits and mounts of Linux")
def test_few_handles_and_closed_streams(base):
    try_on("256 file handles, streams closed", base)


@pytest.mark.heavy
@pytest.mark.parametrize("name", odd_machines.MACHINES)
def test_every_machine_ends_as_promised(name, base):
    try_on(name, base)
