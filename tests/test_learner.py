"""The course's commands on small photos: what each does, and what it says when it cannot."""

from __future__ import annotations

import csv
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from PIL import Image

import kclf
import kclf.metrics as figures
from kclf._core.devices import keras_device
from kclf.acceleration import is_accelerated
from kclf.callbacks.snapshots import BestModel, better_direction
from kclf.data import ImageData
from kclf.data.mixed_dataset import mixed
from kclf.errors import DataError, TrainingError, WeightsError
from kclf.fastai import CourseLearner
from kclf.layers import side_on
from kclf.learner import Learner, Training, cross_validate, load_learner
from kclf.losses import BinaryCrossEntropy, CrossEntropy
from kclf.models import ImageClassifier
from kclf.prediction.inference import predict, predict_files
from kclf.prediction.predictions import Predictions

SIZE = 16


def tiny_backbone() -> keras.Model:
    layers = keras.layers
    images = keras.Input((None, None, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same")(images)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(images, x)


def photos(number: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Noise with a hint of colour: cats are red, dogs are blue."""
    pixels = np.random.default_rng(seed).integers(0, 128, (number, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[::2, ..., 0] += 60
    pixels[1::2, ..., 2] += 60
    return pixels, ["cat", "dog"] * (number // 2)


def make_data(number: int = 40, **changes) -> ImageData:
    return ImageData.from_arrays(photos(number), **({"batch_size": 8} | changes))


def make_learner(tmp_path, data=None, **changes) -> Learner:
    settings = {"normalization": "tf", "hidden": (8,), "path": tmp_path, "verbose": False}
    return Learner(data or make_data(), tiny_backbone(), **(settings | changes))


@pytest.fixture
def learner(tmp_path):
    return make_learner(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Photos in class folders, and a test folder without labels."""
    pixels, names = photos(30)
    for number, (photo, name) in enumerate(zip(pixels, names, strict=True)):
        place = tmp_path / "photos" / "train" / name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(place / f"{number:02}.png")
    test = tmp_path / "photos" / "test"
    test.mkdir()
    for number, photo in enumerate(photos(6, seed=1)[0]):
        Image.fromarray(photo).save(test / f"t{number}.png")
    return tmp_path / "photos"


def head_weights(learner) -> list[np.ndarray]:
    return [w.numpy().copy() for w in learner.model.head.weights]


def backbone_weights(learner) -> list[np.ndarray]:
    return [w.numpy().copy() for w in learner.model.backbone.weights]


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---- fit ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ({"n_cycle": 2}, 2),
        ({"n_cycle": 2, "cycle_len": 1}, 2),
        ({"n_cycle": 3, "cycle_len": 1, "cycle_mult": 2}, 7),
        ({"n_cycle": 2, "cycle_len": 2, "cycle_mult": 1}, 4),
    ],
)
def test_fit_runs_the_cycles(learner, arguments, epochs):
    history = learner.fit(1e-2, **arguments)
    assert len(history.history["val_accuracy"]) == epochs


def test_without_cycles_the_rate_is_constant(learner):
    learner.fit(1e-2, 2)
    np.testing.assert_allclose(learner.recorder.learning_rates, 1e-2)


def test_cycles_restart_at_the_full_rate(learner):
    learner.fit(1e-2, 3, cycle_len=1, cycle_mult=2)
    rates = np.array(learner.recorder.learning_rates)
    steps = len(learner.data.train)
    assert len(rates) == 7 * steps
    np.testing.assert_allclose(rates[[0, steps, 3 * steps]], 1e-2, rtol=1e-5)
    assert rates[[steps - 1, 3 * steps - 1, 7 * steps - 1]].max() < 1e-2 / 2


def test_triangular_cycles(learner):
    learner.fit(1e-2, 2, cycle_len=2, use_clr=(10, 4, 0.95, 0.85))
    rates = np.array(learner.recorder.learning_rates)
    assert rates[0] == pytest.approx(1e-3)
    assert rates[2] == pytest.approx(1e-2)
    assert rates[8] == pytest.approx(1e-3)
    assert min(learner.recorder.momentums) == pytest.approx(0.85)


def test_each_group_has_its_rate(learner):
    learner.unfreeze()
    learner.fit([0.0, 1e-2], 1, wds=0.0)
    first = backbone_weights(learner)
    learner.fit([1e-2, 1e-2], 1)
    assert not same(first, backbone_weights(learner))


def test_a_rate_of_zero_moves_nothing(learner):
    learner.unfreeze()
    kernel = backbone_weights(learner)[0]
    learner.fit([0.0, 1e-2], 1)
    assert np.array_equal(kernel, backbone_weights(learner)[0])


def test_wrong_number_of_rates_names_both(learner):
    with pytest.raises(ValueError, match="2 groups, 3 values"):
        learner.fit([1e-4, 1e-3, 1e-2], 1)


@pytest.mark.parametrize("wds", [0.1, [0.0, 0.1]])
def test_weight_decay_by_group(learner, wds):
    learner.fit(1e-3, 1, wds)
    optimizer = learner.model.optimizer
    assert optimizer.inner_optimizer.weight_decay == pytest.approx(0.1)
    assert optimizer.weight_decay_multipliers[0] == (1.0 if wds == 0.1 else 0.0)


def test_wrong_number_of_weight_decays_names_both(learner):
    with pytest.raises(ValueError, match="2 layer groups"):
        learner.fit(1e-3, 1, [0.1, 0.1, 0.1])


def test_fit_on_three_batches_and_on_fewer_photos_than_a_batch(tmp_path):
    three = make_learner(tmp_path, make_data(30, batch_size=8))
    assert len(three.data.train) == 3
    three.fit(1e-2, 1, cycle_len=1)
    assert len(three.recorder.losses) == 3
    less = make_learner(tmp_path, make_data(20, batch_size=64))
    less.fit(1e-2, 2, cycle_len=1)
    assert len(less.recorder.losses) == 2


# ---- snapshots, the best model, files ------------------------------------------------------------


def test_snapshots_exist_after_exactly_1_3_and_7_epochs(learner, tmp_path):
    counts = []
    counting = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: counts.append(len(list((tmp_path / "models").glob("*_cyc_*"))))
    )
    learner.fit(1e-2, 3, cycle_len=1, cycle_mult=2, cycle_save_name="dogs", callbacks=[counting])
    assert counts == [0, 1, 1, 2, 2, 2, 2]
    names = sorted(file.name for file in (tmp_path / "models").iterdir())
    assert names == [f"dogs_cyc_{cycle}.weights.h5" for cycle in range(3)]


def test_the_last_snapshot_is_the_model_as_it_stands(learner):
    learner.fit(1e-2, 2, cycle_len=1, cycle_save_name="dogs")
    before = head_weights(learner)
    learner.load_cycle("dogs", 0)
    assert not same(before, head_weights(learner))
    learner.load_cycle("dogs", 1)
    assert same(before, head_weights(learner))


def test_snapshots_are_an_ensemble(learner):
    learner.fit(1e-2, 3, cycle_len=1, cycle_save_name="dogs")
    ensemble = learner.snapshots("dogs", last=2)
    assert list(ensemble.members()) == ["dogs_cyc_1", "dogs_cyc_2"]
    assert "Gains over dogs_cyc_2" in str(ensemble.table(learner.data.valid, learner.data.train))


def test_snapshots_of_precomputed_fits_hold_the_whole_classifier(tmp_path):
    learner = make_learner(tmp_path, precompute=True)
    learner.fit(1e-2, 2, cycle_len=1, cycle_save_name="dogs")
    learner.precompute = False
    learner.load_cycle("dogs", 1)
    assert len(learner.snapshots("dogs").predict(learner.data.valid)) == 8


def test_snapshots_of_an_earlier_fit_make_way(learner):
    learner.fit(1e-2, 3, cycle_len=1, cycle_save_name="dogs")
    learner.fit(1e-2, 2, cycle_len=1, cycle_save_name="dogs")
    assert list(learner.snapshots("dogs").members()) == ["dogs_cyc_0", "dogs_cyc_1"]


def test_snapshots_need_cycles(learner):
    with pytest.raises(ValueError, match="cycle_len=None"):
        learner.fit(1e-2, 2, cycle_save_name="dogs")


@pytest.mark.parametrize(
    ("monitor", "direction"),
    [("val_accuracy", "max"), ("val_loss", "min"), ("val_error_rate", "min"), ("val_mae", "min")],
)
def test_direction_of_metrics(monitor, direction):
    assert better_direction(monitor) == direction


def test_direction_of_a_metric_that_knows_its_own(learner):
    metric = figures.ErrorRate(name="misses")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(loss="mse", metrics=[metric])
    model.evaluate(np.zeros((1, 2)), np.zeros((1, 2)), verbose=0)
    assert better_direction("val_misses", model) == "min"


class Script(keras.callbacks.Callback):
    """Puts figures of our choice in the place of those of a run."""

    def __init__(self, name, values):
        super().__init__()
        self.name, self.values = name, values

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


@pytest.mark.parametrize(
    ("name", "values", "best"), [("val_accuracy", [0.5, 0.9, 0.7], 1), ("val_loss", [0.5, 0.9, 0.7], 0)]
)
def test_best_model_is_loaded_in_the_end(learner, name, values, best):
    weights = []
    keeping = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda e, logs: weights.append(head_weights(learner))
    )
    saver = learner.best_model("best", monitor=name)
    learner.fit(1e-2, 3, callbacks=[Script(name, values), keeping, saver])
    assert saver.best_epoch == best
    assert same(head_weights(learner), weights[best])


def test_patience_stops_early(learner):
    saver = learner.best_model(monitor="val_accuracy", patience=2)
    history = learner.fit(
        1e-2, 9, callbacks=[Script("val_accuracy", [0.5, 0.9, 0.8, 0.9, 1, 1, 1, 1, 1]), saver]
    )
    assert len(history.history["loss"]) == 4


def test_best_save_name(learner, tmp_path):
    learner.fit(1e-2, 2, best_save_name="best")
    assert (tmp_path / "models" / "best.weights.h5").is_file()


def test_a_figure_that_fit_does_not_log(learner):
    with pytest.raises(TrainingError, match="'val_f1', only: "):
        learner.fit(1e-2, 1, callbacks=[BestModel("best.weights.h5", monitor="val_f1")])


def named_learner(tmp_path, **changes) -> Learner:
    data = ImageData.from_arrays((np.zeros((20, 32, 32, 3), np.uint8), ["cat", "dog"] * 10), batch_size=8)
    return Learner(data, "MobileNet_025", weights=None, path=tmp_path, verbose=False, **changes)


def test_save_load_export(tmp_path):
    keras.utils.set_random_seed(0)
    learner = named_learner(tmp_path)
    assert learner.save("224_lastlayer") == tmp_path / "models" / "224_lastlayer.h5"
    expected = learner.predict()
    other = named_learner(tmp_path).load("224_lastlayer")
    np.testing.assert_allclose(other.predict(), expected, rtol=1e-4, atol=1e-5)
    exported = load_learner(learner.export())
    assert load_learner(learner.export(), learner.data.replace(size=48)).model.size == 48
    photo = np.full((40, 50, 3), 99, np.uint8)
    name, number, probabilities = exported.predict(photo)
    assert exported.model.class_names[number] == name
    np.testing.assert_allclose(probabilities, learner.predict(photo)[2], rtol=1e-4)
    with pytest.raises(DataError, match="set_data"):
        exported.fit(1e-2, 1)


def test_loading_another_classifier_is_refused(tmp_path):
    learner = named_learner(tmp_path)
    learner.save("cats")
    other = named_learner(tmp_path)
    other.model.class_names = ["horse", "zebra"]
    with pytest.raises(WeightsError, match="class_names"):
        other.load("cats")


# ---- precompute ------------------------------------------------------------


def test_precompute_trains_the_head_alone_and_well(tmp_path):
    learner = make_learner(tmp_path, precompute=True)
    before = backbone_weights(learner)
    learner.fit(1e-2, 15)
    assert same(before, backbone_weights(learner))
    assert learner.predictions().accuracy() == 1.0
    learner.precompute = False
    assert learner.predictions().accuracy() == 1.0


def test_precomputed_predictions_equal_plain_ones(tmp_path):
    learner = make_learner(tmp_path, precompute=True)
    learner.fit(1e-2, 1)
    fast = learner.predictions()
    learner.precompute = False
    slow = learner.predictions()
    np.testing.assert_allclose(fast.probabilities, slow.probabilities, rtol=1e-4, atol=1e-5)
    assert fast.labels.tolist() == slow.labels.tolist()
    assert fast.paths is None
    assert slow.paths is None


def test_three_rates_with_precompute_are_a_clear_error(tmp_path):
    learner = make_learner(tmp_path, precompute=True)
    with pytest.raises(ValueError, match=r"only the head trains.*Received: 3 rates"):
        learner.fit([1e-4, 1e-3, 1e-2], 1)


def test_a_slice_with_precompute_is_the_heads_rate(tmp_path):
    learner = make_learner(tmp_path, precompute=True)
    learner.fit_one_cycle(1, slice(1e-5, 1e-2), pct_start=0.0)
    assert learner.recorder.learning_rates[0] == pytest.approx(1e-2)


def test_augmentation_without_effect_is_told(tmp_path):
    learner = make_learner(tmp_path, precompute=True, augmentation=side_on(max_zoom=1.1))
    with pytest.warns(UserWarning, match="no effect with precompute=True"):
        learner.fit(1e-2, 1)


def test_precomputed_views_are_augmented(tmp_path):
    learner = make_learner(
        tmp_path, precompute=True, precompute_views=2, augmentation=side_on(max_zoom=1.1, seed=1)
    )
    learner.fit(1e-2, 1)
    assert len(list((tmp_path / "activations").rglob("view01*.h5"))) == 1


def test_unfreezing_ends_precompute(tmp_path):
    learner = make_learner(tmp_path, precompute=True)
    learner.freeze()
    assert learner.precompute
    learner.unfreeze()
    assert not learner.precompute
    learner.precompute = True
    assert learner.model.first_trainable_group == 1


def test_a_test_set_added_later(folder, tmp_path):
    data = ImageData.from_folder(folder / "train", size=SIZE, batch_size=8)
    learner = make_learner(tmp_path, data, precompute=True)
    learner.fit(1e-2, 1)
    with pytest.raises(DataError, match="no test photos, only: train, valid"):
        learner.predict(is_test=True)
    learner.set_data(ImageData.from_folder(folder, size=SIZE, batch_size=8))
    learner.fit(1e-2, 1)
    assert learner.predict(is_test=True).shape == (6, 2)
    assert learner.get_preds("test")[1] is None


# ---- predictions ------------------------------------------------------------


def test_predict_gives_log_probabilities_and_tta_their_labels(tmp_path):
    learner = make_learner(tmp_path, augmentation=side_on(SIZE))
    log_preds = learner.predict()
    np.testing.assert_allclose(np.exp(log_preds).sum(axis=1), 1, rtol=1e-5)
    averaged, labels = learner.TTA()
    assert averaged.shape == log_preds.shape
    assert figures.accuracy(averaged, labels) >= 0
    assert figures.log_loss(labels, np.exp(averaged)) > 0


def test_tta_and_get_preds_give_probabilities(tmp_path):
    learner = make_learner(tmp_path, augmentation=side_on(SIZE))
    for probabilities, labels in (learner.get_preds(), learner.tta(n=2), learner.tta(n=2, use_max=True)):
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        assert labels.tolist() == learner.data.valid.labels.tolist()


def test_get_preds_of_batches(learner):
    batch = (np.zeros((3, SIZE, SIZE, 3), np.uint8), np.array([0, 1, 1]))
    probabilities, labels = learner.get_preds(dl=[batch])
    assert probabilities.shape == (3, 2)
    assert labels.tolist() == [0, 1, 1]


def test_predictions_come_in_the_order_of_the_data(folder, tmp_path):
    learner = make_learner(tmp_path, ImageData.from_folder(folder, size=SIZE, batch_size=8))
    train = learner.predictions("train")
    assert train.paths.tolist() == learner.data.train.paths.tolist()
    assert len(train) == learner.data.train.num_images


def test_predict_a_photo_by_path(folder, tmp_path):
    learner = make_learner(tmp_path, ImageData.from_folder(folder / "train", size=SIZE, batch_size=8))
    photo = folder / "test" / "t0.png"
    name, number, probabilities = learner.predict(photo)
    assert learner.model.class_names[number] == name
    assert probabilities.argmax() == number


def test_submission(folder, tmp_path):
    data = ImageData.from_folder(folder, size=SIZE, batch_size=8)
    learner = make_learner(tmp_path, data, augmentation=side_on(SIZE))
    learner.submission(tmp_path / "submission.csv", n_aug=1)
    rows = list(csv.reader((tmp_path / "submission.csv").read_text().splitlines()))
    assert rows[0] == ["id", "cat", "dog"]
    assert [row[0] for row in rows[1:]] == [f"t{number}" for number in range(6)]
    assert sum(map(float, rows[1][1:])) == pytest.approx(1, abs=1e-6)


def test_interpret_and_show_results_leave_out_what_cannot_be_read(folder, tmp_path):
    data = ImageData.from_folder(folder, size=SIZE, batch_size=8, valid_fraction=0.5)
    broken = Path(data.valid.paths[0])
    broken.write_bytes(broken.read_bytes()[:60])
    learner = make_learner(tmp_path, data)
    found = learner.predictions()

    figure = learner.show_results(99, seed=0)

    assert len(learner.interpret()) == len(found) < data.valid.num_images
    rows = np.random.default_rng(0).permutation(len(found))
    for ax, row in zip(figure.axes, rows, strict=False):
        assert np.array_equal(ax.images[0].get_array(), np.asarray(Image.open(found.paths[row])))


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_show_results_draws_each_photo_under_its_answer(tmp_path, task):
    pixels, names = photos(40)
    labels = {
        "single_label": names,
        "multi_label": np.random.default_rng(0).integers(0, 2, (40, 3)).astype("float32"),
        "regression": np.linspace(-1, 1, 40),
    }[task]
    data = ImageData.from_arrays((pixels, labels), task=task, batch_size=8)
    learner = make_learner(tmp_path, data)
    found = learner.predictions()

    axes = learner.show_results(4, seed=0).axes[:4]

    rows = np.random.default_rng(0).permutation(len(found))[:4]
    for ax, row in zip(axes, rows, strict=True):
        said, right = (line.split(" ", 1)[1] for line in ax.get_title().splitlines())
        assert right == (found.label_text(found.labels[row]) or "none")
        assert said.split(" ")[0] == (found.label_text(found.predicted[row]) or "none")
        wrong = task != "regression" and said.split(" ")[0] != right
        assert ax.title.get_color() == ("tab:red" if wrong else "black")
        assert np.array_equal(ax.images[0].get_array(), data.valid.dataset[row])


def test_report_is_one_page_of_this_learner(folder, tmp_path):
    learner = make_learner(tmp_path, ImageData.from_folder(folder, size=SIZE, batch_size=8))
    learner.fit_one_cycle(2, 1e-3)

    page = learner.report("report.html").read_text()

    assert "<html" in page
    assert "Confusion" in page
    assert 'src="http' not in page


# ---- the words of fastai 2 ------------------------------------------------------------


def test_fine_tune_has_the_trace_of_fastai(learner):
    learner.fine_tune(2, base_lr=2e-3)
    rates = np.array(learner.recorder.learning_rates)
    steps = len(learner.data.train)
    assert len(rates) == 3 * steps
    assert rates[0] == pytest.approx(2e-3 / 25, rel=1e-4)
    assert rates[steps] == pytest.approx(1e-3 / 5, rel=1e-4)
    assert learner.model.optimizer.learning_rate_multipliers[0] == pytest.approx(1.0)
    assert learner.model.first_trainable_group == 0


@pytest.mark.parametrize("kind", [Learner, CourseLearner])
def test_the_recipe_course_is_fine_tune_whichever_learner_runs_it(tmp_path, kind):
    settings = kclf.TrainSettings(recipe="course", epochs=1, learning_rate=1e-3, unfrozen_learning_rate=5e-4)
    rates = []
    for train in (lambda one: one.train(settings), lambda one: one.fine_tune(1, 1e-3)):
        plain = {"normalization": "tf", "path": tmp_path, "verbose": False}
        learner = kind(make_data(), tiny_backbone(), **plain)
        train(learner)
        rates.append(learner.recorder.learning_rates)
    assert rates[0] == rates[1]


def test_flat_cosine_and_sgdr(learner):
    learner.fit_flat_cos(2, 1e-2)
    learner.fit_sgdr(2, 1, 1e-2)
    learner.fit_sgdr(2, 1, 1e-2, cycle_mult=1)
    assert len(learner.recorder.epochs) == 2 + 3 + 2


def test_optimizer_and_clipping_are_those_the_rates_were_found_for(learner, tmp_path):
    def compiled(learner) -> tuple:
        optimizer = learner.model.optimizer
        return type(optimizer.inner_optimizer).__name__, optimizer.inner_optimizer.global_clipnorm

    learner.unfreeze()
    learner.fit([1e-3, 1e-2], 1, cycle_len=1)
    assert compiled(learner) == ("SGD", 1.0)
    learner.lr_find(num_it=5)  # the range test has what the last fit had
    assert compiled(learner) == ("SGD", 1.0)
    learner.fit_one_cycle(1, 1e-3)
    assert compiled(learner) == ("AdamW", None)

    for settings, expected in (
        ({"clip": None}, ("SGD", None)),
        ({"clip": 0.5}, ("SGD", 0.5)),
        ({"optimizer": "adamw"}, ("AdamW", None)),
        ({"optimizer": keras.optimizers.SGD}, ("SGD", None)),
    ):
        chosen = make_learner(tmp_path, **settings)
        chosen.fit(1e-2, 1)
        assert compiled(chosen) == expected
    with pytest.raises(ValueError, match="clip='hard'"):
        make_learner(tmp_path, clip="hard").fit(1e-2, 1)


def test_range_test_leaves_the_model_as_it_was(learner):
    before = head_weights(learner)
    found = learner.lr_find(num_it=20)
    assert same(before, head_weights(learner))
    lr_min, lr_steep = found
    assert [found.minimum or np.nan, found.steep or np.nan] == pytest.approx([lr_min, lr_steep], nan_ok=True)
    assert learner.sched.plot() is not None
    assert found is learner.sched.finder


def test_fit_after_a_range_test_is_fit_without_it(tmp_path):
    weights = []
    for tested in (True, False):
        keras.utils.set_random_seed(4)
        learner = make_learner(tmp_path, precompute=True)
        if tested:
            learner.lr_find(num_it=10)
        learner.fit(1e-2, 2)
        weights.append(head_weights(learner))
    assert same(*weights)


def test_range_test_mixes_photos_as_a_fit_does(tmp_path):
    learner = make_learner(tmp_path, mixup=0.4)
    found = learner.lr_find(start_lr=1e-30, end_lr=1e-29, num_it=3)  # too low to change a weight
    learner.fit(0.0, 1)
    assert found.runs[0].losses == pytest.approx(learner.recorder.losses[:3], rel=1e-5)


def test_an_unknown_rule(learner):
    with pytest.raises(ValueError, match=r"suggest=\['best'\]"):
        learner.lr_find(num_it=6, suggest=["best"])


def test_plot_of_no_range_test(learner):
    with pytest.raises(ValueError, match="call lr_find"):
        learner.sched.plot()


def test_plots_of_the_last_fit(learner):
    learner.fit(1e-2, 2)
    assert learner.sched.plot_lr().get_ylabel() == "learning rate"
    assert learner.recorder.plot_loss().get_ylabel() == "loss"


def test_progressive_resizing_keeps_weights_and_freezing(tmp_path):
    learner = named_learner(tmp_path)
    learner.unfreeze()
    learner.freeze_to(1)
    before = backbone_weights(learner)
    learner.set_data(learner.data.replace(size=48))
    assert learner.model.size == 48
    assert same(before, backbone_weights(learner))
    assert learner.model.first_trainable_group == 1
    learner.fit(1e-3, 1)


def test_data_of_other_classes_is_refused(learner):
    pixels, _ = photos(20)
    with pytest.raises(DataError, match="horse"):
        learner.set_data(ImageData.from_arrays((pixels, ["horse", "zebra"] * 10), batch_size=8))
    many = np.eye(2, dtype="float32")[np.arange(20) % 2]
    with pytest.raises(DataError, match="multi_label"):
        learner.set_data(ImageData.from_arrays((pixels, many), class_names=["cat", "dog"], batch_size=8))


def test_files_are_squared_as_the_data_are_after_other_data(tmp_path, folder):
    learner = named_learner(tmp_path)
    learner.set_data(ImageData.from_folder(folder, size=40, presize=44, resize_method="squish"))
    assert (learner.model.presize, learner.model.resize_method) == (44, "squish")
    found = learner.predictions()
    from_files = predict_files(learner.model, found.paths)[0]
    np.testing.assert_allclose(from_files.probabilities, found.probabilities, atol=1e-6)


def test_other_data_leave_the_way_of_running(tmp_path):
    learner = named_learner(tmp_path, accelerate=False)
    learner.set_data(learner.data.replace(size=48))
    assert not is_accelerated(learner.model)


def test_number_formats(tmp_path):
    learner = named_learner(tmp_path)
    before = learner.predict()
    assert learner.to_bf16().model.dtype_policy.name == "mixed_bfloat16"
    np.testing.assert_allclose(learner.predict(), before, atol=0.2)
    if keras_device().type == "cuda":  # as `make test-pretended-gpu` has it
        assert learner.to_fp16().model.dtype_policy.name == "mixed_float16"
    else:
        with pytest.warns(UserWarning, match="CPU is many times slower"):
            assert learner.to_fp16().model.dtype_policy.name == "mixed_bfloat16"  # as it was
    assert learner.to_fp32().model.dtype_policy.name == "float32"
    np.testing.assert_allclose(learner.predict(), before, rtol=1e-4, atol=1e-4)


def test_number_formats_of_a_backbone_that_was_given(learner):
    norm = learner.model.backbone.layers[2]
    norm.dtype_policy = keras.DTypePolicy("float64")  # a layer with a mind of its own keeps it
    formats = [layer.compute_dtype for layer in learner.to_bf16().model.backbone.layers[1:]]
    assert formats == ["bfloat16", "float64", "bfloat16"]
    formats = [layer.compute_dtype for layer in learner.to_fp32().model.backbone.layers[1:]]
    assert formats == ["float32", "float64", "float32"]


# ---- settings ------------------------------------------------------------


def test_the_courses_names_for_the_head(tmp_path):
    learner = make_learner(tmp_path, hidden=(4,), ps=0.4, xtra_fc=[32, 16])
    assert learner.model.dropout == 0.4
    assert learner.model.hidden == (32, 16)
    assert make_learner(tmp_path, ps=[0.25, 0.5]).model.dropout == 0.5
    with pytest.raises(ValueError, match=r"ps=\[0.1, 0.5\]"):
        make_learner(tmp_path, ps=[0.1, 0.5])


def test_a_classifier_that_stands(tmp_path):
    data = make_data()
    model = ImageClassifier(tiny_backbone(), data.class_names, size=SIZE, normalization="tf", hidden=())
    assert Learner(data, model, path=tmp_path).model is model
    with pytest.raises(DataError, match=rf"size {SIZE}\. Received: size=8"):
        Learner(data.replace(size=8), model)
    with pytest.raises(DataError, match="horse"):
        Learner(ImageData.from_arrays((photos(20)[0], ["horse", "zebra"] * 10)), model)
    with pytest.raises(TypeError, match="Received: dropout"):
        Learner(data, model, dropout=0.1)
    with pytest.raises(TypeError, match="data=None"):
        Learner(None, tiny_backbone())


def test_an_unknown_setting(tmp_path):
    with pytest.raises(TypeError, match="droput"):
        make_learner(tmp_path, droput=0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd"},
        {"optimizer": keras.optimizers.Lion},
        {"clip": 1.0},
        {"gradient_accumulation": 2},
        {"ema": 0.9},
        {"label_smoothing": 0.1},
        {"focal_gamma": 2.0},
        {"mixup": 0.4},
        {"mixup": 0.4, "cutmix": 1.0, "metrics": [figures.accuracy, figures.error_rate]},
        {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        {"metrics": figures.error_rate},
        {"metrics": ["accuracy", figures.error_rate]},
        {"precompute": True, "ema": 0.9},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_settings_train(tmp_path, settings):
    learner = make_learner(tmp_path, **settings)
    before = head_weights(learner)
    history = learner.fit(1e-3, 2).history
    assert not same(before, head_weights(learner))
    assert np.isfinite(history["loss"]).all()


def test_mixed_batches_have_shares_as_labels():
    mixes = mixed(make_data().train, mixup=0.4, cutmix=1.0)
    for photos, shares in mixes:
        assert photos.dtype == shares.dtype == torch.float32
        assert tuple(shares.shape) == (8, 2)
        np.testing.assert_allclose(shares.sum(1).cpu(), 1, rtol=1e-6)
    assert mixes.state_dict()["epoch"] == 1


def test_activations_are_not_mixed(tmp_path):
    learner = make_learner(tmp_path, precompute=True, mixup=0.4)
    with pytest.raises(ValueError, match="precompute=False"):
        learner.fit(1e-3, 1)


def test_metrics_have_the_courses_names(tmp_path):
    history = make_learner(tmp_path, metrics=[figures.error_rate, "accuracy"]).fit(1e-3, 1).history
    np.testing.assert_allclose(np.add(history["val_error_rate"], history["val_accuracy"]), 1, rtol=1e-6)


def test_each_word_has_the_optimizer_it_comes_with(learner):
    learner.fit(1e-3, 1)
    assert isinstance(learner.model.optimizer.inner_optimizer, keras.optimizers.SGD)
    learner.fit_one_cycle(1, 1e-3)
    assert isinstance(learner.model.optimizer.inner_optimizer, keras.optimizers.AdamW)


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="optimizer='adam2'"):
        Training(optimizer="adam2").build_optimizer([[]], 0.0)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("single_label", CrossEntropy),
        ("multi_label", BinaryCrossEntropy),
    ],
)
def test_loss_follows_the_labels(task, kind):
    assert isinstance(Training(label_smoothing=0.1).build_loss(task), kind)
    assert isinstance(Training().build_loss("regression"), keras.losses.MeanAbsoluteError)


@pytest.mark.parametrize("setting", [{"label_smoothing": 0.1}, {"focal_gamma": 2.0}])
def test_what_shapes_the_loss_is_refused_where_it_would_do_nothing(setting):
    with pytest.raises(ValueError, match="beside loss="):
        Training(loss=keras.losses.MeanAbsoluteError(), **setting)
    with pytest.raises(ValueError, match="beside numbers"):
        Training(**setting).build_loss("regression")


def test_multi_label_and_regression(tmp_path):
    pixels, _ = photos(40)
    rng = np.random.default_rng(0)
    many = ImageData.from_arrays((pixels, rng.integers(0, 2, (40, 3)).astype("float32")), batch_size=8)
    learner = make_learner(tmp_path, many, metrics=figures.accuracy_multi)
    learner.fit(1e-3, 1)
    names, mask, _ = learner.predict(pixels[0])
    assert len(names) == mask.sum()
    numbers = ImageData.from_arrays((pixels, rng.random(40) - 0.5), task="regression", batch_size=8)
    learner = make_learner(tmp_path, numbers, augmentation=side_on(SIZE))
    learner.fit(1e-3, 1)
    assert learner.predict(pixels[0])[0].shape == (1,)
    assert np.array_equal(learner.predict(), learner.get_preds()[0])
    np.testing.assert_allclose(learner.TTA()[0], learner.tta(beta=0.2)[0], atol=1e-6)


# ---- several runs ------------------------------------------------------------


def test_cross_validation_covers_every_photo_once(tmp_path):
    pixels, names = photos(30)
    test = photos(6, seed=2)[0]

    def fold(number):
        held_out = np.arange(30) % 3 == number
        labels = np.array(names)
        return ImageData.from_arrays(
            (pixels[~held_out], labels[~held_out]),
            (pixels[held_out], labels[held_out]),
            test=test,
            batch_size=8,
        )

    def train(data):
        learner = make_learner(tmp_path, data)
        learner.fit(1e-2, 1)
        return learner

    folds = cross_validate(map(fold, range(3)), train)
    assert len(folds.valid) == 30
    assert len(folds.accuracies) == 3
    assert len(folds.test) == 6
    np.testing.assert_allclose(folds.test.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_cross_validation_without_folds():
    with pytest.raises(ValueError, match="one fold or more"):
        cross_validate([], lambda data: None)


def test_predictions_are_those_of_the_parts(learner):
    assert isinstance(learner.predictions(), Predictions)
    direct = predict(learner.model, learner.data.valid)
    np.testing.assert_array_equal(direct.probabilities, learner.predictions().probabilities)
