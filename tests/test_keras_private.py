"""What kclf needs of Keras' private names; where one fails, mend `kclf/_core/keras_private.py`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

from kclf._core import keras_private as private


def small_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d"), keras.layers.Dropout(0.5)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def version():
    return f"Keras {keras.__version__}, torch {torch.__version__}"


def test_every_name_is_there():
    assert [name for name in private.__all__ if not hasattr(private, name)] == [], version()


def test_a_sequential_holds_a_functional_model():
    assert isinstance(small_model()._functional, private.Functional), version()
    assert issubclass(private.Functional, private.Trainer), version()


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
