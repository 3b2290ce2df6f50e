"""Torch weights come in and go out unchanged, the networks compute the same, and what differs is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import keras
import pytest
import torch
from torch import nn

from kclf.backbones import build_backbone, split_backbone
from kclf.errors import FileFormatError, KclfError, WeightsError
from kclf.weights import (
    TENSORFLOW,
    TORCH,
    from_torch,
    load_weights,
    read_state_dict,
    to_torch,
    with_conventions,
)


class Block(nn.Module):
    """A residual block of torchvision's ResNets, written from its description."""

    def __init__(self, inputs: int, inner: int, outer: int, stride: int, bottleneck: bool, groups: int):
        super().__init__()
        kernels = [1, 3, 1] if bottleneck else [3, 3]
        channels = [inputs, *[inner] * (len(kernels) - 1), outer]
        self.count, strided = len(kernels), 1 if bottleneck else 0
        for i, kernel in enumerate(kernels):
            conv = nn.Conv2d(
                channels[i],
                channels[i + 1],
                kernel,
                stride if i == strided else 1,
                kernel // 2,
                groups=groups if kernel == 3 else 1,
                bias=False,
            )
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(channels[i + 1]))
        if stride > 1 or inputs != outer:
            shortcut = nn.Conv2d(inputs, outer, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outer))

    def forward(self, x):
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        for i in range(1, self.count + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            x = torch.relu(x if i < self.count else x + shortcut)
        return x


class PlainResNet(nn.Module):
    """A ResNet without top in plain torch, with the names that torchvision gives."""

    def __init__(self, blocks, bottleneck=False, groups=1, width=64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, count in enumerate(blocks):
            filters = 64 * 2**stage
            inner = filters * width // 64 * groups
            outer = 4 * filters if bottleneck else filters
            layers = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                layers.append(Block(channels, inner, outer, stride, bottleneck, groups))
                channels = outer
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


def unsettled(network: nn.Module) -> nn.Module:
    """The network with BatchNorms that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


OFTEN = ("ResNet18",)  # in every run of the tests
RESNETS = {
    "ResNet18": {"blocks": (2, 2, 2, 2)},
    "ResNet34": {"blocks": (3, 4, 6, 3)},
    "TorchResNet50": {"blocks": (3, 4, 6, 3), "bottleneck": True},
    "ResNeXt50_32x4d": {"blocks": (3, 4, 6, 3), "bottleneck": True, "groups": 32, "width": 4},
    "WideResNet50_2": {"blocks": (3, 4, 6, 3), "bottleneck": True, "width": 128},
}


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.heavy) for name in RESNETS]
)
@torch.no_grad()
def test_a_resnet_equals_plain_torch_and_its_weights_come_back_bit_for_bit(name):
    network = unsettled(PlainResNet(**RESNETS[name]))
    model = build_backbone(name, weights=None)
    from_torch(model, network.state_dict())
    pixels = torch.randn(2, 3, 75, 64)  # odd and even sides
    found = model(pixels.permute(0, 2, 3, 1), training=False)
    expected = network(pixels)
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, atol=1e-4, rtol=1e-4)
    back = to_torch(model)
    assert back.keys() == network.state_dict().keys()
    for key, tensor in network.state_dict().items():
        assert torch.equal(back[key], tensor), key


MAKE_TORCHVISION_LOGITS = """
import sys, torch, torchvision
name, path = sys.argv[1:]
torch.manual_seed(0)
network = getattr(torchvision.models, name)(weights=None).eval()
for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        torch.nn.init.uniform_(module.weight, 0.5, 1.0)
        torch.nn.init.normal_(module.bias, std=0.1)
        module.running_mean.normal_(std=0.1)
        module.running_var.uniform_(0.5, 1.5)
pixels = torch.randn(2, 3, 224, 224)
with torch.no_grad():
    torch.save({"state": network.state_dict(), "pixels": pixels, "logits": network(pixels)}, path)
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("backbone", "theirs"),
    [
        ("ResNet18", "resnet18"),
        ("ResNet34", "resnet34"),
        ("TorchResNet50", "resnet50"),
        ("TorchMobileNetV2", "mobilenet_v2"),
        ("DenseNet121", "densenet121"),
        ("TorchEfficientNetB0", "efficientnet_b0"),
    ],
)
@torch.no_grad()
def test_logits_with_top_equal_torchvision_s_own(tmp_path, backbone, theirs):
    python = Path(os.environ.get("KCLF_PEERS", "absent"), "bin", "python")
    if not python.exists():
        pytest.skip("needs torchvision in the virtual environment that the variable KCLF_PEERS names")
    command = [python, "-c", MAKE_TORCHVISION_LOGITS, theirs, tmp_path / "torchvision.pt"]
    subprocess.run(command, check=True)
    saved = torch.load(tmp_path / "torchvision.pt", weights_only=True)
    body = build_backbone(backbone, weights=None)
    pooled = keras.layers.GlobalAveragePooling2D()(body.output)
    model = keras.Model(body.inputs, keras.layers.Dense(1000, name="predictions")(pooled), name=body.name)
    assert from_torch(model, saved["state"]).complete
    found = model(saved["pixels"].permute(0, 2, 3, 1), training=False)
    print(f"{backbone}: {(found - saved['logits']).abs().max():.2g} of {saved['logits'].abs().max():.2g}")
    torch.testing.assert_close(found, saved["logits"], atol=1e-4, rtol=1e-4)
    back = to_torch(model)
    assert all(torch.equal(back[key], tensor) for key, tensor in saved["state"].items())


def test_resnet34_has_the_layer_groups_of_the_course():
    with keras.device("meta"):
        model = build_backbone("ResNet34", weights=None)
    groups = split_backbone(model, "ResNet34")
    trainable = [
        sum(v.value.numel() for layer in group for v in layer.trainable_variables) for group in groups
    ]
    assert trainable == [1_347_904, 19_936_768]


FAMILIES = {
    "torchvision": ["DenseNet121", "TorchEfficientNetB0", "TorchMobileNetV2", "ConvNeXtTiny", "TorchVGG16"],
    "timm": ["DenseNet121", "TorchEfficientNetB0", "TorchMobileNetV2", "ConvNeXtTiny", "TorchVGG16"],
    "efficientnet_pytorch": ["EfficientNetLite0", "EfficientNetB0"],
}
PAIRS = [(library, name) for library, names in FAMILIES.items() for name in names]
QUICK = {("torchvision", "TorchMobileNetV2"), ("timm", "TorchMobileNetV2")}


@pytest.mark.parametrize(
    ("library", "name"),
    [pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.heavy) for pair in PAIRS],
)
def test_every_family_goes_out_and_comes_back(library, name):
    model = build_backbone(name, weights=None)
    state = to_torch(model, library)
    other = build_backbone(name, weights=None)
    conventions = TORCH if library == "timm" else None
    report = from_torch(other, state, conventions=conventions)
    assert report.complete
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        assert torch.equal(ours.value, theirs.value), ours.path


def test_leftovers_are_an_error_with_the_full_list_and_the_model_stays():
    model = build_backbone("ResNet18", weights=None)
    before = model.get_layer("conv1_conv").kernel.value.detach().clone()
    state = to_torch(model)
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    del state["bn1.weight"], state["layer2.0.bn2.bias"]
    state["layer5.0.conv1.weight"] = torch.zeros(8, 8, 3, 3)
    state["layer1.0.conv1.weight"] = torch.zeros(64, 32, 3, 3)
    with pytest.raises(WeightsError) as caught:
        from_torch(model, state)
    message = str(caught.value)
    assert "missing in the file: conv1_bn/gamma, conv3_block1_2_bn/beta" in message
    assert "unexpected in the file: layer5.0.conv1/kernel" in message
    assert "conv2_block1_1_conv/kernel (file (3, 3, 32, 64), model (3, 3, 64, 64))" in message
    assert torch.equal(model.get_layer("conv1_conv").kernel.value, before)


@pytest.mark.parametrize("side", [224, None])
def test_keras_mobilenet_refuses_weights_that_were_padded_otherwise(side):
    with keras.device("meta"):
        model = build_backbone("MobileNetV2", weights=None, input_shape=(side, side, 3))
    state = {"features.0.0.weight": torch.zeros(32, 3, 3, 3)}
    with pytest.raises(WeightsError, match=r"symmetric padding.*otherwise in: Conv1, block_1_dep"):
        from_torch(model, state)


def test_timm_names_that_come_in_two_conventions_ask_which():
    with keras.device("meta"):
        model = build_backbone("TorchMobileNetV2", weights=None)
    state = {"conv_stem.weight": torch.zeros(32, 3, 3, 3)}
    with pytest.raises(WeightsError, match="conventions=TORCH"):
        from_torch(model, state)
    with pytest.raises(WeightsError, match=r"end padding and BatchNorm epsilon 0\.001"):
        from_torch(model, state, conventions=TENSORFLOW)


def test_an_efficientnet_can_be_padded_as_torch_does():
    with keras.device("meta"):
        model = with_conventions(build_backbone("EfficientNetLite0", weights=None), TORCH)
    assert model.get_layer("stem_conv_pad").padding == ((1, 1), (1, 1))
    assert model.get_layer("stem_bn").epsilon == 1e-5


def test_torch_weights_are_not_given_pixels_of_another_normalisation(tmp_path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg16.pth")
    with pytest.raises(WeightsError, match="Build 'TorchVGG16'"):
        build_backbone("VGG16", weights=tmp_path / "vgg16.pth")


def test_a_state_dict_of_another_architecture_says_so():
    with keras.device("meta"):
        model = build_backbone("ResNet18", weights=None)
    with pytest.raises(WeightsError, match=r"none of its modules \(stem"):
        from_torch(model, {"stem.weight": torch.zeros(1)})


class Payload:
    def __reduce__(self):
        return (print, ("code from the file ran",))


@pytest.mark.parametrize("content", [Payload(), {"conv1.weight": "text"}, [1, 2]])
def test_a_pickle_that_is_no_state_dict_is_refused_and_runs_no_code(tmp_path, content, capsys):
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(FileFormatError):
        read_state_dict(tmp_path / "bad.pth")
    assert "ran" not in capsys.readouterr().out


def test_a_damaged_state_dict_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    torch.save({f"layer{i}.weight": torch.zeros(2) for i in range(9)}, tmp_path / "sound.pth")
    content, refused = bytearray((tmp_path / "sound.pth").read_bytes()), 0
    for place in range(0, len(content), 7):
        damaged = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
        (tmp_path / "damaged.pth").write_bytes(damaged)
        try:
            load_weights(model, tmp_path / "damaged.pth")
        except KclfError:
            refused += 1
    assert refused == len(range(0, len(content), 7))  # the sound one would not fit either


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_checkpoint_around_a_state_dict_is_unwrapped(tmp_path, wrapper):
    torch.save({wrapper: {"module.conv1.weight": torch.ones(1)}, "epoch": 3}, tmp_path / "c.pth")
    assert list(read_state_dict(tmp_path / "c.pth")) == ["conv1.weight"]
