from __future__ import annotations

import keras
import numpy as np
import pytest

import kclf
from kclf._core import h5_store
from kclf.models import ImageClassifier, auto_loss, build_head, load
from kclf.weights import array_of
from tests.conftest import with_random_logits

NAMES = ["cat", "dog", "owl"]


def tiny_backbone() -> keras.Model:
    """Two convolutions with BatchNormalization, small enough for any test."""
    layers = keras.layers
    photos = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv_a")(photos)
    x = layers.ReLU()(layers.BatchNormalization(name="norm_a")(x))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="conv_b")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm_b")(x))
    return keras.Model(photos, x, name="tiny")


def tiny(**arguments) -> ImageClassifier:
    options = {"size": 32, "hidden": (16,), "normalization": "tf"} | arguments
    return with_random_logits(ImageClassifier(tiny_backbone(), NAMES, **options))


def small(**arguments) -> ImageClassifier:
    settings = {"size": 32, "weights": None, "hidden": (16,)} | arguments
    return with_random_logits(ImageClassifier("MobileNetV2_035", NAMES, **settings))


def photos(n=12, size=40):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (n, size, size, 3), dtype="uint8"), np.arange(n) % len(NAMES)


def arrays_of(model):
    return [array_of(variable).copy() for variable in model.weights]


def trainable_paths(model):
    return [variable.path for variable in model.trainable_variables]


def bn_statistics(model):
    return [
        array_of(v).copy()
        for layer in model.backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for v in (layer.moving_mean, layer.moving_variance)
    ]


# ---- the head ------------------------------------------------------------


def test_the_head_has_the_parameters_of_the_course(golden):
    head = build_head(512, 37)

    trainable = sum(int(np.prod(v.shape)) for v in head.trainable_variables)

    assert trainable == golden["head params"] == 546304


def test_the_head_settles_within_an_epoch():
    norms = [layer for layer in build_head(8, 3).layers if isinstance(layer, keras.layers.BatchNormalization)]

    assert [(layer.momentum, layer.epsilon) for layer in norms] == [(0.9, 1e-5)] * 2


def test_a_new_head_leans_to_no_class_and_learns():
    x = np.random.default_rng(0).normal(size=(64, 4, 4, 64)).astype("float32")
    y = np.arange(64) % 10
    head = build_head(64, 10, dropout=0.0)
    head.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    assert not np.any(head.predict(x, verbose=0))
    losses = head.fit(x, y, epochs=20, verbose=0).history["loss"]

    assert losses[0] < np.log(10) + 0.3  # from He-normal weights 3.2
    assert losses[-1] < 0.1


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_logits_are_float32_under_any_policy(policy):
    images, _ = photos(2)

    logits = tiny(dtype=policy)(images)

    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert tuple(logits.shape) == (2, len(NAMES))


# ---- layer groups ------------------------------------------------------------


def test_groups_hold_every_weight_exactly_once():
    model = small()

    grouped = [id(v) for group in model.layer_groups for layer in group for v in layer.weights]

    assert sorted(grouped) == sorted(id(v) for v in model.weights)


def test_a_new_classifier_trains_its_head_alone():
    model = small()

    assert {id(v) for v in model.trainable_variables} == {id(v) for v in model.head.trainable_variables}
    assert model.first_trainable_group == 2


def test_freeze_to_counts_from_either_end():
    model = small()
    sizes = []

    for n in (0, 1, 2, -1, -2, -3):
        model.freeze_to(n)
        sizes.append(len(model.trainable_variables))

    assert sizes[:3] == [sizes[5], sizes[4], sizes[3]]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("n", [3, -4])
def test_freeze_to_refuses_a_group_that_is_not_there(n):
    model = small()

    with pytest.raises(ValueError, match=rf"3 layer groups, from -3 to 2.*n={n}"):
        model.freeze_to(n)


def test_freezing_moves_nothing_but_the_head():
    model = tiny()
    model.compile("adam")
    before = arrays_of(model.backbone)
    head = arrays_of(model.head)

    model.fit(*photos(), verbose=0)

    assert all(np.array_equal(a, b) for a, b in zip(before, arrays_of(model.backbone), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(head, arrays_of(model.head), strict=True))


def test_unfreezing_after_fit_needs_no_compile_and_keeps_the_optimizer():
    model = tiny()
    model.compile()
    model.fit(*photos(), verbose=0)
    before, optimizer = arrays_of(model.backbone), model.optimizer

    model.unfreeze()
    model.fit(*photos(), verbose=0)

    assert model.optimizer is optimizer
    assert not np.array_equal(before[0], arrays_of(model.backbone)[0])


@pytest.mark.parametrize(
    ("policy", "frozen_moves", "unfrozen_moves"),
    [("frozen", False, True), ("train", True, True), ("inference", False, False)],
)
def test_batchnorm_policy_decides_when_statistics_move(policy, frozen_moves, unfrozen_moves):
    model = tiny(batchnorm=policy)
    model.compile("sgd")
    moved = []

    for unfreeze in (model.freeze, model.unfreeze):
        unfreeze()
        before = bn_statistics(model)
        model.fit(*photos(), verbose=0)
        moved.append(not all(np.array_equal(a, b) for a, b in zip(before, bn_statistics(model), strict=True)))

    assert moved == [frozen_moves, unfrozen_moves]


def test_batchnorm_policy_can_be_changed_and_what_is_frozen_stays_so():
    model = tiny(batchnorm="inference")
    model.freeze()
    before = trainable_paths(model)

    model.batchnorm = "train"
    assert set(trainable_paths(model)) > set(before)
    model.batchnorm = "inference"

    assert trainable_paths(model) == before
    assert model.get_config()["batchnorm"] == "inference"
    with pytest.raises(ValueError, match="batchnorm='off'"):
        model.batchnorm = "off"
    assert model.batchnorm == "inference"


def test_inference_policy_still_learns_scale_and_shift():
    model = tiny(batchnorm="inference")
    model.compile(keras.optimizers.SGD(0.1))
    model.unfreeze()
    gamma = model.backbone.get_layer("norm_a").gamma
    before = array_of(gamma).copy()

    model.fit(*photos(), verbose=0)

    assert not np.array_equal(before, array_of(gamma))


@pytest.mark.parametrize("policy", ["inference", "frozen", "train"])
def test_every_policy_trains_alike_with_and_without_acceleration(policy):
    histories = []
    for accelerate in (True, False):
        keras.utils.set_random_seed(3)
        model = tiny(batchnorm=policy, accelerate=accelerate, dropout=0.0)
        model.compile(keras.optimizers.SGD(1e-3, momentum=0.9))
        model.unfreeze()
        histories.append(
            model.fit(*photos(), epochs=2, batch_size=6, shuffle=False, verbose=0).history["loss"]
        )

    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-5)


# ---- loss and metrics ------------------------------------------------------------


def test_auto_loss_gives_the_figures_of_the_course():
    logits = np.array([[0.6734, 0.2576], [-1.0, 2.0]], "float32")

    loss = auto_loss("single_label")(np.array([0, 1]), logits)

    expected = -np.mean([0.6734 - np.logaddexp(0.6734, 0.2576), 2.0 - np.logaddexp(-1.0, 2.0)])
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_many_labels_are_scored_from_logits():
    model = tiny(task="multi_label")
    model.compile("sgd")
    images, _ = photos(4)
    labels = np.float32(keras.ops.convert_to_numpy(model(images)) > 0)

    scores = model.evaluate(images, labels, verbose=0, return_dict=True)

    assert scores["accuracy"] == pytest.approx(1.0)


def test_numbers_train_on_absolute_error():
    model = ImageClassifier(
        tiny_backbone(), ["age"], size=32, hidden=(), normalization="tf", task="regression"
    )
    model.compile("sgd")
    images, _ = photos(4)
    numbers = keras.ops.convert_to_numpy(model(images)) + 2.0

    assert model.evaluate(images, numbers, verbose=0) == pytest.approx(2.0, abs=1e-4)


# ---- files ------------------------------------------------------------


def test_frozen_and_thawed_save_the_same_arrays(tmp_path):
    model = small()
    model.save(tmp_path / "frozen.h5")
    model.unfreeze()
    model.save(tmp_path / "unfrozen.h5")

    frozen, unfrozen = (h5_store.read_arrays(tmp_path / f"{name}.h5")[0] for name in ("frozen", "unfrozen"))

    assert frozen.keys() == unfrozen.keys()
    assert all(np.array_equal(frozen[key], unfrozen[key]) for key in frozen)


def test_keras_own_archive_works_too(tmp_path):
    model = tiny()
    model.compile()
    images, _ = photos(2)
    model.save(tmp_path / "a.keras")

    again = keras.saving.load_model(tmp_path / "a.keras")

    np.testing.assert_allclose(again.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6)


def test_a_backbone_of_ones_own_is_refused_by_the_single_file(tmp_path):
    with pytest.raises(kclf.WeightsError, match=r'Save it as a "\.keras" file'):
        tiny().save(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "not a classifier that kclf saved"),
        ({"format": "kclf-classifier", "version": 99}, "newer kclf"),
        ({"format": "kclf-classifier", "version": "1"}, "format version"),
        ({"format": "kclf-classifier", "version": 1}, "do not name a backbone"),
        (
            {"format": "kclf-classifier", "version": 1, "config": {"backbone": "MobileNetV2"}},
            "settings are damaged",
        ),
    ],
)
def test_load_says_what_is_wrong_with_a_file(tmp_path, attributes, message):
    h5_store.write_arrays(tmp_path / "a.h5", {"x": np.zeros(1)}, attributes)

    with pytest.raises(kclf.FileFormatError, match=message):
        load(tmp_path / "a.h5")


def rewrite(path, change_arrays=lambda arrays: None, change_attributes=lambda attributes: None):
    arrays, attributes = h5_store.read_arrays(path)
    change_arrays(arrays)
    change_attributes(attributes)
    h5_store.write_arrays(path, arrays, attributes)


def test_load_lists_weights_that_do_not_fit(tmp_path):
    small().save(tmp_path / "a.h5")
    rewrite(
        tmp_path / "a.h5", lambda arrays: arrays.update({"head/logits/kernel": np.zeros((16, 2), "float32")})
    )

    with pytest.raises(kclf.FileFormatError, match=r"head/logits/kernel.*\(16, 2\).*\(16, 3\)"):
        load(tmp_path / "a.h5")


def test_check_finds_weights_that_were_changed(tmp_path):
    small().save(tmp_path / "a.h5")
    rewrite(tmp_path / "a.h5", lambda arrays: arrays["head/logits/kernel"].__imul__(2))

    with pytest.raises(kclf.FileFormatError, match="logits of the probe batch differ"):
        load(tmp_path / "a.h5", check=True)


def test_the_probe_is_computed_alike_when_it_is_written_and_checked(tmp_path, monkeypatch):
    """Kernels for other batches round otherwise, which random features without a signal show."""
    batches = []
    call = kclf.ImageClassifier.call
    monkeypatch.setattr(
        kclf.ImageClassifier,
        "call",
        lambda self, images, **more: batches.append(len(images)) or call(self, images, **more),
    )
    small().save(tmp_path / "a.h5")
    written, batches[:] = list(batches), []
    load(tmp_path / "a.h5", check=True)
    assert batches == written == [1, 1]


# ---- arguments ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "guess"}, ValueError, "'single_label', 'multi_label', 'regression'.*task='guess'"),
        ({"batchnorm": "off"}, ValueError, "batchnorm='off'"),
        ({"normalization": None}, ValueError, "needs its normalization"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        tiny(**arguments)


@pytest.mark.parametrize(
    ("names", "error"), [(["cat"], ValueError), (["cat", "cat"], ValueError), (37, TypeError)]
)
def test_class_names_are_checked(names, error):
    with pytest.raises(error, match="class_names="):
        ImageClassifier(tiny_backbone(), names, normalization="tf")
