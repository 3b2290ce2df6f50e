"""A run that is cut off, wherever and by whatever, ends bit for bit as one that was not."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal

import keras
import numpy as np
import pytest
import torch
from keras import layers, optimizers

import kclf
from kclf._core.signals import StopRequest
from kclf.callbacks import Checkpoint, CosineRestarts, EpochTable, OneCycle, Recorder
from kclf.errors import NotFiniteError, OutputError, RunStopped, TrainingError
from tests.conftest import with_random_logits

SIZE = 16
heavy = pytest.mark.heavy


class Cut(Exception):
    """Stands for whatever ends a process."""


class CutAt(keras.callbacks.Callback):
    """Ends a run at a batch of training or validation, counted over all fits."""

    def __init__(self, batch, action=None):
        super().__init__()
        self.left, self.action = batch, action or self.cut

    def cut(self):
        raise Cut

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if self.left == -1:
            self.action()

    on_test_batch_begin = on_train_batch_begin


def photos():
    images = np.random.default_rng(1).integers(0, 256, (30, 20, 24, 3), dtype=np.uint8)
    return images, np.tile([0, 1], 15)


def tiny():
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(4, 3, strides=2, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(6, 3),
            layers.BatchNormalization(),
        ]
    )


def classifier(dtype=None, optimizer=lambda: optimizers.AdamW(1e-3)):
    model = with_random_logits(
        kclf.ImageClassifier(
            tiny(),
            ["cat", "dog"],
            size=SIZE,
            hidden=(4,),
            normalization="tf",
            augmentation=kclf.aug_transforms(),
            dtype=dtype,
        )
    )
    model.compile(kclf.LayerGroupOptimizer(optimizer(), model), loss="auto", metrics=["accuracy"])
    return model


def script(folder, cut=None, *, every=2, stop=None, seed=2, epochs=2, **kinds):
    """What a user's script does: head, then everything, with one checkpoint for both."""
    keras.utils.set_random_seed(seed)
    data = kclf.ImageData.from_arrays(photos(), size=SIZE, presize=18, batch_size=5)
    model = classifier(**kinds)
    recorder, table = Recorder(), EpochTable(io.StringIO())
    checkpoint = Checkpoint(folder, data.train, every=every, others=[recorder, table], stop=stop)
    listening = [recorder, table, *([cut] if cut else []), checkpoint]
    fit = {"validation_data": data.valid, "verbose": 0}
    model.fit(data.train, epochs=1, callbacks=[OneCycle(1e-2), *listening], **fit)
    model.unfreeze()
    rates = [1e-4, 1e-3, 1e-2][-len(model.layer_groups) :]
    cycles = OneCycle(1e-2) if "dtype" in kinds else CosineRestarts(rates)
    history = model.fit(data.train, epochs=epochs, callbacks=[cycles, *listening], **fit)
    return outcome(model) | {
        "losses": recorder.losses,
        "rates": recorder.learning_rates,
        "logs": recorder.epochs,
        "rows": [{**row, "time": 0} for row in table.rows],
        "history": history.history,
        "epochs": history.epoch,
        "random": [torch.rand(1).item(), np.random.rand()],  # noqa: NPY002
    }


def outcome(model):
    variables = [*model.variables, *model.optimizer.variables]
    return {"weights": [variable.numpy().tobytes() for variable in variables]}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The results of scripts that nothing cut off, by their settings."""
    known = {}

    def run(name="plain", **kinds):
        if name not in known:
            known[name] = script(tmp_path_factory.mktemp("whole") / "run", **kinds)
        return known[name]

    return run


# 4 batches and 2 of validation an epoch: 0-5 of the head, 6-17 of everything
@pytest.mark.parametrize("at", [5, 13, *(pytest.param(at, marks=heavy) for at in (0, 6, 8, 16))])
def test_a_run_cut_off_anywhere_ends_the_same(tmp_path, uninterrupted, at):
    with pytest.raises(Cut):
        script(tmp_path, CutAt(at))

    assert script(tmp_path) == uninterrupted()


@heavy
def test_with_two_threads_too(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = script(tmp_path / "whole")
        with pytest.raises(Cut):
            script(tmp_path / "cut", CutAt(9))
        assert script(tmp_path / "cut") == whole
    finally:
        torch.set_num_threads(before)


@heavy
def test_it_may_be_cut_off_again_and_again(tmp_path, uninterrupted):
    for _ in range(4):
        with pytest.raises(Cut):
            script(tmp_path, CutAt(5), every=1)  # batches that are passed over count too

    assert script(tmp_path, every=1) == uninterrupted()


KINDS = {
    "momentum": {"optimizer": lambda: optimizers.SGD(1e-2, momentum=0.9)},
    "average and accumulation": {
        "optimizer": lambda: optimizers.AdamW(1e-3, use_ema=True, gradient_accumulation_steps=2)
    },
    "float16": {"dtype": "mixed_float16"},
    "bfloat16": {"dtype": "mixed_bfloat16"},
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[heavy] if kind != "average and accumulation" else []) for kind in KINDS],
)
def test_all_state_of_an_optimizer_comes_back(tmp_path, uninterrupted, kind):
    with pytest.raises(Cut):
        script(tmp_path, CutAt(9), **KINDS[kind])

    assert script(tmp_path, **KINDS[kind]) == uninterrupted(kind, **KINDS[kind])


@pytest.mark.parametrize("resume", [True, False])
def test_the_same_fit_again_in_the_same_process_goes_on(tmp_path, resume):
    """As when a notebook's cell is interrupted and run again."""

    def run(folder, cut=None):
        keras.utils.set_random_seed(2)
        data = kclf.ImageData.from_arrays(photos(), size=SIZE, presize=18, batch_size=5)
        model, recorder = classifier(), Recorder()
        checkpoint = Checkpoint(folder, data.train, others=[recorder], resume=resume)

        def fit(*more):
            callbacks = [OneCycle(1e-2), recorder, *more, checkpoint]
            return model.fit(data.train, epochs=2, callbacks=callbacks, verbose=0)

        if cut:
            with pytest.raises(Cut):
                fit(cut)
        fit()
        model.unfreeze()  # what comes next is another stage
        fit()
        return outcome(model) | {"losses": recorder.losses, "position": checkpoint.position}

    whole, again = run(tmp_path / "whole"), run(tmp_path / "cut", CutAt(6))

    assert (again == whole) == resume
    assert len(whole["losses"]) == 16
    assert whole["position"] == (1, 2, "done")


def test_a_run_that_was_over_is_passed_over(tmp_path, uninterrupted):
    script(tmp_path)

    again = script(tmp_path, CutAt(0))

    assert again == uninterrupted()


def test_other_data_are_read_up_to_the_batch(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(24, 3)).astype("float32"), np.arange(24) % 2

    def run(folder, data, cut=()):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dropout(0.5), layers.Dense(1)])
        model.compile("adam", "mse")
        loader = data()
        given = {"x": x, "y": y, "batch_size": 4} if loader is None else {"x": loader, "shuffle": False}
        model.fit(**given, epochs=2, verbose=0, callbacks=[*cut, Checkpoint(folder, every=1)])
        return outcome(model)

    pairs = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    kinds = {"arrays": lambda: None, "loader": lambda: torch.utils.data.DataLoader(pairs, 4, shuffle=True)}
    for name, data in kinds.items():
        whole = run(tmp_path / f"{name} whole", data)
        with pytest.raises(Cut):
            run(tmp_path / name, data, [CutAt(9)])
        assert run(tmp_path / name, data) == whole, name


# ---- damage ------------------------------------------------------------


def test_a_damaged_file_is_set_aside_and_the_one_before_it_is_taken(tmp_path, uninterrupted):
    with pytest.raises(Cut):
        script(tmp_path, CutAt(9))
    *_, before, newest = sorted(tmp_path.glob("*.h5"))
    newest.write_bytes(newest.read_bytes()[:-7])

    with pytest.warns(UserWarning, match=rf"damaged.*resuming from {before.name}"):
        found = Checkpoint(tmp_path).look()
    again = script(tmp_path)

    assert found == before
    assert again == uninterrupted()
    assert [path.name for path in tmp_path.glob("*.damaged")] == [f"{newest.name}.damaged"]


@pytest.mark.parametrize("share", [pytest.param(0.0, marks=heavy), 0.7])
def test_files_torn_anywhere_cost_no_more_than_the_time_before_them(tmp_path, uninterrupted, share):
    with pytest.raises(Cut):
        script(tmp_path, CutAt(9))
    for path in tmp_path.glob("*.h5"):
        os.truncate(path, int(path.stat().st_size * share))

    with pytest.warns(UserWarning, match="resuming from the beginning"):
        again = script(tmp_path)

    assert again == uninterrupted()


def test_what_a_kill_left_half_written_goes(tmp_path):
    (tmp_path / ".kclf-a1b2.partial.h5").write_bytes(b"half")
    (tmp_path / ".lock").write_text("process 1 on nowhere")

    script(tmp_path)

    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"stage0001", ".lock"}


def test_only_the_last_files_are_kept(tmp_path):
    script(tmp_path, every=1)

    kept = [path.name for path in sorted(tmp_path.glob("*.h5"))]
    assert kept == [
        "stage0001-epoch000001-batch00000002.h5",
        "stage0001-epoch000001-batch00000003.h5",
        "stage0001-epoch000002-done.h5",
    ]


# ---- what does not fit ------------------------------------------------------------


def test_a_run_of_another_length_does_not_go_on(tmp_path):
    with pytest.raises(Cut):
        script(tmp_path, CutAt(9))

    with pytest.raises(TrainingError, match=r"begun with epochs=2. Received: epochs=3"):
        script(tmp_path, epochs=3)


def test_another_model_does_not_go_on(tmp_path):
    with pytest.raises(Cut):
        script(tmp_path, CutAt(3))

    with pytest.raises(TrainingError, match="of another model"):
        script(tmp_path, optimizer=lambda: optimizers.SGD(1e-2))


# ---- the disk, and signals ------------------------------------------------------------


@pytest.fixture
def full_disk():
    """Call it, and no file may grow beyond a few bytes from then on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run_and_costs_nothing(tmp_path, uninterrupted, full_disk):
    with pytest.raises(OutputError, match=r"cannot be written: .*stands"):
        script(tmp_path, CutAt(9, full_disk))
    assert not list(tmp_path.glob(".*.partial*"))

    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert script(tmp_path) == uninterrupted()


def test_a_folder_that_vanishes_ends_the_run(tmp_path):
    with pytest.raises(OutputError, match="No such file or directory"):
        script(tmp_path / "run", CutAt(9, lambda: shutil.rmtree(tmp_path / "run")))


STOPS = [
    (signal.SIGTERM, 7),
    *(pytest.param(*stop, marks=heavy) for stop in [(signal.SIGINT, 8), (signal.SIGTERM, 11)]),
]


@pytest.mark.parametrize(("number", "at"), STOPS)
def test_a_signal_ends_the_run_between_two_batches(tmp_path, uninterrupted, number, at, capsys):
    with StopRequest() as stop, pytest.raises(RunStopped) as stopped:
        script(tmp_path, CutAt(at, lambda: os.kill(os.getpid(), number)), stop=stop, every=100)

    assert stopped.value.signal == number
    assert "Stopping after this batch" in capsys.readouterr().err
    assert script(tmp_path) == uninterrupted()


def test_a_second_ctrl_c_ends_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop() == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = classifier()
    data = kclf.ImageData.from_arrays(photos(), size=SIZE, batch_size=5)

    def break_it():
        model.head.layers[-1].kernel.assign(model.head.layers[-1].kernel * float("nan"))

    with pytest.raises(NotFiniteError):
        model.fit(data.train, verbose=0, callbacks=[CutAt(2, break_it), Checkpoint(tmp_path, every=1)])

    assert sorted(path.name[-8:-3] for path in tmp_path.glob("*.h5")) == ["00000", "00001"]
