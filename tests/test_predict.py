from __future__ import annotations

import csv
from dataclasses import replace

import keras
import numpy as np
import pytest
import torch

from kclf.data import ImageDataset
from kclf.layers import Augmentation, aug_transforms, side_on
from kclf.prediction.inference import predict
from kclf.prediction.predictions import Predictions
from kclf.prediction.tta import average_views, predict_tta

CLASSES = ["cat", "dog", "owl"]


class Batches:
    """A dataset of pictures in a fixed order, as small as it can be."""

    def __init__(self, pictures, labels=None, batch_size=4, task="single_label", readable=None):
        self.pictures, self.labels, self.batch_size, self.task = pictures, labels, batch_size, task
        self.class_names = CLASSES
        self.paths = np.array([f"photo{i}.jpg" for i in range(len(pictures))])
        self.passes = 0
        if readable is not None:
            self.readable = readable

    def __iter__(self):
        self.passes += 1
        for start in range(0, len(self.pictures), self.batch_size):
            rows = slice(start, start + self.batch_size)
            pictures = torch.from_numpy(self.pictures[rows])
            yield (pictures,) if self.labels is None else (pictures, torch.from_numpy(self.labels[rows]))


def pictures(count=10):
    return np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), dtype="uint8")


def classifier(**augmentation):
    return keras.Sequential(
        [
            Augmentation(12, **augmentation),
            keras.layers.Rescaling(1 / 64),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


LABELS = np.arange(10) % 3


def test_rows_stand_beside_their_labels_paths_and_names():
    data = Batches(pictures(), LABELS)
    model = classifier()

    predictions = predict(model, data)

    assert len(predictions) == 10
    np.testing.assert_array_equal(predictions.labels, LABELS)
    np.testing.assert_array_equal(predictions.paths, data.paths)
    assert predictions.class_names == CLASSES
    logits = torch.as_tensor(model(pictures(), training=False)).cpu()
    np.testing.assert_allclose(predictions.probabilities, logits.softmax(1).detach(), atol=1e-6)


def test_plain_arrays_and_labels_from_the_batches():
    model = classifier()
    from_array = predict(model, pictures())
    from_batches = predict(model, [(pictures()[:6], LABELS[:6]), (pictures()[6:], LABELS[6:])])
    np.testing.assert_allclose(from_array.probabilities, from_batches.probabilities, atol=1e-6)
    np.testing.assert_array_equal(from_batches.labels, LABELS)
    assert from_array.labels is from_array.paths is None


def test_tasks_have_their_own_last_step():
    model = classifier()
    logits = torch.as_tensor(model(pictures(), training=False)).detach().cpu()
    many = predict(model, Batches(pictures(), task="multi_label"))
    numbers = predict(model, Batches(pictures(), task="regression"))
    np.testing.assert_allclose(many.probabilities, logits.sigmoid(), atol=1e-6)
    np.testing.assert_allclose(numbers.probabilities, logits, atol=1e-6)


def test_probabilities_from_the_model_are_kept():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")])
    predictions = predict(model, pictures().astype("float32") / 255, from_logits=False)
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, atol=1e-5)


def test_unreadable_photos_have_no_row():
    readable = np.ones(10, bool)
    readable[3] = False
    predictions = predict(classifier(), Batches(pictures(), LABELS, readable=readable))
    assert len(predictions) == 9
    assert "photo3.jpg" not in predictions.paths
    np.testing.assert_array_equal(predictions.labels, LABELS[readable])


def test_a_shuffled_dataset_is_read_in_order():
    class Shuffled(Batches):
        shuffle = True

        def replace(self, **changes):
            self.changes = changes
            return Batches(self.pictures, self.labels)

    data = Shuffled(pictures()[::-1].copy(), LABELS)
    predict(classifier(), data)
    assert data.changes["shuffle"] is False
    assert data.passes == 0


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="an empty dataset"):
        predict(classifier(), [])


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"probabilities": np.zeros(3)}, r"probabilities.shape=\(3,\)"),
        ({"labels": np.zeros(4, int)}, "4 labels"),
        ({"paths": np.array(["a"])}, "1 paths"),
        ({"class_names": ["a"]}, "1 class_names"),
        ({"task": "other"}, "task='other'"),
        ({"labels": np.array([0, 1, 3])}, "labels from 0 to 3"),
        ({"labels": np.array([0.5, 1, 2])}, "type float64"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, fact):
    with pytest.raises(ValueError, match=fact):
        Predictions(**{"probabilities": np.full((3, 3), 1 / 3)} | arguments)


def predictions_of_three() -> Predictions:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.4, 0.3]])
    return Predictions(probabilities, np.array([0, 1, 2]), np.array(["a.jpg", "b, c.jpg", "d.jpg"]), CLASSES)


def test_scores():
    predictions = predictions_of_three()
    assert predictions.accuracy() == pytest.approx(2 / 3)
    assert predictions.log_loss() == pytest.approx(-np.log([0.7, 0.5, 0.3]).mean())


def test_scores_of_several_labels():
    predictions = Predictions(
        np.array([[0.9, 0.2], [0.4, 0.6]]), np.array([[1.0, 0], [1, 0]]), task="multi_label"
    )
    assert predictions.accuracy() == pytest.approx(0.5)
    assert predictions.log_loss() == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.4]).mean())


def test_without_labels_there_is_no_score():
    with pytest.raises(ValueError, match="labels=None"):
        replace(predictions_of_three(), labels=None).accuracy()


def test_csv_has_a_line_for_each_photo(tmp_path):
    predictions_of_three().to_csv(tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == ["a.jpg", "b, c.jpg", "d.jpg"]
    assert rows[2] == {
        "path": "d.jpg", "label": "owl", "predicted": "dog", "confidence": "0.4",
        "cat": "0.3", "dog": "0.4", "owl": "0.3",
    }  # fmt: skip


def test_csv_without_labels_and_files(tmp_path):
    many = Predictions(np.array([[0.9, 0.8, 0.1]]), class_names=CLASSES, task="multi_label")
    many.to_csv(tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "path,predicted,confidence,cat,dog,owl",
        "0,cat;dog,0.9,0.9,0.8,0.1",
    ]


# Test-time augmentation


def test_the_weight_is_that_of_the_plain_view(golden):
    averaged = average_views(np.array([[0.9, 0.1]]), [np.array([[0.6, 0.4]])] * 4)
    assert averaged[0, 0] == pytest.approx(golden["tta lerp(aug=.6,plain=.9,beta=.25)"])


def test_geometric_is_the_mean_of_the_logarithms():
    plain, other = np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])
    raw = np.exp(0.25 * np.log(plain) + 0.75 * np.log(other))
    np.testing.assert_allclose(average_views(plain, [other], 0.25, "geometric"), raw / raw.sum(), rtol=1e-5)


def test_geometric_for_independent_columns_is_the_mean_of_the_logits():
    plain, other = np.array([[0.9]]), np.array([[0.2]])
    logit = 0.5 * np.log(0.9 / 0.1) + 0.5 * np.log(0.2 / 0.8)
    averaged = average_views(plain, [other], 0.5, "geometric", "multi_label")
    np.testing.assert_allclose(averaged, [[1 / (1 + np.exp(-logit))]], rtol=1e-5)


def test_max_takes_the_largest_of_each_column():
    averaged = average_views(np.array([[0.9, 0.1]]), [np.array([[0.4, 0.6]])], average="max")
    np.testing.assert_allclose(averaged, [[0.9 / 1.5, 0.6 / 1.5]], rtol=1e-5)


STRONG = {"flip": "horizontal", "max_rotate": 20, "min_scale": 0.4, "max_lighting": 0.4}


def test_random_views_are_the_training_augmentation():
    model, data = classifier(**STRONG), Batches(pictures(), LABELS, batch_size=10)
    drawing = Augmentation(12, **STRONG, seed=5)
    views = [predict(model, drawing(pictures(), training=True)).probabilities for _ in range(2)]
    plain = predict(model, data).probabilities

    averaged = predict_tta(model, data, 2, seed=5)

    np.testing.assert_allclose(
        averaged.probabilities, 0.25 * plain + 0.375 * (views[0] + views[1]), atol=1e-5
    )
    assert data.passes == 2  # each photo was read once by each of the two


def test_same_seed_same_result_and_training_is_not_disturbed():
    model, data = classifier(**STRONG), Batches(pictures(), LABELS)
    state = model.layers[0].get_random_state()
    first, second = predict_tta(model, data), predict_tta(model, data)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert torch.equal(state, model.layers[0].get_random_state())
    assert not np.array_equal(first.probabilities, predict_tta(model, data, seed=1).probabilities)


@pytest.mark.parametrize(
    ("views", "count"), [("random", 3), ("flip", 1), ("five_crops", 10), ("dihedral", 7)]
)
@pytest.mark.parametrize("average", ["arithmetic", "geometric", "max"])
def test_every_set_of_views_gives_probabilities_and_their_gain(views, count, average):
    data = Batches(pictures(), LABELS)
    plain = predict(model := classifier(**STRONG), data)

    averaged = predict_tta(model, data, 3, views=views, average=average)

    np.testing.assert_allclose(averaged.probabilities.sum(1), 1, atol=1e-5)
    gain = averaged.tta
    assert gain.views == count
    assert gain.accuracy == pytest.approx(averaged.accuracy() - plain.accuracy())
    assert gain.log_loss == pytest.approx(averaged.log_loss() - plain.log_loss(), abs=1e-6)
    assert gain.accuracy_error >= 0
    assert gain.cost > 1
    assert f"{count} views" in str(gain)


def test_flip_is_the_mirrored_picture():
    model = classifier()
    mirrored = predict(model, pictures()[:, :, ::-1].copy()).probabilities
    plain = predict(model, pictures()).probabilities
    averaged = predict_tta(model, pictures(), views="flip")
    np.testing.assert_allclose(averaged.probabilities, (plain + mirrored) / 2, atol=2e-3)


def test_a_symmetric_model_gains_nothing_from_symmetries():
    model = keras.Sequential([Augmentation(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    plain = predict(model, pictures()).probabilities
    averaged = predict_tta(model, pictures(), views="dihedral").probabilities
    np.testing.assert_allclose(averaged, plain, atol=1e-4)


def test_the_model_may_come_without_augmentation():
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    assert predict_tta(model, pictures(), augmentation=side_on(12)).tta.accuracy is None
    with pytest.raises(ValueError, match="no `Augmentation` to draw views from"):
        predict_tta(model, pictures())


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"n": 0}, "n=0"),
        ({"views": "nine"}, "views='nine'"),
        ({"average": "median"}, "average='median'"),
        ({"weight": 2}, "weight=2"),
    ],
)
def test_bad_arguments_are_refused(arguments, fact):
    with pytest.raises(ValueError, match=f"Received: {fact}"):
        predict_tta(classifier(flip="horizontal"), pictures(), **arguments)


def test_numbers_are_averaged_arithmetically_or_not_at_all():
    data, model = Batches(pictures(), task="regression"), classifier(flip="horizontal")
    predict_tta(model, data, 1)
    with pytest.raises(ValueError, match="average='max'"):
        predict_tta(model, data, 1, average="max")


def test_views_that_are_all_the_plain_one_are_told():
    with pytest.warns(UserWarning, match="draws nothing"):
        predict_tta(classifier(interpolation="bicubic", p_affine=0.5), pictures())
    predict_tta(classifier(), pictures(), views="flip")


@pytest.mark.parametrize("options", [{"drop_last": True}, {"sampling_weights": "balanced"}])
def test_every_photo_is_predicted_however_training_loads_them(options):
    labels = np.array([0] * 7 + [1] * 3)
    dataset = ImageDataset(pictures(), labels, class_names="ab", presize=16, batch_size=4, **options)
    model = keras.Sequential([Augmentation(12), keras.layers.Flatten(), keras.layers.Dense(2)])
    assert predict(model, dataset).labels.tolist() == labels.tolist()


def test_one_output_is_no_choice_between_classes():
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="one output a class"):
        predict(model, pictures())


def test_a_table_of_numbers_has_no_confidence(tmp_path):
    numbers = Predictions(np.array([[34.25]]), np.array([30.0]), task="regression", class_names=["age"])
    numbers.to_csv(tmp_path / "ages.csv")
    assert (tmp_path / "ages.csv").read_text().split() == ["path,label,predicted,age", "0,30,34.25,34.25"]


def test_images_in_memory_have_no_files():
    dataset = ImageDataset(pictures(), LABELS, class_names=CLASSES, presize=16)
    assert predict(classifier(), dataset).paths is None


def test_a_gain_has_the_standard_error_of_its_differences():
    data = Batches(pictures(200), np.arange(200) % 3)
    model = classifier()
    plain, averaged = predict(model, data), predict_tta(model, data, augmentation=aug_transforms(12))
    right = (averaged.predicted == averaged.labels).astype(float) - (plain.predicted == plain.labels)
    assert averaged.tta.accuracy_error == pytest.approx(right.std(ddof=1) / 200**0.5)
