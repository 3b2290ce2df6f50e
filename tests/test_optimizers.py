"""LayerGroupOptimizer beside torch's parameter groups, frozen layers, and everything that wraps it."""

from __future__ import annotations

import inspect
import math

import keras
import numpy as np
import pytest
import torch
from keras import layers, optimizers
from waits import Waits

from kclf.optimizers import (
    FusedLossScaleOptimizer,
    LayerGroupOptimizer,
    group_rates,
    layer_decay,
    layer_group_optimizer,
)

MULTIPLIERS = [0.1, 0.3, 1.0]
STEPS = 60


def small_model(dtype=None) -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((6,)),
            *(layers.Dense(n, activation="tanh", dtype=dtype) for n in (8, 7)),
            layers.Dense(3),
        ]
    )


def batches(steps: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(steps)
    ]


DATA = batches()


def warm_cosine(step: int) -> float:
    """Warm-up and cosine: a rate that changes at every step."""
    return 1e-2 * ((step + 1) / 10 if step < 10 else (1 + math.cos(math.pi * (step - 10) / 50)) / 2)


def train_keras(model, optimizer, steps=STEPS, rate=warm_cosine):
    for step in range(steps):
        optimizer.learning_rate = rate(step)
        x, y = DATA[step]
        for variable in model.trainable_variables:
            variable.value.grad = None
        loss = optimizer.scale_loss(((model(x, training=True) - y) ** 2).mean())
        loss.backward()
        optimizer.apply([v.value.grad for v in model.trainable_variables], model.trainable_variables)


def train_torch(weights, make_optimizer, steps=STEPS, multipliers=MULTIPLIERS):
    tensors = [torch.tensor(w, requires_grad=True) for w in weights]
    pairs = [tensors[i : i + 2] for i in range(0, len(tensors), 2)]
    optimizer = make_optimizer([{"params": pair} for pair in pairs])
    for step in range(steps):
        for group, multiplier in zip(optimizer.param_groups, multipliers, strict=True):
            group["lr"] = warm_cosine(step) * multiplier
        x, y = DATA[step]
        for index, (kernel, bias) in enumerate(pairs):
            x = x @ kernel + bias
            x = torch.tanh(x) if index < len(pairs) - 1 else x
        optimizer.zero_grad()
        ((x - y) ** 2).mean().backward()
        optimizer.step()
    return [t.detach().cpu().numpy() for t in tensors]


def largest_difference(model, weights) -> float:
    return max(
        float(np.abs(ours - theirs).max()) for ours, theirs in zip(model.get_weights(), weights, strict=True)
    )


AGAINST_TORCH = {
    "Adam": (
        lambda: optimizers.Adam(1e-2, epsilon=1e-12),
        lambda p: torch.optim.Adam(p, eps=1e-12),
    ),
    "Adam amsgrad": (
        lambda: optimizers.Adam(1e-2, epsilon=1e-12, amsgrad=True),
        lambda p: torch.optim.Adam(p, eps=1e-12, amsgrad=True),
    ),
    "AdamW": (
        lambda: optimizers.AdamW(1e-2, weight_decay=0.05, epsilon=1e-12),
        lambda p: torch.optim.AdamW(p, weight_decay=0.05, eps=1e-12),
    ),
    "SGD": (lambda: optimizers.SGD(1e-2), lambda p: torch.optim.SGD(p)),
    "SGD momentum": (
        lambda: optimizers.SGD(1e-2, momentum=0.9),
        lambda p: torch.optim.SGD(p, momentum=0.9),
    ),
    "SGD nesterov": (
        lambda: optimizers.SGD(1e-2, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True),
    ),
    "RMSprop": (
        lambda: optimizers.RMSprop(1e-2, rho=0.99, epsilon=1e-20),
        lambda p: torch.optim.RMSprop(p, alpha=0.99, eps=1e-10),
    ),
    "RMSprop momentum": (
        lambda: optimizers.RMSprop(1e-2, rho=0.99, epsilon=1e-20, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, alpha=0.99, eps=1e-10, momentum=0.9),
    ),
    "RMSprop centered": (
        lambda: optimizers.RMSprop(1e-2, rho=0.99, epsilon=1e-20, centered=True),
        lambda p: torch.optim.RMSprop(p, alpha=0.99, eps=1e-10, centered=True),
    ),
}


@pytest.mark.parametrize("name", AGAINST_TORCH)
def test_three_groups_are_torch_parameter_groups(name):
    ours, theirs = AGAINST_TORCH[name]
    model = small_model()
    start = model.get_weights()
    optimizer = LayerGroupOptimizer(ours(), model, MULTIPLIERS, decay_biases_and_norms=True)
    train_keras(model, optimizer)
    assert largest_difference(model, train_torch(start, theirs)) <= 1e-5


@pytest.mark.parametrize("name", AGAINST_TORCH)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_groups_are_torch_parameter_groups(name, policy):
    """The same half-precision gradients through both: float16 ones scaled, with an overflow on the way."""
    keras.config.set_dtype_policy(policy)
    ours, theirs = AGAINST_TORCH[name]
    model = small_model()
    optimizer = LayerGroupOptimizer(ours(), model, MULTIPLIERS, decay_biases_and_norms=True)
    if policy == "mixed_float16":
        optimizer = FusedLossScaleOptimizer(optimizer, initial_scale=2.0**10)
    variables = model.trainable_variables
    optimizer.build(variables)
    twins = [torch.tensor(v.numpy(), requires_grad=True) for v in variables]
    reference = theirs([{"params": twins[i : i + 2]} for i in range(0, len(twins), 2)])
    for step in range(STEPS):
        optimizer.learning_rate = warm_cosine(step)
        for group, multiplier in zip(reference.param_groups, MULTIPLIERS, strict=True):
            group["lr"] = warm_cosine(step) * multiplier
        x, y = DATA[step]
        model.zero_grad()
        optimizer.scale_loss(((model(x, training=True) - y) ** 2).mean()).backward()
        gradients = [v.value.grad for v in variables]
        scale = float(optimizer.scale_loss(1.0))
        if scale > 1 and step == 30:
            gradients[0][0, 0] = float("inf")  # this step is skipped by both
        else:
            for twin, gradient in zip(twins, gradients, strict=True):
                twin.grad = gradient.float() / scale
            reference.step()
        with torch.no_grad():
            optimizer.apply(gradients, variables)
    assert largest_difference(model, [twin.detach().cpu().numpy() for twin in twins]) <= 1e-5


@pytest.mark.parametrize("rule", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_is_kept(rule):
    ours, theirs = small_model(), small_model()
    theirs.set_weights(ours.get_weights())
    train_keras(ours, LayerGroupOptimizer(optimizers.SGD(1e-2, **{rule: 0.05}), ours))
    train_keras(theirs, optimizers.SGD(1e-2, **{rule: 0.05}))
    assert largest_difference(ours, theirs.get_weights()) <= 1e-6


KERAS_OPTIMIZERS = sorted(
    name
    for name, kind in vars(optimizers).items()
    if inspect.isclass(kind)
    and issubclass(kind, optimizers.Optimizer)
    and name not in {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
)


def keras_optimizer(name, **kwargs):
    return getattr(optimizers, name)(learning_rate=1e-2, **kwargs)


@pytest.mark.parametrize("name", KERAS_OPTIMIZERS)
@pytest.mark.parametrize("settings", [{}, {"use_ema": True}, {"gradient_accumulation_steps": 3}])
def test_one_group_is_the_optimizer_itself(name, settings):
    ours, theirs = small_model(), small_model()
    theirs.set_weights(ours.get_weights())
    wrapped = LayerGroupOptimizer(keras_optimizer(name, **settings), ours, decay_biases_and_norms=True)
    plain = keras_optimizer(name, **settings)
    train_keras(ours, wrapped, 12, rate=lambda step: 1e-2)
    train_keras(theirs, plain, 12, rate=lambda step: 1e-2)
    assert largest_difference(ours, theirs.get_weights()) <= 2e-6
    if settings.get("use_ema"):
        wrapped.finalize_variable_values(ours.trainable_variables)
        plain.finalize_variable_values(theirs.trainable_variables)
        assert largest_difference(ours, theirs.get_weights()) <= 2e-6


@pytest.mark.parametrize("name", KERAS_OPTIMIZERS)
def test_each_group_is_an_optimizer_of_its_own(name):
    ours, theirs = small_model(), small_model()
    theirs.set_weights(ours.get_weights())
    train_keras(ours, LayerGroupOptimizer(keras_optimizer(name), ours, MULTIPLIERS), 12, rate=lambda s: 1e-2)
    apart = [keras_optimizer(name) for _ in MULTIPLIERS]
    for optimizer, multiplier, layer in zip(apart, MULTIPLIERS, theirs.layers, strict=True):
        optimizer.exclude_from_weight_decay(var_list=[layer.bias])
        optimizer.learning_rate = 1e-2 * multiplier
    for x, y in DATA[:12]:
        theirs.zero_grad()
        ((theirs(x) - y) ** 2).mean().backward()
        for optimizer, layer in zip(apart, theirs.layers, strict=True):
            with torch.no_grad():
                optimizer.apply([v.value.grad for v in layer.trainable_variables], layer.trainable_variables)
    assert largest_difference(ours, theirs.get_weights()) <= 2e-6


def test_multiplier_zero_is_frozen():
    ours, theirs = small_model(), small_model()
    theirs.set_weights(ours.get_weights())
    theirs.layers[0].trainable = False
    first = ours.layers[0].get_weights()
    train_keras(ours, LayerGroupOptimizer(optimizers.AdamW(), ours, [0.0, 0.5, 1.0]), 20)
    train_keras(theirs, LayerGroupOptimizer(optimizers.AdamW(), theirs, [1.0, 0.5, 1.0]), 20)
    np.testing.assert_array_equal(ours.layers[0].get_weights()[0], first[0])
    assert largest_difference(ours, theirs.get_weights()) == 0.0


@pytest.mark.parametrize("name", KERAS_OPTIMIZERS)
def test_late_groups_count_their_own_steps(name):
    """A layer unfrozen after 30 steps moves as under a new optimizer."""
    model, twin = small_model(), small_model()
    first, last = model.layers[0].trainable_variables, model.layers[-1].trainable_variables
    twin.layers[0].set_weights(model.layers[0].get_weights())
    optimizer, fresh = (LayerGroupOptimizer(keras_optimizer(name), m) for m in (model, twin))
    for _ in range(30):
        optimizer.apply([torch.ones_like(v.value) for v in last], last)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        gradients = [torch.randn(tuple(v.shape), generator=generator) for v in first]
        optimizer.apply([*gradients, *(torch.ones_like(v.value) for v in last)], [*first, *last])
        fresh.apply(gradients, twin.layers[0].trainable_variables)
    np.testing.assert_allclose(
        model.layers[0].kernel.numpy(), twin.layers[0].kernel.numpy(), rtol=0, atol=1e-7
    )
    assert optimizer._update_counts.numpy().tolist() == [3, 3, 0, 0, 33, 33]


def test_state_of_the_head_survives_freezing_and_thawing():
    model = small_model()
    optimizer = LayerGroupOptimizer(optimizers.SGD(momentum=0.9), model)
    model.layers[0].trainable = False
    train_keras(model, optimizer, 5)
    before = optimizer.inner_optimizer.momentums[4].numpy().copy()
    model.layers[0].trainable = True
    optimizer.learning_rate = 0.0
    x, y = DATA[0]
    ((model(x) - y) ** 2).mean().backward()
    optimizer.apply([torch.zeros_like(v.value) for v in model.trainable_variables], model.trainable_variables)
    np.testing.assert_allclose(optimizer.inner_optimizer.momentums[4].numpy(), 0.9 * before, rtol=1e-6)


def test_biases_and_norms_do_not_decay():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), layers.BatchNormalization(), layers.LayerNormalization()]
    )
    optimizer = LayerGroupOptimizer(optimizers.AdamW(1.0, weight_decay=0.5), model)
    before = model.get_weights()
    for variable in model.trainable_variables:
        variable.assign(variable + 1.0)
    optimizer.apply([torch.zeros_like(v.value) for v in model.trainable_variables], model.trainable_variables)
    moved = {
        v.path.split("/", 1)[-1]: not np.allclose(v.numpy(), w + 1.0)
        for v, w in zip(model.weights, before, strict=True)
        if v.trainable
    }
    assert [path for path, did in moved.items() if did] == [p for p in moved if p.endswith("kernel")]


def test_decay_and_clipping_can_be_changed_while_training():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    optimizer = LayerGroupOptimizer(optimizers.AdamW(1e-1, weight_decay=0.5, clipnorm=1.0), model)
    kernel, zeros = model.trainable_variables[0], [torch.zeros(2, 2)]

    def shrinks() -> bool:
        before = kernel.numpy().copy()
        optimizer.apply(zeros, [kernel])
        return not np.array_equal(before, kernel.numpy())

    assert (optimizer.weight_decay, optimizer.clipnorm) == (0.5, 1.0)
    assert shrinks()
    optimizer.weight_decay = 0.0
    assert not shrinks()
    optimizer.inner_optimizer.weight_decay = 0.5
    assert shrinks()
    optimizer.weight_decay_multipliers = (0.0,)
    assert not shrinks()
    optimizer.clipnorm = None
    assert optimizer.inner_optimizer.clipnorm is None


def test_a_mapping_names_multipliers_and_no_rates():
    model = small_model()
    optimizer = LayerGroupOptimizer("sgd", model, {0: 0.5})
    with pytest.raises(TypeError, match="learning rate for each group"):
        optimizer.set_learning_rates({0: 1e-5})


def test_weight_decay_multipliers_scale_the_decay():
    model = small_model()
    before = [layer.kernel.numpy() for layer in model.layers]
    optimizer = LayerGroupOptimizer(
        optimizers.SGD(0.1, weight_decay=0.5), model, MULTIPLIERS, [1.0, 2.0, 0.0]
    )
    optimizer.apply([torch.zeros_like(v.value) for v in model.trainable_variables], model.trainable_variables)
    left = [float(np.mean(layer.kernel.numpy() / w)) for layer, w in zip(model.layers, before, strict=True)]
    assert left == pytest.approx([1 - 0.1 * 0.1 * 0.5, 1 - 0.03 * 0.5 * 2, 1.0], abs=1e-6)


# ---- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (1e-3, [1e-3, 1e-3, 1e-3]),
        (slice(1e-3), [1e-4, 1e-4, 1e-3]),
        (slice(1e-6, 1e-4), [1e-6, 1e-5, 1e-4]),
        ([1e-4, 1e-3, 1e-2], [1e-4, 1e-3, 1e-2]),
        (np.array([1e-4, 1e-3, 1e-2]), [1e-4, 1e-3, 1e-2]),
        ({0: 0.1, -1: 2.0}, [0.1, 1.0, 2.0]),
    ],
)
def test_rates_of_groups(spec, expected):
    assert group_rates(spec, 3) == pytest.approx(expected, rel=1e-12)


def test_rates_of_one_group_are_the_last_value():
    assert group_rates(slice(1e-6, 1e-4), 1) == [1e-4]
    assert layer_decay(0.75, 3) == pytest.approx([0.5625, 0.75, 1.0])


def test_golden_even_multiples(golden):
    assert group_rates(slice(1e-6, 1e-4), 3) == pytest.approx(golden["even_mults(1e-6,1e-4,3)"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([1e-3, 1e-2], "3 groups, 2 values"),
        (slice(0.0, 1e-2), "above 0"),
        (slice(None), "slice"),
        ([-1.0, 1.0, 1.0], "below 0"),
        ({3: 1.0}, "Received: 3"),
    ],
)
def test_wrong_rates_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        group_rates(spec, 3)


def test_a_variable_in_no_group_is_named():
    model = small_model()
    optimizer = LayerGroupOptimizer(optimizers.SGD(), [[model.layers[0]], [model.layers[2]]])
    with pytest.raises(ValueError, match=model.layers[1].name + "/kernel.* no layer group"):
        optimizer.build(model.trainable_variables)


def test_a_variable_in_two_groups_is_named():
    model = small_model()
    optimizer = LayerGroupOptimizer(optimizers.SGD(), [model.layers, [model.layers[2]]])
    with pytest.raises(ValueError, match=model.layers[2].name + "/kernel is in layer groups 0 and 1"):
        optimizer.build(model.trainable_variables)


def test_loss_scaling_inside_is_refused():
    with pytest.raises(ValueError, match="outermost"):
        LayerGroupOptimizer(optimizers.LossScaleOptimizer(optimizers.SGD()), small_model())


def test_set_learning_rates_keeps_one_rate_and_multipliers():
    optimizer = LayerGroupOptimizer(optimizers.SGD(0.1), small_model())
    optimizer.set_learning_rates(slice(1e-5, 1e-3))
    assert optimizer.learning_rates == pytest.approx([1e-5, 1e-4, 1e-3])
    optimizer.learning_rate = 1e-2
    assert optimizer.learning_rates == pytest.approx([1e-4, 1e-3, 1e-2])
    assert float(optimizer.learning_rate) == pytest.approx(1e-2)


def test_rate_set_from_outside_is_seen():
    model = small_model()
    optimizer = LayerGroupOptimizer(optimizers.SGD(0.1), model)
    optimizer.learning_rate = 0.5
    optimizer.inner_optimizer.learning_rate = 0.25
    assert optimizer.learning_rates == [0.25] * 3


def test_keras_schedules_drive_it():
    ours, theirs = small_model(), small_model()
    theirs.set_weights(ours.get_weights())
    schedule = optimizers.schedules.CosineDecay(0.1, 20)
    wrapped, plain = LayerGroupOptimizer(optimizers.SGD(schedule), ours), optimizers.SGD(schedule)
    for model, optimizer in ((ours, wrapped), (theirs, plain)):
        for x, y in DATA[:20]:
            model.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            with torch.no_grad():
                optimizer.apply([v.value.grad for v in model.trainable_variables], model.trainable_variables)
    assert largest_difference(ours, theirs.get_weights()) <= 1e-6


# ---- in a model ----------------------------------------------------------------------------------


def data(n: int = 32):
    generator = np.random.default_rng(3)
    return generator.normal(size=(n, 6)).astype("float32"), generator.normal(size=(n, 3)).astype("float32")


@pytest.mark.parametrize(
    "wrap", [lambda inner: inner, FusedLossScaleOptimizer, optimizers.LossScaleOptimizer]
)
def test_keras_callbacks_set_its_rate(wrap):
    model = small_model()
    grouped = LayerGroupOptimizer(optimizers.AdamW(0.1), model, MULTIPLIERS)
    model.compile(wrap(grouped), loss="mse")
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(grouped.learning_rates)
    )
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.1, patience=0, min_delta=1e9)
    drop = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate if epoch else 0.2)
    model.fit(*data(), epochs=3, verbose=0, callbacks=[drop, plateau, watch])
    np.testing.assert_allclose(seen, np.outer([0.2, 0.2, 0.02], MULTIPLIERS), rtol=1e-5)


@pytest.mark.parametrize("wrap", [lambda inner: inner, FusedLossScaleOptimizer])
def test_keras_swaps_its_averages_in(wrap):
    model = small_model()
    model.compile(wrap(LayerGroupOptimizer(optimizers.SGD(0.1, use_ema=True), model)), loss="mse")
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model.fit(*data(), epochs=2, verbose=0, validation_data=data(), callbacks=[swap])
    averages = layer_group_optimizer(model.optimizer)._model_variables_moving_average
    assert largest_difference(model, [average.numpy() for average in averages]) == 0.0


def test_an_optimizer_may_be_named():
    assert isinstance(LayerGroupOptimizer("adamw", small_model()).inner_optimizer, optimizers.AdamW)


def test_freeze_fit_thaw_fit_without_compiling_again():
    model = small_model()
    model.layers[0].trainable = model.layers[1].trainable = False
    model.compile(LayerGroupOptimizer(optimizers.Adam(), model), loss="mse")
    model.fit(*data(), epochs=1, verbose=0, batch_size=8)
    frozen = model.layers[0].get_weights()[0]
    model.layers[0].trainable = model.layers[1].trainable = True
    model.fit(*data(), epochs=1, verbose=0, batch_size=8)
    assert np.abs(model.layers[0].get_weights()[0] - frozen).max() > 0
    assert model.optimizer._update_counts.numpy().tolist() == [4, 4, 4, 4, 8, 8]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_a_step_does_not_wait_for_the_device(name, monkeypatch):
    model = small_model()
    optimizer = LayerGroupOptimizer(
        keras_optimizer(name, global_clipnorm=1.0, use_ema=True), model, MULTIPLIERS
    )
    gradients = [torch.ones_like(v.value) for v in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)

    variables = model.trainable_variables
    with Waits(monkeypatch) as waits:
        for step in range(5):
            optimizer.learning_rate = 0.1 / (step + 1)
            optimizer.apply(gradients, variables)
    assert waits.count == 0


def test_layout_of_a_kernel_may_change_between_steps():
    ours, theirs = small_model(), small_model()
    theirs.set_weights(ours.get_weights())
    optimizers_ = [LayerGroupOptimizer(optimizers.AdamW(1e-2), m, MULTIPLIERS) for m in (ours, theirs)]
    train_keras(ours, optimizers_[0], 5)
    train_keras(theirs, optimizers_[1], 5)
    kernel = ours.layers[0].kernel.value
    kernel.data = kernel.data.t().contiguous().t()
    train_keras(ours, optimizers_[0], 5)
    train_keras(theirs, optimizers_[1], 5)
    assert largest_difference(ours, theirs.get_weights()) <= 1e-6


# ---- mixed precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_groups_are_separate_optimizers(policy):
    """The multipliers do under a mixed policy what they do in float32: exactly one optimizer a group."""
    keras.config.set_dtype_policy(policy)
    ours, theirs = small_model(), small_model()
    theirs.set_weights(ours.get_weights())
    wrap = FusedLossScaleOptimizer if policy == "mixed_float16" else (lambda inner: inner)
    x, y = data()
    ours.compile(wrap(LayerGroupOptimizer(optimizers.Adam(1e-2), ours, MULTIPLIERS)), loss="mse")
    theirs.compile(LayerGroupOptimizer(optimizers.Adam(1e-2), theirs, MULTIPLIERS), loss="mse")
    assert isinstance(theirs.optimizer, optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    for model in (ours, theirs):
        model.fit(x, y, epochs=5, batch_size=8, shuffle=False, verbose=0)
    assert largest_difference(ours, theirs.get_weights()) <= 1e-5
    assert {str(v.dtype) for v in ours.trainable_variables} == {"float32"}


def test_fused_loss_scale_follows_keras_over_overflows():
    ours, theirs = small_model(), small_model()
    theirs.set_weights(ours.get_weights())
    settings = {"initial_scale": 1024.0, "dynamic_growth_steps": 3}
    pair = [
        (ours, FusedLossScaleOptimizer(optimizers.Adam(1e-2), **settings)),
        (theirs, optimizers.LossScaleOptimizer(optimizers.Adam(1e-2), **settings)),
    ]
    for _, optimizer in pair:
        optimizer.build(ours.trainable_variables if optimizer is pair[0][1] else theirs.trainable_variables)
    for step in range(12):
        states = []
        for model, optimizer in pair:
            scale = float(optimizer.dynamic_scale.numpy())
            gradients = [torch.full_like(v.value, 0.1 * scale) for v in model.trainable_variables]
            if step in {1, 6}:
                gradients[2][0, 0] = float("inf") if step == 1 else float("nan")
            with torch.no_grad():
                optimizer.apply(gradients, model.trainable_variables)
            states.append((scale, int(optimizer.step_counter.numpy()), int(optimizer.iterations.numpy())))
        assert states[0] == states[1]
    assert largest_difference(ours, theirs.get_weights()) <= 1e-6


def test_fused_loss_scale_does_not_wait(monkeypatch):
    model = small_model()
    optimizer = FusedLossScaleOptimizer(LayerGroupOptimizer(optimizers.AdamW(), model, MULTIPLIERS))
    gradients = [torch.ones_like(v.value) for v in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    with Waits(monkeypatch) as waits:
        optimizer.apply(gradients, model.trainable_variables)
    assert waits.count == 0


def test_the_layer_group_optimizer_is_found_through_wrappers():
    inner = LayerGroupOptimizer(optimizers.SGD(), small_model())
    assert layer_group_optimizer(FusedLossScaleOptimizer(inner)) is inner
    assert layer_group_optimizer(optimizers.SGD()) is None
