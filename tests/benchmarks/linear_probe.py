"""How many of 400 photos a linear probe gets wrong, by how the 400 are set aside.

    .venv/bin/python tests/benchmarks/linear_probe.py PHOTOS --backbone ResNet50 --weights FILE

PHOTOS holds files named cat.N.jpg and dog.N.jpg. The probe is scikit-learn's logistic regression with its own
settings, on the means of a frozen backbone's feature maps of the centre squares.
"""

from __future__ import annotations

import os
import random
import statistics
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch
from eight_steps import last_fifth
from harness import photos_and_backbone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import kclf
from kclf.prediction.activation_cache import activations

HELD_BACK = 400


def usual_splits(files: list[Path], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Validation indices (400,) by the name of the way, each way once: some have several names."""
    n = len(files)
    every, number = np.arange(n), np.array([int(file.stem.partition(".")[2]) for file in files])
    legacy, drawn = np.random.RandomState(0).permutation(n), np.random.default_rng(0).permutation(n)
    shuffled = list(range(n))
    random.Random(0).shuffle(shuffled)
    splits = {
        "numpy's RandomState(0), first": legacy[:HELD_BACK],
        "numpy's RandomState(0), last": legacy[-HELD_BACK:],
        "numpy's default_rng(0), first": drawn[:HELD_BACK],
        "numpy's default_rng(0), last": drawn[-HELD_BACK:],
        "Python's Random(0), first": np.array(shuffled[:HELD_BACK]),
        "Python's Random(0), last": np.array(shuffled[-HELD_BACK:]),
        "the course's cv_indices, fold 0": kclf.data.splits.cv_indices(n, fold=0),
        "torch, seed 42, as RandomSplitter": torch.randperm(n, generator=torch.Generator().manual_seed(42))[
            :HELD_BACK
        ].numpy(),
        "kclf's own, seed 0, stratified": kclf.data.splits.stratified_split(labels, 0.2, 0)[1],
        "every fifth": every[::5][:HELD_BACK],
        "first 200 numbers of each class": np.flatnonzero(number < HELD_BACK // 2),
        "last 200 numbers of each class": np.array(last_fifth(files)),
    }
    for seed in (0, 42):
        splits[f"scikit-learn, seed {seed}, stratified"] = train_test_split(
            every, test_size=HELD_BACK, random_state=seed, stratify=labels
        )[1]
    return splits


def wrong(features: np.ndarray, labels: np.ndarray, held_back: np.ndarray) -> int:
    """Mistakes of the probe on the photos that were set aside."""
    rest = np.setdiff1d(np.arange(len(labels)), held_back)
    probe = LogisticRegression(max_iter=1000).fit(features[rest], labels[rest])
    return int((probe.predict(features[held_back]) != labels[held_back]).sum())


def main() -> None:
    parser = photos_and_backbone(__doc__, "linear-probe")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--presize", type=int, default=256)
    parser.add_argument("--resize-method", choices=("crop", "pad", "squish"), default="crop")
    options = parser.parse_args()

    files = sorted(options.photos.glob("*.jpg"))
    photos = kclf.ImageDataset(
        files,
        [["cat", "dog"].index(file.name[:3]) for file in files],
        class_names=["cat", "dog"],
        presize=options.presize,
        resize_method=options.resize_method,
    )
    model = kclf.ImageClassifier(options.backbone, ["cat", "dog"], size=options.size, weights=options.weights)
    pooled = activations(model, photos, options.out).features[0]
    means = pooled[:, pooled.shape[1] // 2 :]  # behind the maxima
    labels = np.asarray(photos.labels)
    found = {name: wrong(means, labels, rows) for name, rows in usual_splits(files, labels).items()}
    for name, mistakes in found.items():
        print(f"{name:36} {mistakes:3} wrong  {1 - mistakes / HELD_BACK:.4f}")
    print(f"{'mean':36} {statistics.mean(found.values()):5.1f}")


if __name__ == "__main__":
    main()
