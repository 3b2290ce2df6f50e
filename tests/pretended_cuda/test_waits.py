"""No training step, and no batch of a prediction, makes the host wait for the device."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kclf
from kclf.callbacks import FiniteGuard, MemoryGuard, Recorder
from kclf.data import ImageDataset
from kclf.data.mixed_dataset import MixedDataset
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
    model = ImageClassifier(
        backbone(), ["cat", "dog"], size=16, normalization="torch", dtype=policy, **options
    )
    if unfrozen:
        model.unfreeze()
    return model


def grouped(model, optimizer=None, **settings):
    settings = {"momentum": 0.9, "weight_decay": 0.01, **settings}
    return kclf.LayerGroupOptimizer(optimizer or keras.optimizers.SGD(1e-3, **settings), model)


def decaying():
    return keras.optimizers.schedules.CosineDecay(1e-3, 100)


ROWS = {  # name: (arguments of the classifier, of `compile`, of its optimizer, callbacks)
    "frozen": ({"unfrozen": False}, {}, {}, []),
    "unfrozen": ({}, {}, {}, []),
    "norms that train": ({"batchnorm": "train"}, {}, {}, []),
    "AdamW": ({}, {}, {"optimizer": lambda: keras.optimizers.AdamW(1e-3)}, []),
    "RMSprop": ({}, {}, {"optimizer": lambda: keras.optimizers.RMSprop(decaying(), momentum=0.9)}, []),
    "Nadam": ({}, {}, {"optimizer": lambda: keras.optimizers.Nadam(1e-3)}, []),
    "Lion": ({}, {}, {"optimizer": lambda: keras.optimizers.Lion(1e-3)}, []),
    "a schedule of Keras": ({}, {}, {"optimizer": lambda: keras.optimizers.SGD(decaying())}, []),
    "accumulation": ({}, {}, {"gradient_accumulation_steps": 2}, []),
    "an average that overwrites": ({}, {}, {"use_ema": True, "ema_overwrite_frequency": 2}, []),
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
    model.fit(dataset, epochs=1, verbose=0, shuffle=False, callbacks=[watch, *callbacks])
    return watch.waits, watch.pageable


IN_FLOAT16_ALWAYS = [  # in float16 the device alone knows whether a step counts
    pytest.param(policy, marks=() if policy == "mixed_float16" else pytest.mark.heavy) for policy in POLICIES
]


@pytest.mark.parametrize("policy", IN_FLOAT16_ALWAYS)
@pytest.mark.parametrize("row", ROWS)
def test_no_step_waits(row, policy):
    options, compiled, settings, callbacks = ROWS[row]
    with pretended_cuda() as device:
        model = classifier(policy, **options)
        made = {name: value() if callable(value) else value for name, value in settings.items()}
        model.compile(grouped(model, **made), **compiled)
        assert steady(device, model, data(), [one() for one in callbacks]) == ({}, {})


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_labels_do_not_wait(mix):
    with pretended_cuda() as device:
        model = classifier()
        mixing = {"mixup": kclf.layers.MixUp, "cutmix": kclf.layers.CutMix}[mix](2, seed=1)
        model.compile(grouped(model), loss=CrossEntropy(0.1), metrics=[kclf.metrics.LabelAccuracy()])
        assert steady(device, model, MixedDataset(data(), [mixing])) == ({}, {})


@pytest.mark.parametrize("policy", ["mixed_float16"])
def test_training_on_activations_does_not_wait(policy, tmp_path):
    dataset = data(side=16)
    with pretended_cuda() as device:
        learner = kclf.Learner(
            kclf.ImageData(dataset, dataset.replace()),
            classifier(policy, augmentation=None),
            path=tmp_path,
            precompute=True,
        )
        watch = Watch(device)
        learner.fit(1e-3, 1, callbacks=[watch])
        assert (watch.waits, watch.pageable) == ({}, {})


KERAS_OWN = {
    "SGD": lambda: keras.optimizers.SGD(1e-3),
    "momentum": lambda: keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda: keras.optimizers.Adam(1e-3, global_clipnorm=1.0),
    "AdamW, EMA": lambda: keras.optimizers.AdamW(1e-3, use_ema=True, ema_overwrite_frequency=2),
    "RMSprop": lambda: keras.optimizers.RMSprop(1e-3, momentum=0.9, centered=True, clipnorm=1.0),
    "Lion": lambda: keras.optimizers.Lion(1e-3, clipvalue=1.0),
    "Adadelta": lambda: keras.optimizers.Adadelta(1e-3),
    "SGD, EMA": lambda: keras.optimizers.SGD(1e-3, use_ema=True, ema_overwrite_frequency=2),
    "Nadam": lambda: keras.optimizers.Nadam(1e-3),
    "cosine": lambda: keras.optimizers.SGD(decaying()),
    "accumulation": lambda: keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2),
}


def any_model(optimizer):
    """A model of Keras', accelerated, with an optimizer of Keras'."""
    body = backbone()
    x = keras.layers.GlobalAveragePooling2D()(body.output)
    model = keras.Model(body.input, keras.layers.Dense(2, dtype="float32")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return kclf.accelerate(model)


@pytest.mark.parametrize("policy", IN_FLOAT16_ALWAYS)
@pytest.mark.parametrize("name", KERAS_OWN)
def test_an_accelerated_model_with_an_optimizer_of_keras_does_not_wait(name, policy):
    with pretended_cuda() as device:
        keras.config.set_dtype_policy(policy)
        model = any_model(KERAS_OWN[name]())
        assert steady(device, model, data(side=16)) == ({}, {})


@pytest.mark.parametrize("policy", ["mixed_float16"])
def test_predictions_wait_once_at_their_end(policy):
    with pretended_cuda() as device:
        model, dataset = classifier(policy), data(32)
        kclf.predict(model, dataset)
        device.clear()
        kclf.predict(model, dataset)
        assert sum(device.waits.values()) == 1
        device.clear()
        kclf.predict_tta(model, dataset, n=2)
        assert sum(device.waits.values()) == 3  # one a view
        assert not device.pageable


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["Adafactor", "Adagrad", "Adamax", "Ftrl", "Lamb", "Muon"])
def test_the_other_optimizers_of_keras_do_not_wait(name):
    make = getattr(keras.optimizers, name)
    with pretended_cuda() as device:
        model = classifier("mixed_float16")
        model.compile(grouped(model, make(1e-3)))
        assert steady(device, model, data()) == ({}, {})
    with pretended_cuda() as device:
        assert steady(device, any_model(make(1e-3)), data(side=16)) == ({}, {})


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny"])
def test_families_do_not_wait(name):
    with pretended_cuda() as device:
        model = ImageClassifier(name, ["cat", "dog"], size=32, weights=None, dtype="mixed_float16")
        model.unfreeze()
        model.compile(grouped(model))
        assert steady(device, model, data()) == ({}, {})
