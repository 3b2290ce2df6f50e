"""SGDR with snapshots on dogs and cats by plain `model.fit`: range tests, seven epochs, what snapshots gain.

    .venv/bin/python tests/benchmarks/restarts.py PHOTOS --weights FILE --figures FOLDER

PHOTOS holds files named cat.N.jpg and dog.N.jpg; a fifth of each class is kept for validation. The range test
runs on the fresh head and once more after unfreezing. Then three cycles of 1, 2 and 4 epochs with everything
trainable; at the end of each lies a snapshot.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("MPLBACKEND", "agg")

import keras

import kclf
from kclf.callbacks import CosineRestarts, EpochTable, OneCycle, Recorder, find_learning_rate
from kclf.prediction.ensembles import SnapshotEnsemble


def compile_for(model: kclf.ImageClassifier, rates: float | list[float]) -> None:
    model.compile(
        kclf.LayerGroupOptimizer(
            keras.optimizers.AdamW(1e-3, weight_decay=1e-2, beta_2=0.99, epsilon=1e-5), model, rates
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def range_test(model: kclf.ImageClassifier, data: kclf.ImageData, name: str, figures: Path) -> None:
    start = time.perf_counter()
    found = find_learning_rate(model, data.train)
    print(f"\nRange test, {name} ({time.perf_counter() - start:.0f} s)\n{found}", flush=True)
    found.plot().figure.savefig(figures / f"range-test-{name.replace(' ', '-')}.png", dpi=80)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("photos", type=Path)
    options.add_argument("--backbone", default="MobileNetV2")
    options.add_argument("--weights", default="imagenet")
    options.add_argument("--size", type=int, default=160)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--rate", type=float, default=3e-4, help="of the head in the cycles")
    options.add_argument("--figures", type=Path, default=Path("restarts"))
    options.add_argument("--range-tests-only", action="store_true", help="stop before the cycles")
    chosen = options.parse_args()
    chosen.figures.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(chosen.seed)
    data = kclf.ImageData.from_files(
        chosen.photos,
        kclf.regex_label(r"(cat|dog)\.\d+"),
        seed=0,
        size=chosen.size,
        presize=chosen.size * 8 // 7,
        batch_size=32,
    )
    model = kclf.ImageClassifier(
        chosen.backbone,
        data.class_names,
        size=chosen.size,
        weights=chosen.weights,
        augmentation=kclf.side_on(chosen.size),
    )
    print(f"{data.train.num_images} photos to train on, {data.valid.num_images} to judge by")
    recorder = Recorder()
    model.freeze()
    compile_for(model, 1.0)
    range_test(model, data, "fresh head", chosen.figures)
    head = [OneCycle(2e-3, pct_start=0.99), recorder, EpochTable()]
    model.fit(data.train, validation_data=data.valid, epochs=1, verbose=0, callbacks=head)
    model.unfreeze()
    compile_for(model, [1 / 100, 1 / 10, 1.0])
    range_test(model, data, "after unfreezing", chosen.figures)
    if chosen.range_tests_only:
        return
    cycles = CosineRestarts(
        chosen.rate, cycle_len=1, cycle_mult=2, num_cycles=3, snapshots=chosen.figures / "snapshot"
    )
    calls = [cycles, recorder, EpochTable()]
    model.fit(data.train, validation_data=data.valid, epochs=cycles.num_epochs, verbose=0, callbacks=calls)
    recorder.plot_lr().figure.savefig(chosen.figures / "rate.png", dpi=80)
    recorder.plot_loss().figure.savefig(chosen.figures / "loss.png", dpi=80)
    ensemble = SnapshotEnsemble(model, cycles.snapshots)
    print(f"\n{ensemble.table(data.valid)}")


if __name__ == "__main__":
    main()
