"""What it brings that a new head's last layer starts at zero: mistakes and log loss over folds of photos.

    .venv/bin/python tests/benchmarks/head_start.py PHOTOS --backbone ResNet50 --weights FILE

The head learns from cached activations of the centre squares, as step 3 of the course's eight (2 epochs at
one rate of 1e-2) and then as step 4 but for the augmentation (3 cycles of one epoch). Every start is given
the same folds, batches and draws of dropout. The folds are of the photos that train where kclf splits by
itself: a fifth of each class is left out, as in `eight_steps.py`.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import torch
from harness import photos_and_backbone
from sklearn.model_selection import StratifiedKFold
from torch.utils.data import DataLoader, TensorDataset

import kclf
from kclf.callbacks import CosineRestarts, FlatCosine
from kclf.learner.training import Training
from kclf.models import build_head
from kclf.prediction.activation_cache import activations
from kclf.prediction.inference import predict

RATE = 1e-2
STARTS = {
    "He-normal": keras.initializers.HeNormal,
    ".01": lambda: keras.initializers.RandomNormal(stddev=0.01),
    "zero": keras.initializers.Zeros,  # as built
}
STEPS = {
    "2 epochs": (2, lambda: FlatCosine(RATE, pct_start=1.0)),
    "and 3 cycles of 1": (3, lambda: CosineRestarts(RATE, cycle_len=1, num_cycles=3)),
}


def new_head(channels: int, classes: int, start: str, seed: int) -> keras.Model:
    """A compiled head behind its pooling, with the last layer's weights of one start."""
    keras.utils.set_random_seed(seed)
    whole = build_head(channels, classes)
    kernel = whole.get_layer("logits").kernel
    kernel.assign(STARTS[start]()(kernel.shape))
    head = keras.Model(whole.get_layer("pooling").output, whole.output)
    Training().compile(head, [[layer for layer in head.layers if layer.weights]], "single_label", auto="sgd")
    kclf.accelerate(head)
    return head


def score(head: keras.Model, x: np.ndarray, y: np.ndarray) -> tuple[int, float]:
    """Mistakes and the sum of log losses."""
    found = predict(head, [(x, y)])
    return int((1 - found.hits()).sum()), float(found.losses().sum())


def one_fold(
    x: np.ndarray, y: np.ndarray, rest: np.ndarray, fold: np.ndarray, start: str, seed: int
) -> list[tuple[int, float]]:
    """Scores on `fold` of a head that learns from `rest`, after each of `STEPS`."""
    head = new_head(x.shape[1] // 2, int(y.max()) + 1, start, seed)
    keras.utils.set_random_seed(seed)  # the same dropout for every start
    known = TensorDataset(torch.from_numpy(x[rest]), torch.from_numpy(y[rest]))
    order = torch.Generator().manual_seed(seed)
    batches = DataLoader(known, batch_size=64, shuffle=True, drop_last=True, generator=order)
    scores = []
    for epochs, schedule in STEPS.values():
        head.fit(batches, epochs=epochs, callbacks=[schedule()], shuffle=False, verbose=0)
        scores.append(score(head, x[fold], y[fold]))
    return scores


def main() -> None:
    parser = photos_and_backbone(__doc__, "head-start")
    parser.add_argument("--label-regex", default=r"(cat|dog)\.\d+", help="'' takes labels from folders")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--presize", type=int, default=256)
    parser.add_argument("--shufflings", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    reading = {"size": options.size, "presize": options.presize}
    data = kclf.ImageData.from_folder(options.photos, label_regex=options.label_regex or None, **reading)
    photos = data.train
    model = kclf.ImageClassifier(
        options.backbone, photos.class_names, size=options.size, weights=options.weights
    )
    x, y = activations(model, photos, options.out).features[0], np.asarray(photos.labels)
    found: dict[str, list] = {start: [] for start in STARTS}  # shuffling by shuffling, summed over its folds
    for shuffling in range(options.shufflings):
        folds = list(StratifiedKFold(5, shuffle=True, random_state=shuffling).split(x, y))
        for start in STARTS:
            scores = [one_fold(x, y, *fold, start, 5 * shuffling + i) for i, fold in enumerate(folds)]
            found[start].append(np.sum(scores, axis=0))
    totals = {start: np.array(rows, dtype=float) for start, rows in found.items()}  # (shufflings, steps, 2)
    shuffled = f"{options.shufflings} shufflings of 5 folds"
    print(f"{options.backbone}, {len(y):,} photos, {shuffled}; ± one standard error")
    for number, step in enumerate(STEPS):
        for start, rows in totals.items():
            wrong, loss = rows[:, number].mean(axis=0)
            gains = rows[:, number] - totals["He-normal"][:, number]
            error = gains.std(axis=0, ddof=1) / np.sqrt(len(gains))
            print(
                f"{step:18} {start:10} {wrong:6.1f} wrong ({gains[:, 0].mean():+.1f} ± {error[0]:.1f})  "
                f"log loss {loss / len(y):.4f} ({gains[:, 1].mean() / len(y):+.4f} ± {error[1] / len(y):.4f})"
            )


if __name__ == "__main__":
    main()
