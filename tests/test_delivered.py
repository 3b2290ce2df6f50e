"""What validation sees is what a fit delivers; the plain way is hard to break."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kclf
from kclf.callbacks.delivered import DeliveredModel, live_batchnorms, sample, take_statistics
from kclf.callbacks.guards import probe_losses
from tests.test_compile_names import SIDE, classifier, easy_photos


@pytest.fixture(scope="module")
def photos():
    return easy_photos()


def fitted(photos, epochs=2, callbacks=(), **compiled):
    model = classifier(**compiled.pop("settings", {}))
    model.compile(**compiled)
    x, y = photos
    history = model.fit(
        x, y, validation_data=(x, y), epochs=epochs, batch_size=8, verbose=0, callbacks=list(callbacks)
    )
    return model, history.history


def test_statistics_are_those_of_the_images_at_the_weights_of_now(photos):
    model, _ = fitted(photos)
    (norm,) = live_batchnorms(model)
    features = np.array(model.features(photos[0]).detach().cpu())
    pooled = np.concatenate([features.mean((1, 2)), features.max((1, 2))], axis=1)
    order = [np.sort(np.array(norm.moving_mean)), np.sort(pooled.mean(0))]
    np.testing.assert_allclose(*order, atol=1e-4)
    np.testing.assert_allclose(
        np.sort(np.array(norm.moving_variance)), np.sort(pooled.var(0)), rtol=1e-3, atol=1e-6
    )


def test_the_last_line_of_the_table_is_the_delivered_model(photos):
    for optimizer in (keras.optimizers.AdamW(1e-2), keras.optimizers.AdamW(1e-2, use_ema=True)):
        model, history = fitted(photos, 3, optimizer=optimizer)
        again = model.evaluate(*photos, verbose=0, return_dict=True)
        assert again["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-5)


def test_an_average_of_a_short_run_is_near_its_end(photos):
    losses = {}
    for warm in (False, True):
        model = classifier()
        inner = keras.optimizers.AdamW(3e-2, use_ema=True, ema_momentum=0.999)
        model.compile(kclf.LayerGroupOptimizer(inner, model, warm_up_average=warm))
        model.fit(*photos, epochs=8, batch_size=8, verbose=0)
        losses[warm] = model.evaluate(*photos, verbose=0)[0]
    assert losses[True] < 0.7 * losses[False]


def test_best_model_and_average_go_together(photos, tmp_path):
    from kclf.callbacks.snapshots import BestModel

    best = BestModel(tmp_path / "best.weights.h5")
    model, history = fitted(photos, 4, [best], optimizer=keras.optimizers.AdamW(1e-2, use_ema=True))
    assert model.evaluate(*photos, verbose=0)[0] == pytest.approx(min(history["val_loss"]), rel=1e-5)


def test_training_itself_is_not_changed(photos):
    runs = []
    for callbacks in ([], [keras.callbacks.SwapEMAWeights()], [DeliveredModel(photos[0])]):
        keras.utils.set_random_seed(1)
        use_ema = bool(callbacks) and isinstance(callbacks[0], keras.callbacks.SwapEMAWeights)
        optimizer = keras.optimizers.SGD(0.1, use_ema=use_ema)
        runs.append(fitted(photos, 2, callbacks, optimizer=optimizer)[1]["loss"])
    np.testing.assert_allclose(runs[0], runs[2], rtol=1e-6)
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5)


def test_a_range_test_leaves_the_statistics_alone(photos):
    model, _ = fitted(photos)
    before = model.get_weights()
    kclf.find_learning_rate(model, photos, num_steps=6, batch_size=8)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_last_batch_of_one_photo_does_no_harm(photos):
    x, y = (np.concatenate([part, part[:1]]) for part in photos)
    _, history = fitted((x, y), 4, optimizer=keras.optimizers.Adam(0.1))
    assert history["val_accuracy"][-1] > 0.9


def test_the_default_gives_pretrained_groups_lower_rates():
    model = classifier()
    model.compile()
    assert model.optimizer.learning_rates == pytest.approx([3e-5, 1e-3])
    model = kclf.ImageClassifier("MobileNet_025", ["a", "b"], size=32, weights=None)
    model.compile()
    assert model.optimizer.learning_rates == pytest.approx([3e-6, 3e-5, 1e-3])


def test_a_rate_that_a_backbone_does_not_survive_is_warned_of(photos):
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 4, strides=4)(inputs))
    model = kclf.ImageClassifier(keras.Model(inputs, x), ["a", "b"], size=SIDE, normalization="tf", hidden=())
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(*photos, epochs=1, verbose=0)  # the head alone
    model.unfreeze()
    with pytest.warns(UserWarning, match="hardly survives"):
        model.fit(*photos, epochs=1, verbose=0)
    model.compile()
    model.fit(*photos, epochs=1, verbose=0)


def test_other_batch_norms_than_the_head_s_are_refreshed_too(photos):
    inputs = keras.Input((SIDE, SIDE, 3))
    outputs = keras.layers.BatchNormalization(name="bn")(keras.layers.Conv2D(4, 4, strides=4)(inputs))
    model = kclf.accelerate(keras.Model(inputs, outputs))
    x = photos[0].astype("float32")
    take_statistics(model, [model.get_layer("bn")], [x[:20], x[20:]])
    values = np.array(model(x, training=False).detach().cpu())
    np.testing.assert_allclose(values.mean((0, 1, 2)), 0.0, atol=1e-3)
    np.testing.assert_allclose(values.std((0, 1, 2)), 1.0, atol=1e-3)


def test_a_dataset_is_sampled_the_same_each_time_and_left_where_it_was(photos):
    x, y = photos
    data = kclf.ImageDataset(x, y, class_names=["a", "b"], presize=SIDE, batch_size=8, shuffle=True)
    state = data.state_dict()
    first, second = sample(data), sample(data)
    assert data.state_dict() == state
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))


def test_the_collapse_detector_measures_accelerated_models(photos):
    model, _ = fitted(photos)
    (norm,) = live_batchnorms(model)
    norm.moving_mean.assign(np.array(norm.moving_mean) + 300.0)
    averages, batches = probe_losses(model, [photos])
    assert batches < averages / 2


@pytest.mark.parametrize("shape", [(SIDE, SIDE, 3), (2, 3, SIDE, SIDE), (2, SIDE, SIDE, 4), (2, SIDE, SIDE)])
def test_images_of_another_shape_are_refused_by_name(shape):
    with pytest.raises(ValueError, match="Expected images of shape"):
        classifier()(np.zeros(shape, "uint8"))


@pytest.mark.parametrize("scaled", [lambda x: x / 255, lambda x: x / 127.5 - 1])
@pytest.mark.parametrize("use", ["fit", "predict", "evaluate"])
def test_images_that_were_divided_already_are_warned_of(photos, scaled, use):
    x, y = photos
    model = classifier()
    model.compile()
    x = scaled(x).astype("float32")
    with pytest.warns(UserWarning, match="where \\[0, 255\\] is expected"):
        getattr(model, use)(*((x,) if use == "predict" else (x, y)), verbose=0)


def test_images_as_they_were_read_are_not(photos):
    model = classifier()
    for dtype in ("uint8", "float32", "int64"):
        assert model.predict(photos[0].astype(dtype), verbose=0).shape == (len(photos[0]), 2)
