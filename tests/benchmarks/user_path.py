"""What users run, from photos to a trained model and its predictions: kclf, torch, timm, fastai, stock Keras.

    .venv/bin/python tests/benchmarks/user_path.py --set work=fit source=jpeg device=cuda batch=256

Settings: `work` ("fit": one epoch with augmentation, all layers; "predict"; "tta": the plain and four
augmented views; "precompute": epochs of the head on cached activations), `source` ("jpeg": files of 500 x 375
pixels, made once; "memory": squares of `presize` pixels), `model`, `photos`, `size`, `presize`, `batch`,
`precision`, `workers` of torch's DataLoader (0: one a core), `device`. A round is one pass over the photos.
All crop and flip at random on the device; kclf and fastai also turn, zoom, warp and relight, as they do by
default.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
from train_step import TIMM, TORCHVISION, torchvision_model

CLASSES = ["cat", "dog"]
VIEWS = 4
DEFAULTS = {
    "work": "fit",
    "source": "jpeg",
    "model": "ResNet50",
    "photos": 256,
    "size": 128,
    "presize": 160,
    "batch": 32,
    "precision": "float32",
    "workers": 0,
    "device": "cpu",
    "head_only": False,
}
DTYPES = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}


def jpeg_files(settings: SimpleNamespace) -> list[str]:
    """Files of smooth shapes with some noise, in folders by class; made once for all contestants."""
    import numpy as np
    from PIL import Image

    folder = Path(tempfile.gettempdir()) / f"kclf-bench-{settings.photos}"
    if not folder.exists():
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        rng = np.random.default_rng(0)
        for number in range(settings.photos):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
            pixels = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
            (made / CLASSES[number % 2]).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(made / CLASSES[number % 2] / f"{number:06}.jpg", quality=90)
        with contextlib.suppress(OSError):  # another contestant was first
            made.rename(folder)
    return sorted(str(path) for path in folder.rglob("*.jpg"))


def squares(settings: SimpleNamespace) -> Any:
    """Uint8 (photos, presize, presize, 3) of noise."""
    import numpy as np

    side = settings.presize
    return np.random.default_rng(0).integers(0, 256, (settings.photos, side, side, 3), dtype=np.uint8)


# ---- kclf ------------------------------------------------------------


@harness.contestant("kclf")
def kclf(settings: SimpleNamespace) -> harness.Round:
    if settings.device == "cpu":
        os.environ["KERAS_TORCH_DEVICE"] = "cpu"
    import numpy as np

    import kclf

    labels = np.arange(settings.photos) % 2
    some = {"class_names": CLASSES, "presize": settings.presize, "batch_size": settings.batch}
    files = settings.source == "jpeg"
    images = np.array(jpeg_files(settings)) if files else squares(settings)
    train = kclf.ImageDataset(images, labels, shuffle=True, **some)
    model = kclf.ImageClassifier(
        settings.model,
        CLASSES,
        size=settings.size,
        weights=None,
        augmentation=kclf.aug_transforms(settings.size),
        dtype=settings.precision,
    )
    data = kclf.ImageData(train, train.replace(shuffle=False), size=settings.size)
    precompute = settings.work == "precompute"
    learner = kclf.Learner(data, model, precompute=precompute, path=tempfile.mkdtemp(), verbose=False)
    if settings.work == "fit":
        learner.unfreeze()
    epochs = 20 if precompute else 1
    work: dict[str, Callable[[], Any]] = {
        "fit": lambda: learner.fit(1e-4, 1),
        "precompute": lambda: learner.fit(1e-4, epochs),
        "predict": lambda: kclf.predict(model, data.valid),
        "tta": lambda: kclf.predict_tta(model, data.valid, n=VIEWS),
    }
    return lambda: (work[settings.work](), epochs * settings.photos)[1]


# ---- torch's way: its DataLoader, Pillow, autocast ------------------------------------------------


def loader(settings: SimpleNamespace, *, shuffle: bool) -> Any:
    """Batches (batch, presize, presize, 3) uint8 with labels, by worker processes where files are read."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    files = jpeg_files(settings) if settings.source == "jpeg" else None
    pixels = squares(settings) if files is None else None
    side = (settings.presize, settings.presize)

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return settings.photos

        def __getitem__(self, index: int) -> tuple[Any, int]:
            if files is None:
                return pixels[index], index % 2
            with Image.open(files[index]) as photo:
                photo.draft("RGB", side)
                square = ImageOps.fit(photo.convert("RGB"), side, Image.Resampling.BILINEAR)
            return np.array(square), index % 2

    workers = (settings.workers or os.cpu_count() or 1) if files else 0
    return torch.utils.data.DataLoader(
        Photos(), settings.batch, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=settings.device == "cuda", drop_last=shuffle,
    )  # fmt: skip


def on_device(settings: SimpleNamespace, batches: Any, *, training: bool) -> Iterator[tuple[Any, Any]]:
    """Float batches (batch, 3, size, size) in channels_last memory, cropped and flipped at random or not."""
    import torch

    mean, deviation = 120.0, 58.0
    for x, y in batches:
        x, y = (part.to(settings.device, non_blocking=True) for part in (x, y))
        free = settings.presize - settings.size
        top, left = (int(torch.randint(free + 1, ())) if training else free // 2 for _ in "xy")
        x = x[:, top : top + settings.size, left : left + settings.size].permute(0, 3, 1, 2)
        x = (x.float() - mean) / deviation
        if training:
            flipped = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            x = torch.where(flipped, x.flip(3), x)
        yield x.contiguous(memory_format=torch.channels_last), y


def torch_rounds(settings: SimpleNamespace, model: Any) -> harness.Round:
    """Training or prediction of a torch model, as the tutorials have it."""
    import torch

    model = model.to(settings.device, memory_format=torch.channels_last)
    name = DTYPES.get(settings.precision)
    cast = torch.autocast(settings.device, dtype=getattr(torch, name or "bfloat16"), enabled=name is not None)
    scaler = torch.amp.GradScaler(settings.device, enabled=name == "float16")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    training = settings.work == "fit"
    batches = loader(settings, shuffle=training)

    def trained() -> None:
        model.train()
        total = torch.zeros((), device=settings.device)
        for x, y in on_device(settings, batches, training=True):
            with cast:
                loss = torch.nn.functional.cross_entropy(model(x).float(), y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += loss.detach()
        total.item()

    @torch.no_grad()
    def predicted() -> None:
        model.eval()
        found = []
        for x, _ in on_device(settings, batches, training=False):
            others = range(VIEWS) if settings.work == "tta" else ()
            views = [x, *[x.roll(3 * number, 3).flip(3) for number in others]]
            with cast:
                found.append(sum(model(view).float().softmax(1) for view in views) / len(views))
        torch.cat(found).cpu()

    one_pass = trained if training else predicted
    return lambda: (one_pass(), settings.photos)[1]


@harness.contestant("torch channels_last", peer=True, reference=True)
def torch_channels_last(settings: SimpleNamespace) -> harness.Round:
    only(settings, "fit", "predict", "tta")
    return torch_rounds(settings, torchvision_model(settings))


@harness.contestant("torch compiled", peer=True)
def torch_compiled(settings: SimpleNamespace) -> harness.Round:
    import torch

    only(settings, "fit", "predict", "tta")
    if settings.device == "cpu":
        raise harness.NotHere("measured on a GPU alone")
    return torch_rounds(settings, torch.compile(torchvision_model(settings)))


@harness.contestant("torch CUDA graphs", peer=True)
def torch_graphs(settings: SimpleNamespace) -> harness.Round:
    import torch

    only(settings, "fit", "predict", "tta")
    if settings.device != "cuda":
        raise harness.NotHere("CUDA graphs need CUDA")
    return torch_rounds(settings, torch.compile(torchvision_model(settings), mode="reduce-overhead"))


@harness.contestant("timm", peer=True)
def timm(settings: SimpleNamespace) -> harness.Round:
    import timm

    only(settings, "fit", "predict", "tta")
    return torch_rounds(settings, timm.create_model(TIMM[settings.model], num_classes=2))


@harness.contestant("fastai", peer=True)
def fastai(settings: SimpleNamespace) -> harness.Round:
    from fastai.vision import all as vision

    only(settings, "fit", "predict", "tta")
    if settings.source != "jpeg":
        raise harness.NotHere("its users read files")
    files = jpeg_files(settings)
    data = vision.ImageDataLoaders.from_path_func(
        Path(files[0]).parent.parent,
        [Path(file) for file in files],
        lambda file: file.parent.name,
        valid_pct=0.5 if settings.work == "fit" else 0.99,
        item_tfms=vision.Resize(settings.presize),
        batch_tfms=vision.aug_transforms(size=settings.size),
        bs=settings.batch,
        num_workers=settings.workers or os.cpu_count(),
        device=settings.device,
    )
    body = getattr(vision, TORCHVISION[settings.model], None)
    if body is None:
        raise harness.NotHere("it has no such model")
    learner = vision.vision_learner(data, body, pretrained=False, metrics=[])
    learner.unfreeze()
    if settings.precision != "float32":
        learner = learner.to_fp16() if settings.precision == "mixed_float16" else learner.to_bf16()

    def one_round() -> float:
        with learner.no_bar(), learner.no_logging(), learner.no_validation():
            if settings.work == "fit":
                learner.fit(1, 1e-4)
                return len(data.train) * settings.batch
            learner.get_preds() if settings.work == "predict" else learner.tta(n=VIEWS)
            return len(data.valid_ds)

    return one_round


@harness.contestant("stock Keras")
def stock(settings: SimpleNamespace) -> harness.Round:
    if settings.device == "cpu":
        os.environ["KERAS_TORCH_DEVICE"] = "cpu"
    import keras
    import numpy as np

    only(settings, "fit", "predict", "precompute")
    keras.config.set_dtype_policy(settings.precision)
    inputs = keras.Input((settings.presize, settings.presize, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs)
    x = keras.layers.RandomCrop(settings.size, settings.size)(x)
    make = getattr(keras.applications, settings.model)
    shape = (settings.size, settings.size, 3)
    backbone = make(weights=None, include_top=False, input_shape=shape, pooling="avg")
    head = keras.layers.Dense(2, dtype="float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if settings.work == "precompute":
        model = keras.Sequential([keras.Input(backbone.output.shape[1:]), head])
        model.compile(keras.optimizers.AdamW(1e-4), loss, metrics=["accuracy"])
        features = np.zeros((settings.photos, backbone.output.shape[-1]), np.float32)
        fit = {"batch_size": settings.batch, "epochs": 5, "verbose": 0}
        return lambda: (model.fit(features, np.arange(settings.photos) % 2, **fit), 5 * settings.photos)[1]
    model = keras.Model(inputs, head(backbone(x)))
    model.compile(keras.optimizers.AdamW(1e-4), loss, metrics=["accuracy"])
    batches = loader(settings, shuffle=settings.work == "fit")
    work = model.fit if settings.work == "fit" else model.predict
    return lambda: (work(batches, verbose=0), settings.photos)[1]


def only(settings: SimpleNamespace, *works: str) -> None:
    """Say that a contestant has no part in other work."""
    if settings.work not in works:
        raise harness.NotHere(f"has no {settings.work}")


if __name__ == "__main__":
    harness.main("What users run", unit="photo", settings=DEFAULTS)
