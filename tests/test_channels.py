"""Photos of one channel and of four or more: read, trained on, predicted, saved, exported, shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pretended_cuda import pretended_cuda

import kclf
from kclf._core.h5_store import read_arrays, write_arrays
from kclf.backbones.transformers import TRANSFORMERS, TransformerPlan
from kclf.data import ImageDataset
from kclf.data.images import read_image
from kclf.data.sources import ArrayImages, FileImages, JoinedImages
from kclf.errors import DataError, FileFormatError
from kclf.layers import InputNormalization
from tests.conftest import with_random_logits
from tests.test_cli import run

SIDE = 32
LABELS = np.array([0, 1] * 4)


def pixels(channels, count=8, side=SIDE):
    """Photos of two kinds, dark and light."""
    noise = np.random.default_rng(0).normal(0, 30, (count, side, side, channels))
    return np.clip(noise + np.where(np.arange(count) % 2, 190, 60)[:, None, None, None], 0, 255).astype(
        np.uint8
    )


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(TRANSFORMERS, "ViTS16", TransformerPlan(16, 12, 2, patch=8, grid=4))


def classifier(channels, name="ViTS16", **options):
    settings = {"size": SIDE, "weights": None, "hidden": (), "channels": channels} | options
    return with_random_logits(kclf.ImageClassifier(name, ["dark", "light"], **settings))


@pytest.fixture
def folder(tmp_path):
    """Colour photos in the folders of two classes."""
    for number, photo in enumerate(pixels(3, 16, 40)):
        place = tmp_path / "photos" / ["dark", "light"][number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(place / f"{number}.png")
    return tmp_path / "photos"


# ---- how they are read --------------------


def test_a_file_is_read_as_the_luma_of_its_colours(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "photo.png")
    grey = read_image(tmp_path / "photo.png", channels=1)
    assert (grey.shape, grey.ravel().tolist()) == ((1, 4, 1), [76, 150, 29, 9])


def test_folders_cache_and_windows_hand_out_grey(folder, tmp_path):
    data = kclf.ImageData.from_folder(folder, size=SIDE, batch_size=4, channels=1)
    assert data.channels == 1
    from_files = data.valid.peek()[0]
    assert (from_files.shape[1:], from_files.dtype) == ((SIDE, SIDE, 1), torch.uint8)
    cached = data.resize(SIDE, tmp_path / "cache")
    assert int((cached.valid.peek()[0].int() - from_files.int()).abs().max()) <= 1
    colours = data.replace(channels=3).resize(SIDE, tmp_path / "cache")
    assert colours.valid.peek()[0].shape[1:] == (SIDE, SIDE, 3)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert len(data.show_batch(4).axes) == 4


def test_arrays_have_the_channels_of_their_last_axis():
    assert kclf.ImageData.from_arrays((pixels(6), LABELS)).channels == 6
    assert kclf.ImageData.from_arrays((pixels(1), LABELS)).channels == 1
    assert kclf.ImageData.from_arrays((pixels(1)[..., 0], LABELS)).channels == 3  # grey in all three
    with pytest.raises(DataError, match=r"Expected images of 1 channels.*images\[\.\.\., None\]"):
        kclf.ImageData.from_arrays((pixels(3), LABELS), channels=1)


def test_files_have_one_channel_or_three(folder):
    with pytest.raises(ValueError, match="channels=3, or 1"):
        kclf.ImageData.from_folder(folder, channels=4)


def test_joined_images_have_the_channels_of_the_first(folder):
    files = FileImages(sorted(map(str, folder.rglob("*.png"))))
    joined = JoinedImages([ArrayImages(pixels(1)), files])
    assert (joined.channels, joined[8].shape) == (1, (40, 40, 1))


@pytest.mark.parametrize("channels", [1, 5])
def test_photos_stay_on_a_gpu_in_their_channels(channels):
    with pretended_cuda():
        options = {"class_names": ["dark", "light"], "presize": 24, "batch_size": 4, "random_crop": True}
        dataset = ImageDataset(pixels(channels, side=24), LABELS, on_gpu=True, **options)
        first, second = (next(iter(dataset))[0].cpu() for _ in range(2))
        list(dataset)
        kept = next(iter(dataset))[0].cpu()
    torch.testing.assert_close(first, second)
    assert kept.shape == (4, 24, 24, channels)


# ---- what the classifier makes of them --------------------


def test_a_mode_has_figures_for_colours_and_their_mean_for_others():
    layer = InputNormalization("torch")
    zeros = [layer(torch.zeros(1, 1, 1, n)).flatten().tolist() for n in (1, 2, 3, 5)]
    mean = -np.mean([123.675, 116.28, 103.53]) / np.mean([58.395, 57.12, 57.375])
    np.testing.assert_allclose(zeros[0], [mean], rtol=1e-6)
    np.testing.assert_allclose(zeros[1], [mean] * 2, rtol=1e-6)
    np.testing.assert_allclose(zeros[3], [*zeros[2], mean, mean], rtol=1e-6)
    blue_first = InputNormalization("caffe")(torch.arange(4.0).reshape(1, 1, 1, 4)).flatten()
    expected = np.array([2, 1, 0, 3]) - [103.939, 116.779, 123.68, np.mean([123.68, 116.779, 103.939])]
    np.testing.assert_allclose(blue_first, expected, rtol=1e-6)


def test_one_figure_for_each_channel_or_one_for_all():
    own = InputNormalization(mean=[0, 10, 20, 30], std=[1, 1, 1, 2])
    assert own(torch.full((1, 1, 1, 4), 40.0)).flatten().tolist() == [40, 30, 20, 5]
    assert classifier(4, normalization=own).normalization is own
    with pytest.raises(ValueError, match="one for each of 5 channels"):
        classifier(5, normalization=own)


def test_grey_photos_get_the_answers_of_grey_in_three_channels(tmp_path):
    colours = classifier(3)
    kclf.weights.save_weights(colours.backbone, tmp_path / "backbone.weights.h5")
    grey = classifier(1, weights=tmp_path / "backbone.weights.h5")
    for ours, theirs in zip(grey.head.weights, colours.head.weights, strict=True):
        ours.assign(theirs)
    photos = pixels(1)
    expected = colours(np.repeat(photos, 3, axis=-1), training=False).detach()
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(grey(photos, training=False).detach(), expected, rtol=0, atol=1e-5)


def test_photos_of_other_channels_are_refused_with_what_to_do():
    for model, photos, hint in (
        (classifier(4), pixels(3), r"channels=3\) takes them"),
        (classifier(1), pixels(1)[..., 0], r"images\[\.\.\., None\]"),
        (classifier(3), pixels(1), r"or ImageClassifier\(\.\.\., channels=1\)"),
    ):
        with pytest.raises(ValueError, match=hint):
            model(photos)


def test_the_command_refuses_other_channels_of_files_in_one_message(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(pixels(3)[number]).save(tmp_path / name / f"{number}.png")
    assert run("train", tmp_path, "--channels", 2, "--weights", "none", "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "channels=3, or 1 for grey" in said
    assert "Traceback" not in said


# ---- in use --------------------


@pytest.mark.parametrize("channels", [1, pytest.param(4, marks=pytest.mark.heavy)])
def test_trained_predicted_explained_and_read_back(channels, tmp_path):
    data = kclf.ImageData.from_arrays((pixels(channels, 16), [0, 1] * 8), batch_size=4)
    augmentation = kclf.aug_transforms()
    learner = kclf.Learner(data, "ViTS16", weights=None, hidden=(), augmentation=augmentation)
    assert learner.model.input_shape == (None, SIDE, SIDE, channels)
    learner.model.unfreeze()
    learner.fit_one_cycle(1, 1e-3)
    photos = pixels(channels)
    expected = kclf.predict(learner.model, photos).probabilities
    assert kclf.predict_tta(learner.model, data.valid).probabilities.shape == (data.valid.num_images, 2)
    assert kclf.grad_cam(learner.model, photos).plot().images.shape == photos.shape
    np.testing.assert_allclose(learner.predict(photos[0])[2], expected[0], atol=1e-6)
    for file in ("model.h5", "model.keras"):
        learner.model.save(tmp_path / file)
        again = kclf.load(tmp_path / file, check=True)
        assert again.channels == channels
        np.testing.assert_allclose(kclf.predict(again, photos).probabilities, expected, atol=1e-6)


def test_a_learner_refuses_data_of_other_channels():
    learner = kclf.Learner(kclf.ImageData.from_arrays((pixels(1), LABELS)), "ViTS16", weights=None)
    with pytest.raises(DataError, match="Expected data of 1 channels"):
        learner.set_data(kclf.ImageData.from_arrays((pixels(3), LABELS)))


def test_files_are_read_in_the_channels_of_the_classifier(folder):
    model, file = classifier(1), next(folder.rglob("*.png"))
    found, _ = kclf.predict_files(model, [file])
    expected = kclf.predict(model, model.read(file)[None]).probabilities
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(model.read(file.read_bytes()), model.read(Image.open(file)))
    for read in (classifier(4).read, lambda photo: kclf.predict_files(classifier(4), [photo])):
        with pytest.raises(ValueError, match="of photos in files"):
            read(file)


@pytest.mark.parametrize("claimed", [0, "4", 4])
def test_a_file_that_claims_other_channels_is_refused(claimed, tmp_path):
    classifier(1).save(tmp_path / "model.h5")
    arrays, attributes = read_arrays(tmp_path / "model.h5")
    attributes["config"]["channels"] = claimed
    write_arrays(tmp_path / "model.h5", arrays, attributes)
    with pytest.raises(FileFormatError, match=r"channels|shape"):
        kclf.load(tmp_path / "model.h5")


@pytest.mark.heavy
@pytest.mark.filterwarnings("default")  # of torch's exporter about itself
@pytest.mark.parametrize("channels", [1, 4])
def test_onnx_files_take_as_many_channels(channels, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    model = classifier(channels, presize=40)
    kclf.to_onnx(model, tmp_path / "model.onnx")
    loaded, photos = kclf.load_onnx(tmp_path / "model.onnx"), pixels(channels, side=40)
    assert loaded.channels == channels
    expected = kclf.predict(model, photos).probabilities
    np.testing.assert_allclose(kclf.predict(loaded, photos).probabilities, expected, rtol=0, atol=1e-4)


@pytest.mark.heavy
def test_the_command_trains_and_predicts_in_grey(folder, tmp_path, capsys):
    words = ["--backbone", "MobileNetV2_035", "--weights", "none", "--size", SIDE, "--channels", 1]
    assert run("train", folder, "--out", tmp_path / "run", "--effort", "quick", *words) == 0
    model = kclf.load(tmp_path / "run" / "classifier.h5")
    assert model.channels == 1
    assert run("predict", tmp_path / "run", next(folder.rglob("*.png"))) == 0
    assert "light" in capsys.readouterr().out
