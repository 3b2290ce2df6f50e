"""The linear probe: equal to scikit-learn, exact in the head, and at ease with few photos."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

import kclf
from kclf.errors import DataError
from kclf.models import ImageClassifier
from kclf.prediction.activation_cache import activations
from kclf.recipe import fit_linear_probe, solve_linear_probe
from kclf.recipe.linear_probe import NORM_EPSILON, photo_weights
from kclf.recipe.solving import make_folds

NAMES = ["cat", "dog", "emu"]
SIZE = 32


def features_of(num_photos=60, num_features=12, classes=3, seed=0):
    """Features that tell their classes apart, mostly."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_photos) % classes
    centres = rng.normal(size=(classes, num_features))
    return (centres[labels] + 1.5 * rng.normal(size=(num_photos, num_features))).astype(np.float32), labels


def standardised(features):
    features = features.astype(np.float64)
    variance = np.maximum(features.var(axis=0), 1e-4 * features.var(axis=0).mean())
    return (features - features.mean(axis=0)) / np.sqrt(variance + NORM_EPSILON)


def softmax(logits):
    return torch.softmax(torch.from_numpy(logits), dim=1).numpy()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("num_features", [12, 90])
@pytest.mark.parametrize("strength", [1e-3, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_is_scikit_learns(classes, num_features, strength, weighted):
    features, labels = features_of(num_features=num_features, classes=classes)
    weights = np.random.default_rng(1).uniform(0.2, 3, len(labels)) if weighted else None

    probe = solve_linear_probe(features, labels, strength=strength, weights=weights)

    z = standardised(features)
    theirs = LogisticRegression(C=strength, tol=1e-9, max_iter=10_000).fit(z, labels, sample_weight=weights)
    assert softmax(probe.outputs(features)) == pytest.approx(theirs.predict_proba(z), abs=1e-4)


def test_several_labels_are_one_regression_each():
    features, _ = features_of()
    labels = (np.random.default_rng(1).random((len(features), 4)) < 0.4).astype(np.float32)

    probe = solve_linear_probe(features, labels, task="multi_label", strength=0.1)

    z = standardised(features)
    for column in range(4):
        theirs = LogisticRegression(C=0.1, tol=1e-9, max_iter=10_000).fit(z, labels[:, column])
        ours = 1 / (1 + np.exp(-probe.outputs(features)[:, column]))
        assert ours == pytest.approx(theirs.predict_proba(z)[:, 1], abs=1e-4)


@pytest.mark.parametrize("num_features", [12, 90])
def test_numbers_are_ridge_in_their_own_units(num_features):
    features, labels = features_of(num_features=num_features)
    ages = 117 + 25 * labels + np.random.default_rng(1).normal(size=len(labels))

    probe = solve_linear_probe(features, ages, task="regression", strength=0.01)

    z = standardised(features)
    theirs = Ridge(alpha=100).fit(z, (ages - ages.mean()) / ages.std()).predict(z)
    assert probe.outputs(features)[:, 0] == pytest.approx(theirs * ages.std() + ages.mean(), abs=1e-4)


def test_views_of_a_photo_share_its_weight():
    features, labels = features_of()

    once = solve_linear_probe(features, labels, strength=0.1)
    thrice = solve_linear_probe(np.stack([features] * 3), labels, strength=0.1)

    assert thrice.outputs(features) == pytest.approx(once.outputs(features), abs=1e-4)


def test_strength_has_the_lowest_loss_on_held_out_photos():
    features, labels = features_of(num_photos=90, num_features=40)
    fresh, truth = features_of(num_photos=900, num_features=40)

    probe = solve_linear_probe(features, labels)

    def loss(strength):
        other = solve_linear_probe(features, labels, strength=strength)
        return -np.log(softmax(other.outputs(fresh))[np.arange(len(truth)), truth]).mean()

    assert loss(float(probe.strength[0])) < min(loss(1e-6), loss(1e2))
    assert len(probe.held_out) == 90
    assert 0.4 < probe.held_out.accuracy() < 1


def test_each_label_has_its_own_strength():
    features, labels = features_of(num_photos=120)
    noise = np.random.default_rng(2).random(len(labels)) < 0.5
    rows = np.stack([labels == 0, noise], axis=1).astype(np.float32)

    probe = solve_linear_probe(features, rows, task="multi_label")

    assert probe.strength[0] > probe.strength[1]


# ---- few photos, and odd ones ------------------------------------------------------------


def test_a_class_without_photos_is_unlikely_and_finite():
    features, labels = features_of(classes=2)

    probe = solve_linear_probe(features, labels, num_outputs=3, strength=0.1)

    probabilities = softmax(probe.outputs(features))[:, 2]
    assert np.isfinite(probe.outputs(features)).all()
    assert 0 < probabilities.mean() < 0.05


def test_a_class_with_one_photo_is_never_held_out():
    labels = np.array([0] * 10 + [1] * 10 + [2])
    folds = make_folds(labels, "single_label", 5)
    assert folds[-1] == -1
    assert all(sorted(np.bincount(folds[labels == c], minlength=5)) == [2] * 5 for c in (0, 1))

    probe = solve_linear_probe(features_of(21)[0], labels)
    assert len(probe.held_out) == 20


def test_two_photos_are_enough():
    probe = solve_linear_probe(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), np.array([0, 1]))

    assert probe.held_out is None
    assert probe.outputs(np.array([[0.0, 1.0], [1.0, 0.0]])).argmax(axis=1).tolist() == [0, 1]


def test_features_that_are_constant_have_no_say():
    features, labels = features_of()
    features[:, 3] = 0

    probe = solve_linear_probe(features, labels, strength=0.1)

    assert probe.kernel[3] == pytest.approx(0, abs=1e-9)
    assert np.isfinite(solve_linear_probe(np.zeros_like(features), labels).bias).all()


@pytest.mark.parametrize("of_all", [0, 1])
def test_a_label_that_all_or_none_have(of_all):
    features, labels = features_of()
    rows = np.stack([labels == 0, np.full(len(labels), of_all)], axis=1).astype(np.float32)

    probe = solve_linear_probe(features, rows, task="multi_label")

    probability = 1 / (1 + np.exp(-probe.outputs(features)[:, 1]))
    assert probability == pytest.approx((60 * of_all + 0.5) / 61, abs=1e-6)


def test_one_class_alone_is_refused():
    with pytest.raises(DataError, match=r"60 photos.* 1 of 3 classes"):
        solve_linear_probe(features_of()[0], np.zeros(60, np.int64), num_outputs=3)


# ---- in a classifier ------------------------------------------------------------


def backbone():
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, keras.layers.Conv2D(12, 8, strides=8, activation="relu")(inputs))


def classifier(task="single_label", **settings):
    names = ["value"] if task == "regression" else NAMES
    options = {"size": SIZE, "hidden": (), "normalization": "tf", "task": task} | settings
    return ImageClassifier(backbone(), names, **options)


def photos(task="single_label", num_photos=24, **options):
    rng = np.random.default_rng(0)
    labels = np.arange(num_photos) % 3
    images = rng.integers(0, 200, (num_photos, SIZE, SIZE, 3)) + 25 * labels[:, None, None, None]
    known = {
        "single_label": labels,
        "multi_label": (labels[:, None] == np.arange(3)).astype(np.float32),
        "regression": (50.0 + 10 * labels).astype(np.float32),
    }[task]
    names = () if task == "regression" else NAMES
    return kclf.ImageDataset(
        images.astype(np.uint8), known, class_names=names, task=task, presize=SIZE, batch_size=8, **options
    )


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_the_solution_is_in_the_head_exactly(task, tmp_path):
    model, dataset = classifier(task), photos(task)

    probe = fit_linear_probe(model, dataset)

    features = activations(model, dataset, tmp_path, progress=False).features[0]
    assert model.predict(dataset, verbose=0) == pytest.approx(probe.outputs(features), abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("settings", [{"hidden": (5,)}, {"bias": False}, {"hidden": (5, 4), "bias": True}])
def test_heads_of_other_shapes(settings):
    model, dataset = classifier(**settings), photos()
    before = kclf.predict(model, dataset).log_loss()

    fit_linear_probe(model, dataset, strength=1.0)

    assert kclf.predict(model, dataset).log_loss() < before


def test_a_saved_probe_answers_the_same(tmp_path):
    data = photos("regression")
    model = ImageClassifier("MobileNet_025", ["value"], size=32, weights=None, task="regression", hidden=())
    fit_linear_probe(model, data, strength=0.01)
    model.save(tmp_path / "a.h5")

    loaded = kclf.load(tmp_path / "a.h5", check=True)

    assert loaded.predict(data, verbose=0) == pytest.approx(model.predict(data, verbose=0), rel=1e-5)


def test_views_are_learnt_from_too():
    model = classifier(augmentation=kclf.aug_transforms(size=SIZE))
    probe = fit_linear_probe(model, photos(), views=3, strength=0.1)
    plain = fit_linear_probe(model, photos(), strength=0.1)

    assert not np.allclose(probe.kernel, plain.kernel)
    with pytest.raises(ValueError, match="Received: views=1"):
        fit_linear_probe(model, photos(), views=1)


def test_weights_of_classes_and_draws_count():
    dataset = photos(class_weight={"cat": 2.0, "dog": 1.0, "emu": 1.0}, num_photos=6)
    assert photo_weights(dataset).tolist() == [2, 1, 1, 2, 1, 1]
    drawn = photos(sampling_weights=np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1]), num_photos=6)
    assert photo_weights(drawn) == pytest.approx([3, 0.6, 0.6, 0.6, 0.6, 0.6])


def test_the_last_layer_of_any_keras_model():
    features, labels = features_of()
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(3, activation="softmax")])

    probe = fit_linear_probe(model, (features, labels), strength=0.1)

    assert model.predict(features, verbose=0) == pytest.approx(softmax(probe.outputs(features)), abs=1e-5)
    with pytest.raises(TypeError, match="last layer Flatten"):
        fit_linear_probe(keras.Sequential([keras.Input((12,)), keras.layers.Flatten()]), (features, labels))


def test_photos_without_labels_are_refused():
    images = np.zeros((4, SIZE, SIZE, 3), np.uint8)
    with pytest.raises(DataError, match="photos with labels"):
        fit_linear_probe(classifier(), kclf.ImageDataset(images, presize=SIZE, class_names=NAMES))
