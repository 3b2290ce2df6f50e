"""Numbers too large for float16: a run goes on in another format if asked to, and stays one run."""

from __future__ import annotations

import json

import keras
import kills
import numpy as np
import pytest
from test_checkpoint import Cut, CutAt
from test_command import photos, run  # noqa: F401 - a fixture

import kclf
from kclf.callbacks import Checkpoint, FiniteGuard, guards
from kclf.errors import NotFiniteError

TOO_HIGH = 100.0  # a rate at which activations pass 65504 after a dozen steps, and float32 bears


def learner(path, every=10, labels=("cat", "dog"), **changes):
    """Of 44 batches an epoch, in float16."""
    keras.utils.set_random_seed(1)
    images = np.random.default_rng(0).integers(0, 256, (110, 16, 16, 3), dtype=np.uint8)
    data = kclf.ImageData.from_arrays((images, list(labels) * (110 // len(labels))), batch_size=2)
    layers = keras.layers
    backbone = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(6, 3, strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
        ]
    )
    settings = {"normalization": "tf", "hidden": (8,), "weight_decay": 0.0, "on_overflow": "float32"}
    made = kclf.Learner(data, backbone, path=path, dtype="mixed_float16", verbose=False, **settings | changes)
    made.unfreeze()
    made.checkpoint = Checkpoint(path, every=every)
    return made


def results(trained, history):
    return [*trained.model.get_weights(), trained.recorder.losses, history.history["val_loss"]]


@pytest.mark.parametrize(
    ("policy", "every", "message"),
    [
        ("mixed_bfloat16", 10, r"The weights have become .* from \(0, 0, 10\) in mixed_bfloat16"),
        ("float32", 100, r"The loss or .* ends at 65504\. Going on from \(0, 0, 0\) in float32"),
    ],
)
def test_a_run_goes_on_from_its_last_checkpoint(tmp_path, policy, every, message):
    ours = learner(tmp_path, every, on_overflow=policy)

    with pytest.warns(UserWarning, match=message):
        history = ours.fit_one_cycle(1, TOO_HIGH)

    assert ours.model.dtype_policy.name == policy
    assert len(ours.recorder.losses) == 44
    assert all(np.isfinite(figures).all() for figures in results(ours, history))


@pytest.mark.heavy
def test_it_is_said_once_and_later_fits_stay_there(tmp_path):
    ours = learner(tmp_path)
    with pytest.warns(UserWarning, match="Going on"):
        ours.fit_one_cycle(1, TOO_HIGH)

    ours.fit_one_cycle(1, 1e-3)  # a warning would be an error

    assert ours.model.dtype_policy.name == "float32"


@pytest.mark.filterwarnings("ignore:.*Going on from")
@pytest.mark.parametrize("fits", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_such_a_run_goes_on_after_a_crash_too(tmp_path, fits):
    def train(path, cut=10**9):
        ours, cut = learner(path), CutAt(cut)
        histories = [ours.fit_one_cycle(1, TOO_HIGH, callbacks=[cut]) for _ in range(fits)]
        return results(ours, histories[-1])

    wanted = train(tmp_path / "whole")
    with pytest.raises(Cut):
        train(tmp_path / "cut", cut=44 * fits + 5)

    for ours, theirs in zip(train(tmp_path / "cut"), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_that_is_not_asked_to_stops(tmp_path):
    ours = learner(tmp_path, every=100, on_overflow="stop")

    with pytest.raises(NotFiniteError, match="compute in bfloat16 or float32"):
        ours.fit_one_cycle(1, TOO_HIGH, callbacks=[FiniteGuard(ours.checkpoint)])


def test_what_is_wrong_with_the_data_stays_wrong(tmp_path):
    ours = learner(tmp_path, labels=[0.5], task="regression")
    ours.data.train.labels[:] = np.nan  # which the data would refuse

    with pytest.raises(NotFiniteError, match="These inputs or labels are not finite"):
        ours.fit_one_cycle(1, 1e-3)

    assert ours.model.dtype_policy.name == "mixed_float16"


def test_gradients_that_are_not_finite_count():
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False), keras.layers.Lambda(keras.ops.sqrt)]
    )
    model.set_weights([np.zeros((1, 1))])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    model.compile(optimizer, "mse")

    with pytest.raises(NotFiniteError, match="loss or its gradients became"):
        model.fit(np.ones((40, 1)), np.ones((40, 1)), batch_size=1, verbose=0, callbacks=[FiniteGuard()])


@pytest.mark.heavy
def test_the_command_goes_on_and_records_it(photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(guards, "SKIPPED_IN_A_ROW", 3)  # of six steps
    out = tmp_path / "out"
    words = [*kills.CLI, "--epochs", 0, "--freeze-epochs", 3, "--learning-rate", 1e4]
    words += ["--mixed-precision", "mixed_float16", "--on-overflow", "float32"]

    with pytest.warns(UserWarning, match="in float32, as on_overflow says"):
        assert run("train", photos, *words, "--out", out) == 0

    assert json.loads((out / "settings.json").read_text())["computed_in"] == "float32"
    assert kclf.load(out / "classifier.h5").dtype_policy.name == "float32"


def test_another_word_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Received: on_overflow='float64'"):
        learner(tmp_path, on_overflow="float64")
