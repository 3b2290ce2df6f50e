"""What kclf needs of Keras' private names; where one fails, mend `kclf/_core/keras_private.py`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

import kclf
from kclf._core import keras_private as private
from kclf._core.fit_hooks import overridden


def small_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d"), keras.layers.Dropout(0.5)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def version():
    return f"Keras {keras.__version__}, torch {torch.__version__}"


def test_a_sequential_holds_a_functional_model():
    assert isinstance(small_model()._functional, private.Functional), version()


def test_tensors_live_on_the_device_of_keras():
    assert private.get_device().split(":")[0] == keras.ops.zeros(1).device.type, version()
    assert private.to_torch_dtype("float16") is torch.float16, version()


def test_masks_and_scopes_are_recognised():
    masked = keras.layers.Masking()(np.zeros((1, 2, 3), "float32"))
    assert private.get_keras_mask(masked) is not None, version()
    assert not private.in_stateless_scope(), version()
    with keras.StatelessScope():
        assert private.in_stateless_scope(), version()


def test_the_global_seed_generator_can_be_kept_and_put_back():
    seeds = private.global_seed_generator()
    assert private.get_global_attribute(private.GLOBAL_SEED_GENERATOR) is seeds, version()
    private.set_global_attribute(private.GLOBAL_SEED_GENERATOR, None)
    assert private.global_seed_generator() is not seeds, version()


def test_fit_takes_a_data_adapter_as_it_is():
    methods = ("get_torch_dataloader", "num_batches", "batch_size", "has_partial_batch", "partial_batch_size")
    assert [name for name in methods if not hasattr(private.DataAdapter, name)] == [], version()


@pytest.mark.parametrize("kind", [keras.optimizers.SGD, keras.optimizers.AdamW, keras.optimizers.RMSprop])
def test_torch_s_optimizers_stand_in_one_package(kind):
    assert type(kind()).__module__.startswith(private.OPTIMIZERS_OF_TORCH), version()


def test_a_convnext_of_keras_scales_its_channels_by_one_variable():
    model = keras.applications.ConvNeXtTiny(weights=None, include_top=False, input_shape=(32, 32, 3))
    scales = [layer for layer in model.layers if isinstance(layer, private.LayerScale)]
    assert len(scales) == 18
    assert scales[0].gamma.shape == (96,)


def trained_model():
    model = small_model()
    model.fit(np.ones((4, 2), "float32"), np.ones((4, 2), "float32"), verbose=0)
    return model


def test_the_layers_and_variables_of_a_model_can_be_told_apart():
    dense, norm = keras.layers.Dense(2), keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((3,)), keras.Sequential([dense]), norm])
    model.trainable = False
    assert {dense, norm, model} < set(private.all_layers(model)), version()
    assert model not in private.all_layers(model, include_self=False), version()
    assert norm in private.inner_layers(model), version()
    assert dense not in private.inner_layers(model), version()
    assert private.own_weights(norm) == [norm.gamma, norm.beta], version()
    assert private.own_statistics(norm) == [norm.moving_mean, norm.moving_variance], version()
    assert private.own_variables(dense) == [dense.kernel, dense.bias], version()
    assert private.kernel_of(dense) is dense.kernel, version()
    assert private.raw(dense.bias) is dense.bias.value, version()
    private.set_path(dense.bias, "elsewhere/bias")
    assert dense.bias.path == "elsewhere/bias", version()


def test_layers_say_what_they_add_take_and_compute_again():
    layer = keras.layers.Dense(2, activity_regularizer="l2")
    layer(np.ones((1, 2), "float32"))
    assert len(private.added_losses(layer)) == 1, version()
    assert not private.is_recomputed(layer), version()
    with keras.RematScope():
        assert private.is_recomputed(keras.layers.Dense(2)), version()
    assert private.takes_argument(keras.layers.Dropout(0.5), "training"), version()
    assert not private.takes_argument(private.numpy_operations.Abs(), "training"), version()
    assert private.is_channels_first(keras.layers.Flatten(data_format="channels_first")), version()
    handle = layer.register_forward_hook(lambda *_: None)
    assert sum(map(len, private.hooks_of(layer))) == 1, version()
    handle.remove()
    assert not any(private.hooks_of(layer)), version()


def test_a_functional_model_shows_its_calls_and_its_outputs():
    model = small_model()
    graph = private.graph_of(model)
    assert [node.operation for node in private.nodes_of(graph)] == model.layers, version()
    assert private.output_structure(graph) is graph.outputs[0], version()


def test_a_compiled_model_shows_its_losses_and_metrics():
    model = trained_model()
    assert private.function_of_loss(private.only_loss(private.compiled_loss(model))) is not None, version()
    (metric,) = private.only_metrics(private.compiled_metrics(model))
    assert private.metric_direction(metric) == "down", version()
    assert private.metric_direction(keras.metrics.Mean()) is None, version()
    assert private.loss_tracker(model).name == "loss", version()
    assert private.own_metrics(model) == [], version()
    assert private.epoch_logs(model, {"loss": -1.0, "mae": -1.0})["mae"] >= 0, version()
    with overridden(model, **{private.EPOCH_LOGS: lambda logs: {"loss": 7.0}}):
        assert model.evaluate(np.ones((4, 2)), np.ones((4, 2)), verbose=0, return_dict=True)["loss"] == 7.0


def test_a_fit_begins_where_its_first_epoch_is_set():
    model, seen = small_model(), []

    class Late(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            private.start_epochs_at(self.model, 2)

        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)

    model.fit(np.ones((4, 2)), np.ones((4, 2)), epochs=4, callbacks=[Late()], verbose=0)
    assert seen == [2, 3], version()


def test_an_optimizer_shows_its_variables_its_rate_and_its_count():
    model = trained_model()
    optimizer, weights = model.optimizer, model.trainable_variables
    assert private.applies_alone(optimizer), version()
    assert float(private.rate_source(optimizer).value) == pytest.approx(0.001), version()
    assert int(private.step_count(optimizer).value) == 1, version()
    assert private.trained_variables(optimizer) == weights, version()
    assert private.state_variables(optimizer) == optimizer.variables, version()
    for name in private.SLOTS["Adam"][:2]:
        shapes = [slot.shape for slot in private.slots(optimizer, name, weights)]
        assert shapes == [weight.shape for weight in weights], version()


@pytest.mark.parametrize("kind", sorted(private.SLOTS))
def test_optimizers_keep_their_slots_under_known_names(kind):
    options = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True}, "Nadam": {}}
    optimizer = getattr(keras.optimizers, kind)(**options.get(kind, {"amsgrad": True}))
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer.build([variable])
    for name in private.SLOTS[kind]:
        assert [slot.shape for slot in private.slots(optimizer, name, [variable])] == [(3,)], version()


def test_sums_and_averages_have_a_place_for_each_variable():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2, use_ema=True)
    optimizer.build([keras.Variable([1.0, 2.0])])
    assert private.gradient_sums(optimizer)[0].shape == (2,), version()
    assert private.average_of_weights(optimizer)[0].shape == (2,), version()
    beside = [slot for name in private.BESIDE_UPDATES for slot in getattr(optimizer, name)]
    assert [slot.shape for slot in beside] == [(2,), (2,)], version()


def test_a_step_comes_in_parts():
    optimizer = keras.optimizers.SGD(0.5, weight_decay=0.1, clipvalue=1.0, use_ema=True, ema_momentum=0.5)
    variable = keras.Variable([1.0, 2.0])
    optimizer.build([variable])
    assert private.kernel_name(optimizer) == "SGD", version()
    for name in (private.APPLY_FINITE, private.UPDATE):
        assert callable(getattr(optimizer, name)), version()
    with torch.no_grad():
        private.whole_update(optimizer, [torch.tensor([4.0, 0.5])], [variable])
        np.testing.assert_allclose(variable.numpy(), [0.95 - 0.5, 1.9 - 0.25], err_msg=version())
        private.move_averages(optimizer)
    average = private.average_of_weights(optimizer)[0]
    np.testing.assert_allclose(average.numpy(), variable.numpy(), err_msg=version())


def test_weight_decay_is_left_out_by_name_and_muon_has_a_second_one():
    weight, bias = keras.Variable(np.ones((2, 2), "float32"), name="w"), keras.Variable([1.0], name="b")
    optimizer = keras.optimizers.Muon(weight_decay=0.5, adam_weight_decay=0.25)
    optimizer.build([weight, bias])
    assert (private.decays(optimizer, weight), private.decays(optimizer, bias)) == (0.5, 0.25), version()
    optimizer = keras.optimizers.AdamW(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["b"])
    optimizer.build([weight, bias])
    assert (private.decays(optimizer, weight), private.decays(optimizer, bias)) == (0.5, 0.0), version()


def test_formulas_can_be_run_as_of_another_step_and_on_another_variable():
    before, after = keras.Variable([1.0]), keras.Variable([5.0])
    optimizer = keras.optimizers.Nadam(1e-3)
    optimizer.build([before])
    private.move_into_place(optimizer, 0, after)
    assert private.trained_variables(optimizer)[0] is after, version()
    with torch.no_grad(), private.counted_as(optimizer, torch.tensor(3.0)):
        assert int(optimizer.iterations) == 3, version()
        mu = [0.9 * (1 - 0.5 * 0.96**step) for step in (1, 2, 3)]
        assert float(private.product_variable(optimizer)) == pytest.approx(np.prod(mu)), version()
        private.update(optimizer, [torch.ones(1)], [after], torch.tensor(0.5))
    assert int(optimizer.iterations) == 0, version()
    assert (before.numpy()[0], after.numpy()[0] < 5) == (1.0, True), version()


def test_a_gradient_that_is_not_there_is_left_out():
    one, other = keras.Variable([1.0]), keras.Variable([2.0])
    optimizer = keras.optimizers.SGD()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        kept = private.without_empty(optimizer, [torch.ones(1), None], [one, other])
    assert (len(kept[0]), kept[1]) == (1, [one]), version()
    assert not private.is_overwritten(optimizer, one), version()


def names_of_torch():
    """Every `torch._x` and `torch.ops.a._x` of the package."""
    for file in Path(kclf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            words = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if words.startswith("torch.") and re.match(r"_[a-z]", node.attr):
                yield words


@pytest.mark.parametrize("words", sorted(set(names_of_torch())))
def test_torch_has_the_private_functions_that_are_called(words):
    found = torch
    for word in words.split(".")[1:]:
        assert hasattr(found, word), f"{words} is not in {version()}"
        found = getattr(found, word)
