"""The training tools on kclf's own classifier, frozen and not, plain and accelerated."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, optimizers

from kclf.acceleration import accelerate
from kclf.callbacks import CollapseDetector, OneCycle, find_learning_rate
from kclf.data import ImageData
from kclf.layers import side_on
from kclf.models import ImageClassifier
from kclf.optimizers import LayerGroupOptimizer
from tests.conftest import with_random_logits

RATES = [1e-4, 1e-3, 1e-2]


def photos(batch_size: int = 4):
    images = np.random.default_rng(1).integers(0, 256, (24, 20, 20, 3), dtype=np.uint8)
    images[12:, :10] //= 4
    labels = np.repeat([0, 1], 12)
    return ImageData.from_arrays((images, labels), size=16, presize=20, batch_size=batch_size).train


def classifier() -> ImageClassifier:
    keras.utils.set_random_seed(4)
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv_a")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm_a")(x))
    x = layers.Conv2D(12, 3, use_bias=False, name="conv_b")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm_b")(x))
    model = with_random_logits(
        ImageClassifier(
            keras.Model(inputs, x, name="tiny"),
            ["cat", "dog"],
            size=16,
            hidden=(8,),
            normalization="tf",
            augmentation=side_on(size=16, seed=5),
        )
    )
    optimizer = LayerGroupOptimizer(optimizers.AdamW(1e-3), model)
    model.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def train(model, data, epochs=1):
    rates = RATES[-model.optimizer.num_groups :]
    model.fit(data, epochs=epochs, verbose=0, callbacks=[OneCycle(rates)])
    return [*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)]


def assert_same(ours, theirs, atol=0.0):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("run", [lambda model: model, accelerate], ids=["plain", "accelerated"])
def test_the_range_test_leaves_no_trace_frozen_and_thawed(run):
    plain, tested = run(classifier()), run(classifier())
    plain_data, tested_data = photos(), photos()
    keras.utils.set_random_seed(0)
    without = []
    for unfrozen in (False, True):
        if unfrozen:
            plain.unfreeze()
        without.append(train(plain, plain_data))
    keras.utils.set_random_seed(0)
    for unfrozen, expected in zip((False, True), without, strict=True):
        if unfrozen:
            tested.unfreeze()
        find_learning_rate(tested, tested_data, num_steps=12)
        assert_same(train(tested, tested_data), expected)


def test_a_classifier_saved_frozen_goes_on_thawed(tmp_path):
    model, data = classifier(), photos()
    train(model, data)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    results = []
    for one in (model, loaded):
        one.augmentation.set_random_state(classifier().augmentation.get_random_state())
        keras.utils.set_random_seed(7)
        one.unfreeze()
        results.append(train(one, photos(), epochs=2))
    assert_same(*results)


def test_acceleration_may_come_in_the_middle():
    """The kernels are then stored in another order, and the optimizer's state follows them."""
    plain, changed = classifier(), classifier()
    for model in (plain, changed):
        model.unfreeze()
        keras.utils.set_random_seed(7)
        train(model, photos())
    accelerate(changed)
    results = []
    for model in (plain, changed):
        keras.utils.set_random_seed(7)
        results.append(train(model, photos()))
    assert_same(*results, atol=1e-4)


def test_the_collapse_detector_knows_the_number_of_classes():
    model, data = classifier(), photos()
    model.compile("adam")
    detector = CollapseDetector()
    model.fit(data, validation_data=data, epochs=1, verbose=0, callbacks=[detector])
    assert detector.findings == []
