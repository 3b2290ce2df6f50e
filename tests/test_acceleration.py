"""accelerate(model): Keras' results, Keras' files, Keras' rules, in fewer operations."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers
from torch.utils._python_dispatch import TorchDispatchMode

from kclf import LayerGroupOptimizer
from kclf.acceleration import accelerate, constant, deaccelerate, is_accelerated, unpacked
from kclf.acceleration.graph import functional_of
from kclf.acceleration.winograd import winograd, winograd_kernel

# Keras reads a torch tensor into numpy by a protocol that numpy 2 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES = 3
SIZE = 16


def convolution(x, filters, **options):
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, **options)(x)
    return layers.BatchNormalization()(x)


def layer_of(model, kind):
    """The first layer of a kind."""
    return next(layer for layer in model.layers if isinstance(layer, kind))


def residual():
    """Like a ResNet: zero padding, a shortcut, in-place additions."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(8, 3, strides=2)(x)
    x = shortcut = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Activation("relu")(convolution(x, 8))
    x = layers.Add()([shortcut, convolution(x, 8)])
    x = layers.MaxPooling2D(2)(layers.Activation("relu")(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def inverted():
    """Like an EfficientNet: depthwise convolutions, squeeze and excitation, swish, rescaling."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 2.0, 0.1)(inputs)
    x = layers.Activation("silu")(convolution(x, 8, strides=2))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    squeeze = layers.Reshape((1, 1, 16))(layers.GlobalAveragePooling2D()(x))
    squeeze = layers.Conv2D(16, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="silu")(squeeze))
    x = layers.Multiply()([x, squeeze])
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(x)))


def dense_blocks():
    """Like a DenseNet or an Inception: concatenation, average pooling, separable convolutions."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    branch = layers.AveragePooling2D(3, strides=1, padding="same")(x)
    x = layers.Concatenate()([x, layers.SeparableConv2D(8, 3, padding="same")(branch)])
    x = layers.MaxPooling2D(3, strides=2, padding="same")(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalMaxPooling2D()(x)))


def arithmetic():
    """Like a MobileNetV3: operations on symbolic tensors, and a layer that nobody planned for."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = convolution(inputs, 8)
    x = x * (layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0))
    x = layers.UpSampling2D()(x - 1.0)
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def sequential():
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.BatchNormalization(),
            layers.Dense(8, activation="tanh"),
            layers.Dense(CLASSES),
        ]
    )


def nested():
    """A backbone inside a functional model, called as the Keras guides call it."""
    inputs = keras.Input((SIZE, SIZE, 3))
    backbone = keras.Model(inputs, convolution(layers.ReLU()(convolution(inputs, 8)), 4), name="backbone")
    outer = keras.Input((SIZE, SIZE, 3))
    x = layers.GlobalAveragePooling2D()(backbone(outer, training=False))
    return keras.Model(outer, layers.Dense(CLASSES)(x))


@keras.saving.register_keras_serializable(package="kclf_tests")
class Classifier(keras.Model):
    """A subclass that holds functional models, with a plain batch norm of its own between them."""

    def __init__(self, **options):
        super().__init__(**options)
        inputs = keras.Input((SIZE, SIZE, 3))
        self.backbone = keras.Model(inputs, layers.ReLU()(convolution(inputs, 8, strides=2)))
        self.norm = layers.BatchNormalization()
        self.head = keras.Sequential([keras.Input((8, 8, 8)), layers.Flatten(), layers.Dense(CLASSES)])

    def call(self, x, training=None):
        return self.head(self.norm(self.backbone(x, training=training), training=training), training=training)


def subclass():
    model = Classifier()
    model(np.zeros((1, SIZE, SIZE, 3), "float32"))
    return model


MODELS = [residual, inverted, dense_blocks, arithmetic, sequential, nested, subclass]


def images(count=40):
    return np.random.default_rng(0).normal(size=(count, SIZE, SIZE, 3)).astype("float32")


def labels(count=40):
    return np.random.default_rng(1).integers(0, CLASSES, count).astype("int32")


def compiled(make, **options):
    """The same model each time, compiled."""
    keras.utils.set_random_seed(1)
    model = make()
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model


def history(model, x=None, y=None, epochs=4, **options):
    """Losses and metrics of 20 steps of `fit` with validation."""
    x, y = images() if x is None else x, labels() if y is None else y
    given = {"batch_size": 8, "shuffle": False, "verbose": 0, "validation_data": (x[:16], y[:16])}
    return model.fit(x, y, epochs=epochs, **(given | options)).history


def assert_same(found, expected, relative=1e-5):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert [float(v) for v in found[name]] == pytest.approx(
            [float(v) for v in values], rel=relative, abs=1e-6
        ), name


@pytest.mark.parametrize("make", MODELS)
def test_twenty_steps_of_fit_equal_stock_keras(make):
    expected = history(compiled(make))
    assert_same(history(accelerate(compiled(make))), expected)


@pytest.mark.parametrize("make", MODELS)
def test_predictions_equal_stock_keras(make):
    model = compiled(make)
    history(model, epochs=1)
    expected = model.predict(images(), verbose=0)
    found = accelerate(model).predict(images(), verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize(
    "first",
    [
        lambda: [keras.layers.Rescaling(2.0, -255.0), keras.layers.Conv2D(4, 3)],
        lambda: [keras.layers.Flatten(), keras.layers.Dense(4)],
        lambda: [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)],
    ],
    ids=["rescaling", "flatten", "pooling"],
)
def test_integers_are_computed_with_as_keras_does(dtype, first):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((SIZE, SIZE, 3), dtype=dtype), *first()])
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3)).astype(dtype)
    expected = model.predict(pixels, verbose=0)
    np.testing.assert_allclose(accelerate(model).predict(pixels, verbose=0), expected, rtol=1e-5, atol=1e-4)


def test_weights_are_not_cut_to_integers():
    """The pooling says float32 and hands on what it was given."""
    inputs = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3)(keras.layers.MaxPooling2D()(inputs)))
    pixels = np.full((2, SIZE, SIZE, 3), 3, "uint8")
    for tried in (model, accelerate(model)):
        with pytest.raises(RuntimeError, match=r"(?i)float"):
            tried(pixels)


def test_integers_do_not_end_mixed_precision():
    inputs = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="mixed_bfloat16")(inputs)
    model = accelerate(keras.Model(inputs, keras.layers.Conv2D(4, 3, dtype="mixed_bfloat16")(scaled)))
    assert model(np.zeros((2, SIZE, SIZE, 3), "uint8")).dtype is torch.bfloat16


def test_layers_run_as_torch_calls():
    model = accelerate(compiled(inverted))
    assert functional_of(model).__dict__["call"].plan.fallback == []


def calls_of(model, x):
    """Names of the torch operations of one prediction."""
    with torch.profiler.profile() as profile, torch.no_grad():
        model(x, training=False)
    return [event.name for event in profile.events()]


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"),
    reason="this torch has no oneDNN",
)


class Counting(TorchDispatchMode):
    """Counts the torch operations within the block."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def described(outputs):
    return keras.tree.map_structure(lambda one: (one.shape, one.dtype), outputs)


def symbolic(model, batch=5):
    """Shapes and dtypes of the outputs for a batch without values, and the operations that they took."""
    images = torch.ones(batch, SIZE, SIZE, 3, device="meta")
    with keras.device("meta"), torch.no_grad(), Counting() as operations:
        return described(model(images)), operations.count


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("make", MODELS)
def test_what_fit_asks_before_its_first_step_is_known_without_a_pass(make, policy):
    keras.config.set_dtype_policy(policy)
    model = accelerate(make())
    found, operations = symbolic(model)
    with torch.no_grad():
        assert found == described(model(images(5)))
    assert operations < 30  # by Keras 65 to 126


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
def test_a_norm_by_the_variance_alone_is_left_to_keras():
    inputs = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 3)(layers.LayerNormalization(rms_scaling=True)(inputs)))
    expected = model.predict(images(4), verbose=0)
    np.testing.assert_allclose(accelerate(model).predict(images(4), verbose=0), expected, atol=1e-6)


def test_outputs_of_unknown_sides_are_asked_of_keras():
    inputs = keras.Input((None, None, 3))
    model = accelerate(keras.Model(inputs, layers.Conv2D(2, 3, strides=2)(inputs)))
    assert symbolic(model)[0] == ((5, 7, 7, 2), torch.float32)


@needs_onednn
def test_predictions_on_a_cpu_draw_batch_norm_sum_and_relu_into_the_convolutions():
    model = accelerate(compiled(residual))
    calls = calls_of(model, images(2))
    assert calls.count("mkldnn::_convolution_pointwise") == 3
    assert not {"aten::relu", "aten::relu_", "aten::add_", "aten::batch_norm"} & set(calls)
    assert "mkldnn::_reorder_convolution_weight" not in calls_of(model, images(2))  # packed once
    with unpacked():
        assert "mkldnn::_convolution_pointwise" not in calls_of(model, images(2))


WIDE = 256  # channels, from which on 3x3 convolutions are predicted by Winograd's products


def wide(x, padding="same", **options):
    return layers.Conv2D(WIDE, 3, padding=padding, **options)(x)


@needs_onednn
@pytest.mark.parametrize("side", [(1, 1), (4, 4), (5, 7), (8, 3)], ids=str)
@pytest.mark.parametrize("tile_bytes", [1, 2**22], ids=["photo by photo", "at once"])
def test_wide_convolutions_are_predicted_by_tiles_and_equal_stock_keras(side, tile_bytes, monkeypatch):
    monkeypatch.setattr("kclf.acceleration.winograd.TILE_BYTES", tile_bytes)
    inputs = keras.Input((*side, WIDE))
    x = layers.ReLU()(layers.BatchNormalization()(wide(inputs, use_bias=False)))
    x = wide(layers.ZeroPadding2D(1)(x), "valid", bias_initializer="normal")
    model = keras.Model(inputs, x)
    photos = np.random.default_rng(0).normal(size=(3, *side, WIDE)).astype("float32")
    expected = model.predict(photos, verbose=0)
    calls_of(accelerate(model), photos)  # packs the kernels
    assert calls_of(model, photos).count("aten::bmm") == 2 * (3 if tile_bytes == 1 else 1)
    np.testing.assert_allclose(model.predict(photos, verbose=0), expected, atol=1e-5)
    model.layers[1].kernel.assign(model.layers[1].kernel * 2.0)
    found = model.predict(photos, verbose=0)
    np.testing.assert_allclose(found, deaccelerate(model).predict(photos, verbose=0), atol=1e-5)


@needs_onednn
@pytest.mark.parametrize(
    "options",
    [{"strides": 2}, {"dilation_rate": 2}, {"groups": 2}, {"activation": "silu"}, {"padding": "valid"}],
    ids=str,
)
def test_other_wide_convolutions_are_left_to_onednn(options):
    inputs = keras.Input((6, 6, WIDE))
    model = keras.Model(inputs, wide(inputs, **options))
    photos = np.random.default_rng(0).normal(size=(2, 6, 6, WIDE)).astype("float32")
    expected = model.predict(photos, verbose=0)
    assert "aten::bmm" not in calls_of(accelerate(model), photos)
    np.testing.assert_allclose(model.predict(photos, verbose=0), expected, atol=1e-5)


@needs_onednn
def test_a_wide_convolution_takes_its_summand_in_onednn():
    inputs = keras.Input((6, 6, WIDE))
    model = keras.Model(inputs, layers.Add()([inputs, wide(inputs)]))
    photos = np.random.default_rng(0).normal(size=(2, 6, 6, WIDE)).astype("float32")
    expected = model.predict(photos, verbose=0)
    assert "aten::bmm" not in calls_of(accelerate(model), photos)
    np.testing.assert_allclose(model.predict(photos, verbose=0), expected, atol=1e-5)


def test_winograds_errors_are_of_the_size_of_the_direct_sums():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, WIDE, 6, 6, generator=rng).to(memory_format=torch.channels_last)
    kernel = torch.randn(WIDE, WIDE, 3, 3, generator=rng)
    exact = F.conv2d(x.double(), kernel.double(), padding=1)
    by_tiles = winograd(x, winograd_kernel(kernel), None)
    assert by_tiles.is_contiguous(memory_format=torch.channels_last)
    direct = F.conv2d(x, kernel, padding=1)
    errors = [(y - exact).square().mean().sqrt().item() for y in (by_tiles, direct)]
    assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("padding", ["same", ((0, 1), (0, 1)), ((0, 2), (1, 2)), ((1, 0), (0, 1))], ids=str)
@pytest.mark.parametrize("side", [15, 16])
def test_depthwise_predictions_equal_stock_keras_without_a_padded_copy(padding, side):
    inputs = keras.Input((side, side, 3))
    x = inputs if padding == "same" else layers.ZeroPadding2D(padding)(inputs)
    own = "same" if padding == "same" else "valid"
    x = layers.DepthwiseConv2D(3, strides=2, padding=own, depth_multiplier=2)(x)
    model = keras.Model(inputs, layers.ReLU()(layers.BatchNormalization()(x)))
    photos = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype("float32")
    expected = model.predict(photos, verbose=0)
    accelerate(model)
    recording = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with constant(model), recording as profile:
        found = model.predict(photos, verbose=0)
        again = model.predict(photos, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(again, found)
    copies = [event for event in profile.events() if event.name == "aten::constant_pad_nd"]
    assert len(copies) == (
        2 if padding == ((1, 0), (0, 1)) else padding != "same" or side == 16
    )  # of the kernel


def test_depthwise_predictions_of_any_size_and_kernel_equal_stock_keras():
    inputs = keras.Input((None, None, 3))
    x = layers.DepthwiseConv2D(5, strides=2, padding="same")(inputs)
    x = layers.DepthwiseConv2D(4, padding="same", activation="relu")(x)
    x = layers.DepthwiseConv2D(2, padding="same", dilation_rate=3)(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    batches = [np.random.default_rng(side).normal(size=(2, side, side + 1, 3)) for side in (12, 13, 12, 7)]
    expected = [model.predict(batch, verbose=0) for batch in batches]
    with constant(accelerate(model)):
        found = [model.predict(batch, verbose=0) for batch in batches]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("make", MODELS)
def test_packed_predictions_equal_stock_keras_at_any_batch_size_and_after_changes(make):
    model = compiled(make)
    history(model, epochs=1)
    for count in (1, 4, 3):
        deaccelerate(model)
        with torch.no_grad():
            expected = keras.tree.flatten(model(images(count), training=False))
            found = keras.tree.flatten(accelerate(model)(images(count), training=False))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            for variable in model.trainable_variables:
                variable.assign(variable * 1.1)
            found = keras.tree.flatten(model(images(count), training=False))
            expected = keras.tree.flatten(deaccelerate(model)(images(count), training=False))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_predicting_in_inference_mode_does_not_spoil_training():
    model = accelerate(compiled(residual))
    with torch.inference_mode():
        model(images(2), training=False)
    model.layers[2].trainable = False
    model.train_on_batch(images(8), labels(8))
    with torch.enable_grad():
        x = torch.as_tensor(images(2)).requires_grad_()
        model(x, training=False).sum().backward()
    assert x.grad is not None


def test_kernels_gradients_and_momenta_lie_alike():
    model = accelerate(compiled(inverted))
    history(model, epochs=1)
    strides = {variable.value.shape: variable.value.stride() for variable in model.trainable_variables}
    assert any(not variable.value.is_contiguous() for variable in model.trainable_variables)
    for variable in model.optimizer.variables:
        assert strides.get(variable.value.shape, variable.value.stride()) == variable.value.stride()
    for variable in model.trainable_variables:
        assert variable.value.grad.stride() == variable.value.stride()


def test_deaccelerate_leaves_nothing_behind():
    model = compiled(subclass)
    before = {layer: set(layer.__dict__) for layer in model._flatten_layers()}
    deaccelerate(accelerate(model))
    assert {layer: set(layer.__dict__) for layer in model._flatten_layers()} == before
    assert not is_accelerated(model)
    assert all(variable.value.is_contiguous() for variable in model.variables)


@pytest.mark.parametrize("make", [residual, subclass])
def test_freezing_counts_from_the_next_step(make):
    model = accelerate(compiled(make))
    history(model, epochs=1)
    frozen = model.layers[0] if make is subclass else model.layers[2]
    before = [variable.numpy() for variable in frozen.variables]
    frozen.trainable = False
    model.train_on_batch(images(8), labels(8))
    assert all(
        (variable.numpy() == old).all() for variable, old in zip(frozen.variables, before, strict=True)
    )
    frozen.trainable = True
    model.train_on_batch(images(8), labels(8))
    assert any(
        (variable.numpy() != old).any() for variable, old in zip(frozen.variables, before, strict=True)
    )


def test_frozen_training_equals_stock_keras():
    def frozen():
        model = subclass()
        model.backbone.trainable = False
        return model

    expected = history(compiled(frozen))
    assert_same(history(accelerate(compiled(frozen))), expected)


def test_folded_weights_follow_every_change():
    model = accelerate(compiled(residual))
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    for change in (
        lambda: norm.gamma.assign(norm.gamma * 2.0),
        lambda: norm.moving_mean.assign(norm.moving_mean + 1.0),
        lambda: model.layers[2].kernel.assign(model.layers[2].kernel * 0.5),
        lambda: model.train_on_batch(images(8), labels(8)),
        lambda: model.set_weights([weight * 0.9 for weight in model.get_weights()]),
    ):
        accelerated = model(images(4)).detach(), model.predict(images(4), verbose=0)
        change()
        found = model.predict(images(4), verbose=0)
        deaccelerate(model)
        expected = model.predict(images(4), verbose=0)
        accelerate(model)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(found - accelerated[1]).max() > 1e-4


@pytest.mark.parametrize("make", [residual, inverted, subclass])
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_files_go_both_ways(make, suffix, tmp_path):
    stock, fast = compiled(make), accelerate(compiled(make))
    history(stock, epochs=1)
    history(fast, epochs=1)
    path = tmp_path / f"model{suffix}"
    if suffix == ".keras":
        fast.save(path)
        loaded = keras.saving.load_model(path)
    else:
        fast.save_weights(path)
        loaded = stock
        loaded.load_weights(path)
    assert not is_accelerated(loaded)
    np.testing.assert_allclose(
        loaded.predict(images(4), verbose=0), fast.predict(images(4), verbose=0), atol=1e-5
    )
    history(loaded, epochs=1)
    loaded.save_weights(tmp_path / "back.weights.h5")
    fast.load_weights(tmp_path / "back.weights.h5")
    np.testing.assert_allclose(
        loaded.predict(images(4), verbose=0), fast.predict(images(4), verbose=0), atol=1e-5
    )


def test_layers_and_summary_stay(capsys):
    model = compiled(residual)
    before = [(layer.name, type(layer)) for layer in model._flatten_layers()]
    model.summary(print_fn=print)
    expected = capsys.readouterr().out
    accelerate(model).summary(print_fn=print)
    assert capsys.readouterr().out == expected
    assert [(layer.name, type(layer)) for layer in model._flatten_layers()] == before


def test_a_train_step_of_ones_own_is_kept(caplog):
    class Own(keras.Model):
        def train_step(self, data):
            logs = super().train_step(data)
            return logs | {"extra": 1.0}

    def own():
        stock = residual()
        return Own(stock.inputs, stock.outputs)

    with caplog.at_level(logging.INFO, "kclf.acceleration"):
        model = accelerate(compiled(own))
    assert history(model, epochs=1, validation_data=None)["extra"] == [1.0]
    assert "has a train_step of its own" in caplog.text


def test_models_with_masks_are_left_to_keras(caplog):
    with caplog.at_level(logging.INFO, "kclf.acceleration"):
        accelerate(
            keras.Sequential([keras.Input((4,)), layers.Embedding(5, 2, mask_zero=True), layers.LSTM(2)])
        )
    assert "make masks" in caplog.text


def regularized():
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", activity_regularizer="l1")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


class AddsLoss(layers.Layer):
    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x * 1.0


def added_loss():
    inputs = keras.Input((SIZE, SIZE, 3))
    x = AddsLoss()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("make", [regularized, added_loss])
def test_losses_of_layers_are_counted(make):
    expected = history(compiled(make))
    assert_same(history(accelerate(compiled(make))), expected)


def test_sample_weights_equal_stock_keras():
    weights = np.linspace(0, 2, 40).astype("float32")
    expected = history(compiled(residual), sample_weight=weights)
    assert_same(history(accelerate(compiled(residual)), sample_weight=weights), expected)


def test_several_outputs_equal_stock_keras():
    def two_heads():
        inputs = keras.Input((SIZE, SIZE, 3))
        x = layers.GlobalAveragePooling2D()(convolution(inputs, 8))
        return keras.Model(
            inputs, {"a": layers.Dense(CLASSES, name="a")(x), "b": layers.Dense(1, name="b")(x)}
        )

    def run(wrap):
        keras.utils.set_random_seed(1)
        model = two_heads()
        model.compile(
            optimizer=keras.optimizers.SGD(0.01),
            loss={"a": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "b": "mse"},
            metrics={"a": ["accuracy"], "b": ["mae"]},
        )
        y = {"a": labels(), "b": labels().astype("float32")[:, None]}
        return wrap(model).fit(images(), y, batch_size=8, epochs=4, shuffle=False, verbose=0).history

    assert_same(run(accelerate), run(lambda model: model))


LOSSES = [
    (keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), "one-hot", ["accuracy"]),
    (keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1), "one-hot", ["binary_accuracy"]),
    (keras.losses.MeanSquaredError(), "one-hot", ["mae"]),
    (keras.losses.MeanAbsoluteError(), "one-hot", []),
    (keras.losses.Huber(), "one-hot", []),
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1), "index", ["accuracy"]),
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"), "index", ["accuracy"]),
    (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "column",
        ["accuracy", "mae"],
    ),
]


@pytest.mark.parametrize(("loss", "kind", "metrics"), LOSSES)
def test_losses_and_metrics_equal_stock_keras(loss, kind, metrics):
    y = {
        "index": labels(),
        "column": labels()[:, None],
        "one-hot": np.eye(CLASSES, dtype="float32")[labels()],
    }[kind]

    def run(wrap):
        model = compiled(residual)
        model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss, metrics=metrics)
        return history(wrap(model), y=y)

    assert_same(run(accelerate), run(lambda model: model))


def test_forward_hooks_still_fire():
    model = accelerate(compiled(residual))
    seen = []
    handle = model.layers[2].register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    model.predict(images(2), verbose=0)
    handle.remove()
    model.predict(images(2), verbose=0)
    assert len(seen) == 1


def test_changing_a_layer_is_seen_by_the_next_fit():
    model = accelerate(compiled(residual))
    model.predict(images(2), verbose=0)
    model.layers[-1].activation = keras.activations.softmax
    assert model.predict(images(2), verbose=0).sum(-1) == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.layers[-1], "activation", keras.activations.softmax),
        lambda model: model.layers[-1].enable_lora(1),
        lambda model: setattr(layer_of(model, layers.ReLU), "negative_slope", 0.5),
        lambda model: setattr(layer_of(model, layers.BatchNormalization), "epsilon", 1.0),
        lambda model: layer_of(model, layers.BatchNormalization).moving_mean.assign(np.full(8, 0.5)),
        lambda model: model.layers[-1].set_weights([np.ones((8, CLASSES)), np.ones(CLASSES)]),
        lambda model: history(model, epochs=1),
    ],
    ids=["activation", "LoRA", "slope", "epsilon", "statistics", "weights", "fit"],
)
def test_a_prediction_sees_what_has_changed_since_the_last_one(change):
    model = accelerate(compiled(residual))
    model.predict(images(4), verbose=0)
    change(model)
    found = model.predict(images(4), verbose=0)
    expected = deaccelerate(model).predict(images(4), verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_predictions_of_a_constant_model_pack_its_kernels_once():
    model = accelerate(compiled(residual))
    with constant(model):
        first = model.predict(images(4), verbose=0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            np.testing.assert_array_equal(model.predict(images(4), verbose=0), first)
    assert not any("reorder_convolution_weight" in event.key for event in profile.events())
    history(model, epochs=1)
    assert np.abs(model.predict(images(4), verbose=0) - first).max() > 1e-3


def plain():
    """Without a batch norm, whose statistics would tell of every step."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop", "Lion", "Adafactor"])
def test_a_callback_sees_the_weights_of_its_batch(optimizer):
    found = []

    class Compare(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            twin = plain()
            twin.set_weights(self.model.get_weights())
            with torch.no_grad():
                found.append([one(images(2), training=False).numpy() for one in (self.model, twin)])

    model = plain()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(LayerGroupOptimizer(getattr(keras.optimizers, optimizer)(0.1), model, 1.0), loss)
    accelerate(model).fit(images(8), np.arange(8) % CLASSES, batch_size=2, verbose=0, callbacks=[Compare()])
    np.testing.assert_allclose(*zip(*found, strict=True), rtol=1e-4, atol=1e-5)


def test_wrong_shapes_get_keras_own_message():
    model = accelerate(compiled(residual))
    with pytest.raises(ValueError, match="expected shape"):
        model(np.zeros((1, SIZE + 1, SIZE, 3), "float32"))


def test_frozen_backbone_records_no_gradients():
    model = accelerate(compiled(subclass))
    model.backbone.trainable = False
    features = model.backbone(torch.from_numpy(images(2)), training=True)
    assert not features.requires_grad
