"""Schedules on `model.fit`, snapshots, and what is recorded."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, optimizers
from waits import Waits

from kclf import schedules
from kclf.callbacks import (
    CosineRestarts,
    EpochTable,
    FlatCosine,
    OneCycle,
    Recorder,
    Schedule,
    SnapshotSaver,
    load_snapshot,
    smooth,
)
from kclf.errors import TrainingError
from kclf.optimizers import FusedLossScaleOptimizer, LayerGroupOptimizer


def make_model(optimizer=None, grouped=True) -> keras.Sequential:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(7), layers.Dense(3)])
    optimizer = optimizer or optimizers.AdamW(1e-2)
    model.compile(
        LayerGroupOptimizer(optimizer, model) if grouped else optimizer, loss="mse", metrics=["mae"]
    )
    return model


def data(n: int = 80):
    generator = np.random.default_rng(3)
    return generator.normal(size=(n, 6)).astype("float32"), generator.normal(size=(n, 3)).astype("float32")


def fit(model, callbacks, epochs=2, **settings):
    """10 batches an epoch."""
    settings = {"batch_size": 8, "verbose": 0, "shuffle": False, **settings}
    return model.fit(*data(), epochs=epochs, callbacks=callbacks, **settings)


class Rates(keras.callbacks.Callback):
    """The rates and momentum that a batch really runs with."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.rows.append([*optimizer.learning_rates, optimizer.inner_optimizer.beta_1])


def test_fine_tune_trace_is_fastai_s(golden):
    model = make_model()
    frozen, unfrozen = Rates(), Rates()
    fit(model, [OneCycle(slice(2e-3), pct_start=0.99), frozen], epochs=1)
    fit(model, [OneCycle(slice(1e-3 / 100, 1e-3), pct_start=0.3, div=5.0), unfrozen], epochs=2)
    rows = np.array(frozen.rows)[[0, 1, 5, 9]], np.array(unfrozen.rows)[[0, 1, 6, 10, 19]]
    tables = [golden[key] for key in golden if "batches 0,1," in key]
    assert len(tables) == 2
    for ours, theirs in zip(rows, tables, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-4)


def test_a_schedule_leaves_the_optimizer_as_it_was():
    model = make_model()
    before = model.optimizer.learning_rates, model.optimizer.inner_optimizer.beta_1
    fit(model, [OneCycle(slice(1e-5, 1e-3))])
    assert (model.optimizer.learning_rates, model.optimizer.inner_optimizer.beta_1) == before


def test_an_interrupted_run_is_tidied_by_the_next():
    model = make_model()
    before = model.optimizer.learning_rates, model.optimizer.inner_optimizer.beta_1

    def interrupt(batch, logs):
        if batch == 4:
            raise KeyboardInterrupt

    stop = keras.callbacks.LambdaCallback(on_train_batch_begin=interrupt)
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [OneCycle(slice(1e-5, 1e-3)), recorder, stop])
    fit(model, [FlatCosine(), recorder])
    assert len(recorder.losses) == len(recorder.momentums) == 4 + 20
    assert recorder.learning_rates[4] == pytest.approx(1e-2)
    assert (model.optimizer.learning_rates, model.optimizer.inner_optimizer.beta_1) == before


def test_a_run_interrupted_before_its_first_batch_is_tidied_too():
    model = make_model()
    before = model.optimizer.learning_rates

    def interrupt(logs):
        raise KeyboardInterrupt

    stop = keras.callbacks.LambdaCallback(on_train_begin=interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(model, [OneCycle([1e-5, 1e-4, 1e-3]), stop])
    assert model.optimizer.learning_rates != before
    fit(model, [FlatCosine()])
    assert model.optimizer.learning_rates == before


def test_a_rate_set_after_an_interruption_counts():
    model = make_model()
    callback = OneCycle(1e-3)
    callback.set_model(model)
    callback.set_params({"steps": 10, "epochs": 1})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.on_train_batch_begin(3)
    model.optimizer.learning_rate = 0.5
    recorder = Recorder()
    fit(model, [FlatCosine(), recorder])
    assert recorder.learning_rates[0] == 0.5


@pytest.mark.parametrize(
    ("callback", "schedule"),
    [
        (OneCycle(1e-2), schedules.one_cycle(1e-2, 20)),
        (FlatCosine(1e-2), schedules.flat_cosine(1e-2, 20)),
        (CosineRestarts(1e-2, cycle_len=1), schedules.cosine_restarts(1e-2, 10)),
        (Schedule(schedules.linear(1e-2, 0.0, 20)), schedules.linear(1e-2, 0.0, 20)),
        (FlatCosine(), schedules.flat_cosine(1e-3, 20)),
    ],
)
@pytest.mark.parametrize("kind", ["grouped", "plain", "scaled"])
def test_every_batch_runs_at_the_schedule(callback, schedule, kind):
    model = make_model(optimizers.SGD(1e-3, momentum=0.9), grouped=kind != "plain")
    if kind == "scaled":
        model.optimizer = FusedLossScaleOptimizer(model.optimizer)
    recorder = Recorder()
    fit(model, [recorder, callback])
    np.testing.assert_allclose(recorder.learning_rates, schedules.simulate(schedule, 20), rtol=1e-5)


def test_a_resumed_run_goes_on_in_the_schedule():
    whole, second = Recorder(), Recorder()
    fit(make_model(), [OneCycle(1e-2), whole], epochs=4)
    fit(make_model(), [OneCycle(1e-2), second], epochs=4, initial_epoch=3)
    assert second.learning_rates == whole.learning_rates[30:]


def stop_after(epoch, model, path):
    """A run that is killed in the middle of a cycle, after a checkpoint."""

    def stop(number, logs):
        if number == epoch:
            model.save(path)
            model.stop_training = True

    return keras.callbacks.LambdaCallback(on_epoch_end=stop)


MIDDLES = [(OneCycle, optimizers.AdamW), (CosineRestarts, optimizers.SGD)]
MORE_MIDDLES = [(OneCycle, optimizers.SGD), (CosineRestarts, optimizers.AdamW)]
MORE_MIDDLES += [(schedule, optimizers.Nadam) for schedule in (OneCycle, CosineRestarts)]


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [*MIDDLES, *(pytest.param(*row, marks=pytest.mark.heavy) for row in MORE_MIDDLES)],
)
def test_a_checkpoint_goes_on_bit_exactly_in_the_middle_of_a_cycle(optimizer, schedule, tmp_path):
    settings = {"cycle_len": 4} if schedule is CosineRestarts else {}
    rates = [1e-4, 1e-3, 1e-2]
    momentum = {"momentum": 0.9} if optimizer is optimizers.SGD else {}
    whole, killed = make_model(optimizer(1e-3, **momentum)), make_model(optimizer(1e-3, **momentum))
    killed.set_weights(whole.get_weights())
    fit(whole, [schedule(rates, **settings)], epochs=4)
    fit(killed, [schedule(rates, **settings), stop_after(1, killed, tmp_path / "m.keras")], epochs=4)
    resumed = keras.models.load_model(tmp_path / "m.keras")
    fit(resumed, [schedule(rates, **settings)], epochs=4, initial_epoch=2)
    for ours, theirs in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_callbacks_cost_no_wait_a_step(monkeypatch):
    """Ten more steps cost as many waits with all callbacks as with none: those of Keras itself."""

    def waits(steps, callbacks):
        model = make_model(optimizers.AdamW(1e-2))
        fit(model, [], epochs=1)
        with monkeypatch.context() as patch, Waits(patch) as counted:
            fit(model, callbacks, epochs=1, batch_size=80 // steps)
        return counted.count

    every = [OneCycle(slice(1e-4, 1e-2)), Recorder(), EpochTable(io.StringIO())]
    assert waits(20, every) - waits(10, every) == waits(20, []) - waits(10, [])


def test_momentum_of_each_kind_of_optimizer():
    for optimizer, name in (
        (optimizers.SGD(0.1, momentum=0.9), "momentum"),
        (optimizers.RMSprop(0.1, momentum=0.9), "momentum"),
        (optimizers.Nadam(0.1), "beta_1"),
    ):
        recorder = Recorder()
        fit(make_model(optimizer), [OneCycle(1e-3), recorder])
        np.testing.assert_allclose(
            recorder.momentums, schedules.simulate(schedules.one_cycle_momentum(20), 20), atol=1e-9
        )
        assert getattr(optimizer, name) == 0.9


def test_an_optimizer_without_momentum_keeps_none():
    model = make_model(optimizers.SGD(0.1))
    recorder = Recorder()
    fit(model, [OneCycle(1e-3), recorder])
    assert np.isnan(recorder.momentums).all()


def test_group_rates_need_a_layer_group_optimizer():
    with pytest.raises(TrainingError, match="LayerGroupOptimizer"):
        fit(make_model(grouped=False), [OneCycle(slice(1e-4, 1e-2))])


def test_data_of_unknown_length_is_refused():
    def endless():
        while True:
            yield tuple(part[:8] for part in data())

    with pytest.raises(TrainingError, match="steps_per_epoch"):
        make_model().fit(endless(), shuffle=False, callbacks=[OneCycle(1e-3)], verbose=0)


def test_an_optimizer_with_its_own_schedule_is_refused():
    model = make_model(optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 10)))
    with pytest.raises(TrainingError, match="schedule of its own"):
        fit(model, [OneCycle(1e-3)])


# ---- restarts and snapshots ----------------------------------------------------------------------


def test_snapshots_are_the_weights_after_each_cycle(tmp_path):
    weights = {}
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.update({epoch: model.get_weights()})
    )
    cycle = CosineRestarts(1e-2, cycle_len=1, cycle_mult=2, num_cycles=3, snapshots=tmp_path / "s" / "dogs")
    model = make_model()
    fit(model, [cycle, watch], epochs=cycle.num_epochs)
    assert [Path(p).name for p in cycle.snapshots] == [f"dogs_cyc_{k}.weights.h5" for k in range(3)]
    for path, epoch in zip(cycle.snapshots, (0, 2, 6), strict=True):
        copy = keras.models.clone_model(model)
        load_snapshot(copy, path)
        for ours, theirs in zip(copy.get_weights(), weights[epoch], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_run_that_goes_on_keeps_its_snapshots(tmp_path):
    cycle = CosineRestarts(1e-2, num_cycles=3, snapshots=tmp_path / "dogs")
    model = make_model()
    x, y = data()
    first = {"batch_size": 8, "verbose": 0, "callbacks": [cycle]}
    with pytest.warns(UserWarning, match="do not fill"):
        model.fit(x, y, epochs=2, **first)
    model.fit(x, y, initial_epoch=2, epochs=3, **first)
    assert [Path(p).name for p in cycle.snapshots] == [f"dogs_cyc_{k}.weights.h5" for k in range(3)]
    with pytest.warns(UserWarning, match="do not fill"):
        model.fit(x, y, epochs=1, **first)
    assert [Path(p).name for p in cycle.snapshots] == ["dogs_cyc_0.weights.h5"]


def test_a_snapshot_holds_weights_only(tmp_path):
    import h5py

    model = make_model()
    fit(model, [], epochs=1)
    path = SnapshotSaver(tmp_path / "a").save(model, 0)
    with h5py.File(path) as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    assert len(names) == 6
    assert isinstance(model.optimizer, LayerGroupOptimizer)


@pytest.mark.parametrize(
    ("cycle", "epochs", "message"),
    [
        ({"cycle_mult": 2}, 6, "Fit 3 or 7 epochs"),
        ({"cycle_len": 2}, 3, "Fit 2 or 4 epochs"),
        ({"cycle_mult": 2, "num_cycles": 2}, 7, "Fit 3 epochs"),
    ],
)
def test_epochs_that_do_not_fill_cycles_are_told_before_the_first(cycle, epochs, message):
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append(epoch))
    with pytest.warns(UserWarning, match=message):
        fit(make_model(), [CosineRestarts(1e-2, **cycle), watch], epochs=epochs)
    assert seen[0] == 0


def test_the_number_of_epochs_needs_the_number_of_cycles():
    with pytest.raises(ValueError, match="num_cycles"):
        _ = CosineRestarts().num_epochs


# ---- records -------------------------------------------------------------------------------------


def test_recorder_keeps_the_loss_of_each_batch():
    recorder = Recorder()
    model = make_model(optimizers.SGD(0.0))
    fit(model, [recorder], epochs=1)
    x, y = data()
    expected = [
        np.mean((model.predict(x[i : i + 8], verbose=0) - y[i : i + 8]) ** 2) for i in range(0, 80, 8)
    ]
    np.testing.assert_allclose(recorder.losses, expected, rtol=1e-5)
    assert "scale_loss" not in vars(model.optimizer)


def test_recorder_leaves_evaluation_out():
    recorder = Recorder()
    fit(make_model(), [recorder], validation_data=data(16))
    assert len(recorder.losses) == len(recorder.learning_rates) == len(recorder.momentums) == 20
    assert len(recorder.epochs) == 2
    assert recorder.epochs[0]["val_loss"] > 0


def test_recorder_writes_a_table(tmp_path):
    recorder = Recorder()
    fit(make_model(), [recorder, OneCycle(1e-2)])
    recorder.to_csv(tmp_path / "run.csv")
    with open(tmp_path / "run.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == recorder.losses
    assert list(rows[0]) == ["step", "learning_rate", "momentum", "loss", "smoothed_loss"]


def test_recorder_plots_on_given_axes():
    from matplotlib import pyplot

    recorder = Recorder()
    fit(make_model(), [recorder], validation_data=data(16))
    figure, axes = pyplot.subplots(1, 3)
    assert recorder.plot_lr(ax=axes[0]) is axes[0]
    assert recorder.plot_momentum(ax=axes[1]) is axes[1]
    assert [line.get_label() for line in recorder.plot_loss(ax=axes[2]).lines] == ["train", "valid"]
    pyplot.close(figure)


def test_recorder_marks_the_end_of_each_epoch_where_it_was():
    from matplotlib import pyplot

    recorder, model = Recorder(), make_model()
    fit(model, [recorder], epochs=1, validation_data=data(16))
    x, y = data(16)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[recorder], validation_data=(x, y))
    again = Recorder()
    again.load_state_dict(recorder.state_dict())
    for one in (recorder, again):
        assert one.plot_loss(ax=pyplot.figure().subplots()).lines[1].get_xdata().tolist() == [10, 12]
    pyplot.close("all")


def test_a_metric_with_a_figure_for_each_class_is_shown_by_its_mean():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", loss="categorical_crossentropy", metrics=[keras.metrics.F1Score()])
    x, y = np.random.default_rng(0).random((12, 2)), np.eye(3)[np.arange(12) % 3]
    out, recorder = io.StringIO(), Recorder()

    logs = model.fit(x, y, verbose=0, callbacks=[EpochTable(out), recorder]).history

    assert len(logs["f1_score"][0]) == 3
    assert recorder.epochs[0]["f1_score"] == pytest.approx(np.mean(logs["f1_score"][0]))
    assert f"{recorder.epochs[0]['f1_score']:.6f}" in out.getvalue()


def test_smoothed_loss_is_debiased():
    expected = [1.0, (0.98 * 0.02 * 1 + 0.02 * 2) / (1 - 0.98**2)]
    assert smooth([1.0, 2.0]).tolist() == pytest.approx(expected)


def test_epoch_table_has_the_course_s_columns():
    out = io.StringIO()
    fit(make_model(), [EpochTable(out)], validation_data=data(16))
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["epoch", "train_loss", "valid_loss", "mae", "time"]
    assert [line.split()[0] for line in lines[1:]] == ["0", "1"]
    assert len({len(line) for line in lines}) == 1


def test_epoch_table_without_validation():
    out = io.StringIO()
    fit(make_model(), [EpochTable(out)], epochs=1)
    assert out.getvalue().splitlines()[0].split() == ["epoch", "train_loss", "mae", "time"]
