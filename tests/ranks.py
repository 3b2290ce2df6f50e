"""What each of several processes does in tests/test_distributed.py; run as `python ranks.py SCENARIO FOLDER`.

The same functions run in the test's own process, alone, to compare with.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import kclf  # isort: skip
import keras
import numpy as np
import torch
from keras import layers

from kclf import distributed
from kclf.callbacks import Checkpoint
from kclf.data.sources import ArrayImages
from kclf.distributed import averaging, group
from kclf.prediction.activation_cache import precompute

PHOTOS = 69  # batches of 8 leave a last one of 5
CLASSES = ["cat", "dog", "fox"]


def pictures(count: int = PHOTOS, side: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a colour for each class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % len(CLASSES)
    images = rng.integers(0, 160, (count, side, side, 3))
    images[np.arange(count), ..., labels] += 90
    return images.astype(np.uint8), labels


def photo_data(batch_size: int = 8, count: int = PHOTOS, side: int = 20) -> kclf.ImageData:
    images, labels = pictures(count, side)
    some = {"class_names": CLASSES, "presize": side, "batch_size": batch_size}
    return kclf.ImageData(
        kclf.ImageDataset(images, labels, shuffle=True, seed=1, **some),
        kclf.ImageDataset(images[:13], labels[:13], **{**some, "batch_size": 4}),
        size=side,
    )


def weights_of(model: keras.Model) -> np.ndarray:
    return np.concatenate([weight.numpy().ravel() for weight in model.weights])


def small_model(
    *, augmented: bool = False, norm: bool = False, sync: bool = False, optimizer: Any = None
) -> keras.Model:
    """A model that begins with other weights on each rank."""
    keras.utils.set_random_seed(7 + distributed.rank())
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            *([kclf.aug_transforms(16, max_warp=0.2, seed=3)] if augmented else []),
            layers.Rescaling(1 / 128, -1),
            layers.Conv2D(6, 3, strides=2, use_bias=not norm),
            *([layers.BatchNormalization(momentum=0.8)] if norm else []),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    kclf.accelerate(model)
    adam = keras.optimizers.AdamW(1e-2, epsilon=1e-5, global_clipnorm=0.5)
    model.compile(
        optimizer or kclf.LayerGroupOptimizer(adam, model),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            "accuracy",
            keras.metrics.SparseTopKCategoricalAccuracy(2, from_sorted_ids=False, name="top"),
        ],
    )
    distributed.distribute(model, sync_batchnorm=sync)
    return model


def fitted(model: keras.Model, data: kclf.ImageData, epochs: int, **arguments: Any) -> dict[str, Any]:
    recorder = kclf.Recorder()
    callbacks = [recorder, *arguments.pop("callbacks", [])]
    fit = {"epochs": epochs, "verbose": 0, "shuffle": False, **arguments}
    history = model.fit(data.train, validation_data=data.valid, callbacks=callbacks, **fit)
    logs = np.array([history.history[name] for name in sorted(history.history)])
    return {"weights": weights_of(model), "losses": np.array(recorder.losses), "logs": logs}


def plain() -> dict[str, Any]:
    """27 steps with a clipped gradient; the last batch of an epoch does not divide evenly."""
    return fitted(small_model(), photo_data(), 3)


def augmented() -> dict[str, Any]:
    """The same views of the same photos, where the ranks divide the batch."""
    return fitted(small_model(augmented=True), photo_data(count=64), 3)


def with_norm() -> dict[str, Any]:
    return fitted(small_model(norm=True), photo_data(), 2)


def synced() -> dict[str, Any]:
    """BatchNorm by the statistics of the whole batch, of which the ranks have uneven shares."""
    return fitted(small_model(norm=True, sync=True), photo_data(), 2)


class WithBadPhoto(ArrayImages):
    """Photos in memory, of which black ones cannot be read."""

    def __getitem__(self, index: int) -> np.ndarray:
        photo = super().__getitem__(index)
        if not photo.any():
            raise kclf.errors.ImageError(str(self.paths[index]), "black")
        return photo

    def take(self, indices: np.ndarray) -> ArrayImages:
        return WithBadPhoto(self.images[indices])


def predicted() -> dict[str, Any]:
    """Predictions of one model that the ranks divide among them; one photo cannot be read."""
    model = small_model(augmented=True)
    distributed.broadcast([variable.value for variable in model.variables])
    images, labels = pictures()
    images[19] = 0
    some = {"class_names": CLASSES, "presize": 20, "batch_size": 8}
    photos = kclf.ImageDataset(WithBadPhoto(images), labels, **some)
    plain = kclf.predict(model, photos, together=True)
    views = kclf.predict_tta(model, photos, n=2, together=True)
    return {"plain": plain.probabilities, "views": views.probabilities, "labels": plain.labels}


def sent_meanwhile(model: keras.Model) -> dict[str, Any]:
    """How many pieces of the gradient are on their way before the first layer's backward pass begins."""
    sizes = group.BUCKET, averaging.FIRST_BUCKET
    group.BUCKET = averaging.FIRST_BUCKET = 64  # bytes: every layer a piece
    data = photo_data(count=8)
    for _ in range(2):
        model.fit(data.train, epochs=1, verbose=0, shuffle=False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.fit(data.train, epochs=1, verbose=0, shuffle=False)
    group.BUCKET, averaging.FIRST_BUCKET = sizes
    events = profile.events()
    last = max(e.time_range.start for e in events if e.name == "ConvolutionBackward0")
    sent = [event for event in events if event.name == "c10d::allreduce_"]
    during = [event for event in sent if event.time_range.start < last]
    return {"sent": np.array(len(sent)), "during": np.array(len(during))}


def overlapping() -> dict[str, Any]:
    """Of a small model."""
    return sent_meanwhile(small_model())


def overlapping_folds() -> dict[str, Any]:
    """Of a classifier as it is by default: its norms are folded, and get their gradients last of all."""
    photos = x = keras.Input((None, None, 3))
    for _ in range(4):
        x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(x))
    backbone = keras.Model(photos, x)
    model = kclf.ImageClassifier(backbone, CLASSES, normalization="tf")
    model.unfreeze()
    model.compile(kclf.LayerGroupOptimizer(keras.optimizers.SGD(1e-2), model, 1.0))
    distributed.distribute(model)
    return sent_meanwhile(model)


class InfiniteOnce(keras.callbacks.Callback):
    """An infinite gradient in the second step, on the last rank alone."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        weight = self.model.trainable_variables[0].value
        last = distributed.rank() == distributed.world_size() - 1
        if batch == 1 and last:
            handle = weight.register_hook(lambda gradient: gradient * float("inf"))
            self.handle = handle
        elif batch == 2 and last:
            self.handle.remove()


def infinite() -> dict[str, Any]:
    scaled = kclf.FusedLossScaleOptimizer(keras.optimizers.SGD(1e-2), initial_scale=1024.0)
    model = small_model(optimizer=scaled)
    found = fitted(model, photo_data(), 1, callbacks=[InfiniteOnce()])
    return {**found, "scale": np.array(float(scaled.dynamic_scale))}


def small_backbone() -> keras.Model:
    photos = keras.Input((None, None, 3))
    x = layers.Conv2D(6, 3, strides=2, use_bias=False)(photos)
    x = layers.BatchNormalization(momentum=0.8)(x)
    x = layers.Conv2D(8, 3, strides=2)(layers.ReLU()(x))
    return keras.Model(photos, layers.Dropout(0.1)(x))


def course(folder: Path) -> dict[str, Any]:
    """A learner: activations, range test, restarts with snapshots, best model; with dropout and BatchNorm."""
    keras.utils.set_random_seed(3 + distributed.rank())
    learner = kclf.Learner(
        photo_data(batch_size=12, count=48),
        small_backbone(),
        normalization="tf",
        hidden=(16,),
        batchnorm="train",
        augmentation=kclf.aug_transforms(),
        path=folder,
        verbose=False,
    )
    kclf.prediction.activation_cache.PART = 16  # so that there are parts to share
    finder = learner.lr_find(num_it=12)
    learner.unfreeze()
    learner.fit([1e-4, 1e-2], 2, cycle_len=1, cycle_save_name="cycle", best_save_name="best")
    saved = folder / f"rank{distributed.rank()}.weights.h5"
    learner.model.save_weights(saved)
    learner.load_cycle("cycle", 0)
    first_cycle = weights_of(learner.model)
    learner.precompute = True
    learner.fit(1e-2, 1)
    return {
        "losses": np.array(learner.recorder.losses),
        "curve": finder.losses,
        "first_cycle": first_cycle,
        "features": precompute(learner.model, learner.data, folder / "activations").train.features,
        "predictions": learner.predictions().probabilities,
        "saved": np.frombuffer(saved.read_bytes(), np.uint8),
    }


class KillOnce(keras.callbacks.Callback):
    """The last rank kills itself in the second epoch, if it has not done so before."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.mark = folder / "killed"

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        last = distributed.rank() == distributed.world_size() - 1
        if last and (self.epoch, batch) == (1, 5) and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def checkpointed(folder: Path, *callbacks: keras.callbacks.Callback) -> dict[str, Any]:
    """Three epochs with dropout and BatchNorm, that go on from a checkpoint where there is one."""
    keras.utils.set_random_seed(5)
    data = photo_data(count=64)
    model = kclf.ImageClassifier(
        small_backbone(), CLASSES, size=20, normalization="tf", hidden=(16,), augmentation=kclf.side_on()
    )
    model.unfreeze()
    model.compile(kclf.LayerGroupOptimizer("adamw", model))
    checkpoint = Checkpoint(folder / "checkpoints", data.train, every=3)
    return fitted(model, data, 3, callbacks=[kclf.OneCycle(1e-2), *callbacks, checkpoint])


def killed(folder: Path) -> dict[str, Any]:
    return checkpointed(folder, KillOnce(folder))


def failing(folder: Path) -> dict[str, Any]:
    """The last rank ends with an error of its own in the second step."""

    class Fail(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 1 and distributed.rank() == distributed.world_size() - 1:
                (folder / "failed").write_text(str(time.time()))
                raise OSError("the disk of this rank is gone")

    return fitted(small_model(), photo_data(), 1, callbacks=[Fail()])


def other_data() -> dict[str, Any]:
    """Whether a rank with other labels, or with fewer photos, is named on all ranks at the first step."""
    images, labels = pictures()
    odd = distributed.rank() == 1
    data = {
        "labels": (images, np.roll(labels, 1) if odd else labels),
        "photos": (images[:-5], labels[:-5]) if odd else (images, labels),
    }
    named = {}
    for kind, arrays in data.items():
        try:
            small_model().fit(
                kclf.ImageDataset(*arrays, class_names=CLASSES, presize=20, batch_size=8), verbose=0
            )
        except kclf.TrainingError as error:
            named[kind] = np.array(f"Rank 1 has other {kind} than rank 0" in str(error))
    return named


def other_predictions() -> dict[str, Any]:
    """Whether a rank with other weights, or with other photos, is named before the ranks predict together."""
    images, _ = pictures()
    odd = distributed.rank() == 1
    some = {"class_names": CLASSES, "presize": 20, "batch_size": 8}
    named = {}
    for kind in ("weights", "photos"):
        model = small_model()
        distributed.broadcast([variable.value for variable in model.variables])
        if odd and kind == "weights":
            model.trainable_variables[0].assign_add(np.float32(1e-6))
        try:
            few = images[:-5] if odd and kind == "photos" else images
            kclf.predict(model, kclf.ImageDataset(few, **some), together=True)
        except kclf.TrainingError as error:
            named[kind] = np.array(f"Rank 1 has other {kind} than rank 0" in str(error))
    return named


def recipe(folder: Path) -> dict[str, Any]:
    """The recipe: what both ranks choose, solve and predict, from other random weights on each."""
    keras.utils.set_random_seed(11 + distributed.rank())
    model = kclf.ImageClassifier("MobileNetV2", CLASSES, size=32, weights=None, hidden=())
    found = kclf.fit_best(
        model, photo_data(count=24, side=32), effort="quick", folder=folder / "recipe", say=lambda line: None
    )
    images, _ = pictures(12, side=32)
    return {
        "tried": np.array(found.plan.multi_level),
        "levels": np.array(found.model.multi_level),
        "backbone": weights_of(model.backbone),
        "held_out": found.probe.held_out.probabilities,
        "predictions": kclf.predict(found.model, images).probabilities,
    }


def everything(folder: Path) -> dict[str, Any]:
    """The scenarios of `make test`, in one start of the processes."""
    names = (plain, augmented, with_norm, infinite, synced, predicted, overlapping, overlapping_folds)
    found = {scenario.__name__: scenario() for scenario in names}
    found["other_data"] = other_data()
    found["other_predictions"] = other_predictions()
    found["course"] = course(folder)
    found["recipe"] = recipe(folder)
    return {f"{name}/{key}": value for name, part in found.items() for key, value in part.items()}


# ---- starting them ------------------------------------------------------------


def launch(scenario: str, folder: Path, processes: int = 2) -> list[subprocess.Popen[str]]:
    """Start the processes of a scenario, without a launcher's own cost."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    return [
        subprocess.Popen(
            [sys.executable, __file__, scenario, str(folder)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def run(scenario: str, folder: Path, processes: int = 2, timeout: float = 300) -> list[dict[str, np.ndarray]]:
    """What each rank found."""
    started = launch(scenario, folder, processes)
    errors = [process.communicate(timeout=timeout)[1] for process in started]
    for process, error in zip(started, errors, strict=True):
        if process.returncode:
            raise RuntimeError(f"status {process.returncode}: {error[-3000:]}")
    return [dict(np.load(folder / f"found{rank}.npz")) for rank in range(processes)]


@contextmanager
def torchrun(*words: str, processes: int = 2, restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """`torchrun`, with what follows its own options; it ends with the block, and its processes with it."""
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    with subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.terminate()  # torchrun then ends its processes


def main(scenario: str, folder: str) -> None:
    torch.set_num_threads(1)
    place = Path(folder)
    np.savez(place / f"found{distributed.rank()}.npz", **globals()[scenario](place))


if __name__ == "__main__":
    main(*sys.argv[1:])
