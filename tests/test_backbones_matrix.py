"""Backbones of today, in their real width and depth, each through all that a classifier is used for."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from pretended_cuda import pretended_cuda

import kclf
from kclf._core.keras_private import all_layers
from tests.conftest import with_random_logits

pytestmark = pytest.mark.heavy

SIDES = {  # pixels: the patch divides them, and a feature map has more than one cell
    "ViTS16": 64,
    "DINOv2S14": 56,
    "ConvNeXtTiny": 64,
    "ConvNeXtV2Atto": 64,
    "EfficientNetV2B0": 64,
    "MobileNetV3Large": 64,
}
CELLS = {"ViTS16": 4, "DINOv2S14": 4, **dict.fromkeys(list(SIDES)[2:], 2)}
LABELS = np.array([0, 1] * 4)
IN_A_NEW_PROCESS = """
import sys, numpy as np, kclf
model, images = kclf.load(sys.argv[1], check=True), np.load(sys.argv[2])
np.save(sys.argv[3], kclf.predict(model, images).probabilities)
"""


@pytest.fixture(params=SIDES)
def name(request):
    return request.param


@pytest.fixture
def photos(name):
    """Eight photos of two kinds, which differ by their colour."""
    colours = np.array([[200, 60, 60], [60, 60, 200]])[LABELS][:, None, None]
    noise = np.random.default_rng(0).normal(0, 40, (8, SIDES[name], SIDES[name], 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def classifier(name, photos):
    """Random weights, whose batch norms know what passes: their features differ from photo to photo."""

    def make(**options):
        settings = {"size": SIDES[name], "weights": None, "hidden": (), "dropout": 0.0} | options
        model = with_random_logits(kclf.ImageClassifier(name, ["red", "blue"], **settings))
        model.batchnorm = "train"
        norms = [
            one for one in all_layers(model.backbone) if isinstance(one, keras.layers.BatchNormalization)
        ]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        with torch.no_grad():
            model.features(photos, training=True, augment=False)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.batchnorm = "inference"
        return model

    return make


def fit_all(model, photos, optimizer=None, epochs=2):
    """Train every group; the losses."""
    model.unfreeze()
    model.compile(optimizer or keras.optimizers.AdamW(1e-4))
    history = model.fit(photos, LABELS, batch_size=4, epochs=epochs, verbose=0).history
    return history["loss"]


def moved(model, before):
    """The share of the backbone's trainable variables that a fit has changed."""
    after = [variable.numpy() for variable in model.backbone.trainable_variables]
    return np.mean([not np.array_equal(*pair) for pair in zip(before, after, strict=True)])


def remembered(model):
    model.unfreeze()
    return [variable.numpy().copy() for variable in model.backbone.trainable_variables]


def test_linear_probe(classifier, photos):
    model = classifier(bias=True)
    data = kclf.ImageDataset(photos, LABELS, class_names=model.class_names, presize=model.size, batch_size=4)
    kclf.fit_linear_probe(model, data, strength=1.0)
    assert kclf.predict(model, data).accuracy() == 1.0


def test_fine_tuning(classifier, photos):
    model = classifier()
    before = remembered(model)
    losses = fit_all(model, photos)
    assert np.isfinite(losses).all()
    assert moved(model, before) > 0.95


def test_range_test_puts_everything_back(classifier, photos):
    model = classifier()
    before = remembered(model)
    model.compile(keras.optimizers.AdamW(1e-4))
    found = kclf.find_learning_rate(model, photos, LABELS, batch_size=4, num_steps=6)
    assert len(found.losses) == 6
    assert np.isfinite(found.losses).all()
    assert moved(model, before) == 0.0


def test_discriminative_rates(classifier, photos):
    model = classifier()
    groups = model.layer_groups
    rates = [0.0, 1e-3, 1e-2]
    optimizer = kclf.LayerGroupOptimizer(keras.optimizers.SGD(1e-2), groups, [0.0, 0.1, 1.0])
    before = [[v.numpy().copy() for layer in group for v in layer.weights] for group in groups]
    fit_all(model, photos, optimizer, epochs=1)
    assert optimizer.learning_rates == pytest.approx(rates)
    changed = [
        any(
            not np.array_equal(v.numpy(), old)
            for v, old in zip((v for layer in group for v in layer.weights), values, strict=True)
        )
        for group, values in zip(groups, before, strict=True)
    ]
    assert changed == [False, True, True]


def test_save_and_load_in_a_new_process(classifier, photos, tmp_path):
    model = classifier()
    model.save(tmp_path / "model.h5")
    np.save(tmp_path / "photos.npy", photos)
    files = [str(tmp_path / file) for file in ("model.h5", "photos.npy", "answers.npy")]
    subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS, *files], check=True, timeout=300)
    expected = kclf.predict(model, photos).probabilities
    assert expected.std() > 1e-3
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("default")  # of torch's exporter about itself
def test_onnx(classifier, photos, tmp_path):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra [onnx] is not installed")
    model = classifier()
    kclf.to_onnx(model, tmp_path / "model.onnx")
    found = kclf.predict(kclf.load_onnx(tmp_path / "model.onnx"), photos).probabilities
    expected = kclf.predict(model, photos).probabilities
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_grad_cam(name, classifier, photos):
    maps = kclf.grad_cam(classifier(), photos).maps
    assert maps.shape == (8, CELLS[name], CELLS[name])
    assert np.isfinite(maps).all()
    assert maps.max() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(classifier, photos, dtype):
    model = classifier(dtype=dtype)
    before = remembered(model)
    # float16 finds its loss scale in the first steps, which change nothing.
    losses = fit_all(model, photos, epochs=6 if dtype == "mixed_float16" else 1)
    assert np.isfinite(losses).all()
    assert moved(model, before) > 0.9


def test_pretended_cuda(classifier, photos):
    with pretended_cuda():
        model = classifier()
        before = remembered(model)
        losses = fit_all(model, photos, epochs=1)
        assert np.isfinite(losses).all()
        assert moved(model, before) > 0.95
        assert kclf.predict(model, photos).probabilities.shape == (8, 2)
