"""Classifiers of ImageNet's 1,000 classes from weights that come with their top: nothing is trained."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import keras
import numpy as np

from .._core.sizes import Size
from ..backbones import backbone_names, backbone_spec
from ..backbones.building import IMAGENET_CLASSES, load_with_top
from ..backbones.downloads import fetch_class_index
from ..errors import BackboneError, FileFormatError
from .classifier import ImageClassifier

# Backbones whose published top is one linear layer on their pooled features.
ONE_LINEAR_LAYER = (
    r"(Torch|Wide)?ResNe[tX]\w*|(Torch)?EfficientNet\w*|MobileNet(_\d+)?|(Torch)?MobileNetV2(_\d+)?|"
    r"DenseNet\w*|Inception\w*|NASNetLarge|ViT\w*|Xception"
)


def imagenet_classifier(
    backbone: str = "EfficientNetLite0",
    *,
    weights: str | os.PathLike[str] = "imagenet",
    class_index: str | os.PathLike[str] | None = None,
    size: Size | None = None,
) -> ImageClassifier:
    """A classifier of ImageNet's 1,000 classes from published weights, ready to predict.

    It is an `ImageClassifier` like any other: it predicts, explains, exports, and its head can be replaced.

    Args:
        backbone: one of `backbone_names()` whose published top is one linear layer.
        weights: "imagenet", or the path of a weights file with its top.
        class_index: Keras' `imagenet_class_index.json`; None takes it from Keras' cache, or downloads it.
        size: of the images that the backbone sees, in pixels: the side of a square, or (height, width); None
            takes what its weights were trained at.

    Raises:
        BackboneError: there is no such backbone, or its top is more than one layer.
        WeightsUnavailableError: the weights or the class names are not here and cannot be downloaded.
        WeightsError: the file is of another architecture, or has no top of 1,000 classes.

    Example:
        >>> model = imagenet_classifier("ResNet50")  # doctest: +SKIP
        >>> kclf.predict_files(model, ["cat.jpg"])[0].top(1)  # doctest: +SKIP
    """
    spec = backbone_spec(backbone)
    if not has_linear_top(backbone):
        able = ", ".join(name for name in backbone_names() if has_linear_top(name))
        raise BackboneError(
            f"The published top of {backbone} is not one linear layer on its features. Take one of: {able}"
        )
    names = imagenet_names(class_index)
    model = ImageClassifier(
        backbone, names, size=size or spec.default_size, weights=None, hidden=(), dropout=0.0, bias=True
    )
    kernel, bias = load_with_top(model.backbone, backbone, weights).get_weights()[-2:]
    _set_top(model.head, kernel.reshape(-1, IMAGENET_CLASSES), bias)
    return model


def has_linear_top(backbone: str) -> bool:
    """Whether the published top of a backbone is one linear layer on its pooled features.

    Example:
        >>> has_linear_top("ResNet50"), has_linear_top("VGG16"), has_linear_top("DINOv2S14")
        (True, False, False)
    """
    return re.fullmatch(ONE_LINEAR_LAYER, backbone) is not None


def imagenet_names(class_index: str | os.PathLike[str] | None = None) -> list[str]:
    """The 1,000 class names of ImageNet in the order of the published weights.

    Names that two classes share ("crane" is a bird and a machine) get the class's number in WordNet.

    Args:
        class_index: Keras' `imagenet_class_index.json`; None takes it from Keras' cache, or downloads it.

    Raises:
        FileFormatError: the file is another one.
        WeightsUnavailableError: it is not here and cannot be downloaded.
    """
    path = Path(fetch_class_index() if class_index is None else class_index)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        pairs = [index[str(place)] for place in range(IMAGENET_CLASSES)]
        rows = [(str(number), str(name)) for number, name in pairs]
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f'{path}: expected Keras\' class index, {{"0": ["n01440764", "tench"], ...}} up to "999". '
            f"Received: {error!r}"
        ) from error
    counts = Counter(name for _, name in rows)
    known = [name if counts[name] == 1 else f"{name} ({number})" for number, name in rows]
    return [name.replace("_", " ") for name in known]


def _set_top(head: keras.Model, kernel: np.ndarray, bias: np.ndarray) -> None:
    """Make a head compute the average's product with a kernel: its norm the identity, the maxima unused."""
    norm, logits = head.get_layer("norm"), head.get_layer("logits")
    gamma, beta, mean, variance = norm.get_weights()
    norm.set_weights([gamma, beta, mean, np.full_like(variance, 1.0 - norm.epsilon)])
    whole = np.zeros(logits.kernel.shape, "float32")
    whole[-len(kernel) :] = kernel
    logits.set_weights([whole, bias])
