"""Callbacks of Keras beside those of kclf: what has no effect, or never comes, is said once."""

from __future__ import annotations

import csv
import warnings

import keras
import numpy as np
import pytest

import kclf
from tests.test_compile_names import classifier, easy_photos


def fitted(callbacks, epochs=3, model=None, **arguments):
    """The warnings of a fit, and its history."""
    if model is None:
        model = classifier()
        model.compile(keras.optimizers.Adam(1e-3))
    x, y = easy_photos()
    arguments = {"validation_data": (x, y)} | arguments
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = model.fit(x, y, epochs=epochs, batch_size=8, verbose=0, callbacks=list(callbacks), **arguments)
    return [str(one.message) for one in caught if one.category is UserWarning], fit.history


def plain():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


SETTERS = {
    "plateau": lambda: keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=10.0),
    "scheduler": lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 * 0.5**epoch),
    "another of ours": lambda: kclf.FlatCosine(1e-4),
}


@pytest.mark.parametrize("setter", SETTERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_second_setter_of_the_rate_is_named_once(setter, first):
    both = [SETTERS[setter](), kclf.OneCycle(1e-2)]
    said, _ = fitted(both if first else both[::-1], 4, plain())
    said = [one for one in said if "in vain" in one]
    assert len(said) == (2 if setter == "another of ours" else 1)  # each says it of the other
    assert "LearningRateScheduler" in said[0]


def test_a_schedule_alone_says_nothing():
    for schedule in (kclf.OneCycle(1e-2), kclf.CosineRestarts(1e-2), kclf.FlatCosine()):
        assert fitted([schedule, keras.callbacks.EarlyStopping("val_loss", patience=9)])[0] == []


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_history_and_csv_have_the_rate_of_each_group(tmp_path, grouped, first):
    model = classifier()
    inner = keras.optimizers.Adam(1e-3)
    model.compile(kclf.LayerGroupOptimizer(inner, model, slice(0.01, 1.0)) if grouped else inner)
    both = [kclf.OneCycle(1e-2), keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    _, history = fitted(both if first else both[::-1], 2, model)
    rates = {name: values for name, values in history.items() if name.startswith("learning_rate")}
    assert set(rates) == ({"learning_rate", "learning_rate_0"} if grouped else {"learning_rate"})
    assert rates["learning_rate"][0] > 10 * rates["learning_rate"][1] > 0
    if grouped:
        np.testing.assert_allclose(
            np.divide(rates["learning_rate_0"], rates["learning_rate"]), 0.01, rtol=1e-4
        )
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, values in rates.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values)
    assert "learning_rate" not in kclf.EpochTable.columns(
        {name: values[-1] for name, values in history.items()}
    )


def test_a_fit_without_a_schedule_logs_no_rate():
    assert "learning_rate" not in fitted([])[1]


MONITORS = [
    keras.callbacks.EarlyStopping("val_acc", patience=1, mode="max"),
    keras.callbacks.ReduceLROnPlateau("val_los", mode="min"),
    keras.callbacks.ModelCheckpoint("best.keras", "val_f1", save_best_only=True, mode="max"),
]


@pytest.mark.parametrize("callback", MONITORS, ids=lambda one: type(one).__name__)
def test_a_monitor_that_never_comes_is_named_after_the_first_step(callback, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said, _ = fitted([callback], 1)
    (ours,) = [one for one in said if "never logs" in one]
    assert callback.monitor in ours
    assert "It logs loss, accuracy, val_loss, val_accuracy" in ours


def test_a_monitor_of_validation_without_any_is_named():
    said, _ = fitted([keras.callbacks.EarlyStopping()], 1, validation_data=None)
    assert any("no validation_data" in one for one in said)


def test_figures_of_callbacks_of_one_s_own_may_come():
    class Mine(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_mine"] = 1.0

    stopping = keras.callbacks.EarlyStopping("val_mine", mode="max")
    assert fitted([Mine(), stopping], 2)[0] == []
    assert fitted([keras.callbacks.EarlyStopping("val_loss", patience=5)], 1, validation_split=0.5)[0] == []


class Own(keras.Model):
    """The train step of Keras' guide for torch, whose loss nobody hears; or one that tells it."""

    def __init__(self, tells=False):
        super().__init__()
        self.dense, self.tells = keras.layers.Dense(2), tells

    def call(self, x):
        return self.dense(keras.ops.reshape(x, (len(x), -1)))

    def train_step(self, data):
        x, y = data
        self.zero_grad()
        loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        (self.optimizer.scale_loss(loss) if self.tells else loss).backward()
        self.optimizer.apply([v.value.grad for v in self.trainable_weights], self.trainable_weights)
        self._loss_tracker.update_state(loss)
        return {"loss": self._loss_tracker.result()}


@pytest.mark.parametrize("tells", [False, True])
def test_a_train_step_that_hides_its_loss_is_said_once(tells):
    from kclf.callbacks import FiniteGuard

    model, recorder = Own(tells), kclf.Recorder()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    said, _ = fitted([recorder, FiniteGuard()], 2, model)
    said = [one for one in said if "hears no loss" in one]
    assert len(said) == (0 if tells else 2)
    assert len(recorder.losses) == (8 if tells else 0)
    if not tells:
        assert "optimizer.scale_loss" in said[0]
