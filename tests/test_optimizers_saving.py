"""Saving in the middle of a run: what is loaded goes on exactly where the saved run would have."""

from __future__ import annotations

import zipfile

import keras
import numpy as np
import pytest
from keras import layers, optimizers
from test_optimizers import KERAS_OPTIMIZERS

from kclf.optimizers import FusedLossScaleOptimizer, LayerGroupOptimizer

MULTIPLIERS = [0.1, 0.3, 1.0]


def data(n: int = 24):
    generator = np.random.default_rng(3)
    return generator.normal(size=(n, 6)).astype("float32"), generator.normal(size=(n, 3)).astype("float32")


def train(model, epochs=1):
    model.fit(*data(), epochs=epochs, batch_size=8, shuffle=False, verbose=0)
    return [w.copy() for w in model.get_weights()]


def sequential() -> keras.Sequential:
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.Dense(7), layers.Dense(3)]
    )


@keras.saving.register_keras_serializable(package="tests")
class Classifier(keras.Model):
    """A subclass around a functional backbone, as kclf's own classifier is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        inputs = keras.Input((6,))
        hidden = layers.Dense(8, name="stem")(inputs)
        hidden = layers.BatchNormalization(name="stem_norm")(hidden)
        self.backbone = keras.Model(inputs, layers.Dense(7, name="body")(hidden), name="backbone")
        self.head = keras.Sequential([keras.Input((7,)), layers.Dense(3)], name="head")

    @property
    def layer_groups(self):
        stem, norm, body = self.backbone.layers[1:]
        return [[stem, norm], [body], [self.head]]

    def call(self, inputs, training=None):
        return self.head(self.backbone(inputs, training=training))


def built_classifier() -> Classifier:
    model = Classifier(name="classifier")
    model(data(2)[0])
    return model


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize("name", KERAS_OPTIMIZERS)
def test_keras_file_goes_on_bit_exactly(name, tmp_path):
    model = sequential()
    groups = [[model.layers[0], model.layers[1]], [model.layers[2]], [model.layers[3]]]
    optimizer = LayerGroupOptimizer(getattr(optimizers, name)(learning_rate=1e-2), groups, MULTIPLIERS)
    model.compile(optimizer, loss="mse")
    train(model)
    loaded = saved_and_loaded(model, tmp_path)
    assert loaded.optimizer.learning_rate_multipliers == tuple(MULTIPLIERS)
    assert_same(train(model), train(loaded))


@pytest.mark.parametrize("name", KERAS_OPTIMIZERS)
def test_weights_file_goes_on_bit_exactly(name, tmp_path):
    first, second = built_classifier(), built_classifier()
    for model in (first, second):
        inner = getattr(optimizers, name)(learning_rate=1e-2, use_ema=True)
        model.compile(LayerGroupOptimizer(inner, model, MULTIPLIERS), loss="mse")
        model.optimizer.build(model.trainable_variables)
    train(first)
    first.save_weights(tmp_path / "m.weights.h5")
    second.load_weights(tmp_path / "m.weights.h5")
    assert_same(train(first), train(second))


@pytest.mark.parametrize("settings", [{}, {"use_ema": True}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_subclass_saved_frozen_goes_on_after_thawing(policy, settings, tmp_path):
    """Only the head trains when the file is written; the backbone's state and groups are in it."""
    keras.config.set_dtype_policy(policy)
    model = built_classifier()
    wrapped = LayerGroupOptimizer(optimizers.AdamW(1e-2, **settings), model, MULTIPLIERS)
    model.compile(FusedLossScaleOptimizer(wrapped) if policy == "mixed_float16" else wrapped, loss="mse")
    train(model)
    model.backbone.trainable = False
    train(model)
    loaded = saved_and_loaded(model, tmp_path)
    loaded.backbone.trainable = False
    assert_same(train(model), train(loaded))
    for one in (model, loaded):
        one.backbone.get_layer("body").trainable = True
    assert_same(train(model), train(loaded))
    for one in (model, loaded):
        one.backbone.trainable = True
    assert_same(train(model), train(loaded))


def test_renamed_layers_are_matched_by_order():
    model, renamed = sequential(), sequential()
    wrapped = LayerGroupOptimizer(optimizers.SGD(), model, [0.1, 0.2, 0.3, 1.0])
    copy = LayerGroupOptimizer.from_config(wrapped.get_config())
    copy.build(renamed.trainable_variables)
    assert copy.get_config()["members"][0]["group"] == 0
    assert [copy._roster.place(v) for v in renamed.trainable_variables] == list(range(8))


def test_another_model_is_refused_by_name():
    wrapped = LayerGroupOptimizer(optimizers.SGD(), sequential())
    copy = LayerGroupOptimizer.from_config(wrapped.get_config())
    other = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="other")])
    with pytest.raises(ValueError, match=r"other/kernel.*\(6, 5\).*no layer group"):
        copy.build(other.trainable_variables)


def test_state_is_on_disk_once(tmp_path):
    import h5py

    model = sequential()
    wrapped = LayerGroupOptimizer(optimizers.AdamW(1e-2), model)
    model.compile(FusedLossScaleOptimizer(wrapped), loss="mse")
    train(model)
    model.save(tmp_path / "model.keras")
    found = []
    with zipfile.ZipFile(tmp_path / "model.keras") as archive, archive.open("model.weights.h5") as file:
        h5py.File(file, "r").visititems(
            lambda name, item: (
                found.append(name)
                if isinstance(item, h5py.Dataset) and name.startswith("optimizer")
                else None
            )
        )
    assert len(found) == len(model.optimizer.variables) == 4 + 1 + 2 + 2 * 8


def test_state_of_another_model_is_left_with_a_warning(tmp_path):
    model = built_classifier()
    model.compile(LayerGroupOptimizer(optimizers.SGD(), model), loss="mse")
    store = {"0": np.zeros(3), "1": np.zeros(3)}
    model.optimizer.build(model.trainable_variables)
    with pytest.warns(UserWarning, match="has 2 arrays"):
        model.optimizer.load_own_variables(store)
