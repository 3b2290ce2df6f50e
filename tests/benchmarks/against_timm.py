"""Steps and predictions of backbones beside timm's or torchvision's: CPU time, in turns within one process.

Both run with the same allocator, since it is one process: kclf's setting for glibc holds for the other too.
Both train by torch's fused SGD; a step is the one that `fit` runs.

    python tests/benchmarks/against_timm.py ViTS16 ConvNeXtTiny --rounds 7
    python tests/benchmarks/against_timm.py ResNet50 MobileNetV2 EfficientNetB0 --torchvision --side 128
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import harness
import keras
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
TORCHVISION = {
    "ResNet50": "resnet50",
    "EfficientNetB0": "efficientnet_b0",
    "MobileNetV2": "mobilenet_v2",
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
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    model.compile(kclf.LayerGroupOptimizer(optimizer, model, 1.0), loss)
    return kclf.accelerate(model)


def peer(name: str, library: str) -> torch.nn.Module:
    """The same network of another library, in channels_last memory."""
    if library == "torchvision":
        import torchvision

        model = getattr(torchvision.models, TORCHVISION[name])(num_classes=CLASSES)
    else:
        import timm

        word, options, _ = CASES[name]
        model = timm.create_model(word, num_classes=CLASSES, **options)
    return model.to(memory_format=torch.channels_last)


def contestants(name: str, batch: int, side: int, library: str):
    """For kclf and the peer: a function that makes one training step, and one that predicts one batch."""
    images, labels = torch.rand(batch, side, side, 3), torch.randint(0, CLASSES, (batch,))
    ours = classifier(name, side)
    theirs = peer(name, library)
    optimizer = torch.optim.SGD(theirs.parameters(), 1e-4, momentum=0.9, fused=True)
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

    ours.train_on_batch(images, labels)  # builds all there is
    step_of_fit = ours.train_function
    return {"train": (lambda: step_of_fit([(images, labels)]), step), "predict": (predict_ours, predict)}


def ratio(ours, theirs, rounds: int) -> tuple[float, float, list[float]]:
    """CPU seconds of each, medians, and the quartiles of their ratios round by round."""
    times = []
    for function in (ours, theirs):
        function()
        function()
    for _ in range(rounds):
        pair = []
        for function in (ours, theirs):
            start = time.process_time()
            function()
            pair.append(time.process_time() - start)
        times.append(pair)
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return first, second, statistics.quantiles([a / b for a, b in times], n=4, method="inclusive")


def main() -> None:
    """Print one line for each backbone and kind of work."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("names", nargs="*", default=list(CASES))
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--side", type=int, help="pixels; without, what each is trained at")
    arguments.add_argument("--torchvision", action="store_true", help="beside it, and not timm")
    arguments.add_argument("--json", type=Path, help="append the record to this file, as a line of JSON")
    options = arguments.parse_args()
    library, figures = "torchvision" if options.torchvision else "timm", {}
    for name in options.names:
        side = options.side or CASES[name][2]
        figures[name] = []
        for kind, pair in contestants(name, options.batch, side, library).items():
            ours, theirs, quartiles = ratio(*pair, options.rounds)
            low, share, high = (f"{one:.2f}".removeprefix("0") for one in quartiles)
            figures[name].append(f"{share} ({low}-{high})")
            print(f"{name:<18}{kind:<8}{ours:>7.3f} s {theirs:>7.3f} s   {figures[name][-1]}", flush=True)
    settings = {"batch": options.batch, "side": options.side or "default"}
    harness.write_figures(options, f"Beside {library}", figures, heads=("training", "prediction"), **settings)


if __name__ == "__main__":
    main()
