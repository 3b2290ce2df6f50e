"""`kclf train` when it is stopped, locked out, out of disk, or goes wrong: exit statuses and what is left."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import kills
import pytest

import kclf
from kclf._core.locks import HOLDER_FILE, LOCK_FILE
from kclf.callbacks import ProgressBar
from kclf.cli.main import main
from kclf.cli.train import read_settings, unfinished_run

ROOT = Path(__file__).parent.parent.parent
WORDS = [*(str(word) for word in kills.CLI), "--epochs", "1"]


def run(*words) -> int:
    """Exit status of `kclf WORDS...`; the process keeps its own handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return stopped.value.code or 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return kills.write_photos(tmp_path_factory.mktemp("photos"), count=10)


@pytest.fixture
def at_third_batch(monkeypatch):
    """Call it with what shall happen before the third batch of training."""

    def arrange(action):
        batches = iter(range(10**6))

        def count(self, batch, logs=None):
            if next(batches) == 2:
                action()

        monkeypatch.setattr(ProgressBar, "on_train_batch_begin", count)

    return arrange


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.heavy)])
def test_a_signal_leaves_a_classifier_and_the_run_goes_on(
    photos, tmp_path, capsys, monkeypatch, at_third_batch, number
):
    out = tmp_path / "out"
    at_third_batch(lambda: os.kill(os.getpid(), number))

    assert run("train", photos, *WORDS, "--out", out) == 128 + number

    assert f"kclf train --resume {out}" in capsys.readouterr().err
    assert kclf.load(out / "classifier.h5").class_names == ["blue", "red"]
    assert run("train", photos, *WORDS, "--out", out) == 2
    assert "not finished" in capsys.readouterr().err
    assert run("train", "--resume", out) == 0
    assert "Going on from stage0001" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("[!.]*")) == [
        "MODEL_CARD.md",
        "batches.csv",
        "classifier.h5",
        "curves.png",
        "history.csv",
        "predictions.csv",
        "report.html",
        "settings.json",
    ]
    leave_as_killed_in_the_last_step(out)
    with monkeypatch.context() as second:
        second.setenv("WORLD_SIZE", "2")
        second.setenv("RANK", "1")
        assert run("train", "--resume", out) == 0
    assert (out / ".kclf-checkpoints.partial").exists()  # it is for the first rank to remove
    assert run("train", "--resume", out) == 0
    assert "is finished" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("checkpoints/*")) == ["notes.txt"]
    assert not [path.name for path in out.glob(".*") if path.name != LOCK_FILE]


def leave_as_killed_in_the_last_step(out):
    """What a finished run's folder holds that was killed while its checkpoints were removed."""
    partial, checkpoints = out / ".kclf-checkpoints.partial", out / "checkpoints"
    for folder in (partial, checkpoints):
        folder.mkdir()
        (folder / "stage0000-epoch000001-done.h5").write_bytes(b"x")
    (checkpoints / "notes.txt").write_text("somebody else's")
    (out / HOLDER_FILE).write_text("process 1 on host")


def test_a_full_disk_has_a_status_of_its_own(photos, tmp_path, capsys, at_third_batch):
    out, before = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    at_third_batch(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1])))
    try:
        assert run("train", photos, *WORDS, "--out", out) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert "cannot be written" in capsys.readouterr().err
    assert sorted(path.suffix for path in (out / "checkpoints").glob("[!.]*")) == [".h5", ".h5", ".json"]


def test_a_rate_that_is_far_too_high_ends_the_run(photos, tmp_path, capsys):
    out = tmp_path / "out"

    assert run("train", photos, *WORDS, "--learning-rate", "1e30", "--out", out) == 3

    message = capsys.readouterr().err
    assert "infinite or NaN" in message
    assert "Lower the learning rate" in message
    assert kclf.load(out / "classifier.h5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "nowhere"], "holds no run that could be resumed"),
        (["--resume", "nowhere", "--epochs", "3"], "takes the settings of its run. Received: epochs"),
        ([], "the folder of photos is missing"),
        (["photos", "--batch-size", "0"], "expected auto, or 1 or more photos"),
    ],
)
def test_words_that_do_not_fit_are_refused(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    assert run("train", *words) == 2

    assert message in capsys.readouterr().err


@pytest.mark.heavy
def test_two_runs_do_not_share_a_folder(photos, tmp_path, capsys, at_third_batch):
    out, statuses = tmp_path / "out", []
    words = [sys.executable, "-m", "kclf", "train", "--resume", str(out)]
    at_third_batch(lambda: statuses.append(subprocess.run(words, cwd=ROOT, capture_output=True, text=True)))

    assert run("train", photos, *WORDS, "--out", out) == 0

    (second,) = statuses
    assert second.returncode == 2
    assert f"Another run works in {out} (process {os.getpid()} " in second.stderr


@pytest.mark.heavy
def test_settings_survive_a_torn_file(photos, tmp_path, at_third_batch):
    out = tmp_path / "out"

    def stop():
        raise KeyboardInterrupt

    at_third_batch(stop)
    assert run("train", photos, *WORDS, "--out", out) == 130
    (out / "settings.json").write_text('{"settings": {')

    assert unfinished_run(out) == read_settings(out / "settings.json")
    assert read_settings(out / "settings.json").folder == photos


@pytest.mark.heavy
def test_batch_size_auto_is_recorded(photos, tmp_path, capsys):
    out = tmp_path / "out"

    assert run("train", photos, *WORDS, "--batch-size", "auto", "--epochs", 0, "--out", out) == 0

    assert "Batch size: " in capsys.readouterr().out
    assert read_settings(out / "settings.json").batch_size >= 1
