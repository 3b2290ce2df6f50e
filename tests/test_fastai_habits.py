"""Whoever types fastai 2 from memory: callbacks, losses, and what a deployed learner is asked."""

# ruff: noqa: F403, F405

from __future__ import annotations

import keras
import pytest
from matplotlib import pyplot
from PIL import Image

import kclf
from kclf._core.devices import keras_device
from kclf.errors import TrainingError
from kclf.fastai import *
from kclf.fastai.course_learner import CourseLearner
from tests.test_course_values import backbone, data_of, learner_of, photos


@pytest.fixture
def learn(tmp_path) -> CourseLearner:
    return learner_of(tmp_path)


class Mixing(keras.callbacks.Callback):
    """Keeps what a fit was given."""

    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def on_train_begin(self, logs=None):
        self.seen = self.learner.training


@pytest.mark.parametrize(
    ("callback", "name", "value"),
    [(MixUp(0.2), "mixup", 0.2), (CutMix(), "cutmix", 1.0), (GradientClip(), "clip", 1.0)],
)
def test_callbacks_that_are_settings_hold_for_a_fit_or_for_all(tmp_path, learn, callback, name, value):
    before, seen = getattr(learn.training, name), Mixing(learn)
    learn.fit_one_cycle(1, 1e-3, cbs=[callback, seen])
    assert getattr(seen.seen, name) == value
    assert getattr(learn.training, name) == before
    learn.fine_tune(1, cbs=[callback])
    assert getattr(learn.training, name) == before
    assert getattr(learner_of(tmp_path, cbs=callback).training, name) == value


def test_the_best_weights_are_saved_by_what_the_table_calls_accuracy(tmp_path, learn):
    learn.fit(2, 1e-2, cbs=SaveModelCallback(monitor="accuracy", comp=np.greater, fname="best"))
    assert (tmp_path / "models" / "best.weights.h5").exists()
    kept = learner_of(tmp_path, cbs=[SaveModelCallback()]).callbacks[0]
    assert kept.monitor == "val_loss"
    assert SaveModelCallback("accuracy").of(learn).monitor == "val_accuracy"


def test_stopping_early_looks_at_the_validation_photos(tmp_path, learn):
    stop = EarlyStoppingCallback("accuracy", patience=1, min_delta=2.0)
    learn.fit(5, 1e-3, cbs=[stop, CSVLogger(str(tmp_path / "history.csv"))])
    assert stop.monitor == "val_accuracy"
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3  # heading, and an epoch to wait
    assert EarlyStoppingCallback("error_rate").mode == "min"
    assert EarlyStoppingCallback("train_loss").monitor == "loss"


@pytest.mark.parametrize("loss", [CrossEntropyLossFlat(), LabelSmoothingCrossEntropy(), FocalLossFlat()])
def test_losses_by_fastais_names(tmp_path, loss):
    learn = learner_of(tmp_path, loss_func=loss)
    learn.fit(1, 1e-3)
    assert learn.crit is loss


@pytest.mark.parametrize("wrong", [kclf.layers.MixUp(2), keras.callbacks.TerminateOnNaN, print])
def test_what_is_no_callback_is_refused_before_the_fit(tmp_path, learn, wrong):
    with pytest.raises(TypeError, match=r"Expected.* callbacks"):
        learn.fit_one_cycle(1, 1e-3, cbs=[wrong])
    with pytest.raises(TypeError, match=r"Expected.* callbacks"):
        learner_of(tmp_path, cbs=[wrong])


def test_words_of_others_are_answered(learn):
    plain = kclf.ImageClassifier(backbone(), ["cat", "dog"], size=16, normalization="tf")
    for call, answer in (
        (lambda: learn.fine_tune(1, lr=1e-3), "base_lr=RATE"),
        (
            lambda: kclf.Learner(data_of(), "ResNet50", cbs=[]),
            r"^Learner\(\) takes no cbs=\. Write callbacks=",
        ),
        (lambda: kclf.Learner(data_of(), "ResNet50", pretrained=False), "weights=None"),
        (lambda: kclf.Learner(data_of(), "ResNet50", wd=0.1), "weight_decay="),
        (lambda: kclf.Learner(data_of(), plain).fit_one_cycle(1, max_lr=1e-3), "lr_max=RATE"),
    ):
        with pytest.raises(TypeError, match=answer):
            call()


def test_a_deployed_learner_knows_its_classes_and_reads_files(tmp_path, learn):
    files = [tmp_path / f"{n}.png" for n in range(3)]
    for number, file in enumerate(files):
        Image.fromarray(photos(1, number)[0]).save(file)
    deployed = load_learner(learn.export())
    assert deployed.dls.vocab == ["cat", "dog"]
    probabilities, labels = deployed.get_preds(dl=deployed.dls.test_dl(files))
    assert labels is None
    said = [deployed.predict(PILImage.create(file))[2] for file in files]
    np.testing.assert_allclose(probabilities, np.stack(said), atol=1e-6)
    data = data_of(test=None)
    again, _ = learn.get_preds(dl=data.test_dl(files))
    np.testing.assert_allclose(probabilities, again, atol=1e-6)


def test_predictions_with_classes_and_losses(learn):
    probabilities, labels, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert np.array_equal(decoded, probabilities.argmax(1))
    np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(8), labels]), rtol=1e-4)


def test_a_figure_that_is_returned_is_shown_once(learn):
    learn.fit(1, 1e-3)
    pyplot.close("all")
    for figure in (learn.recorder.plot_sched(), learn.dls.show_batch(), plots(photos(2, 0))):
        assert figure.axes
    assert pyplot.get_fignums() == []


def test_a_batch_is_shown_as_training_sees_it():
    data = data_of()
    plain, augmented = (
        [ax.images[0].get_array() for ax in data.show_batch(8, split).axes if ax.images]
        for split in ("valid", "train")
    )
    assert any(np.array_equal(plain[0], photo) for photo in data.valid.dataset)
    as_they_were = [any(np.array_equal(one, photo) for photo in data.train.dataset) for one in augmented]
    assert len(augmented) == 8
    assert not all(as_they_were)  # a photo may be drawn no change
    one = data.show_batch(unique=True, max_n=4)
    assert len(one.axes) == 4


def test_the_range_test_draws_its_curve_where_it_is_asked_to(learn, capsys):
    pyplot.close("all")
    learn.lr_find(num_it=8)
    assert pyplot.get_fignums() == []
    found = learn.lr_find(num_it=8, show_plot=True)
    (number,) = pyplot.get_fignums()
    drawn = pyplot.figure(number).axes[0].lines[0].get_xdata()
    assert len(drawn) == len(found.losses)  # a short test has no points to leave out
    assert "steepest point" in capsys.readouterr().out


def test_top_losses_form_the_grid_of_the_book(tmp_path, learn):
    files = [tmp_path / f"{n}.png" for n in range(9)]
    for number, file in enumerate(files):
        Image.fromarray(photos(1, number)[0]).save(file)
    shown = kclf.Predictions(
        np.full((9, 2), 0.5, np.float32), np.arange(9) % 2, [str(f) for f in files], ["a", "b"]
    )
    for options, columns in (({}, 3), ({"nrows": 1}, 9), ({"ncols": 2}, 2)):
        drawn = ClassificationInterpretation(shown).plot_top_losses(9, figsize=(9, 9), **options)
        assert drawn.axes_[0].get_gridspec().ncols == columns
        assert tuple(drawn.figure_.get_size_inches()) == (9, 9)
        assert repr(drawn).startswith("Gallery of 9 photos")
    assert ClassificationInterpretation(shown).print_classification_report() is None


def test_a_cell_echoes_one_line_of_what_it_holds(learn):
    found = ClassificationInterpretation.from_learner(learn)
    for one in (found, found.predictions, found.confusion_matrix()):
        assert len(repr(one).splitlines()) == 1
        assert len(repr(one)) < 100
    one = kclf.interpret.ConfusionMatrix(np.array([[2, 1], [0, 3]]), ["a", "b"])
    assert "1 error in 6 photos" in repr(one)


def test_float16_is_for_a_gpu(learn):
    if keras_device().type == "cuda":  # as `make test-pretended-gpu` has it
        assert learn.to_fp16().model.dtype_policy.name == "mixed_float16"
        return
    with pytest.warns(UserWarning, match="CPU"):
        assert learn.to_fp16() is learn
    assert learn.model.dtype_policy.name == "float32"


def highest_rate(learn):
    return max(learn.recorder.learning_rates)


@pytest.mark.parametrize(
    "fit",
    [
        lambda learn: learn.fit(1, 3e-3),
        lambda learn: learn.fit(1, lr=3e-3),
        lambda learn: learn.fit(lr=3e-3, n_epoch=1),
        lambda learn: learn.fit(1, slice(3e-5, 3e-3)),
        lambda learn: learn.fit(1, [3e-5, 3e-3]),
        lambda learn: learn.fit(3e-3, 1),
        lambda learn: learn.fit(1),
        lambda learn: learn.fit_flat_cos(1, reset_opt=True),
    ],
)
def test_a_fit_takes_rates_and_epochs_in_both_orders(tmp_path, fit):
    learn = learner_of(tmp_path, lr=3e-3)
    assert learn.opt is None
    fit(learn)
    assert highest_rate(learn) == pytest.approx(3e-3)
    assert len(learn.recorder.epochs) == 1
    assert learn.opt is not None


def test_rates_alone_are_no_fit(learn):
    with pytest.raises(TypeError, match=r"fit\(epochs, rates\)"):
        learn.fit(0.01)
    with pytest.raises(ValueError, match="ds_idx=3"):
        learn.get_preds(3)


def test_a_learner_is_loaded_as_what_it_was(learn):
    file = learn.export()
    again = load_learner(file, learn.dls, cpu=True)
    assert type(again) is CourseLearner
    np.testing.assert_allclose(again.get_preds()[0], learn.get_preds()[0], atol=1e-6)


# ---- beside the other parts ------------------------------------------------------------


def cached_learner(path):
    return learner_of(path, data_of(tfms_from_model("ResNet50", 16)), precompute=True)


def test_mixup_of_a_fit_resumes_bit_for_bit_and_is_part_of_what_resumes(tmp_path):
    def fit(name, *cbs, resume=True):
        keras.utils.set_random_seed(1)
        learn = learner_of(tmp_path / name)
        learn.fit(1e-2, 3, cbs=cbs, resume=resume)
        return learn.predict()

    whole = fit("whole", MixUp(0.4))
    with pytest.raises(RuntimeError, match="crash"):
        fit("cut", MixUp(0.4), Crash(1))
    with pytest.raises(TrainingError, match="mixup"):
        fit("cut")
    np.testing.assert_array_equal(fit("cut", MixUp(0.4)), whole)
    assert not np.array_equal(fit("plain", resume=False), whole)


def test_mixup_of_cached_activations_is_refused_and_leaves_no_trace(tmp_path):
    learn = cached_learner(tmp_path)
    with pytest.raises(ValueError, match="precompute=False"):
        learn.fit(1e-2, 1, cbs=MixUp())
    assert learn.training.mixup is None
    learn.fit(1e-2, 1)


class Crash(keras.callbacks.Callback):
    """Ends a fit after so many epochs."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epochs:
            raise RuntimeError("crash")


def test_the_best_weights_of_cached_activations_are_those_of_the_classifier(tmp_path):
    learn = cached_learner(tmp_path)
    learn.fit(2, 1e-2, cbs=SaveModelCallback(fname="best"))
    cached, _ = learn.get_preds()
    learn.precompute = False
    np.testing.assert_allclose(learn.get_preds()[0], cached, atol=1e-6)
    assert (tmp_path / "models" / "best.weights.h5").exists()


def test_new_files_are_whole_for_each_of_several_processes(tmp_path, monkeypatch):
    files = [tmp_path / f"{n}.png" for n in range(4)]
    for number, file in enumerate(files):
        Image.fromarray(photos(1, number)[0]).save(file)
    data = data_of(test=None)
    monkeypatch.setattr("kclf.data.image_dataset.world_size", lambda: 2)
    monkeypatch.setattr("kclf.data.image_dataset.rank", lambda: 1)
    assert data.test_dl(files).shard == (0, 1)
