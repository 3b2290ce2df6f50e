"""What is exported gives the model's probabilities from the model's photos."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kclf.export
from kclf.errors import WeightsError
from kclf.export import ResizeOfWholeNumbers, to_onnx, to_torch_export
from kclf.layers import InputNormalization, none

SIDE = 40


class Classifier(keras.Model):
    """The parts that an export reads, around a tiny backbone."""

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
@pytest.mark.parametrize("side", [SIDE, 32])
@torch.no_grad()
def test_a_torch_program_gives_the_model_s_probabilities_at_any_batch_size(tmp_path, task, side):
    model = Classifier(task)
    to_torch_export(model, tmp_path / "model.pt2", side=side)
    program = torch.export.load(str(tmp_path / "model.pt2")).module()
    photos = torch.randint(0, 256, (5, side, side, 3), dtype=torch.uint8)
    logits = model(photos, training=False)
    expected = {"single_label": logits.softmax(-1), "multi_label": logits.sigmoid(), "regression": logits}[
        task
    ]
    torch.testing.assert_close(program(photos), expected, atol=1e-5, rtol=0)


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(kclf.export, "_expected", lambda model, photos: np.zeros((2, 3), "float32"))
    with pytest.raises(WeightsError, match=r"model\.pt2 was not written"):
        to_torch_export(Classifier(), tmp_path / "model.pt2", side=SIDE)
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'kclf\[onnx\]'"):
        to_onnx(Classifier(), tmp_path / "model.onnx")


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
