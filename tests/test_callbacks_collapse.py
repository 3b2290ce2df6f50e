"""The BatchNorm collapse, made on purpose and named."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, optimizers

from kclf.callbacks import CollapseDetector
from kclf.callbacks.guards import accuracy_of, collapsed, probe_losses


def photos(seed: int, n: int = 128):
    """Two classes that a mean tells apart, far from where the averages of a new BatchNorm stand."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, n)
    x = generator.normal(size=(n, 8)) + 3.0 * (2 * y[:, None] - 1) + 200.0
    return x.astype("float32"), y.astype("int32")


def make_model(momentum: float, trainable: bool = True) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.BatchNormalization(momentum=momentum),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(2),
        ]
    )
    model.layers[0].trainable = trainable
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.Adam(1e-2), loss=loss, metrics=["accuracy"])
    return model


def fit(model, detector, epochs=3):
    return model.fit(
        *photos(0), epochs=epochs, validation_data=photos(1), batch_size=16, verbose=0, callbacks=[detector]
    ).history


@pytest.mark.parametrize("measured", [True, False])
def test_the_batchnorm_collapse_is_named(measured):
    detector = CollapseDetector([photos(1)] if measured else None)
    with pytest.warns(UserWarning, match="The cause is BatchNorm: 1 layers"):
        history = fit(make_model(0.999), detector)
    assert history["accuracy"][-1] > 0.95
    assert history["val_accuracy"][-1] < 0.6
    assert ("The same photos give loss" in detector.findings[-1]) == measured
    assert ("98% of its averages" in detector.findings[-1]) != measured


class Subclass(keras.Model):
    """A model that does not tell the shape of what comes out."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize("metrics", [["accuracy"], []])
def test_a_model_that_does_not_tell_its_classes(metrics):
    model = Subclass()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=metrics)
    if metrics:
        with pytest.raises(ValueError, match=r"CollapseDetector\(num_classes="):
            fit(model, CollapseDetector())
        fit(model, CollapseDetector(num_classes=2))
    else:
        fit(model, CollapseDetector())


def test_a_fast_average_does_not_collapse():
    detector = CollapseDetector()
    history = fit(make_model(0.5), detector)
    assert history["val_accuracy"][-1] > 0.95
    assert detector.findings == []


def test_it_can_stop_the_fit():
    detector = CollapseDetector(stop=True)
    with pytest.warns(UserWarning, match="in validation"):
        history = fit(make_model(0.999), detector, epochs=10)
    assert len(history["loss"]) < 10


def test_other_causes_are_not_blamed_on_batchnorm():
    """Labels that cannot be learnt: training remembers them, validation guesses."""
    x, y = photos(0, 32)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 64)).astype("float32")
    model = keras.Sequential([keras.Input((64,)), layers.BatchNormalization(momentum=0.5), layers.Dense(2)])
    model.compile(
        optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    unseen = generator.normal(size=(64, 64)).astype("float32"), np.arange(64) % 2
    detector = CollapseDetector([unseen])
    with pytest.warns(UserWarning, match="It is not BatchNorm"):
        model.fit(x, y, epochs=60, validation_data=unseen, verbose=0, callbacks=[detector])


def test_frozen_batchnorm_is_not_blamed():
    detector = CollapseDetector()
    detector.set_model(make_model(0.999, trainable=False))
    assert "No BatchNorm follows" in detector._cause()


def test_probing_changes_nothing():
    model = make_model(0.9)
    model.fit(*photos(0), verbose=0)
    before = model.get_weights()
    by_averages, by_batch = probe_losses(model, [photos(1)])
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert by_averages != by_batch
    assert probe_losses(model, [photos(1)]) == (by_averages, by_batch)


@pytest.mark.parametrize(
    ("train", "valid", "chance", "verdict"),
    [(0.98, 0.5055, 0.5, True), (1.0, 0.75, 0.5, False), (0.55, 0.5, 0.5, False), (0.9, 0.03, 1 / 37, True)],
)
def test_verdicts(train, valid, chance, verdict):
    assert collapsed(train, valid, chance) is verdict


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ({"loss": 1.0, "accuracy": 0.5}, 0.5),
        ({"sparse_categorical_accuracy": 0.25}, 0.25),
        ({"error_rate": 0.1}, 0.9),
        ({"loss": 1.0, "val_accuracy": 0.7}, None),
    ],
)
def test_accuracy_by_any_name(logs, expected):
    assert accuracy_of(logs) == expected
