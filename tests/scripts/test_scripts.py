"""Four published scripts: accelerated they compute what Keras does, and moved to kclf's parts they train."""

from __future__ import annotations

import time

import keras
import numpy as np
import pytest

import kclf
from tests.scripts import efficientnet_fine_tuning, from_scratch, mixup, transfer_learning

SCRIPTS = [transfer_learning, efficientnet_fine_tuning, mixup, from_scratch]
# Dropout of maps draws as many numbers in both, laid out as the maps lie in memory: other places fall out.
ANOTHER_ORDER = {efficientnet_fine_tuning: 0.02, mixup: 0.02}


def name_of(script):
    return script.__name__.rpartition(".")[2]


@pytest.fixture(scope="module")
def photos():
    """Photos whose brightness in one colour is their class, for training and for validation."""
    y = np.arange(96) % 2
    x = np.random.default_rng(0).integers(0, 40, (96, 32, 32, 3)).astype("uint8")
    x[np.arange(96), :, :, y] += 180
    return (x[:64], y[:64]), (x[64:], y[64:])


def timed(script, photos, accelerate):
    keras.utils.set_random_seed(1)
    (x, y), (valid_x, valid_y) = photos
    start = time.process_time()
    losses = script.keras_way(x.astype("float32"), y, (valid_x.astype("float32"), valid_y), accelerate)
    return losses, time.process_time() - start


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_that_is_accelerated_has_the_losses_of_keras(script, photos):
    (stock, slow), (fast, quick) = (timed(script, photos, accelerate) for accelerate in (False, True))
    print(f"{name_of(script)}: stock Keras takes {slow / quick:.1f} times as long, building included")
    np.testing.assert_allclose(fast, stock, atol=ANOTHER_ORDER.get(script, 1e-3))


@pytest.mark.filterwarnings("ignore:The augmentation has no effect")
@pytest.mark.parametrize("script", SCRIPTS[1:], ids=name_of)  # the first needs pretrained weights to learn
def test_a_script_moved_to_our_parts_trains(script, photos):
    keras.utils.set_random_seed(1)
    data = kclf.ImageData.from_arrays(*photos, class_names=["cat", "dog"], batch_size=16)
    assert script.kclf_way(data) > 0.9
