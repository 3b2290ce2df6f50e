"""Contracts that every layer keeps: files, policies, shapes, `fit`, symbolic and meta builds."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

from kclf import layers
from kclf.layers import (
    Augmentation,
    ConcatPooling,
    InputNormalization,
    RandomErasing,
    aug_transforms,
    basic,
    none,
    side_on,
    top_down,
    trivial,
)

LAYERS = {
    "augmentation": lambda: Augmentation(
        (12, 10), max_rotate=5, interpolation="bicubic", fill_mode="zeros", seed=3
    ),
    "side_on": lambda: side_on(12, seed=3),
    "top_down": lambda: top_down(12, seed=3),
    "basic": lambda: basic(seed=3),
    "none": lambda: none(12, seed=3),
    "trivial": lambda: trivial(12, seed=3),
    "aug_transforms": lambda: aug_transforms(12, min_scale=0.5, seed=3),
    "normalization tf": lambda: InputNormalization("tf"),
    "normalization torch": lambda: InputNormalization("torch"),
    "normalization caffe": lambda: InputNormalization("caffe"),
    "normalization none": lambda: InputNormalization("none"),
    "normalization mean std": lambda: InputNormalization(mean=(120, 121, 122), std=64),
    "erasing": lambda: RandomErasing(1.0, seed=3),
    "concat_pooling": ConcatPooling,
}
PIXELS = {name: make for name, make in LAYERS.items() if name != "concat_pooling"}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
every_pixel_layer = pytest.mark.parametrize("make", PIXELS.values(), ids=PIXELS)


def training_of(layer: keras.layers.Layer) -> dict[str, bool]:
    return {"training": True} if isinstance(layer, (Augmentation, RandomErasing)) else {}


def pictures(count: int = 3, height: int = 20, width: int = 20, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(64, 192, (count, height, width, 3)).astype(dtype)


@every_layer
def test_configuration_gives_the_same_layer_again(make):
    layer = make()
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    images = pictures(dtype="float32")
    for training in (True, False):
        kwargs = {"training": training} if training_of(layer) else {}
        np.testing.assert_array_equal(again(images, **kwargs).cpu(), layer(images, **kwargs).cpu())


@every_layer
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # numpy 2 on Keras' tensors
def test_a_saved_model_predicts_the_same(make, tmp_path):
    model = keras.Sequential(
        [keras.Input((20, 20, 3)), make(), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.save(tmp_path / "model.keras")
    images = pictures(dtype="float32")

    again = keras.saving.load_model(tmp_path / "model.keras")

    np.testing.assert_array_equal(again.predict(images, verbose=0), model.predict(images, verbose=0))


@every_layer
def test_shapes_are_told_before_there_is_data(make):
    layer = make()
    images = pictures(dtype="float32")
    real = tuple(layer(images).shape)
    assert layer.compute_output_shape((3, 20, 20, 3)) == real
    assert tuple(layer(torch.empty(3, 20, 20, 3, device="meta")).shape) == real
    symbolic = layer(keras.KerasTensor((None, 20, 20, 3)))
    assert symbolic.shape == (None, *real[1:])
    assert symbolic.dtype == "float32"
    assert layer.compute_output_shape((None, None, None, 3))[0] is None


@every_pixel_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_float32_under_every_policy_and_from_every_dtype(make, policy):
    expected = make()(pictures(dtype="float32"))
    keras.config.set_dtype_policy(policy)
    layers = {dtype: make() for dtype in ("uint8", "float16", "float32", "float64")}

    results = {dtype: layer(pictures(dtype=dtype)) for dtype, layer in layers.items()}

    for dtype, result in results.items():
        assert result.dtype == torch.float32
        grey_levels = 2.0 if dtype == "uint8" and isinstance(layers[dtype], Augmentation) else 1e-4
        torch.testing.assert_close(result, expected, rtol=0, atol=grey_levels)


@every_layer
def test_the_input_stays_as_it_was(make):
    images = torch.from_numpy(pictures(dtype="float32"))
    before = images.clone()
    layer = make()
    layer(images, **training_of(layer)).mul_(0)
    assert make().name  # a second layer of the kind can stand beside it
    if getattr(layer, "mode", None) != "none":
        torch.testing.assert_close(images, before, rtol=0, atol=0)


@every_layer
def test_gradients_reach_the_pictures(make):
    images = torch.from_numpy(pictures(dtype="float32")).requires_grad_()
    layer = make()
    layer(images, **training_of(layer)).sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().sum() > 0


@every_pixel_layer
def test_fit_takes_whole_numbers(make):
    model = keras.Sequential([make(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(pictures(8), np.arange(8) % 2, batch_size=4, epochs=1, verbose=0)
    assert len(history.history["loss"]) == 1


@every_layer
def test_compiled_layers_give_the_same(make):
    kwargs = training_of(make())
    images = torch.from_numpy(pictures(dtype="float32"))

    compiled = torch.compile(make(), backend="eager")(images, **kwargs)

    torch.testing.assert_close(compiled, make()(images, **kwargs), rtol=1e-6, atol=1e-5)


@every_layer
def test_nothing_is_fetched_from_the_device(make):
    """Every decision is taken from numbers that never left the CPU: no device has to be waited for."""
    layer, images = make(), torch.from_numpy(pictures(dtype="float32"))
    layer(images, **training_of(layer))  # built

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(images, **training_of(layer))

    waiting = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"}
    assert waiting.isdisjoint({event.key for event in profile.key_averages()})


@pytest.mark.parametrize("layer_class", [Augmentation, lambda dtype: InputNormalization("tf", dtype=dtype)])
def test_half_precision_is_refused(layer_class):
    with pytest.raises(ValueError, match="Received: dtype='float16'"):
        layer_class(dtype="float16")


def test_exports_are_sorted_and_there():
    assert layers.__all__ == sorted(layers.__all__)
    assert [name for name in layers.__all__ if not hasattr(layers, name)] == []
