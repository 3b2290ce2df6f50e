"""A loss that is not finite ends a run at its last good weights, and the error says what to look at."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

import kclf
from kclf.callbacks import Checkpoint, FiniteGuard, Recorder
from kclf.errors import NotFiniteError


class Break(keras.callbacks.Callback):
    """Does something before a batch."""

    def __init__(self, batch, action):
        super().__init__()
        self.batch, self.action = batch, action

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            self.action(self.model)


def network(optimizer=None):
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(4, name="first"), keras.layers.Dense(1, name="second")]
    model = keras.Sequential([keras.Input((2,)), *layers], name="net")
    model.compile(optimizer or keras.optimizers.SGD(0.01), "mse")
    return model


def fit(model, *callbacks, x=None, y=None):
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32") if x is None else x
    y = np.ones((32, 1), "float32") if y is None else y
    return model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=list(callbacks))


def test_the_weights_are_those_of_the_last_checkpoint(tmp_path):
    model, kept = network(), []
    checkpoint = Checkpoint(tmp_path, every=2)
    keep = Break(4, lambda model: kept.extend(model.get_weights()))
    explode = Break(5, lambda model: model.optimizer.learning_rate.assign(1e30))

    with pytest.raises(NotFiniteError, match=r"batch 6.*back at \(0, 0, 4\).*net/.*too large"):
        fit(model, keep, explode, FiniteGuard(checkpoint), checkpoint)

    for ours, theirs in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_names_the_layer_that_gives_way():
    model = network()
    spoil = Break(3, lambda model: model.layers[1].bias.assign([float("inf")]))

    with pytest.raises(NotFiniteError, match=r"epoch 0, batch 3.*net/second"):
        fit(model, spoil, FiniteGuard())


def test_it_names_the_inputs():
    x = np.ones((32, 2), "float32")
    x[[9, 11], 1] = np.nan

    with pytest.raises(NotFiniteError, match=r"batch 2.*number 1 .*number 3 "):
        fit(network(), FiniteGuard(), x=x)


def test_it_names_the_files(tmp_path):
    from PIL import Image

    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    labels = np.arange(12, dtype=np.float32)
    data = kclf.data.ImageDataset(paths, labels, task="regression", presize=8, batch_size=4, shuffle=True)
    data.labels[7] = np.nan  # which the dataset would refuse
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")

    with pytest.raises(NotFiniteError, match=r"not finite: \S*7\.png$"):
        model.fit(data, verbose=0, callbacks=[FiniteGuard(data=data)])


def test_the_last_batch_counts_too():
    y = np.ones((32, 1), "float32")
    y[-1] = np.inf

    with pytest.raises(NotFiniteError, match="batch 7"):
        fit(network(), FiniteGuard(), y=y)


def test_loss_scaling_may_skip_a_step():
    y = np.ones((32, 1), "float32")
    y[5] = np.inf
    model = network(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)))

    fit(model, FiniteGuard(), y=y)

    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_the_next_fit_is_not_touched():
    model, guard = network(), FiniteGuard()
    with pytest.raises(NotFiniteError):
        fit(model, guard, x=np.full((32, 2), np.nan, "float32"))
    model.set_weights(network().get_weights())
    recorder = Recorder()

    fit(model, recorder)

    assert len(recorder.losses) == 8
    assert torch.isfinite(torch.tensor(recorder.losses)).all()


def test_gradients_that_are_not_finite_count():
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False), keras.layers.Lambda(keras.ops.sqrt)]
    )
    model.set_weights([np.zeros((1, 1))])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    model.compile(optimizer, "mse")

    with pytest.raises(NotFiniteError, match="loss or its gradients became"):
        model.fit(np.ones((40, 1)), np.ones((40, 1)), batch_size=1, verbose=0, callbacks=[FiniteGuard()])
