"""Photos to batches: kclf beside fastai, and beside Pillow with torch's own DataLoader.

Two races. `augment`: decode, presize to 460, augment to 224 (random resized crop, flip, rotation, zoom, warp,
light), the whole way of fastai's `Resize(460)` + `aug_transforms(size=224, min_scale=.75)`. `presize`: decode
and presize to 460 alone. A round is one epoch of the photos.

    .venv/bin/python tests/benchmarks/loader.py --only augment --peers VENV --set folder=PHOTOS
    .venv/bin/python tests/benchmarks/loader.py --only presize --set folder=PHOTOS
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import harness

PRESIZE, SIZE = 460, 224
SETTINGS = {
    "folder": str(harness.ROOT.parent / "shared" / "data" / "dogscats"),
    "images": 256,
    "batch_size": 64,
    "workers": 2,
}


def sample(settings: SimpleNamespace) -> list[str]:
    """The same photos, in the same order, for all contestants."""
    photos = sorted(str(path) for path in Path(settings.folder).rglob("*.jpg"))
    return random.Random(0).sample(photos, min(settings.images, len(photos)))


def kclf_loader(settings: SimpleNamespace) -> Iterator:
    from kclf.data import ImageDataset

    return ImageDataset(
        sample(settings),
        presize=PRESIZE,
        batch_size=settings.batch_size,
        num_threads=settings.workers,
        shuffle=True,
        random_crop=True,
    )


def cached_loader(settings: SimpleNamespace) -> Iterator:
    from kclf.data.presized import cached

    loader = kclf_loader(settings)
    folder = os.path.join(tempfile.gettempdir(), "kclf-benchmark-cache")
    return loader.replace(images=cached(loader.paths, PRESIZE, folder, settings.workers))


def augmented(loader: Iterator) -> harness.Round:
    from kclf.layers import aug_transforms

    augmentation = aug_transforms(SIZE, min_scale=0.75)
    return lambda: sum(len(augmentation(batch[0], training=True)) for batch in loader)


def fastai_loader(settings: SimpleNamespace, workers: int) -> harness.Round:
    from fastai.vision.all import DataBlock, ImageBlock, Resize, aug_transforms

    photos = sample(settings)
    block = DataBlock(
        blocks=[ImageBlock],
        get_items=lambda _: [Path(photo) for photo in photos],
        splitter=lambda items: (list(range(len(items))), []),
        item_tfms=Resize(PRESIZE),
        batch_tfms=aug_transforms(size=SIZE, min_scale=0.75),
    )
    loader = block.dataloaders(
        ".", bs=settings.batch_size, num_workers=workers, device="cpu", drop_last=False
    ).train
    return lambda: sum(len(batch[0]) for batch in loader)


@harness.contestant("augment: fastai, no workers", peer=True, reference=True)
def fastai_alone(settings: SimpleNamespace) -> harness.Round:
    return fastai_loader(settings, 0)


@harness.contestant("augment: fastai, 2 workers", peer=True)
def fastai_workers(settings: SimpleNamespace) -> harness.Round:
    return fastai_loader(settings, settings.workers)


@harness.contestant("augment: kclf")
def kclf_augment(settings: SimpleNamespace) -> harness.Round:
    return augmented(kclf_loader(settings))


@harness.contestant("augment: kclf from its cache")
def kclf_cache(settings: SimpleNamespace) -> harness.Round:
    return augmented(cached_loader(settings))


@harness.contestant("presize: Pillow + DataLoader, 2 workers", reference=True)
def pillow(settings: SimpleNamespace) -> harness.Round:
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    class Photos(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.photos = sample(settings)

        def __len__(self) -> int:
            return len(self.photos)

        def __getitem__(self, index: int) -> np.ndarray:
            image = ImageOps.exif_transpose(Image.open(self.photos[index])).convert("RGB")
            side = min(image.size)
            left, top = (random.randint(0, length - side) for length in image.size)
            box = (left, top, left + side, top + side)
            return np.array(image.resize((PRESIZE, PRESIZE), Image.Resampling.BILINEAR, box=box))

    loader = torch.utils.data.DataLoader(
        Photos(), settings.batch_size, shuffle=True, num_workers=settings.workers, persistent_workers=True
    )
    return lambda: sum(len(batch) for batch in loader)


@harness.contestant("presize: kclf")
def kclf_presize(settings: SimpleNamespace) -> harness.Round:
    loader = kclf_loader(settings)
    return lambda: sum(len(batch[0]) for batch in loader)


@harness.contestant("presize: kclf from its cache")
def kclf_presized(settings: SimpleNamespace) -> harness.Round:
    loader = cached_loader(settings)
    return lambda: sum(len(batch[0]) for batch in loader)


if __name__ == "__main__":
    harness.main("Photos to batches", unit="image", settings=SETTINGS)
