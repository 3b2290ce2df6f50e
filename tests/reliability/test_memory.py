"""Out of memory: the batch goes through in parts, and training ends as with gradient accumulation."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

from kclf.callbacks import Checkpoint, MemoryGuard, Recorder
from kclf.callbacks.microbatches import largest_batch
from kclf.errors import TrainingError

ROOM = 64  # photos that the small device has memory for


class SmallDevice(keras.layers.Layer):
    """Stands for a device that runs out of memory above a number of photos."""

    room = 10**9

    def call(self, x):
        if x.device.type != "meta" and x.shape[0] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return x


def network(room, accumulation=None):
    keras.utils.set_random_seed(7)
    device = SmallDevice()
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            device,
            keras.layers.Dense(3),
        ]
    )
    device.room = room
    optimizer = keras.optimizers.AdamW(1e-2, gradient_accumulation_steps=accumulation)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def photos(count=4096):
    draw = np.random.default_rng(0)
    return draw.normal(size=(count, 8)).astype("float32"), draw.integers(0, 3, count)


def train(model, batch_size, *callbacks, count=1024):
    x, y = photos(count)
    keras.utils.set_random_seed(8)
    return model.fit(x, y, batch_size=batch_size, epochs=2, shuffle=False, verbose=0,
                     validation_data=(x[:300], y[:300]), callbacks=list(callbacks))  # fmt: skip


def test_a_batch_of_4096_ends_as_64_accumulated_64_times():
    small, accumulated = network(ROOM), network(10**9, accumulation=64)
    guard, recorder = MemoryGuard(), Recorder()

    with pytest.warns(UserWarning, match=r"4096 photos.* 64 parts") as said:
        history = train(small, 4096, guard, recorder, count=4096)

    wanted = train(accumulated, 64, count=4096)
    told = [one for one in said if "parts" in str(one.message)]
    assert (len(told), guard.parts, len(recorder.losses)) == (1, 64, 2)
    for ours, theirs in zip(small.get_weights(), accumulated.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for name, values in wanted.history.items():
        np.testing.assert_allclose(history.history[name], values, atol=1e-5)


def test_nothing_changes_where_memory_suffices():
    guarded, plain = network(10**9), network(10**9)

    train(guarded, 512, MemoryGuard())
    train(plain, 512)

    for ours, theirs in zip(guarded.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_single_photo_too_many_is_an_end():
    with pytest.raises(TrainingError, match="single photo"):
        train(network(0), 16, MemoryGuard())


def test_the_parts_are_remembered_in_a_checkpoint(tmp_path):
    guard = MemoryGuard()
    with pytest.warns(UserWarning, match="in 8 parts"):
        train(network(ROOM), 512, guard, Checkpoint(tmp_path, others=[guard]))

    again = MemoryGuard()
    train(network(ROOM), 512, again, Checkpoint(tmp_path, others=[again]))

    assert again.parts == 8


def test_the_update_itself_is_not_made_twice(monkeypatch):
    model = network(10**9)

    def full(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(type(model.optimizer), "apply", full)

    with pytest.raises(TrainingError, match="the optimizer's update"):
        train(model, 512, MemoryGuard())


def test_the_largest_batch_is_found_and_leaves_no_trace():
    model = network(100)
    model.optimizer.build(model.trainable_variables)
    before = [variable.numpy().copy() for variable in [*model.variables, *model.optimizer.variables]]

    assert largest_batch(model, np.zeros(8, np.float32), np.int64(0)) == 64
    assert largest_batch(model, np.zeros(8, np.float32), np.int64(0), most=32) == 32

    after = [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_batch_at_all_fits():
    with pytest.raises(TrainingError, match="single photo"):
        largest_batch(network(0), np.zeros(8, np.float32), np.int64(0))


@pytest.mark.gpu
def test_a_real_device_runs_out_of_memory_and_goes_on():
    free = torch.cuda.mem_get_info()[0]
    width = int(free / 4 / 20_000)  # 20,000 rows of it fill the memory that is free now
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    guard = MemoryGuard()

    with pytest.warns(UserWarning, match="parts"):
        model.fit(np.ones((20_000, 1)), np.ones((20_000, 1)), batch_size=20_000, verbose=0, callbacks=[guard])

    assert guard.parts > 1
