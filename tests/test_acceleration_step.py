"""The lean step reads nothing back from the device, and leaves layers and optimizers to their own rules."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
import torch
from keras import layers
from test_acceleration import (
    CLASSES,
    SIZE,
    assert_same,
    compiled,
    history,
    images,
    labels,
    layer_of,
    residual,
    subclass,
)

from kclf.acceleration import accelerate, unpacked
from kclf.acceleration.graph import functional_of
from kclf.optimizers import LayerGroupOptimizer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

READS = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero")
WRITES = ("aten::lift_fresh",)  # a Python number made a tensor: on a GPU, a copy that waits


def grouped(make, inner=None):
    model = compiled(make)
    groups = [model.layers[:-1], model.layers[-1:]]
    model.compile(
        optimizer=LayerGroupOptimizer(inner or keras.optimizers.SGD(1e-2, momentum=0.9), groups, [0.1, 1.0]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def operations(function):
    """Names of all torch operations that a call does, with how often."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        function()
    return {event.key: event.count for event in profile.key_averages()}


def synchronizations(function):
    counts = operations(function)
    return {name: counts[name] for name in READS + WRITES if name in counts}


def steady_step(model):
    """A training step as `fit` does it, after the first ones."""
    model.fit(images(16), labels(16), batch_size=8, verbose=0)
    data = [(torch.from_numpy(images(8)), torch.from_numpy(labels(8)))]
    return lambda: model.train_function(data)


@pytest.mark.parametrize("make", [residual, subclass])
def test_a_steady_training_step_does_not_synchronize(make):
    assert synchronizations(steady_step(accelerate(grouped(make)))) == {}


def test_adam_on_the_cpu_reads_only_step_counts_that_lie_there():
    model = accelerate(grouped(residual, keras.optimizers.AdamW(1e-3)))
    counts = synchronizations(steady_step(model))
    assert max(counts.values(), default=0) <= len(model.trainable_variables)
    assert set(counts) <= set(READS)


def test_the_counter_sees_what_stock_keras_does():
    assert synchronizations(steady_step(compiled(residual))) != {}


def test_a_steady_test_step_does_not_synchronize():
    model = accelerate(grouped(residual))
    model.evaluate(images(16), labels(16), batch_size=8, verbose=0)
    data = [(torch.from_numpy(images(8)), torch.from_numpy(labels(8)))]
    assert synchronizations(lambda: model.test_function(data)) == {}


def test_fewer_operations_than_stock_keras():
    def count(wrap):
        return sum(operations(steady_step(wrap(compiled(residual)))).values())

    assert count(accelerate) < 0.6 * count(lambda model: model)


def test_head_only_training_folds_the_body_and_records_nothing_there():
    model = accelerate(grouped(subclass))
    model.backbone.trainable = False
    counts = operations(steady_step(model))
    assert "aten::convolution_backward" not in counts
    assert counts.get("aten::native_batch_norm", 0) == 1  # the one between body and head


@pytest.mark.parametrize("make", [residual, subclass])
def test_layer_groups_train_as_with_stock_keras(make):
    expected = history(grouped(make))
    assert_same(history(accelerate(grouped(make))), expected, relative=1e-4)


def test_activations_are_freed_on_the_way():
    inputs = x = keras.Input((64, 64, 8))
    for _ in range(10):
        x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    model = accelerate(keras.Model(inputs, x))
    plan = functional_of(model).__dict__["call"].plan
    alive = []
    for step in plan.steps:
        step.function = watched(step.function, alive)
    with torch.no_grad(), unpacked():
        model(torch.zeros(1, 64, 64, 8))
    assert max(sum(reference() is not None for reference in alive[:n]) for n in range(len(alive))) <= 3


def watched(function, alive):
    import weakref

    def watch(run, *values):
        result = function(run, *values)
        alive.append(weakref.ref(result))
        return result

    return watch


def test_gradients_of_the_last_step_are_gone_before_the_activations_come():
    held, layer = [], keras.layers.Dense(CLASSES)

    class Watch(keras.layers.Layer):
        def call(self, x):
            held.append([variable.value.grad is not None for variable in layer.variables])
            return x

    model = accelerate(compiled(lambda: keras.Sequential([keras.Input((SIZE,)), Watch(), layer])))
    held.clear()
    model.fit(images().reshape(40, -1)[:, :SIZE], labels(), batch_size=20, verbose=0)
    assert len(held) >= 2
    assert not any(any(gradients) for gradients in held)
    assert all(variable.value.grad is not None for variable in model.trainable_variables)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told to keep what is freed")
def test_memory_of_one_step_serves_the_next():
    import resource

    def network():
        inputs = keras.Input((64, 64, 3))
        x = keras.layers.Conv2D(32, 3, strides=2, padding="same")(inputs)
        for _ in range(4):
            x = keras.layers.Conv2D(32, 1, activation="relu")(x)
        return keras.Model(inputs, keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling2D()(x)))

    model = accelerate(compiled(network))
    x, y = torch.zeros(16, 64, 64, 3), torch.zeros(16, dtype=torch.int64)  # 2 MB an activation
    model.fit(x, y, batch_size=16, verbose=0)
    step = [(x, y)]
    for _ in range(3):
        model.train_function(step)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        model.train_function(step)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 4 * 512  # pages of 4 KB


def test_two_layer_model_keeps_its_results():
    def tiny():
        return keras.Sequential(
            [keras.Input((SIZE,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(CLASSES)]
        )

    x = images().reshape(40, -1)[:, :SIZE]
    expected = history(compiled(tiny), x)
    assert_same(history(accelerate(compiled(tiny)), x), expected)


def with_dropout():
    hidden = layers.Conv2D(4, 3), layers.ReLU(), layers.Flatten(), layers.Dropout(0.0)
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *hidden, layers.Dense(CLASSES)])


def compile_with(**options):
    return lambda model: model.compile(
        **{"optimizer": keras.optimizers.SGD(0.01), "loss": "sparse_categorical_crossentropy", **options}
    )


CHANGES = {
    "activation": lambda model: setattr(model.layers[-1], "activation", keras.activations.tanh),
    "LoRA": lambda model: [
        keras.utils.set_random_seed(2),
        model.layers[-1].enable_lora(1),
        compile_with()(model),
    ],
    "slope": lambda model: setattr(layer_of(model, layers.ReLU), "negative_slope", 0.5),
    "frozen": lambda model: setattr(model.layers[-1], "trainable", False),
    "regularizer": lambda model: setattr(model.layers[-1].kernel, "regularizer", keras.regularizers.L2(0.1)),
    "data": lambda model: layer_of(model, layers.Conv2D).kernel.value.data.mul_(0.5),
    "weights": lambda model: model.set_weights([weight * 0.5 for weight in model.get_weights()]),
    "loss": compile_with(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "metrics": compile_with(metrics=["accuracy", "sparse_categorical_crossentropy"]),
    "optimizer": lambda model: setattr(model, "optimizer", keras.optimizers.RMSprop(0.01)),
    "fit": lambda model: history(model, epochs=1),
    "nothing": lambda model: None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("make", [residual, with_dropout])
def test_a_loop_over_batches_sees_what_changes_between_two(make, change):
    def run(model):
        seen = [model.train_on_batch(images(8), labels(8)) for _ in range(2)]
        change(model)
        seen += [model.train_on_batch(images(8), labels(8)) for _ in range(2)]
        seen.append(model.test_on_batch(images(8), labels(8)))
        return np.concatenate([*seen, model.predict_on_batch(images(3)).ravel()])

    np.testing.assert_allclose(run(accelerate(compiled(make))), run(compiled(make)), rtol=1e-4, atol=1e-5)


def test_a_sequential_that_grows_between_two_batches_is_planned_anew():
    def run(model):
        model.train_on_batch(images(8), labels(8))
        model.add(layers.Dense(CLASSES, kernel_initializer="ones"))
        compile_with()(model)
        return [model.train_on_batch(images(8), labels(8)) for _ in range(2)]

    np.testing.assert_allclose(
        run(accelerate(compiled(with_dropout))), run(compiled(with_dropout)), rtol=1e-5
    )


@pytest.mark.parametrize("make", [residual, subclass])
def test_a_loop_over_batches_is_planned_once(make):
    model = accelerate(compiled(make))
    graph = functional_of(model) or functional_of(model.backbone)
    model.train_on_batch(images(8), labels(8))
    plan = graph.call.plan
    for function in (model.train_on_batch, model.test_on_batch):
        function(images(8), labels(8))
        assert graph.call.plan is plan
    model.predict_on_batch(images(8))
    assert graph.call.plan is plan
    layer_of(graph, layers.ReLU).negative_slope = 0.1
    model.predict_on_batch(images(8))
    assert graph.call.plan is not plan
