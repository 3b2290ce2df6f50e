"""Machines, terminals and files as people have them: each ends in what is promised, or in one message."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import kclf
from kclf._core import signals
from kclf._core.signals import StopRequest
from kclf._core.terminal import TerminalStream, one_line
from kclf.callbacks.checkpoint import Checkpoint, _name
from kclf.checks import check
from kclf.cli import run_folder
from kclf.cli.main import main
from kclf.cli.train import RunSettings, read_settings
from kclf.data.presized import cached
from kclf.errors import BackboneError, FileFormatError, OutputError, OutputExistsError
from kclf.prediction.activation_cache import precompute
from kclf.report.inputs import read_run

ROOT = Path(__file__).parent.parent


@pytest.fixture
def photos(tmp_path):
    """Two classes of four photos."""
    for number in range(8):
        path = tmp_path / "photos" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


# ---- starts ------------------------------------------------------------

IMPORT = "import kclf, keras; print('fine')"
KERAS_FIRST = """
import sys, types
keras = sys.modules["keras"] = types.ModuleType("keras")  # under a backend that is not installed here
keras.backend = types.SimpleNamespace(backend=lambda: "jax")
import kclf
"""
STARTS = {
    "jax": ({"KERAS_BACKEND": "jax"}, IMPORT, "needs Keras' torch backend.*Received: 'jax'"),
    "tensorflow": ({"KERAS_BACKEND": "tensorflow"}, IMPORT, "needs Keras' torch backend"),
    "keras first": ({"KERAS_BACKEND": "torch"}, KERAS_FIRST, "import kclf before keras. Received: 'jax'"),
}
BARE = {
    "HOME": "/nonexistent",
    "TMPDIR": "/nonexistent",
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "COLUMNS": "20",
    "PYTHONOPTIMIZE": "1",
}


def start(code: str, environment: dict[str, str], shell: Sequence[str] = ()) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if key not in ("KERAS_BACKEND", "PYTHONPATH")}
    given = {**kept, "PYTHONPATH": os.fspath(ROOT), **environment}
    return subprocess.run(
        [*shell, sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("machine", STARTS)
def test_another_backend_is_named_in_one_message(machine):
    environment, code, message = STARTS[machine]

    done = start(code, environment)

    assert done.returncode == 1
    assert re.search(message, done.stderr.strip().splitlines()[-1])


def test_the_command_says_it_without_a_traceback():
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.fspath(ROOT)}
    command = [sys.executable, "-m", "kclf", "--help"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert re.fullmatch("kclf needs Keras' torch backend.*\n", done.stderr)


@pytest.mark.heavy  # seconds of imports, three times
@pytest.mark.skipif(os.name != "posix", reason="closes streams by a shell")
def test_a_bare_machine_with_closed_streams_is_enough(tmp_path):
    code = f"""
import kclf, kclf._core.terminal
kclf._core.terminal.guard_streams()
print("to nowhere", flush=True)
with open({os.fspath(tmp_path / "said")!r}, "w") as file:
    file.write(str(file.fileno() > 2))
"""

    done = start(code, BARE, ["sh", "-c", 'exec "$@" <&- >&-', "sh"])

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text() == "True"


def test_channels_first_in_keras_json_is_named_in_one_message(monkeypatch, tmp_path):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")

    with pytest.raises(BackboneError, match=r"channels_last.*Received: 'channels_first'"):
        kclf.build_backbone("MobileNetV2", weights=None)
    with pytest.raises(BackboneError, match="channels_last"):
        kclf.load(tmp_path / "any.h5")


# ---- terminals ------------------------------------------------------------


class Gone(io.StringIO):
    """Standard output whose reader has gone, or whose disk is full."""

    def __init__(self, number: int, file: Path) -> None:
        super().__init__()
        self.number, self.descriptor = number, os.open(file, os.O_WRONLY | os.O_CREAT)

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self) -> int:
        return self.descriptor


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_a_line_that_cannot_be_written_ends_nothing(tmp_path, number):
    stream = TerminalStream(Gone(number, tmp_path / "out"))

    print("a line of the table", file=stream, flush=True)

    assert stream.error.errno == number
    assert (tmp_path / "out").read_text() == ""


def test_a_full_disk_under_standard_output_has_its_status_and_a_closed_pipe_none(
    monkeypatch, tmp_path, capsys
):
    for number, status in ((errno.ENOSPC, 4), (errno.EPIPE, 0)):
        monkeypatch.setattr(sys, "stdout", Gone(number, tmp_path / "out"))
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert (ended.value.code or 0) == status
    assert "standard output cannot be written" in capsys.readouterr().err


NAMES = ["a\x1b[2Jb", "a\x1b]0;title\x07b", "a\nb", "a\rb", "a\x9b31mb", "a\u202eb", "a\udcffb", "a\x00b"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_controls_a_terminal(name):
    shown = one_line(name)

    assert shown.isprintable()
    assert one_line(shown) == shown


def test_what_passes_a_terminal_stream_is_colour_and_lines():
    plain = io.StringIO()
    TerminalStream(plain).write("\x1b[31mred\x1b[0m\n\ttab\x1b[2J\x1b]0;x\x07\x9b")

    assert plain.getvalue() == "\x1b[31mred\x1b[0m\n\ttab\\x1b[2J\\x1b]0;x\\x07\\x9b"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP on this system")
def test_a_closed_terminal_stops_between_two_batches_and_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop() == signal.SIGHUP

        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        signals.end_on_signals()
        assert stop() is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- spawned workers ------------------------------------------------------------


def test_data_and_models_go_to_spawned_workers(photos, tmp_path):
    data = kclf.ImageData.from_folder(photos, valid_fraction=0.25, size=32, presize=32, batch_size=2)
    data = data.resize(40, tmp_path / "cache")
    next(iter(data.train))

    again = pickle.loads(pickle.dumps(data))

    assert again.class_names == data.class_names
    for (images, labels, *_), (others, _, *_) in zip(again.valid, data.valid, strict=True):
        assert len(labels)
        np.testing.assert_array_equal(images, others)
    assert pickle.loads(pickle.dumps(Checkpoint(tmp_path / "run"))).folder == tmp_path / "run"


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


def test_a_learner_that_has_trained_goes_to_a_spawned_worker_and_trains_on(photos, tmp_path):
    data = kclf.ImageData.from_folder(photos, valid_fraction=0.25, size=32, presize=32, batch_size=2)
    learner = kclf.Learner(data, "MobileNet_025", weights=None, path=tmp_path, verbose=False)
    learner.lr_find(num_it=6)
    learner.fit_one_cycle(1, 1e-3)
    with pytest.raises(KeyboardInterrupt):
        learner.fit_one_cycle(1, 1e-3, callbacks=[Stop()])  # whose listeners were never closed

    again = pickle.loads(pickle.dumps(learner))

    np.testing.assert_array_equal(again.predictions().probabilities, learner.predictions().probabilities)
    assert again.recorder.losses == learner.recorder.losses
    again.fit_one_cycle(1, 1e-3)
    assert len(again.recorder.losses) > len(learner.recorder.losses)


def test_a_learner_goes_to_a_spawned_worker(photos, tmp_path):
    data = kclf.ImageData.from_folder(photos, valid_fraction=0.25, size=32, presize=32, batch_size=2)
    learner = kclf.Learner(data, "MobileNet_025", weights=None, path=tmp_path)

    again = pickle.loads(pickle.dumps(learner))

    for mine, theirs in zip(learner.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# ---- what a run may replace ------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    read_only(monkeypatch, tmp_path)

    with pytest.raises(OutputError, match="no permission"):
        run_folder.check_out(tmp_path / "out", force=False)


def test_force_touches_nothing_that_kclf_did_not_write(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "thesis.pt").write_text("years of work")
    with pytest.raises(OutputExistsError, match=r"checkpoints/thesis\.pt"):
        run_folder.check_out(tmp_path, force=True)

    run_folder.finish(tmp_path)

    assert (tmp_path / "checkpoints" / "thesis.pt").read_text() == "years of work"


@pytest.mark.parametrize("name", run_folder.WRITTEN)
def test_force_replaces_results_of_a_run_only(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(OutputExistsError, match=name):
        run_folder.check_out(tmp_path, force=True)

    (tmp_path / "settings.json").write_text(json.dumps({"versions": {"kclf": "0.1"}}))
    run_folder.check_out(tmp_path, force=True)


def test_what_somebody_puts_among_the_checkpoints_of_a_run_stays(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("settings.json", _name(0, 0, 0), f"{_name(0, 0, 1)}.damaged", "mine.txt"):
        (folder / name).write_text("{}")
    (tmp_path / ".download.partial").write_text("half of somebody's")

    run_folder.finish(tmp_path)

    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert (tmp_path / ".download.partial").exists()
    assert not run_folder.is_unfinished(tmp_path)


def test_names_of_checkpoints_sort_as_the_run_goes(tmp_path):
    places = [
        (99, 0, 5),
        (99, 9999, "done"),
        (100, 0, 0),
        (100, 10_000, 9),
        (10_000, 0, 10**9),
        (10_001, 0, "done"),
    ]
    for place in reversed(places):
        (tmp_path / _name(*place)).touch()
    (tmp_path / "stage of others.h5").touch()

    assert [path.name for path in Checkpoint(tmp_path).files()] == [_name(*place) for place in places]
    assert sorted(map(_name, *zip(*places[:4], strict=True))) == [_name(*place) for place in places[:4]]


# ---- caches ------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [lambda size: b"\xff" * size, lambda size: b""], ids=["other bytes", "cut off"]
)
def test_a_damaged_cache_gives_the_photos_all_the_same(photos, tmp_path, damage, caplog):
    paths = np.array(sorted(map(str, photos.rglob("*.png"))))
    whole = [cached(paths, 16, tmp_path, 1)[index] for index in range(len(paths))]
    images = cached(paths, 16, tmp_path, 1)
    (pixels,) = tmp_path.rglob("pixels")
    pixels.write_bytes(damage(pixels.stat().st_size))

    for index, expected in enumerate(whole):
        np.testing.assert_array_equal(images[index], expected)
    assert "Damaged in its cache" in caplog.text


def read_only(monkeypatch, folder: Path) -> None:
    """As if a folder were on a read-only mount: root, who runs tests, may write anywhere else."""
    real_access, real_open = os.access, os.open

    def is_below(path):
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(os.fspath(folder))

    def guarded(path, flags, *rest, **more):
        if is_below(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
        return real_open(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", guarded)
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode, **more: (
            real_access(path, mode, **more) and not (mode & os.W_OK and is_below(path))
        ),
    )


def test_complete_caches_are_read_from_a_read_only_mount(photos, tmp_path, monkeypatch):
    data = kclf.ImageData.from_folder(photos, valid_fraction=0.25, size=32, presize=32, batch_size=2)
    model = kclf.ImageClassifier("MobileNet_025", data.class_names, size=32, weights=None)
    paths = np.array(sorted(map(str, photos.rglob("*.png"))))
    first = (
        precompute(model, data, tmp_path / "caches", progress=False),
        cached(paths, 16, tmp_path / "caches", 1),
    )
    read_only(monkeypatch, tmp_path / "caches")

    again = (
        precompute(model, data, tmp_path / "caches", progress=False),
        cached(paths, 16, tmp_path / "caches", 1),
    )

    np.testing.assert_array_equal(first[0].train.features, again[0].train.features)
    np.testing.assert_array_equal(first[1][0], again[1][0])


# ---- a run's own files, damaged ------------------------------------------------------------

DAMAGED = {
    "data is null": ("settings.json", '{"data": null}'),
    "data is a list": ("settings.json", '{"data": []}'),
    "3000 objects": ("settings.json", '{"a": ' * 3000 + "1" + "}" * 3000),
    "30 objects": ("settings.json", '{"a": ' * 30 + "1" + "}" * 30),
    "text for a loss": ("history.csv", "epoch,train_loss\n0,low\n"),
    "text for a time": ("history.csv", "epoch,time\n0,1h\n"),
    "a loss beyond all": ("history.csv", "epoch,train_loss\n0,1e308\n1,-1e308\n"),
    "text in a batch": ("batches.csv", "step,smoothed_loss\n0,x\n"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_report_of_damaged_files_names_the_file(tmp_path, kind):
    name, content = DAMAGED[kind]
    (tmp_path / name).write_text(content)

    with pytest.raises(FileFormatError, match=name):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("augment", "evil"),
        ("size", -5),
        ("presize", 1 << 40),
        ("batch_size", -3),
        ("seed", 2**70),
        ("mixed_precision", "evil"),
        ("backbone", "os.system"),
        ("batchnorm", "evil"),
        ("epochs", -1),
        ("learning_rate", 0),
        ("valid_fraction", 7.0),
    ],
)
def test_settings_that_no_run_could_have_had_are_refused(tmp_path, setting, value):
    fields = {
        key: str(v) if isinstance(v, Path) else v
        for key, v in vars(RunSettings(Path("a"), Path("b"))).items()
    }
    (tmp_path / "settings.json").write_text(json.dumps({"settings": {**fields, setting: value}}))

    with pytest.raises(FileFormatError, match=setting):
        read_settings(tmp_path / "settings.json")


# ---- links ------------------------------------------------------------


@pytest.mark.parametrize(
    ("photo", "other"), [("train/cat/x.png", "valid/cat/x.png"), ("cat/x.png", "cat/a.png")]
)
def test_a_link_is_parted_with_and_never_its_photo(tmp_path, photo, other):
    real, link = tmp_path / photo, tmp_path / other
    for path in (real, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").save(real)
    link.symlink_to(real)

    (finding,) = check(tmp_path)

    assert (finding.path, finding.other, finding.advice) == (other, photo, "delete")
