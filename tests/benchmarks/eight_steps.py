"""The course's eight steps to a classifier, on dogs against cats, with the accuracy after each of them.

    .venv/bin/python tests/benchmarks/eight_steps.py PHOTOS --backbone ResNet50 --weights FILE --json out.json

PHOTOS holds files named cat.N.jpg and dog.N.jpg. A fifth of each class is kept for validation: drawn with
seed 0, or with `--split last` those of the highest numbers. Every figure has its 95 % Wilson interval;
several `--seeds` give their mean too. A run that was stopped goes on where it was when it is started again
with the same `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import torch

import kclf
from kclf.callbacks import Checkpoint
from kclf.interpret import wilson_interval
from kclf.learner import Learner
from kclf.metrics import accuracy
from kclf.prediction.predictions import Predictions
from kclf.prediction.tta import average_views


class Log:
    """Accuracy on validation and seconds after each step.

    The rows lie in a file as well: a run that goes on passes over the steps that are done, and then has the
    weights of a later one.
    """

    def __init__(self, learner: Learner, path: Path) -> None:
        self.learner, self.path, self.start = learner, path, time.perf_counter()
        self.rows = json.loads(path.read_text()) if path.exists() else []

    def step(self, name: str, share: float | None = None) -> None:
        if any(row["step"] == name for row in self.rows):
            return
        photos = self.learner.data.valid.num_images
        share = self.learner.predictions().accuracy() if share is None else share
        interval = wilson_interval(round(share * photos), photos)
        seconds = time.perf_counter() - self.start
        self.rows.append({"step": name, "accuracy": share, "interval": str(interval), "seconds": seconds})
        self.path.write_text(json.dumps(self.rows))
        print(f"{name:42} {interval}  {seconds:6.0f} s", flush=True)


def eight_steps(options: argparse.Namespace, seed: int) -> list[dict]:
    keras.utils.set_random_seed(seed)
    files = sorted(options.photos.glob("*.jpg"))
    data = kclf.ImageData.from_files(
        files,
        kclf.regex_label(r"(cat|dog)\.\d+"),
        valid_indices=last_fifth(files) if options.split == "last" else None,
        seed=0,
        size=options.size,
        presize=options.presize,
        batch_size=options.batch_size,
    )
    learner = Learner(
        data,
        options.backbone,
        weights=options.weights or "imagenet",
        augmentation=kclf.side_on(max_zoom=1.1),  # 1. data augmentation, and precompute=True
        precompute=True,
        optimizer=options.optimizer,
        batchnorm=options.batchnorm,
        path=options.out,
    )
    learner.checkpoint = Checkpoint(options.out / f"checkpoints-{seed}")
    log = Log(learner, options.out / f"rows-{seed}.json")
    if options.range_tests:
        print(learner.lr_find())  # 2. find the rate where the loss still clearly falls
    learner.fit(1e-2, 2)  # 3. train the head on precomputed activations for 1-2 epochs
    log.step("precompute, 2 epochs at 1e-2")
    if options.last_step == 3:
        return log.rows
    learner.precompute = False
    learner.fit(1e-2, 3, cycle_len=1, resume=True)  # 4. the head with augmentation, 2-3 cycles of 1
    log.step("head with augmentation, 3 cycles of 1")
    if options.last_step == 4:
        return log.rows
    learner.unfreeze()  # 5. unfreeze all layers
    rates = [1e-4, 1e-3, 1e-2]  # 6. rates 3-10 times lower for earlier layers
    if options.range_tests:
        print(learner.lr_find())  # 7. the range test again
    learner.fit(rates, 3, cycle_len=1, cycle_mult=2, cycle_save_name=f"eight{seed}")  # 8. cycle_mult=2
    log.step("all layers, cycles of 1, 2 and 4")
    log.step("with TTA", accuracy(*learner.TTA()))
    if options.larger:
        both = at_two_sizes(learner, data, options.larger)
        log.step(f"at {options.size} and {options.larger} px", both.accuracy())
    print(learner.snapshots(f"eight{seed}").table(data.valid), flush=True)
    return log.rows


def last_fifth(files: list[Path]) -> list[int]:
    """Indices of the photos with the highest numbers, a fifth of each class."""
    number = {index: int(file.stem.partition(".")[2]) for index, file in enumerate(files)}
    chosen: list[int] = []
    for name in ("cat", "dog"):
        own = sorted((i for i, file in enumerate(files) if file.name.startswith(name)), key=number.get)
        chosen += own[-(len(own) // 5) :]
    return chosen


def at_two_sizes(learner: Learner, data: kclf.ImageData, larger: int) -> Predictions:
    """Predictions of the validation photos, averaged over the plain view at training's size and a larger one.

    Objects look larger to a network in training's random windows than in the centre square of the same size
    (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
    """
    usual = learner.predictions()
    learner.set_data(data.replace(size=larger))
    others = [learner.predictions().probabilities]
    learner.set_data(data)
    return replace(usual, probabilities=average_views(usual.probabilities, others, weight=0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", default="EfficientNetLite0")
    parser.add_argument("--weights", help="a weights file without top; else kclf's ImageNet weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", choices=("drawn", "last"), default="drawn", help="which photos validate")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--larger", type=int, help="size of one more view at the end")
    parser.add_argument("--presize", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--batchnorm", default="inference", help="BatchNorm policy of the backbone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--no-range-tests", action="store_false", dest="range_tests", help="leave out steps 2, 7"
    )
    parser.add_argument("--last-step", type=int, choices=(3, 4, 8), default=8, help="stop after it")
    parser.add_argument("--out", type=Path, default=Path("eight-steps"), help="models and activations")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = {}
    for seed in options.seeds:
        print(f"\nseed {seed}")
        runs[seed] = eight_steps(options, seed)
        if options.json:
            settings = {name: str(value) for name, value in vars(options).items()}
            options.json.write_text(json.dumps({"settings": settings, "runs": runs}, indent=2) + "\n")
    for rows in zip(*runs.values(), strict=True):
        mean = statistics.mean(row["accuracy"] for row in rows)
        print(f"{rows[0]['step']:42} mean of {len(rows)}: {mean:.4f}")


if __name__ == "__main__":
    main()
