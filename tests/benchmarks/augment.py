"""Training augmentation of presized photos, 460 -> 224: kclf against fastai, torchvision and Keras.

    .venv/bin/python tests/benchmarks/augment.py --peers PEERS --threads 2

Every contestant gets the same uint8 batch and gives float images of 224 px. The Keras layers get fewer
images a round, since they are slow; what is reported is the time of one image.
"""

from __future__ import annotations

import harness

SETTINGS = {"batch": 64, "keras_batch": 4, "source": 460, "size": 224, "min_scale": 0.75, "device": "cpu"}


def pictures(settings, count=None):
    """Uint8 (batch, source, source, 3) of smooth shapes with some noise."""
    import torch

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count or settings.batch, 3, 16, 16, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=settings.source, mode="bicubic")
    noise = torch.randn(smooth.shape, generator=generator) * 0.02
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def kclf_layer(settings, **options):
    import kclf.layers

    images = pictures(settings).to(settings.device)
    layer = kclf.layers.aug_transforms(settings.size, min_scale=settings.min_scale, seed=0, **options)

    def one_round():
        layer(images, training=True)
        harness.synchronize()
        return settings.batch

    return one_round


@harness.contestant("kclf aug_transforms")
def kclf_default(settings):
    return kclf_layer(settings)


@harness.contestant("kclf aug_transforms, no lighting")
def kclf_geometry(settings):
    return kclf_layer(settings, max_lighting=0)


@harness.contestant("kclf aug_transforms, bicubic")
def kclf_bicubic(settings):
    return kclf_layer(settings, interpolation="bicubic")


@harness.contestant("fastai aug_transforms", peer=True, reference=True)
def fastai(settings):
    from fastai.vision.all import IntToFloatTensor, Pipeline, TensorImage, aug_transforms

    images = TensorImage(pictures(settings).permute(0, 3, 1, 2).contiguous().to(settings.device))
    transforms = [IntToFloatTensor(), *aug_transforms(size=settings.size, min_scale=settings.min_scale)]
    chain = Pipeline(transforms, split_idx=0)

    def one_round():
        chain(images)
        harness.synchronize()
        return settings.batch

    return one_round


@harness.contestant("torchvision v2, image by image", peer=True)
def torchvision(settings):
    import torch
    from torchvision.transforms import v2

    images = pictures(settings).permute(0, 3, 1, 2).contiguous().to(settings.device)
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(settings.size, scale=(settings.min_scale, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply(
                [v2.RandomAffine(10, scale=(1, 1.1), interpolation=v2.InterpolationMode.BILINEAR)], 0.75
            ),
            v2.RandomPerspective(0.2, 0.75),
            v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.2)], 0.75),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def one_round():
        torch.stack([chain(image) for image in images])
        harness.synchronize()
        return settings.batch

    return one_round


@harness.contestant("Keras layers")
def keras_layers(settings):
    import os

    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    images = pictures(settings, settings.keras_batch).float().to(settings.device)
    chain = keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomRotation(10 / 360),
            keras.layers.RandomZoom((-0.1, 0)),
            keras.layers.RandomPerspective(0.75, 0.2),
            keras.layers.RandomCrop(int(settings.source * 0.9), int(settings.source * 0.9)),
            keras.layers.Resizing(settings.size, settings.size, antialias=True),
            keras.layers.RandomBrightness(0.2),
            keras.layers.RandomContrast(0.2),
        ]
    )

    def one_round():
        chain(images, training=True)
        harness.synchronize()
        return settings.keras_batch

    return one_round


if __name__ == "__main__":
    harness.main("Augmentation 460 -> 224", unit="image", settings=SETTINGS)
