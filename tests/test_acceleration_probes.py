"""Parts of accelerate() stay off where Keras itself does what they are for."""

from __future__ import annotations

import logging
import random

import keras
import numpy as np
import pytest
import torch
from keras.src.backend.common.global_state import get_global_attribute
from test_acceleration import Classifier, assert_same, compiled, history, residual, subclass

from kclf.acceleration import accelerate, deaccelerate, is_accelerated, probes
from kclf.acceleration.convolutions import order_of
from kclf.acceleration.step import LeanStep

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROBES = (probes.keras_fuses_batchnorm, probes.keras_stores_kernels_for_torch, probes.keras_step_is_lean)


@pytest.fixture(autouse=True)
def _fresh_probes():
    """What a test does to Keras is looked at, and forgotten after it."""
    for probe in PROBES:
        probe.cache_clear()
    yield
    for probe in PROBES:
        probe.cache_clear()


@pytest.fixture
def fused_batchnorm(monkeypatch):
    """A Keras whose batch norm is torch's (its unbiased variance does not matter here)."""

    def call(self, inputs, training=None, mask=None):
        x = inputs.movedim(self.axis, 1)
        stored = self.moving_mean.value, self.moving_variance.value
        training = bool(training) and self.trainable
        y = torch.nn.functional.batch_norm(
            x, *stored, self.gamma.value, self.beta.value, training, 1 - self.momentum, self.epsilon
        )
        return y.movedim(1, self.axis)

    monkeypatch.setattr(keras.layers.BatchNormalization, "call", call)


@pytest.fixture
def kernels_for_torch(monkeypatch):
    """A Keras that stores kernels as torch reads them."""

    def in_torch_order(stock):
        def build(self, input_shape):
            stock(self, input_shape)
            kernel = self.kernel.value
            order = order_of(self, self.kernel)
            back = sorted(range(4), key=order.__getitem__)
            kernel.data = kernel.data.permute(order).contiguous().permute(back)

        return build

    for kind in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D):
        monkeypatch.setattr(kind, "build", in_torch_order(kind.build))


@pytest.fixture
def lean_step(monkeypatch):
    """A Keras whose training step is as good as ours."""
    monkeypatch.setattr(keras.Model, "train_step", lambda self, data: LeanStep(self).train_step(data))


def test_this_keras_is_mended_in_every_part(caplog):
    with caplog.at_level(logging.INFO, "kclf.acceleration"):
        model = accelerate(compiled(subclass))
    assert [probe() for probe in PROBES] == [False, False, False]
    assert caplog.text == ""
    assert "train_step" in model.__dict__
    assert "call" in model.norm.__dict__


def automatic_names():
    """How many names of each kind Keras has given; those of symbolic tensors are nobody's."""
    return dict(get_global_attribute("object_name_uids", {})) | {"keras_tensor": 0}


def test_a_probe_leaves_no_trace():
    keras.utils.set_random_seed(3)
    names = automatic_names()
    state = torch.get_rng_state(), random.getstate()
    keras.config.set_dtype_policy("mixed_float16")
    with torch.no_grad():
        for probe in PROBES:
            probe()
    assert automatic_names() == names
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]


def test_lone_batch_norms_that_keras_fuses_are_left_to_it(fused_batchnorm, caplog):
    with caplog.at_level(logging.INFO, "kclf.acceleration"):
        model = accelerate(compiled(subclass))
    assert "batchnorm: off, Keras' batch norm is torch's own" in caplog.text
    assert "call" not in model.norm.__dict__
    assert "call" in model.backbone.__dict__  # the plan is due all the same
    assert np.isfinite(history(model, epochs=1)["loss"]).all()


def test_kernels_that_keras_stores_for_torch_are_left_alone(kernels_for_torch, caplog):
    expected = history(compiled(residual), epochs=1)
    with caplog.at_level(logging.INFO, "kclf.acceleration"):
        model = accelerate(compiled(residual))
    assert "kernels: off, Keras stores kernels as torch reads them" in caplog.text
    assert_same(history(model, epochs=1), expected)
    deaccelerate(model)  # takes nothing away that Keras had
    kernel = model.layers[2].kernel
    assert kernel.value.permute(order_of(model.layers[2], kernel)).is_contiguous()


def test_a_step_of_keras_that_is_as_lean_is_left_to_it(lean_step, caplog):
    with caplog.at_level(logging.INFO, "kclf.acceleration"):
        model = accelerate(compiled(residual))
    assert "step: off, Keras' step is as lean" in caplog.text
    assert is_accelerated(model)
    assert not {"train_step", "test_step"} & set(model.__dict__)


def test_a_quiet_step_that_does_more_is_not_enough(monkeypatch):
    def busy(self, data):
        logs = LeanStep(self).train_step(data)
        return logs | {"extra": torch.ones(1) + torch.ones(1) + torch.ones(1)}

    monkeypatch.setattr(keras.Model, "train_step", busy)
    assert not probes.keras_step_is_lean()


@pytest.mark.parametrize("part", ["batchnorm", "kernels", "step"])
def test_a_part_that_is_switched_off_is_not_probed(part, monkeypatch):
    probe = dict(zip(("batchnorm", "kernels", "step"), PROBES, strict=True))[part]
    assert Classifier.train_step is keras.Model.train_step
    accelerate(compiled(subclass), **{part: False})
    assert probe.cache_info().currsize == 0
