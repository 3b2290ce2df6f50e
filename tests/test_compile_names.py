"""Losses and metrics by their names: what trains, and what is refused before the first step."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kclf
from kclf.acceleration import deaccelerate
from kclf.data.mixed_dataset import weighted_shares
from kclf.losses import BinaryCrossEntropy, CrossEntropy
from kclf.metrics import OnProbabilities

SIDE, PHOTOS = 16, 32


def small_backbone():
    inputs = keras.Input((SIDE, SIDE, 3))
    return keras.Model(inputs, keras.layers.Conv2D(4, 4, strides=4, activation="relu")(inputs))


def classifier(classes=2, task="single_label", **settings):
    names = [f"class {number}" for number in range(classes)]
    return kclf.ImageClassifier(
        small_backbone(), names, size=SIDE, normalization="tf", hidden=(), dropout=0.0, task=task, **settings
    )


def easy_photos(classes=2):
    """Photos whose brightness in one colour is their class."""
    y = np.arange(PHOTOS) % classes
    x = np.random.default_rng(0).integers(0, 40, (PHOTOS, SIDE, SIDE, 3)).astype("uint8")
    x[np.arange(PHOTOS), :, :, y] += 180
    return x, y


LABELS = {
    "whole": lambda y, classes: y,
    "column": lambda y, classes: y[:, None],
    "one-hot": lambda y, classes: np.eye(classes, dtype="float32")[y],
}
LOSSES = [
    "auto",
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "binary_crossentropy",
    "SparseCategoricalCrossentropy",
    "categorical_focal_crossentropy",
    "mse",
    "kl_divergence",
]
METRICS = [
    "auto",
    "accuracy",
    ["acc"],
    ["sparse_categorical_accuracy"],
    {"head": ["accuracy", "AUC"]},
    keras.metrics.CategoricalAccuracy,
    "Precision",
    keras.metrics.TopKCategoricalAccuracy,
]
REFUSED = {2: {"mse", "kl_divergence"}, 3: {"mse", "kl_divergence", "binary_crossentropy"}}


@pytest.fixture(scope="module")
def models():
    return {classes: classifier(classes) for classes in (2, 3)}


def refused_or_compiled(model, loss, metric, classes):
    """Whether the names were taken; those that cannot be must be refused here."""
    if isinstance(metric, type):
        metric = metric(k=2) if "TopK" in metric.__name__ else metric()
    model.head.get_layer("logits").kernel.assign(np.zeros((8, classes)))
    if loss in REFUSED[classes]:
        with pytest.raises(ValueError, match="Received: loss"):
            model.compile(keras.optimizers.Adam(0.1), loss, metric)
        return False
    model.compile(keras.optimizers.Adam(0.1), loss, metric)
    return True


def train_and_check(model, loss, labels, metric, classes):
    if not refused_or_compiled(model, loss, metric, classes):
        return
    x, y = easy_photos(classes)
    target = LABELS[labels](y, classes)
    history = model.fit(x, target, epochs=4, batch_size=8, verbose=0).history
    (figure, *_) = [values[-1] for name, values in history.items() if name != "loss"]
    assert (model.predict_on_batch(x).argmax(1) == y).mean() > 0.9
    assert figure > 0.6


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_by_name_trains_on_every_form_of_labels_or_is_refused(models, loss, labels):
    for classes in (2, 3):
        train_and_check(models[classes], loss, labels, "accuracy", classes)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_every_metric_by_name_takes_every_form_of_labels(models, metric, labels):
    train_and_check(models[3], "auto", labels, metric, 3)


@pytest.mark.heavy
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_every_loss_with_every_metric(models, loss, metric, labels):
    for classes in (2, 3):
        train_and_check(models[classes], loss, labels, metric, classes)


def test_top_k_of_fewer_classes_is_refused():
    with pytest.raises(ValueError, match="k of at most 2"):
        classifier().compile(metrics="top_k_categorical_accuracy")


@pytest.mark.parametrize("task", ["multi_label", "regression"])
@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy"])
def test_a_loss_of_another_task_is_refused(task, loss):
    with pytest.raises(ValueError, match=task):
        classifier(2, task).compile(loss=loss)


@pytest.mark.parametrize(
    ("loss", "metric"),
    [
        ("auto", "accuracy"),
        ("binary_crossentropy", ["AUC"]),
        ("bce", [keras.metrics.Recall(thresholds=0.4)]),
        ("binary_focal_crossentropy", "accuracy"),
    ],
)
def test_many_labels_train_by_every_name(loss, metric):
    x, y = easy_photos(3)
    model = classifier(3, "multi_label")
    model.compile(keras.optimizers.Adam(0.1), loss, metric)
    target = LABELS["one-hot"](y, 3)
    history = model.fit(x, target, epochs=6, batch_size=16, verbose=0).history
    assert ((model.predict_on_batch(x) > 0) == target).mean() > 0.9
    (figure,) = [values[-1] for name, values in history.items() if name != "loss"]
    assert figure > 0.6


def test_labels_of_a_wrong_shape_are_refused_before_the_weights_move():
    x, y = easy_photos(3)
    model = classifier(3, "multi_label")
    model.compile()
    before = np.array(model.head.get_layer("logits").kernel)
    with pytest.raises(ValueError, match="labels of shape"):
        model.fit(x, y, verbose=0)
    np.testing.assert_array_equal(model.head.get_layer("logits").kernel, before)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.BinaryCrossentropy(),
        keras.losses.KLDivergence(),
    ],
)
def test_a_loss_object_of_probabilities_is_refused(loss):
    with pytest.raises(ValueError, match="from_logits=True"):
        classifier().compile(loss=loss)


def test_mixup_trains_as_its_docstring_says_with_accuracy_by_name():
    x, y = easy_photos()
    mixed, shares = kclf.MixUp(2, alpha=0.4)(x, y, training=True)
    model = classifier()
    model.compile(
        keras.optimizers.Adam(0.1), keras.losses.CategoricalCrossentropy(from_logits=True), ["accuracy"]
    )
    assert model.fit(mixed, shares, epochs=5, verbose=0).history["accuracy"][-1] > 0.7


@pytest.mark.parametrize("metric", [keras.metrics.AUC(), keras.metrics.F1Score(), keras.metrics.Recall()])
def test_metrics_of_probabilities_are_those_of_the_probabilities(metric):
    rng = np.random.default_rng(1)
    logits, y = rng.normal(size=(64, 2)).astype("float32") * 2, rng.integers(0, 2, 64)
    ours = OnProbabilities(type(metric)(), "single_label")
    ours.update_state(y, logits)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if isinstance(metric, keras.metrics.F1Score):
        metric.update_state(np.eye(2)[y], probabilities)
    else:
        metric.update_state(y, probabilities[:, 1])
    np.testing.assert_allclose(np.array(ours.result()), np.array(metric.result()), rtol=1e-5)


def test_compiled_names_survive_a_file(tmp_path):
    model = classifier()
    model.compile(loss="categorical_crossentropy", metrics=["accuracy", "AUC"])
    x, y = easy_photos()
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(before)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "binary_crossentropy", "mse", "mae"])
def test_a_loss_by_name_and_a_strange_metric_keep_the_fast_step_and_its_figures(loss):
    def strange(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_pred), axis=-1)

    x, y = easy_photos()
    last = keras.layers.Dense(2, "softmax") if loss.startswith("sparse") else keras.layers.Dense(1, "sigmoid")
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), last])
    model.compile("sgd", loss, metrics=["accuracy", strange])
    x = x.astype("float32") / 255
    stock = model.evaluate(x, y, verbose=0, return_dict=True)
    kclf.accelerate(model)
    assert model.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(stock, rel=1e-5)
    step = model.train_step.__self__
    step._look()
    assert step._loss is not None
    assert step._totals is not None
    deaccelerate(model)


def test_sure_and_wrong_answers_of_many_labels_have_a_gradient():
    logits = keras.ops.convert_to_tensor([[-30.0, 0.0]])
    logits.requires_grad_(True)
    for loss in (BinaryCrossEntropy(), BinaryCrossEntropy(0.1), BinaryCrossEntropy(focal_gamma=2.0)):
        loss(np.array([[1.0, 0.0]], "float32"), logits).backward()
        assert logits.grad[0, 0] < -0.4
        logits.grad = None


@pytest.mark.parametrize("beside", ["class_weight", "sample_weight", "y"])
def test_what_a_dataset_brings_itself_is_refused_beside_it(beside):
    x, y = easy_photos()
    data = kclf.ImageDataset(x, y, class_names=["a", "b"], presize=SIDE, batch_size=8)
    model = classifier()
    model.compile()
    given = {"class_weight": {0: 1.0, 1: 2.0}, "sample_weight": np.ones(PHOTOS), "y": y}[beside]
    with pytest.raises(kclf.errors.DataError, match=beside):
        model.fit(data, **{beside: given}, verbose=0)
    assert len(model.fit(data, validation_data=data, verbose=0).history["loss"]) == 1


def test_class_weights_fall_on_the_shares_of_mixed_labels():
    rng = np.random.default_rng(0)
    shares, weights = rng.dirichlet(np.ones(3), 8).astype("float32"), np.array([1.0, 5.0, 0.5], "float32")
    logits = rng.normal(size=(8, 3)).astype("float32")
    labels, of_photo = weighted_shares(keras.ops.convert_to_tensor(shares), weights)
    loss = CrossEntropy(reduction=None)(labels, logits) * of_photo
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(np.array(loss.cpu()), -(shares * weights * log_p).sum(1), rtol=1e-5)
