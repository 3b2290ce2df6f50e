"""Where two mechanisms meet: caches, classes, tasks, augmentations, places."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from PIL import Image

import kclf
from kclf.layers import AugmentationStack, RandomErasing
from kclf.prediction.activation_cache import activation_key, precompute
from tests.conftest import with_random_logits

RNG = np.random.default_rng(0)


def tiny_backbone(momentum=0.99):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(4, 3, strides=2),
            layers.BatchNormalization(momentum=momentum),
            layers.ReLU(),
        ]
    )


def classifier(class_names=("cat", "dog"), **options):
    options = {"size": 16, "normalization": "tf", "hidden": (), **options}
    return with_random_logits(kclf.ImageClassifier(tiny_backbone(), list(class_names), **options))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of 40 x 60 pixels in train and valid, two classes."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 4), ("valid", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def in_memory(labels, task=None, **options):
    images = RNG.integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8)
    more = {} if task is None else {"task": task}
    return kclf.ImageData.from_arrays((images, labels), batch_size=4, **more, **options)


def learner(path, labels, task=None):
    made = kclf.Learner(
        in_memory(labels, task), tiny_backbone(), normalization="tf", hidden=(), path=path, verbose=False
    )
    made.fit_one_cycle(1, 1e-3)
    return made


def test_the_activation_cache_tells_presized_photos_from_files(photos, tmp_path):
    model = classifier()
    data = kclf.ImageData.from_folder(photos, size=16, presize=20)
    presized, larger = data.resize(20, tmp_path / "small"), data.resize(30, tmp_path / "large")

    keys = {activation_key(model, some.valid) for some in (data, presized, larger)}
    assert len(keys) == 3

    cached = precompute(model, presized, tmp_path / "cache", progress=False)
    fresh = precompute(model, presized, tmp_path / "other", progress=False)
    np.testing.assert_array_equal(cached.valid.features, fresh.valid.features)


@pytest.mark.parametrize("names", [["dog", "zebra"], ["dog", "cat"], ["cat", "dog", "zebra"]])
@pytest.mark.parametrize("predict", [kclf.predict, kclf.predict_tta])
def test_predictions_for_other_classes_are_refused(predict, names):
    data = in_memory(names * 4)
    others = ["cat", "dog"] if "zebra" in names else ["dog", "cat"]
    model = classifier(others, augmentation=kclf.side_on())
    with pytest.raises(kclf.DataError, match=r"classes, .*Received: "):
        predict(model, data.valid)


@pytest.mark.parametrize(
    ("labels", "task"),
    [(np.eye(4, 2, dtype=int).repeat(4, 0), "multi_label"), ([0.5, 1.5, 2.5, 3.5] * 4, "regression")],
)
def test_a_report_of_every_task_is_written(tmp_path, labels, task):
    page = learner(tmp_path / "new", labels, task).report()
    assert page.read_text().startswith("<!")


def test_a_learner_writes_into_folders_that_are_not_there(tmp_path):
    path = tmp_path / "runs" / "one"
    made = learner(path, ["cat", "dog"] * 8)
    assert made.report("pages/report.html") == path / "pages" / "report.html"
    assert made.export("files/export.h5") == path / "files" / "export.keras"


@pytest.mark.parametrize(
    "layer",
    [
        RandomErasing(p=1.0, seed=1),
        keras.layers.RandomFlip(seed=1),
        keras.Sequential([keras.layers.RandomBrightness(0.5, seed=1)]),
    ],
    ids=["RandomErasing", "RandomFlip", "Sequential"],
)
def test_any_layer_of_images_is_an_augmentation(layer, tmp_path):
    model = classifier(augmentation=layer)
    images = RNG.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)

    assert isinstance(model.augmentation, AugmentationStack)
    assert model.augmentation.is_random
    assert tuple(model.augmentation(images, training=True).shape) == (4, 16, 16, 3)
    np.testing.assert_array_equal(*(kclf.predict(model, images).probabilities for _ in range(2)))
    kclf.predict_tta(model, images, 2)
    model.compile()
    model.fit(images, np.array([0, 1, 0, 1]), verbose=0)

    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again.augmentation.layers[0]) is type(layer)


def test_another_thing_is_no_augmentation():
    with pytest.raises(TypeError, match="Received: augmentation='flip'"):
        classifier(augmentation="flip")


def test_what_is_given_stays_as_it_is():
    backbone, augmentation = tiny_backbone(), kclf.side_on(16)
    model = kclf.ImageClassifier(
        backbone, ["cat", "dog"], size=16, normalization="tf", augmentation=augmentation
    )
    assert model.augmentation is augmentation
    assert backbone.layers[1].momentum == 0.99


@pytest.mark.parametrize(
    "make", [Image.fromarray, np.asarray, lambda x: x[..., 0]], ids=["PIL", "RGB", "grey"]
)
def test_a_learner_predicts_photos_of_every_kind(tmp_path, make):
    made = learner(tmp_path, ["cat", "dog"] * 8)
    pixels = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    name, number, probabilities = made.predict(make(pixels))
    assert made.model.class_names[number] == name
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_pixels_that_are_no_photo_are_refused(tmp_path):
    with pytest.raises(kclf.DataError, match=r"Received: ndarray of float64, shape \(3, 8, 8\)"):
        classifier().read(np.zeros((3, 8, 8)))


def test_a_photo_is_read_as_the_loader_reads_it(photos):
    model = classifier(presize=20)
    data = kclf.ImageData.from_folder(photos, size=16, presize=20)
    images, _ = next(iter(data.valid))
    np.testing.assert_array_equal(model.read(data.valid.files[0]), images[0].cpu().numpy())
