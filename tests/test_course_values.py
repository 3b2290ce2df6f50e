"""The course's words give what they promise: one test by value for each."""

# ruff: noqa: F403, F405

from __future__ import annotations

import keras
import pytest
from PIL import Image

from kclf.fastai import *
from kclf.fastai.course_learner import CourseLearner
from kclf.metrics import safe_log
from kclf.prediction.tta import predict_tta

SIZE = 16


def backbone() -> keras.Model:
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, strides=4, activation="relu")(image)
    return keras.Model(image, keras.layers.BatchNormalization()(x), name="tiny")


def photos(count: int, seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 128, (count, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[::2, ..., 0] += 100
    return pixels


TFMS = tfms_from_model("ResNet50", SIZE, aug_tfms=transforms_side_on)


def data_of(tfms=TFMS, **options):
    trn, val = (photos(24, 0), [0, 1] * 12), (photos(8, 1), [0, 1] * 4)
    given = {"classes": ["cat", "dog"], "test": photos(4, 2)} | options
    return ImageClassifierData.from_arrays(".", trn, val, bs=8, tfms=tfms, **given)


def learner_of(tmp_path, data=None, **settings) -> CourseLearner:
    given = {"hidden": (), "normalization": "tf", "path": tmp_path, "verbose": False} | settings
    return cnn_learner(data_of() if data is None else data, backbone(), **given)


@pytest.fixture
def learn(tmp_path):
    return learner_of(tmp_path)


# ---- data ------------------------------------------------------------


def test_resize_keeps_the_augmentation(tmp_path):
    for name in ("cats", "dogs"):
        for split in ("train", "valid"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(photos(1, number)[0]).save(tmp_path / split / name / f"{number}.png")
    data = ImageClassifierData.from_paths(tmp_path, bs=4, tfms=TFMS)
    smaller = data.resize(20, tmp_path / "tmp")
    assert smaller.augmentation.get_config() == data.augmentation.get_config()
    assert smaller.augmentation.is_random
    assert smaller.replace(batch_size=2).augmentation.is_random


def test_aug_dl_is_the_augmentation_of_the_photos():
    data = data_of(tfms_from_model("ResNet50", SIZE))
    plain, labels = next(iter(data.aug_dl))
    shown, again = next(iter(data_of(tfms_from_model("ResNet50", SIZE)).train))
    assert np.array_equal(plain.numpy(), shown.numpy())
    assert np.array_equal(labels, again)
    drawn, _ = next(iter(data_of().aug_dl))
    assert drawn.shape == (8, SIZE, SIZE, 3)
    assert not np.allclose(drawn.numpy(), shown.numpy(), atol=1)


def test_denorm_gives_pictures():
    data = data_of()
    x, _ = data.one_batch()
    assert np.array_equal(data.trn_ds.denorm(x), x.numpy().astype(np.float32) / 255)


def test_one_batch_and_vocab():
    data = data_of()
    x, y = data.one_batch()
    first, labels = next(iter(data.train))
    assert np.array_equal(x, first)
    assert np.array_equal(y, labels)
    assert (data.vocab, data.classes, data.c, data.bs, data.sz) == (
        ["cat", "dog"],
        ["cat", "dog"],
        2,
        8,
        SIZE,
    )
    assert (len(data.trn_ds), len(data.val_ds), len(data.test_ds)) == (24, 8, 4)
    assert data.val_y.tolist() == [0, 1] * 4
    assert (data.is_multi, data.is_reg) == (False, False)
    assert np.array_equal(data.val_ds[3][0], photos(8, 1)[3])


def test_show_batch_has_rows_and_columns():
    assert len(data_of().show_batch(nrows=2, ncols=3).axes) == 6
    assert len(data_of().show_batch(nrows=1, ncols=3).axes) == 3


def test_show_augmented_draws_the_datas_own_augmentation():
    def pictures(figure):
        return [ax.images[0].get_array() for ax in figure.axes if ax.images]

    own, plain = (
        pictures(data_of().show_augmented(count=4)),
        pictures(data_of().show_augmented(None, count=4)),
    )
    assert any(not np.array_equal(a, b) for a, b in zip(own, plain, strict=False))


# ---- the learner ------------------------------------------------------------


def test_what_trains_under_precompute_is_the_head_on_activations(tmp_path):
    learn = learner_of(tmp_path, data_of(None), precompute=True)
    features, _ = next(iter(learn.fc_data.valid))
    whole = keras.ops.softmax(learn.fc_model(features)).numpy(force=True)
    np.testing.assert_allclose(whole, learn.get_preds()[0], atol=1e-6)
    learn.precompute = False
    np.testing.assert_allclose(whole, learn.get_preds()[0], atol=1e-5)
    assert learn.data.train.num_images == 24


def test_a_warning_names_the_line_that_the_user_wrote(tmp_path):
    learn = learner_of(tmp_path, precompute=True)
    with pytest.warns(UserWarning, match="The augmentation has no effect") as seen:
        learn.fit(1e-2, 1)
    found = [one.filename for one in seen if "no effect" in str(one.message)]
    assert found == [__file__]


def test_get_preds_by_number_name_and_batches(learn):
    train, valid = learn.model.predict(photos(24, 0), verbose=0), learn.model.predict(photos(8, 1), verbose=0)
    for found, logits, labels in (
        (learn.get_preds(0), train, [0, 1] * 12),
        (learn.get_preds(), valid, [0, 1] * 4),
        (learn.get_preds(ds_idx=1), valid, [0, 1] * 4),
        (learn.get_preds(dl=[(photos(8, 1), np.array([0, 1] * 4))]), valid, [0, 1] * 4),
    ):
        np.testing.assert_allclose(found[0], keras.ops.softmax(logits), atol=1e-5)
        assert found[1].tolist() == labels
    assert learn.get_preds(2)[1] is None
    assert np.array_equal(learn.get_preds(2)[0], learn.get_preds(is_test=True)[0])


def test_validate_is_loss_and_metrics(tmp_path):
    learn = learner_of(tmp_path, metrics=[accuracy, error_rate])
    learn.fit_one_cycle(1, 1e-2)
    for split in (0, 1):
        preds, y = learn.get_preds(split)
        expected = [metrics.log_loss(y, preds), accuracy(preds, y), error_rate(preds, y)]
        assert learn.validate(split) == pytest.approx(expected, abs=1e-5)


def test_predict_takes_a_picture_a_path_and_pixels(learn, tmp_path):
    pixels = photos(1, 5)[0]
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    word, number, probabilities = learn.predict(pixels)
    assert word == learn.data.classes[number]
    for photo in (Image.fromarray(pixels), tmp_path / "photo.png", str(tmp_path / "photo.png")):
        assert np.array_equal(learn.predict(photo)[2], probabilities)
    np.testing.assert_allclose(np.exp(learn.predict_array(pixels[None]))[0], probabilities, atol=1e-6)


class Seen(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs, self.decays = 0, []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        self.decays.append(self.model.optimizer.weight_decay)


def test_fit_one_cycle_takes_fastais_arguments(learn):
    seen = Seen()
    learn.unfreeze()
    learn.fit_one_cycle(
        2, lr_max=slice(1e-4, 1e-2), div=10.0, div_final=1e3, pct_start=0.5, wd=0.3, moms=(0.9, 0.8, 0.95),
        cbs=seen, reset_opt=True,
    )  # fmt: skip
    rates, momenta = learn.recorder.lrs, learn.recorder.momentums
    assert rates[0] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-2, rel=0.3)
    assert rates[-1] < 3e-3
    assert (momenta[0], min(momenta)) == (pytest.approx(0.9), pytest.approx(0.8, abs=0.02))
    assert momenta[-1] > 0.9
    assert (seen.epochs, seen.decays[0]) == (2, pytest.approx(0.3))
    assert learn.opt.num_groups == len(learn.model.layer_groups)


def test_fine_tune_takes_lr_max_in_the_place_of_base_lr(learn):
    seen = Seen()
    learn.fine_tune(3, freeze_epochs=2, lr_max=4e-3, wd=0.2, cbs=[seen], div_final=10.0)
    rates = np.array(learn.recorder.lrs)
    assert rates[:6].max() == pytest.approx(4e-3, rel=0.1)
    assert rates[6:].max() == pytest.approx(2e-3, rel=0.1)
    assert seen.epochs == 5
    assert seen.decays == pytest.approx([0.2] * 5)


def test_fit_has_both_generations_orders(learn):
    learn.fit(1e-2, 2)
    learn.fit(2, 1e-2)
    learn.fit(n_epoch=2, lr=1e-2, wd=0.1, cbs=(seen := Seen()))
    assert learn.recorder.lrs == pytest.approx([1e-2] * 18)
    assert seen.decays == pytest.approx([0.1] * 2)
    learn.fit(1)
    assert learn.recorder.lrs[18:] == pytest.approx([1e-3] * 3)


def test_lr_find_says_what_it_returns(learn, capsys):
    def said():
        return capsys.readouterr().out.splitlines()

    def shown(rate):
        return "none" if np.isnan(rate) else f"{rate:.2e}"

    lr_min, lr_steep = found = learn.lr_find(num_it=12)
    assert (found.lr_min, found.lr_steep) == pytest.approx((lr_min, lr_steep), nan_ok=True)
    assert said()[0] == f"Minimum/10: {shown(lr_min)}, steepest point: {shown(lr_steep)}"
    valley, slide = learn.lr_find(num_it=12, suggest_funcs=("valley", "slide"))
    assert said()[0] == f"valley: {shown(valley)}, slide: {shown(slide)}"
    learn.lr_find(num_it=3)
    assert [line.partition(":")[0] for line in said()] == ["Minimum/10", "too few points"]


def test_plot_lr_draws_what_came_last(learn):
    learn.fit(1e-3, 1)
    learn.lr_find(num_it=5, start_lr=1e-5, end_lr=1e-1)
    drawn = learn.sched.plot_lr().lines[0].get_ydata()
    assert drawn == pytest.approx(1e-5 * 1e4 ** (np.arange(5) / 5))
    learn.fit(1e-2, 2)
    assert learn.sched.plot_lr().lines[0].get_ydata() == pytest.approx([1e-2] * 6)
    assert len(learn.recorder.plot_sched().axes) == 2


def test_recorder_values_are_the_rows_of_the_table(learn):
    learn.fit_one_cycle(2, 1e-3)
    last = learn.recorder.values[-1]
    assert last[0] == pytest.approx(learn.recorder.smoothed_losses[-1])
    assert last[1:] == pytest.approx(learn.validate(), abs=1e-4)


def test_interpretation_by_fastais_names(learn, capsys):
    interp = ClassificationInterpretation.from_learner(learn)
    preds, y = learn.get_preds()
    wrong = np.flatnonzero(preds.argmax(1) != y)
    assert sum(pair.photos for pair in interp.most_confused()) == len(wrong)
    assert len(learn.interpret().plot_top_losses(4, images=learn.data.valid.dataset).answers) == 4
    interp.print_classification_report()
    assert capsys.readouterr().out == f"{interp.class_scores()}\n"
    recalls = [((preds.argmax(1) == y) & (y == n)).sum() / (y == n).sum() for n in (0, 1)]
    assert [score.recall.value for score in interp.class_scores()] == pytest.approx(recalls)
    worst = -safe_log(preds[np.arange(len(y)), y])
    assert [example.loss for example in interp.top_losses(3)] == pytest.approx(
        sorted(worst)[::-1][:3], abs=1e-5
    )


def test_bn_freeze_keeps_the_statistics(learn):
    def statistics():
        return [w.numpy().copy() for w in learn.model.backbone.weights if "moving" in w.path]

    learn.unfreeze()
    learn.bn_freeze(True)
    before = statistics()
    learn.fit_one_cycle(1, 1e-3)
    assert all(map(np.array_equal, before, statistics()))
    learn.bn_freeze(False)
    learn.fit_one_cycle(1, 1e-3)
    assert not all(map(np.array_equal, before, statistics()))


def test_tta_is_the_mean_of_probabilities_or_of_their_logarithms(learn):
    learn.fit(1e-2, 1)
    views = predict_tta(learn.model, learn.data.valid, 2, weight=1 / 3, average="geometric")
    log_preds, y = learn.TTA(n_aug=2, average="geometric")
    np.testing.assert_allclose(log_preds, safe_log(views.probabilities), atol=1e-5)
    assert np.exp(log_preds).sum(axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    arithmetic, _ = learn.TTA(n_aug=2)
    assert y.tolist() == [0, 1] * 4
    assert not np.array_equal(arithmetic, log_preds)


def test_tta_gives_its_views_as_the_notes_average_them(learn):
    views, labels = learn.TTA(n_aug=2, average=None)
    log_preds, y = learn.TTA(n_aug=2)
    assert views.shape == (3, 8, 2)
    np.testing.assert_allclose(views[0], learn.predict(), atol=1e-5)
    np.testing.assert_allclose(np.mean(np.exp(views), 0), np.exp(log_preds), atol=1e-6)
    assert labels.tolist() == y.tolist()


def test_metrics_may_be_set(learn):
    learn.metrics = [error_rate]
    learn.fit_one_cycle(1, 1e-3)
    assert "val_error_rate" in learn.recorder.epochs[-1]
    assert learn.metrics == [error_rate]


def test_export_pickles_nothing_and_load_learner_takes_the_same_name(learn, tmp_path):
    given = {"weights": None, "hidden": (), "path": tmp_path, "verbose": False}
    named = CourseLearner(learn.data.replace(size=32, presize=32), "MobileNet_025", **given)
    assert named.export() == tmp_path / "export.h5"
    back = load_learner(tmp_path / "export.pkl")
    pixels = photos(1, 3)[0]
    np.testing.assert_allclose(back.predict(pixels)[2], named.predict(pixels)[2], atol=1e-6)


def test_no_bar_is_for_a_block(learn):
    learn.verbose = True
    with learn.no_bar():
        assert not learn.verbose
    assert learn.verbose


def test_remove_cb_takes_a_callback_or_its_class(tmp_path):
    learn = learner_of(tmp_path, cbs=[seen := Seen()])
    learn.fit(1e-3, 1)
    learn.remove_cb(Seen).fit(1e-3, 1)
    assert seen.epochs == 1


def test_a_cell_echoes_no_object_after_a_fit(learn):
    assert learn.fit(1e-3, 1)._ipython_display_() is None


def test_loss_functions_and_data_by_fastais_names(learn):
    assert learn.dls is learn.data
    assert type(learn.crit) is type(learn.loss_func)
    learn.warm_up(1e-2)
    assert learn.recorder.lrs == sorted(learn.recorder.lrs)
    assert learn.recorder.lrs[0] == pytest.approx(1e-4)
