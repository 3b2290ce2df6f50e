"""Snapshot ensembles: means, soups, and the table that says what they gain."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import torch

from kclf.data import ImageData
from kclf.layers import side_on
from kclf.prediction.ensembles import (
    EnsembleTable,
    SnapshotEnsemble,
    average_predictions,
    average_weights,
    original_weights,
    recompute_batchnorm,
)
from kclf.prediction.predictions import Predictions

# Keras' own conversion of its tensors to numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES = ["cat", "dog", "horse"]
NUM_IMAGES = 60


def made_up(seed: int, sharpness: float = 2.0) -> Predictions:
    """Predictions that are right somewhat more often than not."""
    labels = np.arange(NUM_IMAGES) % 3
    logits = np.random.default_rng(seed).normal(size=(NUM_IMAGES, 3))
    logits[np.arange(NUM_IMAGES), labels] += 1
    exponentials = np.exp(sharpness * logits)
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype("float32")
    return Predictions(probabilities, labels, np.array([f"{i}.jpg" for i in range(NUM_IMAGES)]), CLASSES)


def log_loss(predictions: Predictions) -> float:
    right = predictions.probabilities[np.arange(NUM_IMAGES), predictions.labels]
    return float(-np.log(right).mean())


@pytest.fixture
def photos():
    """Inputs (n, 4) and labels of a linear problem, in the place of photos."""
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(NUM_IMAGES, 4)).astype("float32")
    return inputs, (inputs @ rng.normal(size=(4, 3))).argmax(axis=1)


def small_model() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(8), layers.BatchNormalization(), layers.Dense(3)]
    )


def ask(model, photos) -> Predictions:
    inputs, labels = photos
    logits = model(inputs).detach()
    return Predictions(logits.softmax(-1).numpy(force=True), labels, None, CLASSES)


@pytest.fixture
def snapshots(photos, tmp_path):
    """A model and the files of three members on its way."""
    model = small_model()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    files = []
    for cycle in range(3):
        model.fit(*photos, epochs=20, verbose=0)
        files.append(tmp_path / f"dogs_cyc_{cycle}.weights.h5")
        model.save_weights(files[-1])
    return model, files


def weights_of(model) -> list[np.ndarray]:
    return [variable.numpy().copy() for variable in model.weights]


def equal(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---- means of predictions ------------------------------------------------------------


def test_mean_of_probabilities_keeps_labels_and_paths():
    first, second = made_up(0), made_up(1)
    mean = average_predictions([first, second])
    np.testing.assert_allclose(
        mean.probabilities, (first.probabilities + second.probabilities) / 2, rtol=1e-6
    )
    assert mean.probabilities.dtype == np.float32
    assert mean.labels is first.labels
    assert mean.paths is first.paths


def test_weights_are_made_to_sum_to_one():
    first, second = made_up(0), made_up(1)
    mean = average_predictions([first, second], [3, 1])
    np.testing.assert_allclose(
        mean.probabilities, 0.75 * first.probabilities + 0.25 * second.probabilities, rtol=1e-5
    )


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [np.nan, 1]])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ValueError, match="Expected 2 weights >= 0"):
        average_predictions([made_up(0), made_up(1)], weights)


@pytest.mark.parametrize(
    "change",
    [
        {"paths": np.array([f"{i}.png" for i in range(NUM_IMAGES)])},
        {"labels": np.zeros(NUM_IMAGES, int), "paths": None},
        {"class_names": ["dog", "cat", "horse"]},
        {"probabilities": np.ones((NUM_IMAGES, 4), "float32"), "class_names": ["a", "b", "c", "d"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_predictions_of_other_photos_or_classes_are_refused(change):
    with pytest.raises(ValueError, match="same photos"):
        average_predictions([made_up(0), replace(made_up(1), **change)])


# ---- members ------------------------------------------------------------


def test_members_are_loaded_one_after_another_and_the_model_is_given_back(snapshots, photos):
    model, files = snapshots
    model.layers[0].kernel.assign(np.ones((4, 8)))
    before = weights_of(model)
    seen = {name: weights_of(model) for name in SnapshotEnsemble(model, files).members()}
    assert list(seen) == ["dogs_cyc_0", "dogs_cyc_1", "dogs_cyc_2"]
    assert not equal(seen["dogs_cyc_0"], seen["dogs_cyc_1"])
    assert equal(weights_of(model), before)


def test_the_model_is_given_back_after_an_error(snapshots):
    model, files = snapshots
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="in the middle"), original_weights(model):
        model.load_weights(files[0])
        raise RuntimeError("in the middle")
    assert equal(weights_of(model), before)


def test_ensemble_predicts_the_mean_of_its_members(snapshots, photos):
    model, files = snapshots
    alone = []
    for file in files:
        model.load_weights(file)
        alone.append(ask(model, photos).probabilities)
    ensemble = SnapshotEnsemble(model, files, [1, 2, 3]).predict(photos, predict=ask)
    np.testing.assert_allclose(
        ensemble.probabilities, np.tensordot([1 / 6, 2 / 6, 3 / 6], alone, 1), rtol=1e-5
    )


def test_files_with_one_name_in_many_folders(snapshots, tmp_path):
    model, _ = snapshots
    files = [tmp_path / f"fold{i}" / "best.weights.h5" for i in range(2)]
    for file in files:
        file.parent.mkdir()
        model.save_weights(file)
    assert list(SnapshotEnsemble(model, files).members()) == [str(file) for file in files]


def test_wrong_files_are_refused(snapshots, tmp_path):
    model, files = snapshots
    with pytest.raises(FileNotFoundError, match=r"other\.weights\.h5"):
        SnapshotEnsemble(model, [*files, tmp_path / "other.weights.h5"])
    with pytest.raises(ValueError, match="list of one or more"):
        SnapshotEnsemble(model, [])
    with pytest.raises(ValueError, match="list of one or more"):
        SnapshotEnsemble(model, str(files[0]))
    with pytest.raises(ValueError, match="each file once"):
        SnapshotEnsemble(model, [files[0], files[0]])


# ---- soups ------------------------------------------------------------


def test_average_weights_is_their_mean(snapshots):
    model, files = snapshots
    members = []
    for file in files:
        model.load_weights(file)
        members.append(weights_of(model))
    average_weights(model, files)
    for value, *alone in zip(weights_of(model), *members, strict=True):
        np.testing.assert_allclose(value, np.mean(alone, axis=0), rtol=1e-5, atol=1e-6)


def test_soup_is_never_worse_than_its_best_member(snapshots, photos):
    model, files = snapshots
    ensemble = SnapshotEnsemble(model, files)
    best = max(
        float((p.probabilities.argmax(1) == p.labels).mean())
        for p in ensemble.predict_members(photos, predict=ask).values()
    )
    soup = ensemble.soup(photos, predict=ask)
    after = ask(model, photos)
    assert soup
    assert float((after.probabilities.argmax(1) == after.labels).mean()) >= best


def test_soup_leaves_out_a_member_that_harms(snapshots, photos, tmp_path):
    model, files = snapshots
    broken = tmp_path / "broken.weights.h5"
    model.load_weights(files[-1])
    for variable in model.trainable_weights:
        variable.assign(-50 * variable.numpy())
    model.save_weights(broken)
    assert "broken" not in SnapshotEnsemble(model, [*files, broken]).soup(photos, predict=ask)


def test_recomputed_batchnorm_is_the_mean_over_the_batches():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((2,)), norm])
    batches = [np.random.default_rng(i).normal(i, 1, (32, 2)).astype("float32") for i in range(4)]
    recompute_batchnorm(model, batches)
    np.testing.assert_allclose(norm.moving_mean.numpy(), np.mean(batches, axis=(0, 1)), rtol=1e-4)
    np.testing.assert_allclose(
        norm.moving_variance.numpy(), np.mean([b.var(axis=0) for b in batches], axis=0), rtol=1e-4
    )
    assert norm.momentum == 0.99


def test_frozen_batchnorm_keeps_its_statistics():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((2,)), norm])
    norm.trainable = False
    recompute_batchnorm(model, [np.ones((4, 2), "float32") * 7])
    assert norm.moving_mean.value.tolist() == [0, 0]


# ---- the table ------------------------------------------------------------


def test_table_has_a_row_for_each_way_and_leaves_the_model_alone(snapshots, photos, tmp_path):
    model, files = snapshots
    ema = tmp_path / "ema.weights.h5"
    model.save_weights(ema)
    before = weights_of(model)
    asked = []
    table = SnapshotEnsemble(model, files).table(
        photos, ema=ema, predict=lambda *of: asked.append(of) or ask(*of)
    )
    assert len(asked) == 3 + 2 + 1 + 1  # the members, two that may join the soup, the soup, the average
    names = [row.name for row in table.rows]
    assert names[:4] == ["dogs_cyc_0", "dogs_cyc_1", "dogs_cyc_2", "mean"]
    assert names[4].startswith("soup of ")
    assert names[5] == "EMA"
    assert equal(weights_of(model), before)
    assert "Gains over dogs_cyc_2, ± one standard error, on 60 photos." in str(table)


def test_table_leaves_the_data_and_the_layers_that_draw_alone(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 3), dtype=np.uint8)
    labels = np.eye(3, dtype="float32")[np.arange(24) % 3]
    data = ImageData.from_arrays((images, labels), batch_size=4)  # several labels
    model = keras.Sequential([side_on(12, seed=1), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.add(keras.layers.BatchNormalization())
    model(images[:1])
    files = [tmp_path / f"{number}.weights.h5" for number in range(2)]
    for file in files:
        model.save_weights(file)
        model.set_weights([0.9 * weight for weight in model.get_weights()])
    before = model.layers[0].get_random_state(), data.train.state_dict()

    table = SnapshotEnsemble(model, files).table(data.valid, data.train)

    assert [row.name for row in table.rows][:3] == ["0", "1", "mean"]
    assert table.rows[3].name == "soup of 2, chosen here"
    assert torch.equal(model.layers[0].get_random_state(), before[0])
    assert data.train.state_dict() == before[1]


def test_gains_and_their_standard_errors_come_from_pairs():
    first, second = made_up(0), made_up(1)
    row = EnsembleTable.of({"first": first, "second": second}, base="first").rows[1]
    right = [p.probabilities.argmax(1) == p.labels for p in (first, second)]
    difference = right[1].astype(float) - right[0]
    assert row.accuracy_gain == pytest.approx(difference.mean())
    assert row.accuracy_error == pytest.approx(difference.std(ddof=1) / np.sqrt(NUM_IMAGES))
    assert row.log_loss == pytest.approx(log_loss(second), rel=1e-5)


def test_table_needs_labels():
    with pytest.raises(ValueError, match="labelled"):
        EnsembleTable.of({"only": replace(made_up(0), labels=None)}, base="only")
