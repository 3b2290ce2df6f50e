"""Steps and predictions of backbones beside timm's, in turns within one process, by its CPU time.

Both run with the same allocator, since it is one process: kclf's setting for glibc holds for timm too.

    python tests/benchmarks/against_timm.py ViTS16 ConvNeXtTiny --rounds 7
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import timm
import torch

import kclf
from kclf.backbones import build_backbone

# name: (timm's, options, side in pixels)
CASES = {
    "ViTS16": ("vit_small_patch16_224", {}, 224),
    "DINOv2S14": ("vit_small_patch14_dinov2", {"img_size": 224}, 224),
    "ViTB16": ("vit_base_patch16_224", {}, 224),
    "ConvNeXtTiny": ("convnext_tiny", {}, 224),
    "ConvNeXtTiny22k": ("convnext_tiny", {}, 224),
    "ConvNeXtV2Atto": ("convnextv2_atto", {}, 224),
    "EfficientNetV2B0": ("tf_efficientnetv2_b0", {}, 224),
    "MobileNetV3Large": ("tf_mobilenetv3_large_100", {}, 224),
    "ResNet50": ("resnet50", {}, 224),
    "EfficientNetB0": ("tf_efficientnet_b0", {}, 224),
    "MobileNetV2": ("mobilenetv2_100", {}, 224),
}
CLASSES = 10


def classifier(name: str, side: int) -> keras.Model:
    """The backbone and one dense layer, as timm has them."""
    backbone = build_backbone(name, weights=None, input_shape=(side, side, 3))
    x = backbone.output
    if len(x.shape) == 4:
        x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(backbone.input, keras.layers.Dense(CLASSES)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), loss)
    return kclf.accelerate(model)


def contestants(name: str, batch: int):
    """For kclf and timm: a function that makes one training step, and one that predicts one batch."""
    word, options, side = CASES[name]
    images, labels = torch.rand(batch, side, side, 3), torch.randint(0, CLASSES, (batch,))
    ours = classifier(name, side)
    theirs = timm.create_model(word, num_classes=CLASSES, **options).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(theirs.parameters(), 1e-4, momentum=0.9)
    planes = images.permute(0, 3, 1, 2)

    def step():
        theirs.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(planes), labels).backward()
        optimizer.step()

    @torch.no_grad()
    def predict():
        theirs.eval()
        theirs(planes)

    @torch.no_grad()
    def predict_ours():
        ours(images, training=False)

    return {"train": (lambda: ours.train_on_batch(images, labels), step), "predict": (predict_ours, predict)}


def ratio(ours, theirs, rounds: int) -> tuple[float, float, float]:
    """CPU seconds of each, medians, and the median of their ratios round by round."""
    times = []
    for function in (ours, theirs):
        function()
    for _ in range(rounds):
        pair = []
        for function in (ours, theirs):
            start = time.process_time()
            function()
            pair.append(time.process_time() - start)
        times.append(pair)
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return first, second, statistics.median(a / b for a, b in times)


def main() -> None:
    """Print one line for each backbone and kind of work."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*", default=list(CASES))
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--batch", type=int, default=8)
    options = arguments.parse_args()
    for name in options.names:
        for kind, pair in contestants(name, options.batch).items():
            ours, theirs, share = ratio(*pair, options.rounds)
            print(
                f"{name:<18}{kind:<8}{1e3 * ours:>7.0f} ms {1e3 * theirs:>7.0f} ms {share:>6.3f}", flush=True
            )


if __name__ == "__main__":
    main()
