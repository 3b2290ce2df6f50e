"""Train, validate, save and predict over and over, and watch memory, open files and threads.

    nice -n 19 python tests/reliability/soak.py --minutes 20

Prints a line a minute; the last line is a JSON object with the slopes over the second half: of the memory
that the process has (which grows where freed pieces lie scattered) and of what is in use of it.
"""

from __future__ import annotations

import argparse
import ctypes
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
MOST_ROUNDS = 100_000


class _MallInfo(ctypes.Structure):
    """What `mallinfo2` of the C library tells, mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use() -> float:
    """Megabytes that the C library has given out and not got back; NaN where it does not tell (not glibc)."""
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        return float("nan")
    tell.restype = _MallInfo
    gc.collect()
    told = tell()
    return (told.uordblks + told.hblkhd) / 1e6


def measured() -> tuple[float, float, int, int]:
    """Megabytes that the process has, megabytes in use of them, open files and threads."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        in_use(),
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
    )


def slope(hours: np.ndarray, values: np.ndarray) -> list[float]:
    """Of a straight line through values, by the hour, and its standard error."""
    (found, _), covariance = np.polyfit(hours, values, 1, cov=True)
    return [round(float(found), 2), round(float(covariance[0, 0] ** 0.5), 2)]


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
    found = np.full((MOST_ROUNDS, 5), np.nan)  # made at once, so that it does not grow
    objects = 0
    with tempfile.TemporaryDirectory() as name:
        photos = kills.write_photos(Path(name) / "photos")
        rounds, told = 0, time.monotonic()
        while time.monotonic() < end and rounds < MOST_ROUNDS:
            one_round(Path(name), photos)
            found[rounds] = time.monotonic(), *measured()
            rounds += 1
            if rounds == WARM_ROUNDS:
                objects = python_objects()
            if time.monotonic() - told > 60:
                told = time.monotonic()
                _, memory, used, files, threads = found[rounds - 1]
                print(
                    f"{rounds} rounds: {memory:.0f} MB, {used:.2f} in use, {files:.0f} files, "
                    f"{threads:.0f} threads",
                    flush=True,
                )
    found = found[:rounds]
    second = found[rounds // 2 :]
    hours = (second[:, 0] - second[0, 0]) / 3600
    print(
        json.dumps(
            {
                "rounds": rounds,
                "memory_mb": [round(found[0][1]), round(found[-1][1])],
                "slope_mb_per_hour": slope(hours, second[:, 1]),
                "slope_in_use_mb_per_hour": slope(hours, second[:, 2]),
                "objects_a_round": round((python_objects() - objects) / max(1, rounds - WARM_ROUNDS), 1),
                "files": sorted(set(found[:, 3].astype(int).tolist())),
                "threads": sorted(set(found[:, 4].astype(int).tolist())),
            }
        )
    )


if __name__ == "__main__":
    main()
