"""What is exported gives the model's probabilities from the model's photos."""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kclf.models.export
from kclf.acceleration import deaccelerate
from kclf.data.images import read_image, to_frame
from kclf.errors import WeightsError
from kclf.layers import InputNormalization, none
from kclf.models import ImageClassifier
from kclf.models.export import ResizeOfWholeNumbers, to_onnx, to_torch_export
from tests.conftest import fetched_weights, with_random_logits

SIDE = 40


class Classifier(keras.Model):
    """The parts that an export reads, around a tiny backbone."""

    channels = 3

    def __init__(self, task="single_label", size=32):
        super().__init__()
        inputs = keras.Input((size, size, 3))
        x = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
        features = keras.Input((size // 2, size // 2, 4))
        pooled = keras.layers.GlobalAveragePooling2D()(features)
        self.augmentation = none().resized(size)
        self.normalization = InputNormalization("tf")
        self.backbone = keras.Model(inputs, keras.layers.BatchNormalization()(x))
        self.head = keras.Model(features, keras.layers.Dense(3)(pooled))
        self.task, self.size, self.class_names = task, size, ["cat", "dog", "newt"]
        self.built = True

    def call(self, images, training=False):
        images = self.normalization(self.augmentation(images, training=training))
        return self.head(self.backbone(images, training=training), training=training)


@pytest.mark.parametrize(("source", "target"), [(46, 22), (25, 22), (13, 22), (102, 22), (300, 299)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_resize_is_torch_s_own_bit_for_bit(source, target, mode):
    photos = torch.randint(0, 256, (2, source, source, 3), dtype=torch.uint8)
    expected = F.interpolate(photos.permute(0, 3, 1, 2), (target, target), mode=mode, antialias=True)
    found = ResizeOfWholeNumbers(source, target, mode)(photos)
    assert torch.equal(found, expected.permute(0, 2, 3, 1).to(torch.float32))


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("side", [SIDE, pytest.param(32, marks=pytest.mark.heavy)])
@torch.no_grad()
def test_a_torch_program_gives_the_model_s_probabilities_at_any_batch_size(tmp_path, task, side):
    model, told = Classifier(task), {"classifier.json": ""}
    model.depth = 12
    to_torch_export(model, tmp_path / "model.pt2", side=side)
    program = torch.export.load(str(tmp_path / "model.pt2"), extra_files=told).module()
    described = json.loads(told["classifier.json"])
    assert (described["side"], described["task"], described["depth"]) == (side, task, 12)
    photos = torch.randint(0, 256, (5, side, side, 3), dtype=torch.uint8)
    logits = model(photos, training=False)
    expected = {"single_label": logits.softmax(-1), "multi_label": logits.sigmoid(), "regression": logits}[
        task
    ]
    torch.testing.assert_close(program(photos), expected, atol=1e-5, rtol=0)


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(kclf.models.export, "_expected", lambda model, photos: np.zeros((2, 3), "float32"))
    with pytest.raises(WeightsError, match=r"model\.pt2 was not written"):
        to_torch_export(Classifier(), tmp_path / "model.pt2", side=SIDE)
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'kclf\[onnx\]'"):
        to_onnx(Classifier(), tmp_path / "model.onnx")


def inverted_residual(dtype="float32", task="single_label", names=("cat", "dog", "newt")) -> ImageClassifier:
    """An accelerated classifier around what the backbones are made of: batch norms to fold, odd padding."""
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))
    keras.config.set_dtype_policy(dtype)
    x = layers.Conv2D(8, 3, 2, padding="same", use_bias=False)(inputs)
    shortcut = x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(x))
    backbone = keras.Model(inputs, layers.Add()([shortcut, x]))
    for variable in backbone.weights:
        variable.assign(keras.random.uniform(variable.shape, -0.5, 1.0) ** 2 + 0.1)
    return with_random_logits(
        ImageClassifier(
            backbone, names, size=32, presize=SIDE, hidden=[8], normalization="tf", dtype=dtype, task=task
        )
    )


@torch.no_grad()
def stock_probabilities(model, photos) -> np.ndarray:
    """What Keras itself makes of photos, batch by batch."""
    logits = [deaccelerate(model)(batch, training=False) for batch in photos.split(25)]
    return torch.cat(logits).softmax(-1).numpy()


def run_program(path, photos) -> np.ndarray:
    program = torch.export.load(str(path)).module()
    with torch.no_grad():
        return torch.cat([program(batch) for batch in photos.split(25)]).numpy()


def run_onnx(path, photos) -> np.ndarray:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    return np.concatenate([session.run(None, {"photos": batch.numpy()})[0] for batch in photos.split(25)])


EXPORTS = {"pt2": (to_torch_export, run_program), "onnx": (to_onnx, run_onnx)}


def exports_or_skip(kind):
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        pytest.importorskip(package)
    return EXPORTS[kind]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.heavy)])
def test_an_accelerated_classifier_is_exported_folded_in_float32_and_goes_on_as_before(tmp_path, kind, dtype):
    export, run = exports_or_skip(kind)
    model = inverted_residual(dtype)
    photos = torch.randint(0, 256, (3, SIDE, SIDE, 3), dtype=torch.uint8)
    with torch.no_grad():
        before = model(photos, training=False)
    export(model, tmp_path / f"model.{kind}")
    found = run(tmp_path / f"model.{kind}", photos)
    with torch.no_grad():
        assert torch.equal(model(photos, training=False), before)
    atol = 1e-5 if dtype == "float32" else 0.02
    np.testing.assert_allclose(found, before.softmax(-1).numpy(), atol=atol, rtol=0)
    np.testing.assert_allclose(found, stock_probabilities(model, photos), atol=atol, rtol=0)


@pytest.mark.heavy
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize(
    ("backbone", "weights"),
    [
        ("EfficientNetLite0", "imagenet"),
        ("MobileNetV2", "mobilenet_v2_1.0_224_no_top.weights.h5"),
        ("TorchMobileNetV2", "mobilenet_v2-b0353104.pth"),
    ],
)
def test_real_classifiers_give_keras_probabilities_of_200_photos(tmp_path, dogscats, backbone, weights, kind):
    export, run = exports_or_skip(kind)
    weights = weights if weights == "imagenet" else fetched_weights(weights)
    model = with_random_logits(ImageClassifier(backbone, ["cat", "dog"], weights=weights, presize=256))
    files = sorted(dogscats.glob("*.jpg"))[::10][:200]
    photos = torch.from_numpy(np.stack([to_frame(read_image(file), 256) for file in files]))
    export(model, tmp_path / f"model.{kind}")
    found = run(tmp_path / f"model.{kind}", photos)
    expected = stock_probabilities(model, photos)
    assert expected.std() > 0.05  # the photos are told apart, so that equality says something
    print(f"{backbone}, {kind}: largest difference {np.abs(found - expected).max():.2g}")
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("default")
@torch.no_grad()
def test_onnx_gives_the_model_s_probabilities_at_any_batch_size(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    model = Classifier()
    to_onnx(model, tmp_path / "model.onnx", side=SIDE)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    photos = torch.randint(0, 256, (5, SIDE, SIDE, 3), dtype=torch.uint8)
    found = session.run(None, {"photos": photos.numpy()})[0]
    np.testing.assert_allclose(found, model(photos, training=False).softmax(-1).numpy(), atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["class_names"].split("\n") == ["cat", "dog", "newt"]
