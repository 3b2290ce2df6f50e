"""Classifiers read from their single file. No code from the file runs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from os import PathLike
from typing import Any

import keras
import numpy as np

from .._core.h5_store import read_arrays
from .._core.sizes import as_size, sides
from ..backbones.building import require_channels_last
from ..data.decision import Decision
from ..errors import FileFormatError
from ..layers import Augmentation, InputNormalization
from .classifier import WITHOUT_BIAS, ImageClassifier
from .saved_file import FILE_FORMAT, FILE_VERSION, assign_arrays, check_fit, logits_of

LARGEST_SIDE = 8192  # pixels; a file that claims more is refused, as are more hidden layers
MOST_HIDDEN = 16
MOST_CHANNELS = 4096
LARGEST_CHECKED = 1024  # pixels; the photos of a larger model's probe would take gigabytes
MOST_PROBES = 16
# What building from the settings of a damaged or hostile file raises.
DAMAGES = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


def load(path: str | PathLike[str], *, check: bool = False) -> ImageClassifier:
    """Read a classifier that `ImageClassifier.save` wrote, ".h5" or ".keras". No code from the file runs.

    Args:
        path: the file.
        check: run the probe batch of a single file ".h5" and compare the logits with those stored in it.

    Returns:
        The classifier, with the same groups frozen, not compiled.

    Raises:
        FileFormatError: the file is damaged, foreign, of a newer version of kclf, or fails its own check.

    Example:
        >>> import tempfile
        >>> model = ImageClassifier("MobileNetV2", ["cat", "dog"], size=32, weights=None)
        >>> path = tempfile.mkdtemp() + "/classifier.h5"
        >>> model.save(path)
        >>> load(path, check=True).class_names
        ['cat', 'dog']
    """
    require_channels_last()
    if zipfile.is_zipfile(path):
        return _load_archive(path)
    arrays, attributes = read_arrays(path)
    _check_format(path, attributes)
    images, logits = (arrays.pop(f"probe/{name}", None) for name in ("images", "logits"))
    model = _build(path, attributes.get("config"), arrays)
    assign_arrays(model, arrays)
    model.freeze_to(_first_group(attributes, path))
    if check:
        _check_probe(model, images, logits, path)
    return model


def _load_archive(path: str | PathLike[str]) -> ImageClassifier:
    """A classifier out of Keras' archive, which Keras reads in its safe mode."""
    try:
        model = keras.saving.load_model(path, compile=False)
    except TypeError as error:
        raise FileFormatError(
            f"{path}: holds a class that is not registered here: {str(error).splitlines()[0]} Import the "
            "module that defines it, under @keras.saving.register_keras_serializable(), before loading"
        ) from error
    if not isinstance(model, ImageClassifier):
        raise FileFormatError(
            f"{path}: holds a {type(model).__name__} and no ImageClassifier. keras.saving.load_model reads it"
        )
    return model


def _check_format(path: Any, attributes: Mapping[str, Any]) -> None:
    if attributes.get("format") != FILE_FORMAT:
        raise FileFormatError(
            f"{path}: not a classifier that kclf saved. Weights alone go through "
            "ImageClassifier(..., weights=PATH) or load_weights."
        )
    version = attributes.get("version")
    if not isinstance(version, int) or version < 1:
        raise FileFormatError(
            f"{path}: expected a format version of 1 or more. Received: version={version!r}"
        )
    if version > FILE_VERSION:
        raise FileFormatError(
            f"{path}: written by a newer kclf (format {version}; this one reads up to {FILE_VERSION}). "
            "Upgrade kclf to read it."
        )


def _build(path: Any, config: Any, arrays: Mapping[str, np.ndarray]) -> ImageClassifier:
    """The architecture a file names. Only our own layers are built, from plain settings.

    It is built without memory first: a file must not claim layers larger than the arrays it brings.
    """
    if not isinstance(config, dict) or not isinstance(config.get("backbone"), str):
        raise FileFormatError(f"{path}: the settings do not name a backbone")
    try:
        settings: dict[str, Any] = {**WITHOUT_BIAS, **config}
        decision = Decision.from_config(settings.pop("decision", None))
        settings["augmentation"] = Augmentation.from_config(settings["augmentation"]["config"])
        settings["normalization"] = InputNormalization.from_config(settings["normalization"])
        for name in ("size", "presize"):
            if settings[name] is not None:
                settings[name] = as_size(name, settings[name], most=LARGEST_SIDE)
        channels = settings.get("channels", 3)
        if not isinstance(channels, int) or not 0 < channels <= MOST_CHANNELS:
            raise ValueError(f"expected 1 to {MOST_CHANNELS} channels, found {channels!r}")
        if len(settings["hidden"]) > MOST_HIDDEN:
            raise ValueError(f"expected at most {MOST_HIDDEN} hidden layers, found {len(settings['hidden'])}")
        with keras.device("meta"):
            skeleton = ImageClassifier(**settings, weights=None, accelerate=False)
        check_fit(skeleton, arrays, path)
        model = ImageClassifier(**settings, weights=None)
        model.decision = decision
        return model
    except FileFormatError:
        raise
    except DAMAGES as error:
        raise FileFormatError(f"{path}: the settings are damaged: {error}") from error


def _first_group(attributes: Mapping[str, Any], path: Any) -> int:
    first = attributes.get("trainable_from_group")
    if not isinstance(first, int) or not 0 <= first < 3:
        raise FileFormatError(f"{path}: the settings are damaged: trainable_from_group={first!r}")
    return first


def _check_probe(model: ImageClassifier, images: Any, logits: Any, path: Any) -> None:
    if images is None or logits is None:
        raise FileFormatError(f"{path}: has no probe batch to check against")
    is_photos = images.dtype == "uint8" and images.ndim == 4 and images.shape[3] == model.channels
    is_logits = logits.dtype == "float32" and logits.shape == (*images.shape[:1], len(model.class_names))
    if not (is_photos and is_logits):
        raise FileFormatError(f"{path}: its probe batch is damaged")
    lengths = (*images.shape[1:3], *sides(model.size))
    if not 0 < len(images) <= MOST_PROBES or not 0 < min(lengths) <= max(lengths) <= LARGEST_CHECKED:
        raise FileFormatError(
            f"{path}: a probe batch of {images.shape}, read at {model.size} px, is too large to check "
            f"(1 to {MOST_PROBES} photos of at most {LARGEST_CHECKED} px). Load it with check=False"
        )
    tolerance = 1e-3 if model.dtype_policy.compute_dtype == "float32" else 5e-2
    difference = float(np.abs(logits_of(model, images) - logits).max())
    if not difference <= tolerance * float(np.abs(logits).max()):
        raise FileFormatError(
            f"{path}: the logits of the probe batch differ by {difference:.2g} from those stored in the file"
        )
