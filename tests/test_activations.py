"""The activation cache: right, used again, never stale, and able to go on after a stop."""

from __future__ import annotations

import os

import keras
import numpy as np
import pytest
import torch
from PIL import Image

from kclf.data import ImageData
from kclf.errors import TrainingError
from kclf.layers import Augmentation
from kclf.models import ImageClassifier
from kclf.prediction import activation_cache
from kclf.prediction.activation_cache import (
    ActivationDataset,
    activation_key,
    head_model,
    pooled_activations,
    precompute,
)
from tests.conftest import with_random_logits

SIZE = 16
PHOTOS = 26


def tiny_backbone(channels: int = 6) -> keras.Model:
    layers = keras.layers
    images = keras.Input((None, None, 3))
    x = layers.Conv2D(channels, 3, strides=2, padding="same")(images)
    x = layers.BatchNormalization()(x)
    return keras.Model(images, layers.ReLU()(x))


def tiny_classifier(**changes) -> ImageClassifier:
    keras.utils.set_random_seed(3)
    settings = {"size": SIZE, "normalization": "tf", "hidden": (8,), "backbone": tiny_backbone()}
    return with_random_logits(ImageClassifier(class_names=["cat", "dog"], **(settings | changes)))


@pytest.fixture
def folder(tmp_path):
    """Noise with a hint of colour: cats are red, dogs are blue."""
    rng = np.random.default_rng(1)
    for number in range(PHOTOS):
        name = ("cat", "dog")[number % 2]
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (20, 24, 3), dtype=np.uint8)
        pixels[..., 0 if name == "cat" else 2] += 127
        Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number:02}.png")
    return tmp_path / "photos"


def data_of(folder, **changes) -> ImageData:
    return ImageData.from_folder(folder, **({"size": SIZE, "batch_size": 4} | changes))


def computed(model, data, place, **options) -> int:
    """How many photos go through the backbone for this call."""
    seen = []

    def counting(model, images, **arguments):
        seen.append(len(images))
        return pooled_activations(model, images, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation_cache, "pooled_activations", counting)
        precompute(model, data, place, progress=False, **options)
    return sum(seen)


def values(variable) -> np.ndarray:
    return variable.numpy().copy()


# ---- right ------------------------------------------------------------


def test_head_on_activations_gives_the_classifiers_logits(folder, tmp_path):
    model, data = tiny_classifier(), data_of(folder)
    cached = precompute(model, data, tmp_path / "cache", progress=False)
    head = head_model(model)
    for (images, labels), (features, same_labels) in zip(data.valid, cached.valid, strict=True):
        assert labels.tolist() == same_labels.tolist()
        np.testing.assert_allclose(
            head(features).detach().cpu().numpy(), model(images).detach().cpu().numpy(), rtol=1e-5, atol=1e-5
        )


def test_training_the_head_model_trains_the_classifiers_head(folder, tmp_path):
    model, data = tiny_classifier(), data_of(folder)
    cached = precompute(model, data, tmp_path / "cache", progress=False)
    head = head_model(model)
    head.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [values(w) for w in model.head.trainable_weights]
    head.fit(cached.train, validation_data=cached.valid, epochs=2, shuffle=False, verbose=0)
    moved = [np.abs(values(w) - b).max() for w, b in zip(model.head.trainable_weights, before, strict=True)]
    assert min(moved) > 0
    (features, _), (images, _) = next(iter(cached.valid)), next(iter(data.valid))
    np.testing.assert_allclose(
        head(features).detach().cpu().numpy(), model(images).detach().cpu().numpy(), rtol=1e-4, atol=1e-4
    )


def test_an_epoch_has_the_order_of_the_photos(folder, tmp_path):
    data = data_of(folder)
    cached = precompute(tiny_classifier(), data, tmp_path, progress=False)
    twin = data.train.replace()
    for _ in range(3):
        photos = [labels.tolist() for _, labels in twin]
        assert [labels.tolist() for _, labels in cached.train] == photos


def test_an_epoch_is_over_only_with_its_last_batch(folder, tmp_path):
    cached = precompute(tiny_classifier(), data_of(folder), tmp_path, progress=False)
    first = next(iter(cached.train))[0]
    assert torch.equal(next(iter(cached.train))[0], first)
    list(cached.train)
    assert not torch.equal(next(iter(cached.train))[0], first)


def test_test_photos_without_labels(folder, tmp_path):
    (folder / "test").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (number * 80, 0, 0)).save(folder / "test" / f"{number}.png")
    files = [
        os.path.join(folder, name, file) for name in ("cat", "dog") for file in os.listdir(folder / name)
    ]
    data = ImageData.from_files(
        files, lambda path: path.split(os.sep)[-2], test=folder / "test", size=SIZE, batch_size=4
    )
    cached = precompute(tiny_classifier(), data, tmp_path, progress=False)
    assert cached.test.labels is None
    assert [len(batch) for batch in cached.test] == [1]


def test_a_photo_that_cannot_be_read_is_replaced_as_the_loader_does(folder, tmp_path):
    broken = folder / "cat" / "00.png"
    broken.write_bytes(b"not a photo")
    data = data_of(folder)
    cached = precompute(tiny_classifier(), data, tmp_path, progress=False)
    split = next(s for s in (cached.train, cached.valid) if str(broken) in s.paths)
    row = list(split.paths).index(str(broken))
    assert not split.readable[row]
    assert split.readable.sum() == split.num_images - 1
    assert split.index[row] == (row + 1) % split.num_images


def test_half_precision_takes_half_the_room(folder, tmp_path):
    model, data = tiny_classifier(), data_of(folder)
    full = precompute(model, data, tmp_path, progress=False)
    half = precompute(model, data, tmp_path, dtype="float16", progress=False)
    assert half.train.features.nbytes * 2 == full.train.features.nbytes
    assert next(iter(half.train))[0].dtype == torch.float32
    np.testing.assert_allclose(half.train.features, full.train.features, rtol=2e-3, atol=1e-3)


def test_activations_that_half_precision_cannot_hold(folder, tmp_path):
    model = tiny_classifier()
    kernel = model.backbone.layers[1].kernel
    kernel.assign(values(kernel) * 1e6)
    with pytest.raises(TrainingError, match="float16 cannot hold"):
        precompute(model, data_of(folder), tmp_path, dtype="float16", progress=False)


def test_views_are_augmented_and_drawn_anew_each_epoch(folder, tmp_path):
    model = tiny_classifier(augmentation=Augmentation(SIZE, max_rotate=45, p_affine=1.0, seed=1))
    data = data_of(folder, presize=20)
    cached = precompute(model, data, tmp_path, views=3, progress=False)
    views = cached.train.features
    assert views.shape[0] == 3
    assert not np.allclose(views[0], views[1])
    assert cached.valid.features.shape[0] == 1
    seen = {features.sum().item() for _ in range(4) for features, labels in cached.train}
    assert len(seen) == 4 * len(cached.train)


def test_the_backbone_is_left_as_it_was(folder, tmp_path):
    model = tiny_classifier(augmentation=Augmentation(SIZE, flip="horizontal"))
    before = [values(w) for w in model.backbone.weights]
    precompute(model, data_of(folder), tmp_path, views=2, progress=False)
    assert all(np.array_equal(values(w), b) for w, b in zip(model.backbone.weights, before, strict=True))


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"views": 0}])
def test_refuses_impossible_options(folder, tmp_path, options):
    with pytest.raises(ValueError, match=f"Received: {next(iter(options))}"):
        precompute(tiny_classifier(), data_of(folder), tmp_path, progress=False, **options)


def test_refuses_features_of_other_photos(folder):
    with pytest.raises(ValueError, match=r"features.shape=\(1, 3, 2\)"):
        ActivationDataset(np.zeros((1, 3, 2)), np.arange(3), data_of(folder).train)


# ---- used again, never stale ------------------------------------------------------------


def test_a_second_call_computes_nothing(folder, tmp_path):
    assert computed(tiny_classifier(), data_of(folder), tmp_path / "cache") == PHOTOS
    assert computed(tiny_classifier(), data_of(folder), tmp_path / "cache") == 0


def test_weights_are_read_once_for_all_splits(folder, tmp_path, monkeypatch):
    model, read = tiny_classifier(), []
    digest = activation_cache.weights_digest
    monkeypatch.setattr(
        activation_cache, "weights_digest", lambda backbone: read.append(1) or digest(backbone)
    )
    made = precompute(model, data_of(folder), tmp_path / "cache", progress=False)
    assert made.valid is not None
    assert len(read) == 1
    assert activation_key(model, made.valid.images) == activation_key(
        model, made.valid.images, weights=digest(model.backbone)
    )


def other_photo(folder):
    """A photo of the training split, whichever the split chose."""
    return str(data_of(folder).train.paths[0])


def change_file(folder, model):
    Image.new("RGB", (20, 20), (9, 9, 9)).save(other_photo(folder))
    return data_of(folder), model


def touch_file(folder, model):
    photo = other_photo(folder)
    os.utime(photo, ns=(1, os.stat(photo).st_mtime_ns + 1))
    return data_of(folder), model


def add_file(folder, model):
    Image.new("RGB", (20, 20)).save(folder / "cat" / "99.png")
    return data_of(folder), model


def remove_file(folder, model):
    os.remove(other_photo(folder))
    return data_of(folder), model


def reorder(folder, model):
    data = data_of(folder)
    backwards = data.train.paths[::-1], data.train.labels[::-1]
    return ImageData(data.train.replace(images=list(backwards[0]), labels=backwards[1]), data.valid), model


def change_size(folder, model):
    return data_of(folder, size=8), tiny_classifier(size=8)


def change_backbone(folder, model):
    return data_of(folder), tiny_classifier(backbone=tiny_backbone(channels=7))


def change_activation_function(folder, model):
    """The same weights in another architecture."""
    backbone = tiny_backbone()
    images, x = backbone.input, backbone.layers[2].output
    other = keras.Model(images, keras.layers.LeakyReLU()(x))
    return data_of(folder), tiny_classifier(backbone=other)


def change_weights(folder, model):
    model.backbone.weights[0].assign(values(model.backbone.weights[0]) + 1e-6)
    return data_of(folder), model


def change_batchnorm_statistics(folder, model):
    model.backbone.layers[2].moving_mean.assign(values(model.backbone.layers[2].moving_mean) + 1e-6)
    return data_of(folder), model


def change_normalization(folder, model):
    return data_of(folder), tiny_classifier(normalization="torch")


def change_squaring(folder, model):
    return data_of(folder, resize_method="squish"), model


def change_interpolation(folder, model):
    other = tiny_classifier(augmentation=Augmentation(SIZE, interpolation="bicubic"))
    return data_of(folder), other


STALE = [
    change_file,
    touch_file,
    add_file,
    remove_file,
    reorder,
    change_size,
    change_backbone,
    change_activation_function,
    change_weights,
    change_batchnorm_statistics,
    change_normalization,
    change_squaring,
    change_interpolation,
]


@pytest.mark.parametrize("change", STALE, ids=lambda change: change.__name__)
def test_whatever_changes_the_activations_computes_them_again(folder, tmp_path, change):
    model = tiny_classifier()
    precompute(model, data_of(folder), tmp_path / "cache", progress=False)
    data, model = change(folder, model)
    assert computed(model, data, tmp_path / "cache") >= data.train.num_images


def relabel(folder):
    data = data_of(folder)
    return ImageData(data.train.replace(labels=1 - data.train.labels), data.valid), tiny_classifier()


def rebatch(folder):
    return data_of(folder, batch_size=7), tiny_classifier()


def unfreeze_and_shuffle(folder):
    model = tiny_classifier()
    model.unfreeze()
    model.freeze()
    return data_of(folder), model


def augment(folder):
    return data_of(folder), tiny_classifier(augmentation=Augmentation(SIZE, max_rotate=10))


@pytest.mark.parametrize(
    "change", [relabel, rebatch, unfreeze_and_shuffle, augment], ids=lambda c: c.__name__
)
def test_what_does_not_change_the_activations_uses_the_cache(folder, tmp_path, change):
    precompute(tiny_classifier(), data_of(folder), tmp_path / "cache", progress=False)
    data, model = change(folder)
    assert computed(model, data, tmp_path / "cache") == 0


def test_views_of_other_windows_are_other_activations(folder):
    train, model = data_of(folder).train, tiny_classifier()
    centred = train.replace(random_crop=not train.random_crop)
    assert activation_key(model, train, views=2) != activation_key(model, centred, views=2)
    assert activation_key(model, train) == activation_key(model, centred)


def test_photos_in_memory_are_known_by_their_pixels():
    pixels = np.random.default_rng(0).integers(0, 255, (8, SIZE, SIZE, 3), dtype=np.uint8)
    model = tiny_classifier()
    key = activation_key(model, ImageData.from_arrays((pixels, [0, 1] * 4)).train)
    assert activation_key(model, ImageData.from_arrays((pixels.copy(), [0, 1] * 4)).train) == key
    pixels[:, 0, 0, 0] ^= 1
    assert activation_key(model, ImageData.from_arrays((pixels, [0, 1] * 4)).train) != key


# ---- stopped and damaged ------------------------------------------------------------


def test_a_stopped_pass_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(activation_cache, "PART", 8)
    model, data = tiny_classifier(), data_of(folder)
    calls = []

    def failing(model, images, **options):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return pooled_activations(model, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(activation_cache, "pooled_activations", failing)
        with pytest.raises(KeyboardInterrupt):
            precompute(model, data, tmp_path / "cache", progress=False)
    assert computed(model, data, tmp_path / "cache") == PHOTOS - 8
    whole = precompute(model, data, tmp_path / "elsewhere", progress=False)
    again = precompute(model, data, tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(again.train.features, whole.train.features)
    np.testing.assert_array_equal(again.train.index, whole.train.index)


def test_a_damaged_part_is_computed_again(folder, tmp_path, caplog):
    model, data = tiny_classifier(), data_of(folder)
    precompute(model, data, tmp_path, progress=False)
    file = sorted(tmp_path.rglob("*.h5"))[0]
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)
    assert 0 < computed(model, data, tmp_path) < PHOTOS
    assert str(file) in caplog.text
    assert computed(model, data, tmp_path) == 0
