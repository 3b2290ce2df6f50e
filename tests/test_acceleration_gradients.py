"""Parts of the plan with a way back of their own give the gradients of Keras' layers."""

from __future__ import annotations

import keras
import pytest
import torch
from keras import layers

import kclf
from kclf.acceleration.gradients import PaddedActivation, PointwiseProduct, clamp_
from kclf.acceleration.pointwise import MaxPooling, Sum

ACTIVATIONS = ["relu", "relu6", "silu", "hard_silu", "gelu"]


def padded_by_layer(activation):
    x = inputs = keras.Input((9, 8, 3))
    x = layers.Conv2D(6, 1, name="first")(x)
    x = layers.Activation(activation)(x)
    x = layers.ZeroPadding2D(((0, 1), (1, 2)))(x)
    return keras.Model(inputs, layers.DepthwiseConv2D(3, 2, padding="valid", name="second")(x))


def padded_by_stride(activation):
    x = inputs = keras.Input((8, 6, 3))
    x = layers.Conv2D(6, 1, name="first")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation(activation)(x)
    x = layers.Conv2D(4, 3, 2, padding="same", name="second")(x)
    return keras.Model(inputs, layers.BatchNormalization()(x))


def results(model, images, *, training=True):
    """Output and gradients by path."""
    y = model(images, training=training)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    (y * weights).sum().backward()
    found = {variable.path: variable.value.grad.clone() for variable in model.trainable_variables}
    return y.detach(), found


def assert_as_keras(model, images, **options):
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    kclf.accelerate(model)
    ours, theirs = results(model, images, **options), results(twin, images, **options)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    for mine, its in zip(ours[1].values(), theirs[1].values(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)
    for mine, its in zip(model.non_trainable_variables, twin.non_trainable_variables, strict=True):
        torch.testing.assert_close(mine.value, its.value, rtol=1e-5, atol=1e-6)


def functions(model):
    return [step.function for step in model.call.plan.steps]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("make", [padded_by_layer, padded_by_stride])
def test_uneven_paddings_are_part_of_the_activation_before_them(make, activation):
    model = make(activation)
    images = 4 * torch.randn(2, *model.input_shape[1:])
    assert_as_keras(model, images)
    joined = [one for one in functions(model) if isinstance(one, PaddedActivation)]
    assert len(joined) == (activation != "gelu")  # which has no form that writes into a tensor


@pytest.mark.parametrize("training", [True, False])
def test_a_bias_before_a_batch_norm_only_moves_its_statistics(training):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, bias_initializer="normal", name="conv")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization()(x))
    assert_as_keras(model, torch.randn(2, 6, 6, 3), training=training)
    gradient = model.get_layer("conv").bias.value.grad
    assert bool((gradient == 0).all()) is training


def test_a_pooling_pads_by_itself_after_a_relu_and_not_elsewhere():
    inputs = keras.Input((8, 8, 3))
    x = layers.ZeroPadding2D(1)(layers.Conv2D(4, 3, activation="relu", name="signed")(inputs))
    first = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(layers.ReLU()(layers.Conv2D(4, 1)(x))))
    model = keras.Model(inputs, layers.MaxPooling2D(2)(layers.ZeroPadding2D(1)(layers.Conv2D(4, 1)(first))))
    assert_as_keras(model, torch.randn(2, 8, 8, 3))
    borders = [one.border for one in functions(model) if isinstance(one, MaxPooling)]
    assert borders == [(1, 1), (0, 0)]


@pytest.mark.parametrize("place", [0, 1])
def test_a_sum_overwrites_whichever_summand_is_its_own(place):
    inputs = keras.Input((6, 6, 3))
    x = layers.ReLU()(layers.Conv2D(4, 1)(inputs))
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
    model = keras.Model(inputs, layers.Add()([y, x] if place == 0 else [x, y]))
    assert_as_keras(model, torch.randn(2, 6, 6, 3))
    assert [one.overwritten for one in functions(model) if isinstance(one, Sum)] == [place]


@pytest.mark.parametrize("biased", [True, False])
def test_a_1x1_convolution_is_a_matrix_product(biased):
    x, weight, bias = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 1, 1), torch.randn(6) if biased else None
    given = [one.double().requires_grad_() for one in (x, weight, bias) if one is not None]
    assert torch.autograd.gradcheck(lambda *values: PointwiseProduct.apply(*(*values, None)[:3]), given)
    found = PointwiseProduct.apply(x, weight, bias)
    torch.testing.assert_close(found, torch.nn.functional.conv2d(x, weight, bias))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_clamping_in_place_copies_nothing():
    x = torch.randn(100).requires_grad_()
    with torch.profiler.profile() as record:
        clamp_(x * 8, 0.0, 6.0).sum().backward()
    assert "aten::clone" not in {event.key for event in record.key_averages()}
    torch.testing.assert_close(x.grad, 8 * ((x * 8 > 0) & (x * 8 < 6)).float())


@pytest.mark.parametrize("kind", [keras.optimizers.SGD, keras.optimizers.AdamW])
def test_a_step_copies_no_gradient_of_a_kernel(kind):
    inputs = keras.Input((8, 8, 8))
    x = layers.DepthwiseConv2D(3, use_bias=False)(layers.Conv2D(16, 1, use_bias=False)(inputs))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3, use_bias=False)(x)))
    model.compile(kclf.LayerGroupOptimizer(kind(1e-3), model, 1.0), "mse")
    kclf.accelerate(model)
    images, targets = torch.randn(4, 8, 8, 8), torch.randn(4, 16)
    model.train_on_batch(images, targets)
    sizes = {tuple(variable.shape) for variable in model.trainable_variables}
    with torch.profiler.profile(record_shapes=True) as record:
        model.train_on_batch(images, targets)
    copies = [event for event in record.events() if event.name in ("aten::clone", "aten::copy_")]
    assert [event.input_shapes[0] for event in copies if tuple(event.input_shapes[0]) in sizes] == []


def test_gelu_overwrites_the_product_before_it_in_predictions_alone():
    def network():
        inputs = keras.Input((8, 8, 4))
        x = layers.Conv2D(6, 1)(inputs)
        x = layers.Activation("gelu")(keras.layers.Dense(12)(x))
        x = layers.Conv2D(3, 1, activation="gelu")(keras.layers.Dense(6, activation="gelu")(x))
        return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))

    keras.utils.set_random_seed(3)
    model, images = network(), torch.randn(2, 8, 8, 4)
    expected = model(images).detach()
    stock = torch.autograd.grad(model(images).sum(), [v.value for v in model.trainable_variables])
    kclf.accelerate(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        found = model(images, training=False)
    assert sum(event.key == "aten::gelu_" and event.count for event in profile.key_averages()) >= 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    fast = torch.autograd.grad(model(images).sum(), [v.value for v in model.trainable_variables])
    torch.testing.assert_close(fast, stock, rtol=1e-5, atol=1e-6)
