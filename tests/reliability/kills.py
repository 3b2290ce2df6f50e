"""Kill `kclf train` at random moments, let it go on, and see whether it ends as if nothing had happened.

    python tests/reliability/kills.py --kills 60 --seed 0

Each run is a real process: a fork of this one, which has imported everything, so that a run costs a second.
It is killed by SIGKILL at a random moment, its folder may then be torn as a power cut would (--tear), and
`kclf train --resume` takes it to the end. The last line is a JSON object.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("MPLBACKEND", "agg")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
from PIL import Image

SIZE = 32
WORDS = ["--backbone", "ResNet18", "--weights", "none", "--size", SIZE, "--batch-size", 8, "--epochs", 2]
VARYING = {"time"}  # columns that tell the time


def write_photos(folder: Path, count: int = 20) -> Path:
    """Two classes of noisy squares."""
    for name, colour in {"blue": (40, 60, 200), "red": (200, 60, 40)}.items():
        for number in range(count):
            noise = np.random.default_rng(number).normal(0, 40, (40, 48, 3))
            path = folder / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(np.clip(noise + colour, 0, 255))).save(path)
    return folder


def start(words: list[object]) -> int:
    """The process id of a child that runs `kclf WORDS`."""
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        log = os.open("child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(null, 1)
        os.dup2(log, 2)
        from kclf.cli import main

        with contextlib.suppress(SystemExit):
            main([str(word) for word in words])
            status = 0
        status = getattr(sys.exc_info()[1], "code", status) or 0
    finally:
        os._exit(status)


def wait(process: int) -> int:
    """How a child ended: its status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
