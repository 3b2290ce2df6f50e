"""The whole way of training on one device: the same bodies run on the CPU here and on CUDA where it is."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import pytest
import torch
from test_cli import SMALL, paint, read_csv
from test_learner import make_data, make_learner, same

import kclf
from kclf.cli.main import main
from kclf.layers import aug_transforms
from kclf.models import ImageClassifier, load
from tests.conftest import with_random_logits

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    with keras.device(request.param):
        yield request.param


@pytest.fixture
def learner(device, tmp_path):
    learner = make_learner(tmp_path, augmentation=aug_transforms(size=16))
    assert {variable.value.device.type for variable in learner.model.weights} == {device}
    return learner


def weights_of(model) -> list[np.ndarray]:
    return [variable.value.detach().cpu().numpy().copy() for variable in model.weights]


@contextlib.contextmanager
def nothing_waits(device):
    """On CUDA every wait of the host for the device is an error in the block."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_photos_are_prepared_alike_on_every_device(device):
    photos = torch.randint(0, 256, (4, 40, 48, 3), dtype=torch.uint8)
    layer = aug_transforms(size=32, max_rotate=10.0, max_warp=0.2)
    plain = layer(photos.to(device), training=False)
    assert plain.shape == (4, 32, 32, 3)
    assert plain.device.type == device
    torch.testing.assert_close(plain.cpu(), layer(photos, training=False), atol=1.0, rtol=0)
    here, there = (aug_transforms(size=32, seed=3) for _ in range(2))
    drawn = here(photos.to(device), training=True)
    torch.testing.assert_close(drawn.cpu(), there(photos, training=True).cpu(), atol=1.0, rtol=0)


def test_a_steady_step_does_not_wait(device):
    model = with_random_logits(ImageClassifier("MobileNetV2", ["cat", "dog"], size=32, weights=None))
    model.compile(kclf.LayerGroupOptimizer(keras.optimizers.SGD(1e-3, momentum=0.9), model))
    photos = torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device=device)
    labels = torch.tensor([0, 1, 0, 1], device=device)
    model.make_train_function()
    model.train_function([(photos, labels)])
    with nothing_waits(device):
        logs = model.train_function([(photos, labels)])
    assert np.isfinite(float(logs["loss"]))


def test_freezing_the_range_test_and_sgdr_with_snapshots(learner):
    before = weights_of(learner.model.backbone)
    whole = weights_of(learner.model)
    learner.lr_find()
    assert same(whole, weights_of(learner.model))
    learner.fit(1e-2, 2, cycle_len=1, cycle_save_name="cycle")
    assert same(before, weights_of(learner.model.backbone))
    learner.unfreeze()
    learner.fit([1e-3, 1e-2], 1)
    assert not same(before, weights_of(learner.model.backbone))
    assert len(learner.snapshots("cycle").files) == 2


def test_tta_gives_the_same_probabilities_twice(learner):
    first, second = (kclf.predict_tta(learner.model, learner.data.valid, seed=5) for _ in range(2))
    np.testing.assert_allclose(first.probabilities.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)


HEAVY_ON_CPU = [
    pytest.param("cpu", policy, marks=pytest.mark.heavy) for policy in ("float32", "mixed_bfloat16")
]
ON_CUDA = [
    pytest.param("cuda", policy, marks=pytest.mark.gpu)
    for policy in ("float32", "mixed_bfloat16", "mixed_float16")
]


@pytest.mark.parametrize(
    ("device", "policy"), [("cpu", "mixed_float16"), *HEAVY_ON_CPU, *ON_CUDA], indirect=["device"]
)
def test_saved_and_reloaded(device, tmp_path, policy):
    model = ImageClassifier("MobileNetV2", ["cat", "dog"], size=32, weights=None, dtype=policy)
    with_random_logits(model)
    model.compile(kclf.LayerGroupOptimizer(keras.optimizers.SGD(1e-3, momentum=0.9), model))
    data = make_data(16)
    model.fit(data.train, epochs=1, verbose=0)
    scales = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales == (policy == "mixed_float16")
    photos = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    expected = model.predict(photos, verbose=0)
    assert expected.dtype == np.float32
    model.save(tmp_path / "model.h5")
    model.save(tmp_path / "model.keras")
    for loaded in (
        load(tmp_path / "model.h5", check=True),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert loaded.dtype_policy.name == policy
        assert {variable.value.device.type for variable in loaded.weights} == {device}
        np.testing.assert_allclose(loaded.predict(photos, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.heavy), pytest.param("cuda", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("precision", ["float32", "auto", "mixed_float16"])
def test_kclf_train(tmp_path, device, precision):
    for name, colour in {"blue": (40, 60, 200), "red": (200, 60, 40)}.items():
        for number in range(10):
            paint(tmp_path / "photos" / name / f"{number}.png", colour, number)
    words = ["train", tmp_path / "photos", *SMALL, "--mixed-precision", precision, "--out", tmp_path / "run"]
    with keras.device(device), pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert not stopped.value.code
    assert len(read_csv(tmp_path / "run" / "predictions.csv")) == 4
    assert load(tmp_path / "run" / "classifier.h5", check=True).class_names == ["blue", "red"]
