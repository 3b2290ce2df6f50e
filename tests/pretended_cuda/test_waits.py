"""No training step, and no batch of a prediction, makes the host wait for the device."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

import kclf
from kclf.callbacks import FiniteGuard, MemoryGuard, Recorder
from kclf.data import ImageDataset
from kclf.layers import aug_transforms
from kclf.losses import CrossEntropy
from kclf.models import ImageClassifier

from . import pretended_cuda

FIRST, STEPS = 3, 3  # steady steps that are watched


class Watch(keras.callbacks.Callback):
    """Counts from one batch's beginning to a later one's. (Keras reads the logs for `on_train_batch_end`.)"""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def on_train_batch_begin(self, batch, logs=None):
        if batch == FIRST:
            self.device.clear()
        if batch == FIRST + STEPS:
            self.waits, self.pageable = dict(self.device.waits), dict(self.device.pageable)


def data(count=8 * (FIRST + STEPS + 2), side=20):
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return ImageDataset(
        photos, np.arange(count) % 2, class_names=["cat", "dog"], presize=side, batch_size=8, num_threads=1
    )


def backbone():
    """A backbone in small, of what the large ones are made of."""
    x = inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255)(x)
    x = keras.layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.1, 0.1])(x)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = shortcut = keras.layers.Activation("swish")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU(6.0)(x)
    x = keras.layers.Dense(8)(keras.layers.LayerNormalization()(x))
    return keras.Model(inputs, keras.layers.Add()([x, shortcut]))


def classifier(policy="float32", unfrozen=True, **options):
    options = {"hidden": (8,), "augmentation": aug_transforms(size=16, seed=1), **options}
    model = ImageClassifier(backbone(), ["cat", "dog"], size=16, normalization="torch", dtype=policy, **options)
    if unfrozen:
        model.unfreeze()
    return model


def grouped(model, optimizer=None, **settings):
    settings = {"momentum": 0.9, "weight_decay": 0.01, **settings}
    return kclf.LayerGroupOptimizer(optimizer or keras.optimizers.SGD(1e-3, **settings), model)


ROWS = {  # name: (arguments of the classifier, of `compile`, of its optimizer, callbacks)
    "frozen": ({"unfrozen": False}, {}, {}, []),
    "unfrozen": ({}, {}, {}, []),
    "norms that train": ({"batchnorm": "train"}, {}, {}, []),
    "AdamW": ({}, {}, {"optimizer": lambda: keras.optimizers.AdamW(1e-3)}, []),
    "label smoothing": ({}, {"loss": CrossEntropy(0.1)}, {}, []),
    "focal": ({}, {"loss": CrossEntropy(focal_gamma=2.0)}, {}, []),
    "error_rate": ({}, {"metrics": ["accuracy", kclf.metrics.ErrorRate()]}, {}, []),
    "EMA": ({}, {}, {"use_ema": True}, []),
    "clipping": ({}, {}, {"global_clipnorm": 1.0}, []),
    "guards and recorder": ({}, {}, {}, [MemoryGuard, FiniteGuard, Recorder]),
}
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def steady(device, model, dataset, callbacks=()):
    watch = Watch(device)
    model.fit(dataset, epochs=1, verbose=0, callbacks=[watch, *callbacks])
    return watch.waits, watch.pageable


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("row", ROWS)
def test_no_step_waits(row, policy):
    options, compiled, settings, callbacks = ROWS[row]
    with pretended_cuda() as device:
        model = classifier(policy, **options)
        made = {name: value() if callable(value) else value for name, value in settings.items()}
        model.compile(grouped(model, **made), **compiled)
        assert steady(device, model, data(), [one() for one in callbacks]) == ({}, {})
