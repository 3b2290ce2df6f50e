"""How many kernels a step and an augmentation launch: below some 1,000 a step the host is not the limit."""

from __future__ import annotations

import keras
import pytest
import torch

import kclf
from kclf.layers import aug_transforms
from kclf.models import ImageClassifier

from . import kernels, pretended_cuda
from .test_waits import backbone


def kernels_of_a_step(device, model):
    model.unfreeze()
    model.compile(kclf.LayerGroupOptimizer(keras.optimizers.SGD(1e-3, momentum=0.9), model))
    batch = torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device="cuda"), torch.tensor([0, 1], device="cuda")
    model.make_train_function()
    model.train_function([batch])
    device.clear()
    model.train_function([batch])
    return kernels(device)


def test_a_folded_norm_that_learns_costs_four_kernels():
    """One product of its kernel on the way there, two and a sum on the way back; the vectors go together."""
    counts = []
    for blocks in (2, 6):
        with pretended_cuda() as device:
            x = inputs = keras.Input((32, 32, 3))
            for _ in range(blocks):
                x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
                x = keras.layers.BatchNormalization()(x)
            model = ImageClassifier(keras.Model(inputs, x), ["cat", "dog"], size=32, normalization="none")
            counts.append(kernels_of_a_step(device, model))
    assert (counts[1] - counts[0]) / 4 == 4 + 2  # beside the convolution and its gradient


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "policy", "most"),
    [
        ("ResNet50", "float32", 650), ("ResNet50", "mixed_float16", 650),
        ("EfficientNetB0", "mixed_float16", 900), ("MobileNetV2", "mixed_float16", 650),
    ],
)  # fmt: skip
def test_a_step_launches_few_kernels(name, policy, most):
    with pretended_cuda() as device:
        model = ImageClassifier(name, ["cat", "dog"], size=32, weights=None, dtype=policy)
        assert kernels_of_a_step(device, model) <= most


@pytest.mark.parametrize(("count", "most"), [(64, 60), (256, 60)])
def test_an_augmentation_launches_few_kernels_whatever_the_batch(count, most):
    with pretended_cuda() as device:
        photos = torch.zeros(count, 40, 40, 3, dtype=torch.uint8, device="cuda")
        layer = aug_transforms(size=32, seed=1)
        device.clear()
        layer(photos, training=True)
        assert kernels(device) <= most
        assert not device.waits


def test_small_models_stay_small():
    with pretended_cuda() as device:
        model = ImageClassifier(backbone(), ["cat", "dog"], size=16, normalization="torch")
        assert kernels_of_a_step(device, model) <= 160
