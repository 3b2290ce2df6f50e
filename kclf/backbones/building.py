"""Build a backbone by name, and cut it into layer groups."""

from __future__ import annotations

import os
import re
from pathlib import Path

import keras

from .._core.keras_private import all_layers
from .._core.keywords import BACKBONE, answering
from .._core.sizes import InputShape
from ..errors import BackboneError, WeightsError
from ..weights import is_torch_file, layers_with_variables, load_weights
from .applications import application, application_with_top, correct_variance, torch_application
from .channels import COLOURS, copy_adapted
from .convnext import convnext
from .downloads import fetch_weights
from .lite import efficientnet_lite0, imagenet_file
from .published import WEIGHTS_FOLDER, find_weights, published_files
from .registry import BackboneSpec, backbone_names, backbone_spec, relatives
from .resnet import resnet
from .transformers import transformer

# Layers above the feature map: a file with top serves a backbone without.
TOP_LAYERS = (
    *("predictions", "Predictions", "fc1", "fc2", "conv_preds", "conv_2", "logits", "Logits"),
    *("*_head_*", "head", "head.fc"),
)
IMAGENET_CLASSES = 1000
OWN = {"resnet": resnet, "convnext": convnext, "transformer": transformer}


@answering(BACKBONE)
def build_backbone(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = "imagenet",
    input_shape: InputShape = (None, None, 3),
) -> keras.Model:
    """Build a backbone that ends in a feature map, or in one vector.

    Args:
        name: one of `backbone_names()`.
        weights: "imagenet" for the published ones (of any data), None for random values, or the path of a
            weights file: Keras `.weights.h5`, `.keras` or legacy `.h5`, safetensors or a torch state dict,
            a classifier that kclf saved; a file with top or of a model that holds this backbone will do; or
            a folder of such files under their published names.
        input_shape: (height, width, channels); None leaves a side open. For other than three channels the
            first convolution is adapted, see `adapted_kernel`.

    Returns:
        A functional model from pixels, normalised as `backbone_spec(name).normalization` says, of shape
        (batch, height, width, channels) to features (batch, height / 32, width / 32, features), float32;
        of vision transformers, (batch, features).

    Raises:
        BackboneError: there is no such backbone, or it cannot be built on torch or for photos so small.
        WeightsUnavailableError: the ImageNet weights are not here and cannot be downloaded.
        WeightsError: the file at `weights` is of another architecture; the message lists what does not fit.
        FileFormatError: the file at `weights` is damaged or no weights file.
        FileNotFoundError: there is no file at `weights`.

    Example:
        >>> build_backbone("MobileNetV2", weights=None).output_shape
        (None, None, None, 1280)
    """
    require_channels_last()
    spec = backbone_spec(name)
    if input_shape[-1] not in (None, COLOURS):
        return _named(_with_channels(spec, weights, input_shape), name)
    path = _weights_file(spec, weights)
    if path is None:
        return _named(_built(spec, None if weights is None else "imagenet", input_shape), name)
    _refuse_other_pixels(spec, path)
    model = _built(spec, None, input_shape)
    try:
        load_weights(model, path, skip=TOP_LAYERS, part=True)
    except WeightsError as error:
        raise WeightsError(f"{error}{_whose_shapes(spec, path)}") from error
    correct_variance(model)
    return _named(model, name)


def load_with_top(body: keras.Model, name: str, weights: str | os.PathLike[str]) -> keras.Model:
    """Load published weights into a backbone, and give the classifier that it is part of.

    Args:
        body: what `build_backbone(name)` returned, whose published top is one linear layer.
        name: its name.
        weights: "imagenet", or the path of a weights file with top.

    Returns:
        A model that ends in logits (batch, 1000), whose last two weights are kernel and bias of its top.

    Raises:
        WeightsUnavailableError: the weights are not here and cannot be downloaded.
        WeightsError: the file is of another architecture, or without top.
    """
    spec = backbone_spec(name)
    source = _weights_file(spec, weights) or "imagenet"
    if spec.family == "applications":
        full = application_with_top(spec.constructor or name, source, dict(spec.options))
        body.set_weights(full.get_weights()[: len(body.weights)])
    else:
        x = body.output
        if len(x.shape) == 4:
            x = keras.layers.GlobalAveragePooling2D()(x)
        logits = keras.layers.Dense(IMAGENET_CLASSES, name="predictions")(x)
        full = keras.Model(body.inputs, logits, name=body.name)
        load_weights(full, source)
    correct_variance(body)
    return full


def _named(model: keras.Model, name: str) -> keras.Model:
    """The model, which remembers by what name it was built, out of sight of Keras."""
    vars(model)["_kclf_backbone"] = name
    return model


def built_name(model: keras.Model) -> str | None:
    """The name by which `build_backbone` built a model; None for any other model."""
    return vars(model).get("_kclf_backbone")


def _weights_file(spec: BackboneSpec, weights: str | os.PathLike[str] | None) -> Path | None:
    """The file that holds the weights asked for; None where there is none, or Keras brings them."""
    if weights is None:
        return None
    if weights == "imagenet":
        if spec.family == "lite":
            return imagenet_file()
        if published_files(spec.name):
            return fetch_weights(spec.name)
        folder = os.environ.get(WEIGHTS_FOLDER)  # else Keras looks into its own cache
        return find_weights(spec.name, folder) if folder else None
    if Path(weights).is_dir():
        found = find_weights(spec.name, weights)
        if found is None:
            raise FileNotFoundError(
                f"No weights file of {spec.name} in the folder, under the names that they are published by. "
                f"Received: weights={os.fspath(weights)!r}."
            )
        return found
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f'No such weights file, and not "imagenet" or None. Received: weights={os.fspath(weights)!r}.'
        )
    return Path(weights)


def _with_channels(
    spec: BackboneSpec, weights: str | os.PathLike[str] | None, input_shape: InputShape
) -> keras.Model:
    """A backbone for another number of channels, its first convolution summed or repeated."""
    model = _built(spec, None, input_shape)
    with keras.device("meta"):  # shapes without memory
        skeleton = _built(spec, None, (*input_shape[:2], COLOURS))
    if _num_scalings(model) != _num_scalings(skeleton):
        raise BackboneError(
            f"{spec.name} cannot be built for {input_shape[-1]} channels: it normalises {COLOURS} by itself."
        )
    if weights is not None:
        colours = build_backbone(spec.name, weights=weights, input_shape=(*input_shape[:2], COLOURS))
        copy_adapted(colours, model, input_shape[-1])
    return model


def require_channels_last() -> None:
    """Refuse Keras' other order of dimensions, which no model here is made for.

    Raises:
        BackboneError: it is set.
    """
    if (order := keras.config.image_data_format()) != "channels_last":
        raise BackboneError(
            f"Expected Keras' image_data_format to be channels_last. Received: {order!r}. Call "
            "keras.config.set_image_data_format('channels_last'), or set it so in ~/.keras/keras.json"
        )


def _num_scalings(model: keras.Model) -> int:
    kinds = (keras.layers.Normalization, keras.layers.Rescaling)
    return sum(isinstance(layer, kinds) for layer in all_layers(model))


def _whose_shapes(spec: BackboneSpec, path: Path) -> str:
    """Which relative of a backbone a file is of, by its shapes; "" where it is of none."""
    for relative in relatives(spec.name):
        with keras.device("meta"):  # shapes without memory
            model = _built(backbone_spec(relative), None, (None, None, COLOURS))
        try:
            found = load_weights(model, path, skip=TOP_LAYERS, dry_run=True)
        except WeightsError:
            continue
        if found.complete:
            return f"\nIts shapes are those of {relative!r}: build that."
    return ""


def _built(spec: BackboneSpec, weights: str | None, input_shape: InputShape) -> keras.Model:
    """The model with random weights, or with ImageNet's where Keras brings them."""
    if spec.family == "applications":
        return application(spec.constructor or spec.name, weights, input_shape, dict(spec.options))
    if spec.family == "torch":
        return torch_application(spec.name.removeprefix("Torch"), input_shape)
    if spec.family == "lite":
        return efficientnet_lite0(input_shape)
    return OWN[spec.family](spec.name, input_shape)


def _refuse_other_pixels(spec: BackboneSpec, weights: str | os.PathLike[str]) -> None:
    """Torch's weights want pixels by ImageNet's mean and deviation; Keras' own of VGG and others do not."""
    if spec.family == "applications" and spec.normalization in ("tf", "caffe") and is_torch_file(weights):
        twin = f"Torch{spec.name}"
        hint = f" Build {twin!r}, which does." if twin in backbone_names() else ""
        raise WeightsError(
            f"{os.fspath(weights)}: torch weights expect pixels normalised by ImageNet's mean and standard "
            f"deviation, and {spec.name!r} gets them in the {spec.normalization!r} way.{hint}"
        )


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


BLOCK = r"block\d+_|.*_stage_\d_block_\d+_|.*_downsampling_\w+_\d"  # starts of names, of one block each


def split_blocks(model: keras.Model, name: str) -> list[list[keras.layers.Layer]]:
    """Cut a backbone into its stem and its blocks, input side first, for rates that decay by the block.

    Transformers and ConvNeXts have a group for each block, what follows the last block in its group; others
    have the groups of `split_backbone`.

    Args:
        model: what `build_backbone(name)` returned.
        name: its name.

    Example:
        >>> len(split_blocks(build_backbone("ViTS16", weights=None), "ViTS16"))
        13
    """
    groups: dict[str, list[keras.layers.Layer]] = {"": []}
    key = ""
    for layer in model.layers:
        match = re.match(BLOCK, layer.name)
        key = match[0] if match else key
        groups.setdefault(key, []).extend(layers_with_variables(layer))
    found = [group for group in groups.values() if group]
    return found if len(found) > 1 else split_backbone(model, name)


def _second_group_starts(spec: BackboneSpec, names: list[str]) -> int:
    if spec.starts_second_group:
        return next(i for i, name in enumerate(names) if re.fullmatch(spec.starts_second_group, name))
    return 1 + max(i for i, name in enumerate(names) if re.fullmatch(spec.ends_first_group, name))
