"""The plain way, `compile(); fit(1); unfreeze(); fit(3); fit(2)`, beside a torch loop on the same network.

    .venv/bin/python tests/benchmarks/plain_way.py PHOTOS --weights FOLDER [--seeds 3 --photos 200 --size 128]

PHOTOS holds files named cat.N.jpg and dog.N.jpg; the folder of weights Keras' own files without top. Both
ways get the same photos, augmentation and first weights. The torch loop trains with the statistics of its
batches and torch's own momentum of their averages, by AdamW at 1e-3 for the head and then 1e-4 for all.
Prints accuracy and log loss on as many other photos after each fit, and their means.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import torch

import kclf

BACKBONES = {
    "EfficientNetLite0": "imagenet",
    "MobileNetV2": "mobilenet_v2_1.0_224_no_top.weights.h5",
    "ResNet50": "resnet50_no_top.weights.h5",
}
FITS = (1, 3, 2)  # epochs; everything is trainable from the second on
TORCH_MOMENTUM = 0.9  # as Keras counts it


def drawn(options: argparse.Namespace, seed: int) -> kclf.ImageData:
    draw, files = random.Random(seed), {name: [] for name in ("cat", "dog")}
    for file in sorted(options.photos.glob("*.jpg")):
        files[file.name.partition(".")[0]].append(str(file))
    half = options.photos_trained // 2
    chosen = {name: draw.sample(of_class, 2 * half) for name, of_class in files.items()}
    side, parts = int(1.25 * options.size), {}
    for part, rows in (("train", slice(half)), ("valid", slice(half, None))):
        paths = [path for name in chosen for path in chosen[name][rows]]
        labels = np.repeat([0, 1], half)
        kinds = {"class_names": ["cat", "dog"], "presize": side, "batch_size": 32, "seed": seed}
        parts[part] = kclf.ImageDataset(paths, labels, shuffle=part == "train", **kinds)
    return kclf.ImageData(parts["train"], parts["valid"], size=options.size)


def classifier(options: argparse.Namespace, name: str, seed: int, **kinds: str) -> kclf.ImageClassifier:
    keras.utils.set_random_seed(seed)
    weights = BACKBONES[name] if BACKBONES[name] == "imagenet" else options.weights / BACKBONES[name]
    kinds |= {"augmentation": kclf.aug_transforms(), "presize": int(1.25 * options.size)}
    return kclf.ImageClassifier(name, ["cat", "dog"], size=options.size, weights=weights, **kinds)


def by_keras(options: argparse.Namespace, name: str, seed: int, data: kclf.ImageData) -> list:
    model, scores = classifier(options, name, seed), []
    model.compile()
    for number, epochs in enumerate(FITS):
        if number == 1:
            model.unfreeze()
        model.fit(data.train, epochs=epochs, verbose=0)
        scores.append(kclf.predict(model, data.valid))
    return scores


def by_torch(options: argparse.Namespace, name: str, seed: int, data: kclf.ImageData) -> list:
    model, scores = classifier(options, name, seed, batchnorm="train"), []
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = TORCH_MOMENTUM
    for number, epochs in enumerate(FITS):
        if number < 2:
            model.unfreeze() if number else None
            rate = 1e-4 if number else 1e-3
            optimizer = torch.optim.AdamW([v.value for v in model.trainable_variables], rate)
        for _ in range(epochs):
            for images, labels in data.train:
                loss = torch.nn.functional.cross_entropy(model(images, training=True), labels.long())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        scores.append(kclf.predict(model, data.valid))
    return scores


WAYS = {"kclf": by_keras, "torch": by_torch}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("photos", type=Path)
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--photos-trained", type=int, default=200)
    options.add_argument("--size", type=int, default=128)
    options.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    options.add_argument("--backbones", nargs="*", default=list(BACKBONES), choices=BACKBONES)
    options = options.parse_args()
    for name in options.backbones:
        found = {way: [] for way in options.ways}
        for seed in range(options.seeds):
            for way in options.ways:
                scores = WAYS[way](options, name, seed, drawn(options, seed))
                found[way].append([(one.hits().mean(), one.losses().mean()) for one in scores])
                said = ", ".join(f"{accuracy:.3f} ({loss:.3f})" for accuracy, loss in found[way][-1])
                print(f"{name:18} seed {seed} {way:6} {said}", flush=True)
        for way, rows in found.items():
            means = np.mean(rows, axis=0)[-1]
            print(f"{name:18} mean   {way:6} accuracy {means[0]:.3f}, log loss {means[1]:.3f}")


if __name__ == "__main__":
    main()
