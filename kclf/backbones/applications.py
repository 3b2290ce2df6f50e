"""The models of `keras.applications`, without top, and their ImageNet weights."""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

import keras
import numpy as np

from .._core.sizes import InputShape
from ..errors import BackboneError
from ..weights import TORCH, array_of, load_weights, named_variables, with_conventions
from .downloads import network_timeout, unavailable
from .published import keras_cache

# Means and standard deviations of ImageNet's pixels in [0, 1], red, green, blue.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], "float32")
IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], "float32")


def application(
    name: str, weights: str | None, input_shape: InputShape, options: dict[str, Any]
) -> keras.Model:
    """A model of `keras.applications` without top, its graph the same for all weights.

    Args:
        name: its name there.
        weights: "imagenet" or None.
        input_shape: (height, width, channels); None leaves a side open.
        options: further arguments of its constructor, such as `alpha`.

    Raises:
        WeightsUnavailableError: the ImageNet weights are not cached and cannot be downloaded.
    """
    if weights == "imagenet":
        model = _imagenet(name, input_shape, options)
        if input_statistics(model) is None:
            return model
        values = model.get_weights()
        model = _construct(name, None, input_shape, options)  # without the layer that "imagenet" alone brings
        model.set_weights(values)
        correct_variance(model)
        return model
    return _with_statistics(_construct(name, None, input_shape, options))


def application_with_top(name: str, weights: str | os.PathLike[str], options: dict[str, Any]) -> keras.Model:
    """A classifier of `keras.applications` with its weights, giving logits of ImageNet's 1,000 classes.

    Args:
        name: its name there.
        weights: "imagenet", which Keras caches and downloads, or the path of a file with top.
        options: further arguments of its constructor, such as `alpha`.

    Raises:
        WeightsUnavailableError: the ImageNet weights are not cached and cannot be downloaded.
        WeightsError: the file is of another architecture, or without top.
    """
    options = options | {"include_top": True, "classifier_activation": None}
    if weights == "imagenet":
        return _imagenet(name, None, options)
    model = _construct(name, None, None, options)
    load_weights(model, weights)
    return model


def torch_application(name: str, input_shape: InputShape) -> keras.Model:
    """A model of `keras.applications` that pads and normalises as torchvision's, with random weights.

    Args:
        name: its name there.
        input_shape: (height, width, channels); None leaves a side open.
    """
    return _with_statistics(with_conventions(_construct(name, None, input_shape, {}), TORCH))


def _with_statistics(model: keras.Model) -> keras.Model:
    """The model with ImageNet's mean and variance where it normalises its input by variables."""
    if statistics := input_statistics(model):
        mean, variance = statistics
        mean.assign(IMAGENET_MEAN.reshape(mean.shape))
        variance.assign((IMAGENET_DEVIATION**2).reshape(variance.shape))
    return model


def input_statistics(model: keras.Model) -> tuple[keras.Variable, keras.Variable] | None:
    """Mean and variance of the input where they are variables: in EfficientNet-B0 to B7."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            variables = named_variables(layer)
            return variables["mean"], variables["variance"]
    return None


def correct_variance(model: keras.Model) -> None:
    """Let an EfficientNet's input normalisation divide by the standard deviation, whatever file was loaded.

    Its ImageNet files hold standard deviations in the place of variances, which Keras makes good by an extra
    layer that it adds under `weights="imagenet"` alone. Here the variance is the variance, so that one graph
    serves every file; a file saved from here is left as it is.
    """
    statistics = input_statistics(model)
    if statistics and np.allclose(array_of(statistics[1]).ravel(), IMAGENET_DEVIATION, rtol=1e-3):
        statistics[1].assign((IMAGENET_DEVIATION**2).reshape(statistics[1].shape))


def _construct(
    name: str, weights: str | None, input_shape: InputShape | None, options: dict[str, Any]
) -> keras.Model:
    constructor = getattr(keras.applications, name)
    with warnings.catch_warnings():
        # MobileNets say that weights of 224 px serve other sizes too, which is the point of open sides.
        warnings.filterwarnings("ignore", message=".*input_shape.*", category=UserWarning)
        try:
            usual = {"include_top": False, "weights": weights, "input_shape": input_shape}
            return constructor(**usual | options)
        except ValueError as error:
            if "Input size must be" not in str(error):
                raise
            raise BackboneError(f"{name} cannot be built for photos so small. {error}") from error


def _imagenet(name: str, input_shape: InputShape | None, options: dict[str, Any]) -> keras.Model:
    try:
        with network_timeout():
            return _construct(name, "imagenet", input_shape, options)
    except Exception as error:
        failure = re.search(r"URL fetch failure on (\S+): (.*)", str(error), re.DOTALL)
        if failure is None and not isinstance(error, OSError):
            raise
        url, reason = failure.groups() if failure else ("", str(error))
        raise unavailable(name, url, keras_cache(), reason) from error
