"""Build a backbone by name, and cut it into layer groups."""

from __future__ import annotations

import os
import re
from pathlib import Path

import keras

from ..weights import layers_with_variables, load_weights
from .applications import application, correct_variance
from .lite import efficientnet_lite0, load_imagenet_weights
from .registry import BackboneSpec, backbone_spec

# Layers above the feature map: a file with top serves a backbone without.
TOP_LAYERS = (
    "predictions",
    "Predictions",
    "fc1",
    "fc2",
    "conv_preds",
    "conv_2",
    "logits",
    "Logits",
    "*_head_*",
)

InputShape = tuple[int | None, int | None, int]


def build_backbone(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = "imagenet",
    input_shape: InputShape = (None, None, 3),
) -> keras.Model:
    """Build a backbone that ends in a feature map.

    Args:
        name: one of `backbone_names()`.
        weights: "imagenet", None for random values, or the path of a weights file: Keras `.weights.h5`,
            `.keras` or legacy `.h5`, or a torch state dict; a file with top will do.
        input_shape: (height, width, channels); None leaves a side open.

    Returns:
        A functional model from pixels, normalised as `backbone_spec(name).normalization` says, of shape
        (batch, height, width, channels) to features (batch, height / 32, width / 32, features), float32.

    Raises:
        BackboneError: there is no such backbone, or it cannot be built on torch.
        WeightsUnavailableError: the ImageNet weights are not here and cannot be downloaded.
        WeightsError: the file at `weights` is of another architecture; the message lists what does not fit.
        FileFormatError: the file at `weights` is damaged or no weights file.
        FileNotFoundError: there is no file at `weights`.

    Example:
        >>> build_backbone("MobileNetV2", weights=None).output_shape
        (None, None, None, 1280)
    """
    spec = backbone_spec(name)
    imagenet = weights == "imagenet"
    if weights is not None and not imagenet and not Path(weights).is_file():
        raise FileNotFoundError(
            f'No such weights file (nor "imagenet" or None). Received: weights={weights!r}.'
        )
    if spec.family == "lite":
        model = efficientnet_lite0(input_shape)
        if imagenet:
            load_imagenet_weights(model)
    else:
        model = application(name, "imagenet" if imagenet else None, input_shape)
    if weights is not None and not imagenet:
        load_weights(model, weights, skip=TOP_LAYERS)
        correct_variance(model)
    return model


def split_backbone(model: keras.Model, name: str) -> list[list[keras.layers.Layer]]:
    """Cut a backbone into layer groups, input side first, for learning rates and freezing by group.

    The groups are {stem and the stages up to stride 8} and {the deeper stages}, as the course cuts ResNets.

    Args:
        model: what `build_backbone(name)` returned.
        name: its name.

    Returns:
        Lists of layers that hold variables themselves; every variable is in exactly one layer.

    Example:
        >>> groups = split_backbone(build_backbone("MobileNetV2", weights=None), "MobileNetV2")
        >>> [sum(layer.count_params() for layer in group) for group in groups]
        [59008, 2198976]
    """
    spec = backbone_spec(name)
    cut = _second_group_starts(spec, [layer.name for layer in model.layers])
    groups = model.layers[:cut], model.layers[cut:]
    return [[leaf for layer in group for leaf in layers_with_variables(layer)] for group in groups]


def _second_group_starts(spec: BackboneSpec, names: list[str]) -> int:
    if spec.starts_second_group:
        return next(i for i, name in enumerate(names) if re.fullmatch(spec.starts_second_group, name))
    return 1 + max(i for i, name in enumerate(names) if re.fullmatch(spec.ends_first_group, name))
