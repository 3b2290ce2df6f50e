"""Several levels of a backbone: what they are, that every use of a classifier takes them, and who chooses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import kclf
from kclf.backbones import build_backbone, has_levels, multi_level, split_backbone
from kclf.errors import BackboneError
from kclf.layers import ConcatPooling
from kclf.models.clone import clone_with
from kclf.prediction.activation_cache import precompute
from kclf.recipe.budget import MOST_FOR_LEVELS, Speed, make_plan
from tests.conftest import with_random_logits

FAMILIES = ["MobileNetV2", "ResNet50", "EfficientNetLite0", "EfficientNetV2B0", "VGG16", "ConvNeXtV2Atto"]
SIZE = 64


def digits(count, first=0, side=SIZE):
    """Photos of scikit-learn's digits, uint8 (10 count, side, side, 3), and their labels."""
    bunch = load_digits()
    rows = np.concatenate([np.flatnonzero(bunch.target == d)[first : first + count] for d in range(10)])
    images = (255 - bunch.images[rows] * (255 / 16)).astype(np.uint8)
    return images.repeat(side // 8, 1).repeat(side // 8, 2)[..., None].repeat(3, -1), bunch.target[rows]


NAMES = [str(digit) for digit in range(10)]


def dataset(count=6, **options):
    images, labels = digits(count, **options)
    return kclf.ImageDataset(images, labels, class_names=NAMES, presize=SIZE, batch_size=16)


@pytest.fixture
def leveled():
    model = kclf.ImageClassifier("EfficientNetLite0", NAMES, size=SIZE, hidden=(), multi_level=True)
    return with_random_logits(model)


# ---- the levels ------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_are_the_same_at_every_size_and_end_with_the_backbone_s_own(name):
    widths = set()
    for side in (64, 96):
        body = build_backbone(name, weights=None, input_shape=(side, side, 3))
        made = multi_level(body)
        widths.add(made.output_shape)
        assert [*map(id, made.weights)] == [*map(id, body.weights)]
        assert [*map(len, split_backbone(made, name))] == [*map(len, split_backbone(body, name))]
    photos = torch.rand(2, 96, 96, 3)
    own = ConcatPooling()(body(photos))
    assert len(widths) == 1
    torch.testing.assert_close(made(photos)[:, -own.shape[1] :], own)


def test_maps_that_are_pooled_are_the_last_of_their_resolution():
    body = build_backbone("MobileNetV2", weights=None, input_shape=(64, 64, 3))
    pooled = [layer for layer in multi_level(body).layers if isinstance(layer, ConcatPooling)]
    assert [layer.input.shape[1] for layer in pooled] == [32, 16, 8, 4, 2]
    assert [layer.input.shape[3] for layer in pooled] == [96, 144, 192, 576, 1280]


def test_what_has_no_levels_is_refused(monkeypatch):
    inputs = keras.Input((32, 32, 3))
    flat = keras.Model(inputs, keras.layers.Conv2D(4, 3, padding="same")(inputs))
    for body in (build_backbone("MobileNetV2", weights=None), flat):
        assert not has_levels(body)
        with pytest.raises(BackboneError, match="ends in a map"):
            multi_level(body)
    with pytest.raises(BackboneError, match="InceptionV3"):
        multi_level(build_backbone("InceptionV3", weights=None, input_shape=(96, 96, 3)))
    with pytest.raises(ValueError, match=r"kclf\.backbones\.multi_level\(backbone\)"):
        kclf.ImageClassifier(flat, ["a", "b"], size=32, normalization="tf", multi_level=True)


def test_a_backbone_of_ones_own_with_levels(tmp_path):
    inputs = x = keras.Input((32, 32, 3))
    for width in (4, 8):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="relu")(x)
    backbone = multi_level(keras.Model(inputs, x))
    model = with_random_logits(
        kclf.ImageClassifier(backbone, ["a", "b"], size=32, normalization="tf", hidden=())
    )
    assert model.backbone.output_shape == (None, 24)
    model.save(tmp_path / "model.keras")
    photos = digits(1, side=32)[0]
    found = kclf.predict(kclf.load(tmp_path / "model.keras"), photos).probabilities
    np.testing.assert_allclose(found, kclf.predict(model, photos).probabilities, atol=1e-6)


# ---- in use ------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.h5", "model.keras"])
def test_saved_and_read_back(leveled, file, tmp_path):
    leveled.save(tmp_path / file)
    again = kclf.load(tmp_path / file, check=True)
    assert again.multi_level
    expected = kclf.predict(leveled, dataset()).probabilities
    assert expected.std() > 1e-3
    np.testing.assert_allclose(kclf.predict(again, dataset()).probabilities, expected, atol=1e-6)


def test_keras_computes_the_same(leveled):
    photos, expected = digits(1)[0], kclf.predict(leveled, digits(1)[0]).probabilities
    stock = clone_with(leveled, accelerate=False)
    np.testing.assert_allclose(kclf.predict(stock, photos).probabilities, expected, atol=1e-5)


def test_read_at_another_size(leveled):
    larger = clone_with(leveled, size=96)
    assert larger.multi_level
    assert larger.features(torch.rand(1, 96, 96, 3) * 255).shape == (1, 4864)


def test_grad_cam(leveled):
    maps = kclf.grad_cam(leveled, digits(1)[0][:3]).maps
    assert maps.shape == (3, 2, 2)
    assert maps.max() == pytest.approx(1.0)


def test_precomputed_activations_are_its_features(leveled, tmp_path):
    data = kclf.ImageData(dataset(), dataset(2, first=6), size=SIZE)
    cached = precompute(leveled, data, tmp_path)
    with torch.no_grad():
        expected = leveled.features(torch.from_numpy(digits(6)[0]))
    np.testing.assert_allclose(cached.train.features[0], expected.cpu(), rtol=1e-4, atol=1e-4)


def test_number_formats(leveled):
    half = clone_with(leveled, dtype="mixed_bfloat16")
    probabilities = [kclf.predict(model, digits(1)[0][:2]).probabilities for model in (leveled, half)]
    assert half.backbone.compute_dtype == "bfloat16"
    np.testing.assert_allclose(*probabilities, atol=0.2)


def test_everything_trains():
    model = kclf.ImageClassifier("EfficientNetLite0", NAMES, size=SIZE, hidden=(16,), multi_level=True)
    model.unfreeze()
    model.compile(keras.optimizers.AdamW(1e-4))
    before = [variable.numpy() for variable in model.backbone.trainable_variables]
    losses = model.fit(dataset(), epochs=2, verbose=0).history["loss"]
    after = [variable.numpy() for variable in model.backbone.trainable_variables]
    assert np.isfinite(losses).all()
    assert np.mean([(a != b).any() for a, b in zip(after, before, strict=True)]) > 0.9


def test_early_maps_are_pooled_before_the_next_level_and_may_go(leveled):
    kclf.predict(leveled, digits(1)[0])
    plan = leveled.backbone.call.plan
    assert plan.fallback == []
    for steps in (plan.steps, plan.packed_steps):
        ranks = [len(plan.graph.values[step.targets[0]].shape) for step in steps]
        places = [number for number, rank in enumerate(ranks) if rank == 2]
        assert len(places) == 6  # five levels, side by side
        assert places[0] < len(steps) / 3


# ---- the recipe ------------------------------------------------------------


def quick_learner(data, folder):
    """A learner of the packaged backbone after `fit_best(effort="quick")`, and what that found."""
    data = kclf.ImageData(data, size=SIZE)
    learner = kclf.Learner(data, "EfficientNetLite0", hidden=(), path=folder, verbose=False)
    return learner, learner.fit_best(effort="quick")


def test_folds_choose_several_levels_for_drawings(tmp_path):
    learner, found = quick_learner(dataset(8), tmp_path)
    last = kclf.fit_linear_probe(clone_with(learner.model, multi_level=False), dataset(8))
    assert learner.model.multi_level
    assert learner.model is found.model
    assert found.probe.held_out.log_loss() < 0.9 * last.held_out.log_loss()
    assert kclf.predict(learner.model, dataset(20, first=8)).accuracy() > 0.6

    learner.unfreeze()
    assert np.isfinite(learner.fit_one_cycle(1, 1e-5).history["loss"]).all()
    learner.save("drawings")
    probabilities = learner.predictions("train").probabilities
    learner.load("drawings")
    np.testing.assert_array_equal(learner.predictions("train").probabilities, probabilities)


def test_folds_keep_the_last_map_for_photos(dogscats, tmp_path):
    files = [sorted(dogscats.rglob(f"{kind}.*.jpg"))[:12] for kind in ("cat", "dog")]
    photos = kclf.ImageDataset(
        [*map(str, files[0] + files[1])], [0] * 12 + [1] * 12, class_names=["cat", "dog"], presize=SIZE
    )
    learner, _ = quick_learner(photos, tmp_path)
    assert not learner.model.multi_level


def test_trained_again_on_all_photos():
    data = kclf.ImageData(dataset(6), dataset(2, first=6), size=SIZE)
    model = kclf.ImageClassifier("EfficientNetLite0", NAMES, size=SIZE, hidden=())
    found = kclf.fit_best(model, data, effort="quick", refit=True, say=lambda line: None)
    assert found.model.multi_level
    assert found.refitted_on == 80


@pytest.mark.parametrize(
    ("backbone", "options", "expected"),
    [
        ("MobileNetV2", {"hidden": ()}, True),
        ("MobileNetV2", {"hidden": (8,)}, False),
        ("MobileNetV2", {"hidden": (), "multi_level": True}, False),
        ("InceptionV3", {"hidden": ()}, False),
    ],
)
def test_levels_are_tried_where_the_last_layer_is_all_there_is(backbone, options, expected):
    model = kclf.ImageClassifier(backbone, NAMES, size=96, weights=None, **options)
    plan = kclf.recipe.plan_best(model, kclf.ImageData(dataset(2), size=SIZE), effort="quick")
    assert plan.multi_level is expected
    assert ("of several" in plan.describe(96)) is expected


def test_many_photos_are_not_solved_twice(monkeypatch):
    data = kclf.ImageData(dataset(2), size=SIZE)
    assert make_plan(data, Speed(0.01), multi_level=True).multi_level
    monkeypatch.setattr("kclf.recipe.budget.MOST_FOR_LEVELS", 10)
    assert not make_plan(data, Speed(0.01), multi_level=True).multi_level
    assert MOST_FOR_LEVELS >= 1000
