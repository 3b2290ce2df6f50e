"""Train, validate, save and predict over and over, and watch memory, open files and threads.

    nice -n 19 python tests/reliability/soak.py --minutes 20

Prints a line a minute; the last line is a JSON object with the slope of memory over the second half.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import keras
import kills
import numpy as np

import kclf
from kclf.callbacks import Checkpoint, FiniteGuard, MemoryGuard

WARM_ROUNDS = 5  # after which all that is made once is there


def measured() -> tuple[float, int, int]:
    """Megabytes of memory, open files and threads of this process."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
    )


def python_objects() -> int:
    """How many Python objects there are that others refer to."""
    gc.collect()
    return len(gc.get_objects())


def one_round(folder: Path, photos: Path) -> None:
    """Everything a run does, on a small network."""
    data = kclf.ImageData.from_folder(photos, size=32, presize=36, batch_size=4, num_threads=2)
    layers = [keras.layers.Conv2D(8, 3, strides=4), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    learner = kclf.Learner(
        data,
        keras.Sequential([keras.Input((32, 32, 3)), *layers]),
        normalization="tf",
        augmentation=kclf.aug_transforms(),
        path=folder,
        verbose=False,
    )
    checkpoint = Checkpoint(folder / "checkpoints", every=4, resume=False)
    learner.checkpoint = checkpoint
    learner.callbacks = [MemoryGuard(), FiniteGuard(checkpoint, data.train)]
    learner.fit_one_cycle(1, 1e-3)
    learner.unfreeze()
    learner.fit_one_cycle(2, 1e-3)
    learner.predictions()
    keras.backend.clear_session()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=20.0)
    options = arguments.parse_args()
    end = time.monotonic() + 60 * options.minutes
    found: list[tuple[float, float, int, int]] = []
    objects = 0
    with tempfile.TemporaryDirectory() as name:
        photos = kills.write_photos(Path(name) / "photos")
        rounds, told = 0, time.monotonic()
        while time.monotonic() < end:
            one_round(Path(name), photos)
            rounds += 1
            found.append((time.monotonic(), *measured()))
            if rounds == WARM_ROUNDS:
                objects = python_objects()
            if time.monotonic() - told > 60:
                told = time.monotonic()
                _, memory, files, threads = found[-1]
                print(f"{rounds} rounds: {memory:.0f} MB, {files} files, {threads} threads", flush=True)
    second = np.array(found[len(found) // 2 :])
    hours = (second[:, 0] - second[0, 0]) / 3600
    (slope, _), covariance = np.polyfit(hours, second[:, 1], 1, cov=True)
    print(
        json.dumps(
            {
                "rounds": rounds,
                "memory_mb": [round(found[0][1]), round(found[-1][1])],
                "slope_mb_per_hour": round(float(slope), 2),
                "slope_error": round(float(covariance[0, 0] ** 0.5), 2),
                "objects_a_round": round((python_objects() - objects) / max(1, rounds - WARM_ROUNDS), 1),
                "files": sorted({int(row[2]) for row in found}),
                "threads": sorted({int(row[3]) for row in found}),
            }
        )
    )


if __name__ == "__main__":
    main()
