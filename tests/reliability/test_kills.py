"""`kill -9` at random moments of real runs: what they end with does not tell that it happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("kills.py")
ROOT = HARNESS.parent.parent.parent


def kill(*options) -> dict:
    """What the harness counted; its lines are printed."""
    words = [sys.executable, HARNESS, *map(str, options)]
    done = subprocess.run(words, cwd=ROOT, env=None, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_killed_run_ends_the_same():
    counted = kill("--kills", 1, "--kinds", "learner", "--seed", 5)

    assert counted["identical"] == 1


@pytest.mark.heavy
def test_sixty_killed_runs_end_the_same(capsys):
    counted = kill("--kills", 60)

    with capsys.disabled():
        print(f"\n{counted['identical']} of {counted['runs']} killed runs ended bit for bit the same")
    assert counted["identical"] == 60


@pytest.mark.heavy
def test_the_command_goes_on_from_any_of_a_hundred_moments():
    counted = kill("--moments", 100, "--kinds", "cli")

    assert counted["identical"] == counted["states of its folder"] > 10


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["clean", "clean_far", "fetch"])
def test_photos_are_whole_after_forty_kills(kind):
    counted = kill("--kills", 40, "--kinds", kind, "--seed", 35)

    assert counted["identical"] == counted["runs"]


@pytest.mark.heavy
def test_runs_whose_files_were_torn_end_the_same(capsys):
    counted = kill("--kills", 40, "--tear", "--seed", 1)

    with capsys.disabled():
        print(f"\n{counted['identical']} of {counted['runs']} torn runs ended bit for bit the same")
    assert counted["identical"] == 40
    assert counted["most_intervals_lost"] <= 1
