from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

from kclf.layers import ConcatPooling, InputNormalization

FAMILIES = {
    "resnet": "caffe",
    "resnet_v2": "tf",
    "vgg16": "caffe",
    "vgg19": "caffe",
    "densenet": "torch",
    "mobilenet": "tf",
    "mobilenet_v2": "tf",
    "mobilenet_v3": "none",
    "inception_v3": "tf",
    "inception_resnet_v2": "tf",
    "xception": "tf",
    "nasnet": "tf",
    "efficientnet": "none",
    "efficientnet_v2": "none",
    "convnext": "none",
}


def levels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, 5, 4, 3)).astype("float32")


@pytest.mark.parametrize(("family", "mode"), FAMILIES.items(), ids=FAMILIES)
def test_each_family_of_keras_applications(family, mode):
    expected = getattr(keras.applications, family).preprocess_input(levels().copy())
    np.testing.assert_allclose(InputNormalization(mode)(levels()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe", "none"])
def test_whole_numbers_do_not_wrap(mode):
    whole = np.arange(256, dtype="uint8").repeat(3).reshape(1, 16, 16, 3)
    layer = InputNormalization(mode)
    np.testing.assert_array_equal(layer(whole), layer(whole.astype("float32")))


def test_efficientnet_lite_takes_its_own_mean_and_std():
    normalized = InputNormalization(mean=127, std=128)(levels())
    np.testing.assert_allclose(normalized, (levels() - 127) / 128, atol=1e-6)


def test_mean_and_std_may_be_arrays():
    layer = InputNormalization(mean=np.array([120, 121, 122]), std=torch.tensor(64.0))
    assert layer.mean == (120.0, 121.0, 122.0)
    assert layer.get_config() == InputNormalization.from_config(layer.get_config()).get_config()


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({}, "either `mode` or both"),
        ({"mode": "tf", "mean": 1, "std": 1}, "either `mode` or both"),
        ({"mean": 1}, "std=None"),
        ({"mode": "imagenet"}, "mode='imagenet'"),
        ({"mean": (), "std": 1}, r"mean=\(\)"),
        ({"mean": 1, "std": 0}, "std=0"),
    ],
)
def test_bad_arguments_are_refused(arguments, fact):
    with pytest.raises(ValueError, match=fact):
        InputNormalization(**arguments)


def test_pooling_is_maximum_then_average():
    features = torch.rand(2, 3, 4, 5)
    expected = torch.cat([features.amax((1, 2)), features.mean((1, 2))], 1)
    torch.testing.assert_close(ConcatPooling()(features), expected)


def test_pooling_keeps_half_precision():
    assert ConcatPooling(dtype="mixed_float16")(torch.rand(2, 3, 4, 5)).dtype == torch.float16
