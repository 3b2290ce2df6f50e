"""Photos to a trained classifier: accuracy and seconds of kclf's `fit`, stock Keras' `fit`, torch and fastai.

    .venv/bin/python tests/benchmarks/end_to_end.py PHOTOS --set weights=FOLDER --warmup 0 --rounds 3

PHOTOS holds files named cat.N.jpg and dog.N.jpg. A round is one whole training of MobileNetV2: from ImageNet
weights and a new head, all layers, AdamW at one rate, to the accuracy on photos set aside. ("head first" is
kclf's own way: the head alone, then all layers in groups, in as many epochs.) Reading the files is part of
it, starting Python is not. All have the same photos, split and batch size; each round has another seed. kclf
and fastai augment (crop, flip, rotation, zoom, warp, light) as their users do; the two others, whose loaders
are Pillow and torch's DataLoader, crop and flip. CPU time is that of the main process: that of the loaders'
worker processes is not in it.

FOLDER holds `mobilenet_v2_1.0_224_no_top.weights.h5` of Keras Applications and torchvision's
`mobilenet_v2-b0353104.pth`.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness

CLASSES = ["cat", "dog"]
KERAS_WEIGHTS = "mobilenet_v2_1.0_224_no_top.weights.h5"
TORCH_WEIGHTS = "mobilenet_v2-b0353104.pth"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of ImageNet
DEFAULTS = {
    "photos": str(harness.ROOT.parent / "shared" / "data" / "dogscats"),
    "weights": "",
    "train": 300,
    "valid": 200,
    "size": 128,
    "presize": 160,
    "batch": 32,
    "epochs": 3,
    "rate": 3e-4,
    "workers": 2,
}


def split(settings: SimpleNamespace) -> tuple[list[str], list[str]]:
    """The photos to train on and those set aside; the same for all contestants."""
    photos = sorted(str(path) for path in Path(settings.photos).rglob("*.jpg"))
    chosen = random.Random(0).sample(photos, settings.train + settings.valid)
    return chosen[: settings.train], chosen[settings.train :]


def label(path: str) -> str:
    return re.match(r"(cat|dog)\.\d+", Path(path).name)[1]


def pillow_loader(settings: SimpleNamespace, photos: list[str], *, training: bool, seed: int) -> Any:
    """Pillow and torch's DataLoader: (batch, height, width, 3) uint8, cropped and flipped in training."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(photos)

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            size, draw = settings.size, random.Random(f"{torch.initial_seed()} {index}")
            image = ImageOps.exif_transpose(Image.open(photos[index])).convert("RGB")
            image = ImageOps.fit(image, (settings.presize, settings.presize), Image.Resampling.BILINEAR)
            left, top = ((draw.random() if training else 0.5) * (settings.presize - size) for _ in "xy")
            image = image.crop((round(left), round(top), round(left) + size, round(top) + size))
            if training and draw.random() < 0.5:
                image = ImageOps.mirror(image)
            return np.array(image), CLASSES.index(label(photos[index]))

    order = torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(
        Photos(), settings.batch, shuffle=training, num_workers=settings.workers, generator=order
    )


def all_layers(model: Any, train: Any, settings: SimpleNamespace) -> None:
    """Every layer at one rate, as the others do it; stored statistics do not survive that."""
    import keras

    model.batchnorm = "train"
    model.unfreeze()
    model.compile(keras.optimizers.AdamW(settings.rate))
    model.fit(train, epochs=settings.epochs, verbose=0)


def head_first(model: Any, train: Any, settings: SimpleNamespace) -> None:
    """One epoch of the head, then all layers in groups: what `Learner.fine_tune` does, in as many epochs."""
    import keras

    import kclf

    model.compile(keras.optimizers.AdamW(beta_2=0.99, epsilon=1e-5))
    model.fit(train, epochs=1, callbacks=[kclf.OneCycle(2e-3, pct_start=0.99)], verbose=0)
    model.unfreeze()
    groups = kclf.LayerGroupOptimizer(
        keras.optimizers.AdamW(beta_2=0.99, epsilon=1e-5), model, slice(1e-2, 1)
    )
    model.compile(groups)
    cycle = kclf.OneCycle(1e-3, pct_start=0.3, div=5)
    model.fit(train, epochs=settings.epochs - 1, callbacks=[cycle], verbose=0)


def of_kclf(fit: Callable[[Any, Any, SimpleNamespace], None]) -> Callable[[SimpleNamespace], harness.Round]:
    def prepare(settings: SimpleNamespace) -> harness.Round:
        import keras

        import kclf

        train, valid = split(settings)
        seeds = itertools.count()

        def one_round() -> tuple[float, dict[str, float]]:
            keras.utils.set_random_seed(seed := next(seeds))
            data = kclf.ImageData.from_files(
                [*train, *valid],
                label,
                valid_indices=range(len(train), len(train) + len(valid)),
                seed=seed,
                size=settings.size,
                presize=settings.presize,
                batch_size=settings.batch,
            )
            model = kclf.ImageClassifier(
                "MobileNetV2",
                data.class_names,
                size=settings.size,
                augmentation=kclf.aug_transforms(settings.size),
                weights=str(Path(settings.weights) / KERAS_WEIGHTS),
            )
            fit(model, data.train, settings)
            return 1, {"accuracy": model.evaluate(data.valid, verbose=0, return_dict=True)["accuracy"]}

        return one_round

    return prepare


harness.contestant("kclf, all layers")(of_kclf(all_layers))
harness.contestant("kclf, head first")(of_kclf(head_first))


@harness.contestant("stock Keras")
def stock(settings: SimpleNamespace) -> harness.Round:
    import keras

    train, valid = split(settings)
    seeds = itertools.count()
    shape = (settings.size, settings.size, 3)

    def one_round() -> tuple[float, dict[str, float]]:
        keras.utils.set_random_seed(seed := next(seeds))
        backbone = keras.applications.MobileNetV2(
            weights=str(Path(settings.weights) / KERAS_WEIGHTS),
            include_top=False,
            input_shape=shape,
            pooling="avg",
        )
        inputs = keras.Input(shape, dtype="uint8")
        features = backbone(keras.layers.Rescaling(1 / 127.5, -1.0)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(len(CLASSES))(features))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.AdamW(settings.rate), loss, metrics=["accuracy"])
        loader = pillow_loader(settings, train, training=True, seed=seed)
        model.fit(loader, epochs=settings.epochs, verbose=0)
        held_out = pillow_loader(settings, valid, training=False, seed=seed)
        return 1, {"accuracy": float(model.evaluate(held_out, verbose=0, return_dict=True)["accuracy"])}

    return one_round


def torchvision_model(settings: SimpleNamespace) -> Any:
    import torch
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2()
    model.load_state_dict(torch.load(Path(settings.weights) / TORCH_WEIGHTS, weights_only=True))
    model.classifier = torch.nn.Linear(model.last_channel, len(CLASSES))
    return model.to(memory_format=torch.channels_last)


@harness.contestant("torch channels_last", peer=True, reference=True)
def torch_loop(settings: SimpleNamespace) -> harness.Round:
    import torch

    train, valid = split(settings)
    seeds = itertools.count()
    mean, deviation = (255 * torch.tensor(values) for values in (MEAN, DEVIATION))

    def one_round() -> tuple[float, dict[str, float]]:
        torch.manual_seed(seed := next(seeds))
        model = torchvision_model(settings)
        optimizer = torch.optim.AdamW(model.parameters(), settings.rate, weight_decay=4e-3)  # Keras' default
        loader = pillow_loader(settings, train, training=True, seed=seed)
        model.train()
        for _ in range(settings.epochs):
            for x, y in loader:
                x = ((x - mean) / deviation).permute(0, 3, 1, 2)
                loss = torch.nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.eval()
        right = 0
        with torch.no_grad():
            for x, y in pillow_loader(settings, valid, training=False, seed=seed):
                x = ((x - mean) / deviation).permute(0, 3, 1, 2)
                right += int((model(x).argmax(-1) == y).sum())
        return 1, {"accuracy": right / len(valid)}

    return one_round


@harness.contestant("fastai", peer=True)
def fastai(settings: SimpleNamespace) -> harness.Round:
    from fastai.vision.all import (
        CategoryBlock,
        CrossEntropyLossFlat,
        DataBlock,
        ImageBlock,
        Learner,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        set_seed,
    )

    train, valid = split(settings)
    photos = [Path(photo) for photo in (*train, *valid)]
    places = list(range(len(photos)))
    seeds = itertools.count()

    def one_round() -> tuple[float, dict[str, float]]:
        set_seed(next(seeds))
        block = DataBlock(
            blocks=(ImageBlock, CategoryBlock),
            get_items=lambda _: photos,
            get_y=lambda path: label(str(path)),
            splitter=lambda _: (places[: len(train)], places[len(train) :]),
            item_tfms=Resize(settings.presize),
            batch_tfms=[*aug_transforms(size=settings.size), Normalize.from_stats(MEAN, DEVIATION)],
        )
        loaders = block.dataloaders(".", bs=settings.batch, num_workers=settings.workers, device="cpu")
        learner = Learner(
            loaders, torchvision_model(settings), loss_func=CrossEntropyLossFlat(), metrics=accuracy
        )
        with learner.no_bar(), learner.no_logging():
            learner.fit(settings.epochs, settings.rate)
            return 1, {"accuracy": float(learner.validate()[1])}

    return one_round


def main() -> None:
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        DEFAULTS["photos"] = os.path.abspath(sys.argv.pop(1))
    harness.main("Photos to a classifier", unit="training", settings=DEFAULTS)


if __name__ == "__main__":
    main()
