"""ResNets as torchvision lays them out: ResNet18 and 34, and 50 and deeper with the stride in the 3x3."""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import layers

from .._core.sizes import InputShape

# torch's BatchNorm, in Keras' terms: epsilon 1e-5, and momentum .1 for the new value is .9 for the old.
BATCHNORM = {"epsilon": 1e-5, "momentum": 0.9}


@dataclass(frozen=True)
class ResNetPlan:
    """What distinguishes one ResNet from another.

    Attributes:
        blocks: residual blocks in each of the four stages.
        bottleneck: blocks of 1x1, 3x3, 1x1 convolutions in place of two of 3x3.
        groups: groups of the 3x3 convolution (ResNeXt).
        width: channels of a group in the first stage, 64 being plain.
        file: torchvision's file of ImageNet weights, named by architecture and sha256.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    groups: int
    width: int
    file: str


PLANS = {
    "ResNet18": ResNetPlan((2, 2, 2, 2), False, 1, 64, "resnet18-f37072fd.pth"),
    "ResNet34": ResNetPlan((3, 4, 6, 3), False, 1, 64, "resnet34-b627a593.pth"),
    "ResNeXt101_32x8d": ResNetPlan((3, 4, 23, 3), True, 32, 8, "resnext101_32x8d-8ba56ff5.pth"),
    "ResNeXt50_32x4d": ResNetPlan((3, 4, 6, 3), True, 32, 4, "resnext50_32x4d-7cdf4587.pth"),
    "TorchResNet101": ResNetPlan((3, 4, 23, 3), True, 1, 64, "resnet101-63fe2227.pth"),
    "TorchResNet152": ResNetPlan((3, 8, 36, 3), True, 1, 64, "resnet152-394f9c45.pth"),
    "TorchResNet50": ResNetPlan((3, 4, 6, 3), True, 1, 64, "resnet50-0676ba61.pth"),
    "WideResNet101_2": ResNetPlan((3, 4, 23, 3), True, 1, 128, "wide_resnet101_2-32ee1156.pth"),
    "WideResNet50_2": ResNetPlan((3, 4, 6, 3), True, 1, 128, "wide_resnet50_2-95faca4d.pth"),
}
EXPANSION = 4  # of a bottleneck's last convolution


def resnet(name: str, input_shape: InputShape = (None, None, 3)) -> keras.Model:
    """A ResNet without top and with random weights.

    Layers bear the names of Keras' own ResNets (`conv3_block2_1_conv`), so that tools for those serve these.

    Args:
        name: a key of `PLANS`.
        input_shape: (height, width, channels); None leaves a side open.

    Returns:
        A functional model (batch, height, width, channels) -> (batch, height / 32, width / 32, features).
    """
    plan = PLANS[name]
    inputs = keras.Input(input_shape)
    x = _activated(_conv(inputs, "conv1", 64, kernel=7, strides=2), "conv1_relu")
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)  # after a ReLU zeros never win the maximum
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(x)
    for stage, count in enumerate(plan.blocks):
        for block in range(count):
            strides = 2 if stage and not block else 1
            x = _block(x, f"conv{stage + 2}_block{block + 1}", plan, 64 * 2**stage, strides)
    return keras.Model(inputs, x, name=name.lower())


def _block(
    inputs: keras.KerasTensor, name: str, plan: ResNetPlan, filters: int, strides: int
) -> keras.KerasTensor:
    if plan.bottleneck:
        inner, outer = filters * plan.width // 64 * plan.groups, filters * EXPANSION
        x = _activated(_conv(inputs, f"{name}_1", inner), f"{name}_1_relu")
        x = _conv(x, f"{name}_2", inner, kernel=3, strides=strides, groups=plan.groups)
        x = _conv(_activated(x, f"{name}_2_relu"), f"{name}_3", outer)
    else:
        outer = filters
        x = _activated(_conv(inputs, f"{name}_1", filters, kernel=3, strides=strides), f"{name}_1_relu")
        x = _conv(x, f"{name}_2", filters, kernel=3)
    if strides > 1 or inputs.shape[-1] != outer:
        inputs = _conv(inputs, f"{name}_0", outer, strides=strides)
    return _activated(layers.Add(name=f"{name}_add")([inputs, x]), f"{name}_out")


def _conv(
    x: keras.KerasTensor, name: str, filters: int, kernel: int = 1, strides: int = 1, groups: int = 1
) -> keras.KerasTensor:
    """Convolution with torch's symmetric padding, and BatchNorm."""
    same = strides == 1  # there Keras' "same" is symmetric, and spares a padded copy
    if not same and kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    conv = layers.Conv2D(
        filters,
        kernel,
        strides,
        padding="same" if same else "valid",
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )
    return layers.BatchNormalization(**BATCHNORM, name=f"{name}_bn")(conv(x))


def _activated(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.ReLU(name=name)(x)
