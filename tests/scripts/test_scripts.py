"""Four published scripts: accelerated they compute what Keras does, and moved to kclf's parts they train."""

from __future__ import annotations

import time

import keras
import numpy as np
import pytest

import kclf
from tests.conftest import shared_path
from tests.scripts import efficientnet_fine_tuning, from_scratch, mixup, transfer_learning

LARGE = pytest.param(efficientnet_fine_tuning, marks=pytest.mark.heavy)
SCRIPTS = [transfer_learning, LARGE, mixup, from_scratch]


def name_of(script):
    return script.__name__.rpartition(".")[2]


@pytest.fixture(scope="module")
def photos():
    """Photos whose brightness in one colour is their class, for training and for validation."""
    y = np.arange(96) % 2
    x = np.random.default_rng(0).integers(0, 40, (96, 32, 32, 3)).astype("uint8")
    x[np.arange(96), :, :, y] += 180
    return (x[:64], y[:64]), (x[64:], y[64:])


@pytest.fixture
def without_dropout(monkeypatch):
    """Dropout of maps draws its numbers in the order the maps lie in memory, which is another accelerated."""
    make = keras.layers.Dropout.__init__
    monkeypatch.setattr(keras.layers.Dropout, "__init__", lambda self, rate, **more: make(self, 0.0, **more))


def timed(script, photos, accelerate):
    """The losses of each epoch with the photos at the script's size, and CPU seconds."""
    keras.utils.set_random_seed(1)
    (x, y), (valid_x, valid_y) = photos
    times = script.SIDE // x.shape[1]
    x, valid_x = (part.repeat(times, 1).repeat(times, 2).astype("float32") for part in (x, valid_x))
    start = time.process_time()
    losses = script.keras_way(x, y, (valid_x, valid_y), accelerate)
    return losses, time.process_time() - start


@pytest.mark.usefixtures("without_dropout")
@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_that_is_accelerated_has_the_losses_of_keras(script, photos):
    (stock, slow), (fast, quick) = (timed(script, photos, accelerate) for accelerate in (False, True))
    print(f"{name_of(script)}: stock Keras takes {slow / quick:.1f} times as long, building included")
    np.testing.assert_allclose(fast, stock, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The augmentation has no effect")
@pytest.mark.parametrize("script", SCRIPTS[1:], ids=name_of)  # the first needs weights to learn, as below
def test_a_script_moved_to_our_parts_trains(script, photos):
    keras.utils.set_random_seed(1)
    data = kclf.ImageData.from_arrays(*photos, class_names=["cat", "dog"], batch_size=16)
    assert script.kclf_way(data) > 0.9


@pytest.mark.heavy
def test_transfer_learning_moved_to_our_parts_tells_cats_from_dogs(dogscats):
    weights = shared_path("weights/mobilenet_v2_1.0_224_no_top.weights.h5")
    files = [dogscats / f"{kind}.{number}.jpg" for number in range(60) for kind in ("cat", "dog")]
    label = kclf.regex_label("(cat|dog)")
    data = kclf.ImageData.from_files(files, label, size=96, batch_size=16, num_threads=1, valid_fraction=0.4)
    assert transfer_learning.kclf_way(data, weights=weights) > 0.8
