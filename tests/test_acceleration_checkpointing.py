"""Checkpointing: the same gradients, from fewer activations kept."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

import kclf
from kclf.backbones import build_backbone
from kclf.backbones.transformers import TRANSFORMERS, TransformerPlan


@pytest.fixture(autouse=True)
def _tiny_transformer(monkeypatch):
    monkeypatch.setitem(TRANSFORMERS, "ViTS16", TransformerPlan(32, 12, 2, patch=8, grid=4))


def kept_and_gradients(model, images):
    """Bytes that a step keeps for the way back, weights aside, and the gradients of all variables."""
    own = {variable.value.data_ptr() for variable in model.variables}
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += 0 if tensor.data_ptr() in own else tensor.nbytes
        return tensor

    for variable in model.variables:
        variable.value.grad = None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images, training=True).square().mean()
    loss.backward()
    return kept, [v.value.grad.clone() for v in model.trainable_variables if v.value.grad is not None]


@pytest.mark.parametrize(("name", "share"), [("ViTS16", 0.25), ("ResNet18", 0.7), ("ConvNeXtV2Atto", 0.6)])
def test_gradients_stay_and_activations_go(name, share):
    model = build_backbone(name, weights=None, input_shape=(32, 32, 3))
    images = torch.rand(2, 32, 32, 3)
    kept, gradients = kept_and_gradients(kclf.accelerate(model), images)
    assert len(gradients) > 40
    kclf.accelerate(model, checkpointing=True)
    assert len(model.call.plan.segments) >= 3
    kept_now, gradients_now = kept_and_gradients(model, images)
    assert kept_now < share * kept
    for first, second in zip(gradients, gradients_now, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-7)


def test_batch_statistics_move_once_a_step():
    model = build_backbone("ResNet18", weights=None, input_shape=(32, 32, 3))
    start = [v.numpy().copy() for v in model.non_trainable_variables]
    images = torch.rand(2, 32, 32, 3)

    def moved(checkpointing):
        for variable, value in zip(model.non_trainable_variables, start, strict=True):
            variable.assign(value)
        kept_and_gradients(kclf.accelerate(model, checkpointing=checkpointing), images)
        return [v.numpy() for v in model.non_trainable_variables]

    for first, second in zip(moved(False), moved(True), strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-7)


def test_a_classifier_keeps_the_choice():
    model = kclf.ImageClassifier("ViTS16", ["cat", "dog"], size=32, weights=None, checkpointing=True)
    again = kclf.ImageClassifier.from_config(model.get_config())
    assert again.checkpointing
    assert (
        "checkpointing"
        not in kclf.ImageClassifier("ViTS16", ["cat", "dog"], size=32, weights=None).get_config()
    )
    again.unfreeze()
    again.compile(keras.optimizers.SGD(1e-3))
    history = again.fit(np.zeros((2, 32, 32, 3), "uint8"), np.array([0, 1]), verbose=0)
    assert np.isfinite(history.history["loss"][0])
