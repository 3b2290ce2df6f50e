"""The range test: its rules against the golden figures, and that it leaves no trace."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import torch
from keras import layers, optimizers

from kclf.callbacks import (
    LearningRateFinder,
    OneCycle,
    RangeTest,
    RangeTestRun,
    Recorder,
    find_learning_rate,
)
from kclf.callbacks.lr_finder import RULES
from kclf.data import ImageData, ImageDataset
from kclf.errors import TrainingError
from kclf.layers import Augmentation, InputNormalization
from kclf.optimizers import FusedLossScaleOptimizer, LayerGroupOptimizer


class Noise(layers.Layer):
    """Augmentation with a generator of its own, as kclf's has."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = torch.Generator().manual_seed(11)

    def call(self, inputs, training=None):
        if not training:
            return inputs
        return inputs + 0.1 * torch.randn(inputs.shape, generator=self.generator)

    def get_random_state(self):
        return self.generator.get_state()

    def set_random_state(self, state):
        self.generator.set_state(state)


def make_model(optimizer=None, built=True, grouped=True) -> keras.Sequential:
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            *([keras.Input((6,))] if built else []),
            Noise(),
            layers.GaussianNoise(0.1, seed=3),
            layers.Dense(16),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.Dropout(0.3),
            layers.Dropout(0.1, noise_shape=(None, 1)),
            layers.Dense(3),
        ]
    )
    optimizer = optimizer or optimizers.AdamW(1e-3)
    model.compile(
        LayerGroupOptimizer(optimizer, model, slice(0.01, 1.0)) if grouped else optimizer,
        loss="mse",
        metrics=["mae"],
    )
    return model


def arrays(n: int = 48):
    generator = np.random.default_rng(3)
    x = generator.normal(size=(n, 6)).astype("float32")
    return x, (x @ generator.normal(size=(6, 3))).astype("float32")


class OwnOrder(torch.utils.data.DataLoader):
    """A loader whose order depends on how often it was gone through."""

    def __init__(self):
        tensors = [torch.from_numpy(part) for part in arrays()]
        super().__init__(torch.utils.data.TensorDataset(*tensors), batch_size=8)
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        order = torch.randperm(48, generator=torch.Generator().manual_seed(self.epoch))
        for rows in order.split(8):
            yield tuple(part[rows] for part in self.dataset.tensors)

    def state_dict(self):
        return {"epoch": self.epoch}

    def load_state_dict(self, state):
        self.epoch = state["epoch"]


def shuffled_loader():
    dataset = torch.utils.data.TensorDataset(*(torch.from_numpy(part) for part in arrays()))
    generator = torch.Generator().manual_seed(7)
    return torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True, generator=generator)


DATA = {"arrays": arrays, "own order": OwnOrder, "generator": shuffled_loader}


def outcome(model, data, callbacks=()):
    """What a fit of two epochs leaves, and the random numbers drawn after it."""
    x, y = data if isinstance(data, tuple) else (data, None)
    history = model.fit(x, y, epochs=2, verbose=0, shuffle=y is not None, callbacks=list(callbacks))
    state = [*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)]
    drawn = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
    return [np.array(part) for part in (*state, *history.history.values(), drawn)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("built", [True, pytest.param(False, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("repeats", [pytest.param(1, marks=pytest.mark.heavy), 3])
def test_fit_after_the_test_is_fit_without_it(kind, built, repeats):
    grouped = built  # groups of an unbuilt model are not known yet
    without = outcome(make_model(built=built, grouped=grouped), DATA[kind]())
    model, data = make_model(built=built, grouped=grouped), DATA[kind]()
    find_learning_rate(model, data, num_steps=30, repeats=repeats)
    assert_same(outcome(model, data), without)


def test_between_two_fits_too():
    plain, tested, data = make_model(), make_model(), arrays()
    outcome(plain, data)
    without = outcome(plain, data, [OneCycle(1e-2)])
    keras.utils.set_random_seed(4)
    tested = make_model()
    outcome(tested, data)
    find_learning_rate(tested, data)
    assert_same(outcome(tested, data, [OneCycle(1e-2)]), without)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["step", "data"])
def test_killed_at_step_17_it_leaves_no_trace(error, where, monkeypatch):
    without = outcome(make_model(), OwnOrder())
    model, data = make_model(), OwnOrder()
    calls = []

    def killed(original):
        def run(*args, **kwargs):
            calls.append(1)
            if len(calls) == 17:
                raise error("killed")
            return original(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        if where == "step":
            patch.setattr(model, "train_step", killed(model.train_step))
        else:
            patch.setattr(torch, "randperm", killed(torch.randperm))
        with pytest.raises(error, match="killed"):
            find_learning_rate(model, data, num_steps=200, stop_factor=1e9)
    assert len(calls) == 17
    assert_same(outcome(model, data), without)


def test_the_callback_puts_the_model_back_when_a_batch_fails(monkeypatch):
    model = make_model()
    model.fit(*arrays(), verbose=0)
    before = [*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)]
    calls = []

    def failing(data, original=model.train_step):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(data)

    monkeypatch.setattr(model, "train_step", failing)
    with pytest.raises(KeyboardInterrupt):
        model.fit(*arrays(), epochs=10, verbose=0, callbacks=[LearningRateFinder()])
    assert_same([*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)], before)


def test_the_callback_ends_its_fit_and_keeps_the_curve():
    model, finder = make_model(), LearningRateFinder(1e-5, 1e-1, 20)
    model.fit(*arrays(), epochs=100, verbose=0, batch_size=8, callbacks=[finder])
    assert len(finder.run.losses) == 20
    assert finder.run.learning_rates[[0, 19]] == pytest.approx([1e-5, 1e-5 * 1e4 ** (19 / 20)])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_loss_scale_and_half_precision_are_put_back(policy):
    keras.config.set_dtype_policy(policy)
    wrap = FusedLossScaleOptimizer if policy == "mixed_float16" else (lambda inner: inner)

    def model():
        made = make_model(grouped=False)
        made.compile(wrap(LayerGroupOptimizer(optimizers.AdamW(1e-3), made)), loss="mse", metrics=["mae"])
        return made

    without = outcome(model(), arrays())
    tested = model()
    find_learning_rate(tested, arrays(), num_steps=20, stop_factor=1e9)
    assert_same(outcome(tested, arrays()), without)


def test_a_schedule_inside_the_optimizer_is_put_back():
    schedule = optimizers.schedules.CosineDecay(1e-2, 20)
    without = outcome(make_model(optimizers.SGD(schedule), grouped=False), arrays())
    model = make_model(optimizers.SGD(schedule), grouped=False)
    test = find_learning_rate(model, arrays(), num_steps=20)
    assert test.learning_rates[0] == 1e-7
    assert_same(outcome(model, arrays()), without)


def test_ratios_between_groups_are_kept():
    model, seen = make_model(), []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(model.optimizer.learning_rates)
    )
    find_learning_rate(model, arrays(), num_steps=10, callbacks=[watch])
    np.testing.assert_allclose(np.array(seen[1:])[:, 0] / np.array(seen[1:])[:, -1], 0.01, rtol=1e-4)


def test_three_batches_are_gone_through_again():
    test = find_learning_rate(make_model(), arrays(24), num_steps=40, batch_size=8)
    assert len(test.learning_rates) >= 30


def test_it_stops_where_the_loss_explodes():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile(optimizers.SGD(), loss="mse")
    test = find_learning_rate(model, arrays(), end=1e6, batch_size=8)
    assert len(test.learning_rates) < 100
    assert test.runs[0].smoothed[-1] > 4 * test.runs[0].smoothed.min() or np.isnan(test.runs[0].smoothed[-1])


def test_one_odd_batch_does_not_end_it_but_a_loss_that_stays_high_does():
    x = np.ones((100, 1), "float32")
    y = np.full((100, 1), 1.001, "float32")
    y[7::10] = 2.0  # a fitted model: tiny losses, and every tenth a million times larger
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(optimizers.SGD(), loss="mse")

    run = find_learning_rate(model, x, y, batch_size=1, shuffle=False, end=100.0).runs[0]

    assert run.smoothed[7] > 4 * run.smoothed[:7].min()  # where the mean alone would have ended it
    assert 50 < len(run.losses) < 100
    assert np.median(run.losses[-5:]) > run.losses[:-5].max() or np.isnan(run.losses[-1])


def test_an_iterator_is_refused():
    with pytest.raises(TrainingError, match="iterator"):
        find_learning_rate(make_model(), iter([arrays()]))


def test_other_callbacks_may_listen_too():
    recorder = Recorder()
    find_learning_rate(make_model(), arrays(), num_steps=12, callbacks=[recorder])
    assert len(recorder.losses) == 12


# ---- rules ---------------------------------------------------------------------------------------


def golden_run() -> RangeTestRun:
    rates = np.logspace(-7, 1, 100)
    exponent = np.log10(rates)
    falling = 1.4 - 1 / (1 + np.exp(-(exponent + 3.5) * 2.2))
    losses = falling + np.clip(np.exp(3 * (exponent + 0.6)), 0, 8)
    return RangeTestRun(rates, losses, 100, smoothing=0.0)


def test_golden_suggestions(golden):
    found = {rule: golden_run().suggest(rule).learning_rate for rule in RULES}
    assert found == pytest.approx(golden["synthetic suggest"], rel=1e-6)


def test_agreement_is_the_factor_between_the_suggestions():
    assert RangeTest((golden_run(),)).agreement == pytest.approx(15.2, abs=0.1)


@pytest.mark.parametrize(
    ("losses", "reasons"),
    [
        (np.full(100, 0.7), dict.fromkeys(RULES, "flat")),
        (np.linspace(1, 2, 100), {"minimum": "never falls", "steep": "never falls", "valley": "never falls"}),
        (np.linspace(2, 1, 100), {"minimum": "still falls", "slide": "hardly changes"}),
        (np.linspace(2, 1, 16), dict.fromkeys(RULES, "too few points")),
        (np.full(100, np.nan), dict.fromkeys(RULES, "too few points")),
    ],
)
def test_a_rule_that_does_not_apply_says_why(losses, reasons):
    run = RangeTestRun(np.logspace(-7, 1, 100)[: len(losses)], losses, 100, smoothing=0.0)
    for rule, reason in reasons.items():
        suggestion = run.suggest(rule)
        assert suggestion.learning_rate is None
        assert reason in suggestion.reason


def test_losses_are_cut_at_the_first_nan():
    run = golden_run()
    losses = run.losses.copy()
    losses[80:] = np.nan
    cut = RangeTestRun(run.learning_rates, losses, 100, smoothing=0.0)
    assert len(cut.clear_part()[1]) == 70
    assert cut.suggest("steep").learning_rate == run.suggest("steep").learning_rate


def test_repeats_give_median_and_spread():
    test = find_learning_rate(make_model(), arrays(), repeats=3, batch_size=8, end=100.0)
    steep = test.suggestions["steep"]
    assert len({tuple(run.losses) for run in test.runs}) == 3
    assert steep.low <= steep.learning_rate <= steep.high


def test_repeats_meet_other_batches_of_a_loader_that_keeps_its_place():
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    data = ImageDataset(images, np.arange(64) % 2, class_names="ab", presize=8, batch_size=4, shuffle=True)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.SGD(), loss=loss)
    before = data.state_dict()

    test = find_learning_rate(model, data, num_steps=8, repeats=3)

    assert len({run.losses[0] for run in test.runs}) == 3
    assert data.state_dict() == before


def test_repeats_draw_anew_in_layers_with_generators_of_their_own():
    model = keras.Sequential([keras.Input((6,)), Noise(), layers.Dense(3)])
    model.compile(optimizers.SGD(), loss="mse")
    before = model.layers[0].get_random_state()

    test = find_learning_rate(model, arrays(8), num_steps=4, repeats=3, batch_size=8)

    assert len({run.losses[0] for run in test.runs}) == 3
    assert torch.equal(model.layers[0].get_random_state(), before)


def test_sample_weights_beside_arrays_count():
    x, y = arrays()
    test = find_learning_rate(make_model(), (x, y, np.zeros(len(x))), num_steps=4, batch_size=8)
    assert test.losses.tolist() == [0.0] * 4


def test_text_names_every_rule_and_the_agreement():
    text = str(RangeTest((golden_run(),)))
    assert all(rule in text for rule in RULES)
    assert "15.2 times" in text


def test_a_rule_far_from_the_others_is_named():
    rates = np.logspace(-7, 1, 100)
    losses = golden_run().losses.copy()
    losses[12:] -= 0.4  # one lucky batch at a tiny rate
    test = RangeTest((RangeTestRun(rates, losses, 100, smoothing=0.0),))
    assert test.outlier == "steep"
    assert "steep is far from the others" in str(test)
    assert RangeTest((golden_run(),)).outlier is None


def test_plot_marks_the_suggestions():
    from matplotlib import pyplot

    figure, ax = pyplot.subplots()
    assert RangeTest((golden_run(),)).plot(ax=ax) is ax
    assert ax.get_xscale() == "log"
    assert len(ax.lines[0].get_xdata()) == 85
    assert len(ax.lines) == 5
    pyplot.close(figure)


# ---- with kclf's own parts -----------------------------------------------------------------------


def photo_data():
    """24 small pictures in two classes, read by the package's own loader."""
    images = np.random.default_rng(1).integers(0, 256, (24, 20, 20, 3), dtype=np.uint8)
    images[12:, :10] //= 4
    return ImageData.from_arrays((images, np.repeat([0, 1], 12)), size=16, presize=20, batch_size=4).train


def photo_model():
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((20, 20, 3), dtype="uint8"),
            Augmentation(16, flip="horizontal", max_rotate=10, max_zoom=1.2, max_lighting=0.2, seed=5),
            InputNormalization("tf"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.3),
            layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = LayerGroupOptimizer(optimizers.AdamW(1e-3), model, slice(0.1, 1.0))
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
    return model


@pytest.mark.parametrize("killed", [False, True])
def test_photos_augmentation_batchnorm_dropout_and_adamw(killed, monkeypatch):
    without = outcome(photo_model(), photo_data())
    model, data = photo_model(), photo_data()
    if killed:
        calls = []

        def dies(batch, original=model.train_step):
            calls.append(1)
            if len(calls) == 17:
                raise RuntimeError("killed")
            return original(batch)

        with monkeypatch.context() as patch:
            patch.setattr(model, "train_step", dies)
            with pytest.raises(RuntimeError, match="killed"):
                find_learning_rate(model, data, num_steps=40, stop_factor=1e9)
    else:
        find_learning_rate(model, data, num_steps=40)
    assert_same(outcome(model, data), without)


@pytest.mark.parametrize("scatter", [0.02, 0.05, 0.5])
@pytest.mark.parametrize("steps", [40, 100, 200])
def test_curves_of_pure_noise_get_a_rate_in_one_of_twenty_at_most(scatter, steps):
    rates, generator = np.geomspace(1e-7, 10, steps), np.random.default_rng(steps)
    curves = 0.7 + scatter * generator.normal(size=(300, steps))
    told = [
        any(RangeTestRun(rates, losses, steps).suggest(rule).learning_rate is not None for rule in RULES)
        for losses in curves
    ]
    assert np.mean(told) <= 0.05


@pytest.mark.parametrize("fall", [0.15, 0.4])
def test_curves_that_fall_below_their_scatter_get_one(fall):
    """A fall by three times the scatter of the losses, from 1e-4 to 1e-1, and a rise."""
    rates, generator = np.geomspace(1e-7, 10, 100), np.random.default_rng(1)
    shape = 0.7 - fall * np.clip((np.log10(rates) + 4) / 3, 0, 1) + 2.0 * np.clip(np.log10(rates) + 0.2, 0, 1)
    told = [
        RangeTestRun(rates, shape + fall / 3 * generator.normal(size=100), 100)
        .suggest("valley")
        .learning_rate
        for _ in range(100)
    ]
    assert np.mean([one is not None for one in told]) > 0.97
    assert 1e-5 < np.median([one for one in told if one is not None]) < 1


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_frozen_model_gets_none():
    model = make_model(grouped=False)
    model.trainable = False
    model.compile("sgd", "mse")
    result = find_learning_rate(model, arrays(), num_steps=30, batch_size=8)
    assert result.agreement is None
    assert "no weight" in str(result)
