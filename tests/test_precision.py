"""Precision policies, and what acceleration makes of them."""

from __future__ import annotations

import zipfile

import keras
import numpy as np
import pytest
from test_acceleration import CLASSES, compiled, images, inverted, labels, residual
from test_export import inverted_residual

from kclf import precision
from kclf.acceleration import accelerate
from kclf.callbacks.guards import first_non_finite_layer
from kclf.errors import FileFormatError
from kclf.optimizers import FusedLossScaleOptimizer, LayerGroupOptimizer
from kclf.weights import load_model

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


def test_a_cpu_takes_float32(monkeypatch):
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    assert precision.best_precision() == "float32"


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
    assert first_non_finite_layer(model, x) is None
    norm = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)][1]
    norm.gamma.assign(norm.gamma * float("inf"))
    assert first_non_finite_layer(model, x).endswith(norm.name)


def small(wrap):
    """A plain Keras model after two steps in mixed_float16, its loss scale changed by hand to 2 ** 20."""
    keras.config.set_dtype_policy("mixed_float16")
    layers = [keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(2, dtype="float32")]
    model = keras.Sequential(layers)
    model.compile(wrap(keras.optimizers.SGD(0.1, momentum=0.9), model), "mse")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model.fit(x, x[:, :2], batch_size=4, verbose=0)
    model.optimizer.dynamic_scale.assign(2.0**20)
    return model


def assert_same_scaling(loaded, model):
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
    assert float(loaded.optimizer.dynamic_scale.numpy()) == 2.0**20
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]
WRAPS = {
    "compile": lambda optimizer, model: optimizer,
    "groups": LayerGroupOptimizer,
    "fused": lambda optimizer, model: FusedLossScaleOptimizer(optimizer),
    "fused groups": lambda *both: FusedLossScaleOptimizer(LayerGroupOptimizer(*both)),
    "keras": lambda optimizer, model: keras.optimizers.LossScaleOptimizer(optimizer),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("wrap", WRAPS)
def test_load_model_brings_back_the_loss_scaling_under_any_global_policy(tmp_path, wrap, policy):
    model = small(WRAPS[wrap])
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy(policy)
    loaded = load_model(tmp_path / "model.keras")
    assert_same_scaling(loaded, model)
    assert keras.config.dtype_policy().name == policy
    assert [layer.dtype_policy.name for layer in loaded.layers] == ["mixed_float16", "float32"]


TELLING = [(accelerate, name) for name in WRAPS] + [
    (lambda model: model, "fused"),
    (lambda model: model, "keras"),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("fast", "wrap"), TELLING)
def test_keras_own_loader_brings_it_back_where_the_file_tells(tmp_path, wrap, policy, fast):
    model = fast(small(WRAPS[wrap]))
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy(policy)
    assert_same_scaling(keras.saving.load_model(tmp_path / "model.keras"), model)


@pytest.mark.parametrize("wrap", [None, "compile", "groups"])
def test_load_model_adds_no_loss_scaling(tmp_path, wrap):
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    if wrap:
        optimizer = WRAPS[wrap](keras.optimizers.SGD(0.1, momentum=0.9), model)
        model.compile(optimizer, "mse", auto_scale_loss=False)
        model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.compiled == bool(wrap)
    if wrap:
        assert type(loaded.optimizer) is type(model.optimizer)


def test_an_archive_without_a_model_is_named(tmp_path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "model.keras")
    with (
        zipfile.ZipFile(tmp_path / "model.keras") as whole,
        zipfile.ZipFile(tmp_path / "x.keras", "w") as part,
    ):
        part.writestr("model.weights.h5", whole.read("model.weights.h5"))
        part.writestr("config.json", "[]")
    with pytest.raises(FileFormatError, match=r"x\.keras: not a saved Keras model"):
        load_model(tmp_path / "x.keras")
