"""The models of `keras.applications`, without top, and their ImageNet weights."""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from ..errors import WeightsUnavailableError
from ..weights import array_of, named_variables

NETWORK_TIMEOUT = 10.0  # seconds without a byte before a download counts as failed
# Means and standard deviations of ImageNet's pixels in [0, 1], red, green, blue.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], "float32")
IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], "float32")


def application(
    name: str, weights: str | None, input_shape: tuple[int | None, int | None, int]
) -> keras.Model:
    """A model of `keras.applications` without top, its graph the same for all weights.

    Args:
        name: its name there.
        weights: "imagenet" or None.
        input_shape: (height, width, channels); None leaves a side open.

    Raises:
        WeightsUnavailableError: the ImageNet weights are not cached and cannot be downloaded.
    """
    if weights == "imagenet":
        model = _imagenet(name, input_shape)
        if input_statistics(model) is None:
            return model
        values = model.get_weights()
        model = _construct(name, None, input_shape)  # without the layer that "imagenet" alone brings
        model.set_weights(values)
        correct_variance(model)
        return model
    model = _construct(name, None, input_shape)
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
    name: str, weights: str | None, input_shape: tuple[int | None, int | None, int]
) -> keras.Model:
    constructor = getattr(keras.applications, name)
    with warnings.catch_warnings():
        # MobileNets say that weights of 224 px serve other sizes too, which is the point of open sides.
        warnings.filterwarnings("ignore", message=".*input_shape.*", category=UserWarning)
        return constructor(include_top=False, weights=weights, input_shape=input_shape)


def _imagenet(name: str, input_shape: tuple[int | None, int | None, int]) -> keras.Model:
    try:
        with _network_timeout(NETWORK_TIMEOUT):
            return _construct(name, "imagenet", input_shape)
    except Exception as error:
        failure = re.search(r"URL fetch failure on (\S+): (.*)", str(error), re.DOTALL)
        if failure is None and not isinstance(error, OSError):
            raise
        url, reason = failure.groups() if failure else ("", str(error))
        raise WeightsUnavailableError(_what_to_do(name, url, reason)) from error


def _what_to_do(name: str, url: str, reason: str) -> str:
    file = url.rpartition("/")[2] or "its no-top weights file"
    return (
        f"The ImageNet weights of {name} are not on this machine, and the download failed ({reason}). "
        f"Put {file} ({url}) in the folder {_keras_home()}/models, or pass weights=PATH to a "
        "weights file. weights=None trains from random values, and EfficientNetLite0 needs no download."
    )


def _keras_home() -> Path:
    """Where Keras keeps its downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
