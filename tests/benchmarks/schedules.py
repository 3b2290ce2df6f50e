"""What schedules and snapshots gain on a new head, each photo judged by a head that has not seen it.

    .venv/bin/python tests/benchmarks/schedules.py PETS_FOLDER

The head of EfficientNetLite0 trains for 7 epochs on cached activations (SGD with momentum, highest rate
1e-2), on each of 5 stratified folds and for several seeds. Gains are over the constant rate, photo by photo.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np

import kclf
from kclf.ensembles import EnsembleTable, average_predictions
from kclf.files import k_fold, list_images
from kclf.learner import Learner
from kclf.predict import Predictions

WAYS = {
    "constant": lambda learner: learner.fit(1e-2, 7),
    "one falling cosine": lambda learner: learner.fit(1e-2, 1, cycle_len=7),
    "one-cycle": lambda learner: learner.fit_one_cycle(7, 1e-2),
    "SGDR 1 + 2 + 4": lambda learner: learner.fit(1e-2, 3, cycle_len=1, cycle_mult=2, cycle_save_name="s"),
}


def one_after_another(parts: list[Predictions]) -> Predictions:
    joined = {
        name: np.concatenate([getattr(p, name) for p in parts])
        for name in ("probabilities", "labels", "paths")
    }
    return replace(parts[0], **joined)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", help="files named breed_N.jpg, in any folders")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=160)
    options = parser.parse_args()
    label = kclf.regex_label(r"(.+)_\d+\.jpg$")
    files = list_images(options.photos)
    labels = [label(file) for file in files]
    parts: dict[str, list[Predictions]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _, valid in k_fold(labels, 5):
            data = kclf.ImageData.from_files(
                files, label, valid_indices=valid, size=options.size, batch_size=32
            )
            for seed in range(options.seeds):
                for way, train in WAYS.items():
                    keras.utils.set_random_seed(seed)
                    learner = Learner(
                        data,
                        "EfficientNetLite0",
                        precompute=True,
                        optimizer="sgd",
                        path=folder,
                        verbose=False,
                    )
                    train(learner)
                    parts.setdefault(way, []).append(learner.predictions())
                members = []
                for cycle in range(3):
                    learner.load_cycle("s", cycle)
                    members.append(learner.predictions())
                parts.setdefault("mean of its 3 snapshots", []).append(average_predictions(members))
                parts.setdefault("mean of the last 2", []).append(average_predictions(members[1:]))
    print(EnsembleTable.of({way: one_after_another(p) for way, p in parts.items()}, "constant"))
    print(f"{options.seeds} seeds of each of {len(files)} photos")


if __name__ == "__main__":
    main()
