"""Precision policies, and what acceleration makes of them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from test_acceleration import CLASSES, compiled, images, inverted, labels, residual
from test_export import inverted_residual

from kclf import precision
from kclf.acceleration import accelerate
from kclf.optimizers import FusedLossScaleOptimizer, LayerGroupOptimizer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("name", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_set_precision_sets_the_global_policy(name):
    assert precision.set_precision(name) == name
    assert keras.config.dtype_policy().name == name


def test_auto_takes_the_best_of_this_device():
    assert precision.set_precision("auto") == precision.best_precision()


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="fp8"):
        precision.set_precision("fp8")


@pytest.mark.parametrize(
    ("faster", "expected"), [(1.0, "float32"), (1.4, "float32"), (2.0, "mixed_bfloat16")]
)
def test_a_cpu_takes_bfloat16_only_where_it_is_clearly_faster(monkeypatch, faster, expected):
    def seconds(dtype):
        return 1.0 / faster if dtype is precision.torch.bfloat16 else 1.0

    precision._cpu_prefers_bfloat16.cache_clear()
    monkeypatch.setattr(precision, "_convolution_seconds", seconds)
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    assert precision.best_precision() == expected
    precision._cpu_prefers_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 1), "float32"), ((7, 5), "mixed_float16"), ((8, 0), "mixed_bfloat16"), ((9, 0), "mixed_bfloat16")],
)
def test_a_gpu_takes_what_its_units_do(monkeypatch, capability, expected):
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision.torch.cuda, "get_device_capability", lambda: capability)
    assert precision.best_precision() == expected


def with_float32_head(make):
    def build():
        model = make()
        logits = keras.layers.Dense(CLASSES, dtype="float32")(model.layers[-2].output)
        return keras.Model(model.input, logits)

    return build


@pytest.mark.parametrize("make", [residual, inverted])
@pytest.mark.parametrize(("name", "tolerance"), [("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)])
def test_accelerated_mixed_precision_is_near_stock_keras(make, name, tolerance):
    precision.set_precision(name)

    def losses(wrap):
        model = wrap(compiled(with_float32_head(make)))
        logs = model.fit(images(), labels(), batch_size=8, epochs=2, shuffle=False, verbose=0).history
        return [float(value) for value in logs["loss"]], model.predict(images(4), verbose=0)

    (expected, logits), (found, fast) = losses(lambda model: model), losses(accelerate)
    assert found == pytest.approx(expected, rel=tolerance)
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, logits, atol=20 * tolerance)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_saved_fp16_classifier_reloads_with_its_loss_scaling_under_any_global_policy(tmp_path, policy):
    model = inverted_residual("mixed_float16")
    model.compile(LayerGroupOptimizer(keras.optimizers.SGD(1e-3, momentum=0.9), model))
    photos, targets = np.full((6, 40, 40, 3), 100, "uint8"), np.arange(6) % 3
    model.optimizer.dynamic_scale.assign(2.0)
    model.fit(photos, targets, batch_size=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy(policy)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, FusedLossScaleOptimizer)
    assert loaded.dtype_policy.name == "mixed_float16"
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert float(loaded.optimizer.dynamic_scale.numpy()) == 2.0  # and not the first one, 2 ** 15
    assert any(np.any(v.numpy()) for v in loaded.optimizer.inner_optimizer.variables[2:])  # momenta


@pytest.mark.parametrize("wrap", [accelerate, lambda model: model])
def test_the_first_layer_that_overflows_is_named(wrap):
    model = wrap(compiled(residual))
    x = precision.torch.from_numpy(images(2))
    assert precision.first_non_finite_layer(model, x) is None
    norm = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)][1]
    norm.gamma.assign(norm.gamma * float("inf"))
    assert precision.first_non_finite_layer(model, x).endswith(norm.name)
