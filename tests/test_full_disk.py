"""A disk that is full: whoever writes, the last good file stands, and the process goes on."""

from __future__ import annotations

import functools
import resource

import h5py
import keras
import numpy as np
import pytest
import torch

from kclf._core.h5_store import read_arrays, whole_file, write_arrays
from kclf.callbacks import SnapshotSaver, load_snapshot
from kclf.callbacks.snapshots import BestModel
from kclf.weights import load_weights, save_weights

ROOM = (0, 1, 700, 4096, 20_000, 40_000)  # bytes that the disk takes
ENDINGS = (".weights.h5", ".keras", ".h5")


@pytest.fixture
def disk():
    """Call it with the bytes that a file may have from then on; without, to make room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE)
    yield lambda size=None: limit(before if size is None else (size, before[1]))
    limit(before)


@functools.cache
def network() -> keras.Model:
    """Of many small arrays, so that HDF5 has much to write beside them."""
    layers = [
        layer
        for _ in range(15)
        for layer in (keras.layers.Conv2D(8, 3, padding="same"), keras.layers.BatchNormalization())
    ]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


def filled(value: float) -> keras.Model:
    model = network()
    model.set_weights([np.full_like(weight, value) for weight in model.get_weights()])
    return model


def values(model: keras.Model) -> set[float]:
    return {float(value) for weight in model.get_weights() for value in np.unique(weight)}


@pytest.mark.parametrize("room", ROOM)
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_last_good_weights_stand(tmp_path, disk, ending, room):
    path = tmp_path / f"model{ending}"
    save_weights(filled(1.0), path)

    disk(room)
    with pytest.raises(OSError, match="too large"):
        save_weights(filled(2.0), path)
    disk()

    load_weights(filled(3.0), path)
    assert values(network()) == {1.0}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("room", ROOM)
def test_the_last_good_arrays_stand(tmp_path, disk, room):
    path = tmp_path / "arrays.h5"
    write_arrays(path, {"a": np.arange(9)})

    disk(room)
    with pytest.raises(OSError, match="too large"):
        write_arrays(path, {f"group{number}/a": np.ones(300) for number in range(60)})
    disk()

    np.testing.assert_array_equal(read_arrays(path)[0]["a"], np.arange(9))


def test_snapshots_stand(tmp_path, disk):
    saver = SnapshotSaver(tmp_path / "snap")
    saver.save(filled(1.0), 0)

    disk(4096)
    with pytest.raises(OSError, match="too large"):
        saver.save(filled(2.0), 0)
    disk()

    load_snapshot(filled(3.0), saver.path(0))
    assert values(network()) == {1.0}


def test_the_best_model_stands(tmp_path, disk):
    best = BestModel(tmp_path / "best.weights.h5", filled(1.0))
    best.set_model(network())
    best.on_train_begin()
    best.on_epoch_end(0, {"val_loss": 1.0})
    filled(2.0)

    disk(4096)
    with pytest.raises(OSError, match="too large"):
        best.on_epoch_end(1, {"val_loss": 0.5})
    disk()

    best.on_train_end()
    assert values(network()) == {1.0}


@pytest.mark.parametrize("room", ROOM)
def test_what_torch_saves_stands(tmp_path, disk, room):
    path = tmp_path / "state.pth"
    path.write_text("good")

    disk(room)
    with pytest.raises(OSError, match="too large"), whole_file(path) as file:
        torch.save({"a": torch.ones(100, 200)}, file)

    assert path.read_text() == "good"


def test_the_next_file_that_is_closed_does_not_end_the_process(tmp_path, disk):
    disk(4096)
    with pytest.raises(OSError, match="too large"):
        save_weights(filled(1.0), tmp_path / "model.weights.h5")
    disk()

    with h5py.File(tmp_path / "next.h5", "w") as file:
        file["a"] = np.ones(1000)

    assert h5py.File(tmp_path / "next.h5")["a"].shape == (1000,)
