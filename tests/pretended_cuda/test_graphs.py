"""CUDA graphs: nothing that they forbid lies in what is captured, and they compute the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

import kclf

from . import pretended_cuda
from .test_waits import KERAS_OWN, any_model, classifier, data, grouped, steady


def trained(model, dataset):
    model.fit(dataset, epochs=1, verbose=0, shuffle=False)
    return np.concatenate([weight.numpy().ravel() for weight in model.weights])


MODELS = {
    "frozen": lambda: classifier(unfrozen=False),
    "unfrozen": classifier,
    "norms that train, float16": lambda: classifier("mixed_float16", batchnorm="train"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_classifier_is_captured_behind_its_augmentation(name):
    found = []
    with pretended_cuda() as device:
        for graphs in (False, True):
            keras.utils.set_random_seed(1)
            model = kclf.accelerate(MODELS[name](), graphs=graphs)
            model.compile(grouped(model))
            found.append(trained(model, data(44)))
            assert (device.captures > 0) == graphs
            device.captures = 0
        assert steady(device, model, data()) == ({}, {})
    np.testing.assert_array_equal(*found)


def test_any_model_is_captured():
    found = []
    with pretended_cuda() as device:
        for graphs in (False, True):
            keras.utils.set_random_seed(1)
            model = kclf.accelerate(any_model(KERAS_OWN["momentum"]()), graphs=graphs)
            found.append(trained(model, data(44, side=16)))
        assert device.captures == 1  # a last batch that is not full is run as it is
    np.testing.assert_array_equal(*found)


def test_layers_that_keras_runs_stay_before_what_is_captured():
    """An augmentation inside of a model draws on the host, which a capture forbids."""
    found = []
    with pretended_cuda() as device:
        for graphs in (False, True):
            keras.utils.set_random_seed(1)
            inputs = keras.Input((16, 16, 3))
            x = keras.layers.Conv2D(4, 3)(kclf.Augmentation(16, seed=1)(inputs))
            x = keras.layers.GlobalAveragePooling2D()(x)
            model = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(x))
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(KERAS_OWN["momentum"](), loss)
            found.append(trained(kclf.accelerate(model, graphs=graphs), data(44, side=16)))
            assert (device.captures > 0) == graphs
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x + torch.ones(3).to("cuda"),
        lambda x: x[x > 0], lambda x: x * float(torch.rand(())),
    ],
)  # fmt: skip
def test_the_pretence_forbids_what_a_capture_forbids(forbidden):
    with pretended_cuda() as device:
        x = torch.ones(3, device="cuda")
        with device.captured(), pytest.raises(RuntimeError, match="when stream is capturing"):
            forbidden(x)


def test_graphs_and_checkpointing_exclude_each_other():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="choose graphs or checkpointing"):
        kclf.accelerate(model, checkpointing=True, graphs=True)
