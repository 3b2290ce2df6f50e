"""Is this machine fit to train, how fast is each stage, and does training itself work here?"""

from __future__ import annotations

import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from PIL import Image

from .._core.arguments import in_open
from .._core.devices import send
from .._core.sizes import Size
from ..callbacks import find_learning_rate
from ..data import ImageData
from ..layers import aug_transforms
from ..models import ImageClassifier

PACKAGES = ("kclf", "keras", "torch", "numpy", "pillow", "scikit-learn", "h5py")
MADE_UP_PHOTOS, MADE_UP_SIZE = 64, (500, 375)  # when no folder is given: the usual size of the course's data
OVERFIT_STEPS, OVERFIT_PHOTOS, OVERFIT_TO = 60, 8, 0.1  # the loss must fall to a tenth on one small batch
RANGE_TEST_STEPS = 30
SANE_RATES = (1e-6, 1.0)  # where a range test with Adam finds its rate on any usual data


@dataclass(frozen=True)
class Check:
    """One thing that must work.

    Args:
        name: what was tried.
        passed: whether it worked.
        detail: what was seen.
    """

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"[{'ok' if self.passed else 'NOT OK'}] {self.name}: {self.detail}"


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Args:
        versions: package or part of the machine -> version or name.
        trials: things that must work.
        stages: "decode", "augment", "step (head)" and "step (all)" -> photos a second, measured here, now.
    """

    versions: Mapping[str, str]
    trials: list[Check] = field(default_factory=list)
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether everything that must work does."""
        return all(trial.passed for trial in self.trials)

    @property
    def bottleneck(self) -> str | None:
        """The stage that holds training up; None where nothing was measured.

        Photos are decoded beside the rest, while augmentation and step take turns on the device.
        """
        if not self.stages:
            return None
        decode, augment, step = (self.stages[name] for name in ADVICE)
        if decode < 1 / (1 / augment + 1 / step):
            return "decode"
        return "augment" if augment < step else "step (all)"

    def __str__(self) -> str:
        width = max(map(len, self.versions), default=0)
        lines = [f"{name:{width}}  {value}" for name, value in self.versions.items()]
        lines += ["", *(f"{name:12} {speed:8,.0f} photos/s" for name, speed in self.stages.items())]
        if self.bottleneck:
            lines.append(f"bottleneck: {ADVICE[self.bottleneck]}")
        return "\n".join([*lines, "", *map(str, self.trials)]).strip()


ADVICE = {
    "decode": "decode; data.resize(), which decodes once, smaller files or more cores would help",
    "augment": "augment; a smaller size or fewer transforms would help",
    "step (all)": "the training step; a GPU, a smaller backbone or size, or mixed precision would help",
}


def diagnose(
    folder: str | os.PathLike[str] | None = None,
    *,
    backbone: str = "EfficientNetLite0",
    size: Size = 224,
    batch_size: int = 32,
    seconds: float = 3.0,
    say: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Look at versions and devices, measure each stage of training, and try training itself.

    Args:
        folder: photos, with a folder a class; made-up photos, if None.
        backbone: a name of `backbone_names()`; random weights, since speed does not depend on them.
        size: of the photos, in pixels: the side of a square, or (height, width).
        batch_size: photos a step.
        seconds: how long to measure each stage.
        say: takes a line before each part, as all of them last a minute or so.

    Returns:
        The diagnosis; its text form is the report.
    """
    in_open("seconds", seconds, 0, math.inf)
    say("Trying whether learning works ...")
    with tempfile.TemporaryDirectory() as made_up:
        photos = Path(folder) if folder is not None else write_photos(made_up)
        data = ImageData.from_folder(photos, size=size, batch_size=batch_size, on_error="skip")
        batch = next(iter(data.train))
        trials = [
            _backend_trial(),
            _overfit_trial(small_classifier(data), batch),
            _range_test_trial(small_classifier(data), data),
        ]
        model = ImageClassifier(
            backbone, data.class_names, size=size, weights=None, augmentation=aug_transforms()
        )
        model.compile()
        say(f"Measuring {backbone}, {seconds:g} s or a few steps each:")
        stages = {}
        for name, speed in _stages(model, data, batch, seconds):
            say(f"  {name}")
            stages[name] = speed
        return Diagnosis(versions(), trials, stages)


def small_classifier(data: ImageData) -> ImageClassifier:
    """A classifier that learns from nothing within seconds: to try training, not to classify."""
    photos = keras.Input((None, None, 3))
    features = photos
    for filters, strides in ((16, 4), (32, 4)):
        features = keras.layers.Conv2D(filters, 5, strides, padding="same", use_bias=False)(features)
        features = keras.layers.BatchNormalization(momentum=0.9)(features)
        features = keras.layers.ReLU()(features)
    model = ImageClassifier(
        keras.Model(photos, features),
        data.class_names,
        size=data.size,
        normalization="tf",
        hidden=(),
        dropout=0.0,
        task=data.task,
    )
    model.unfreeze()
    model.compile(keras.optimizers.Adam(5e-3))
    return model


def versions() -> dict[str, str]:
    """Versions of Python and packages, and what the machine has to compute with."""
    found = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "backend": keras.backend.backend(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["cores"] = f"{os.cpu_count()}, {torch.get_num_threads()} threads of torch"
    found["device"] = _device()
    found["precision"] = keras.config.dtype_policy().name
    return found


def write_photos(folder: str | os.PathLike[str]) -> Path:
    """Write made-up photos of two classes, light and dark, as JPEG of the usual size; gives the folder."""
    draw = np.random.default_rng(0)
    width, height = MADE_UP_SIZE
    for number in range(MADE_UP_PHOTOS):
        name = ("dark", "light")[number % 2]
        coarse = draw.integers(0, 128, (height // 8, width // 8, 3), dtype=np.uint8) + 127 * (number % 2)
        place = Path(folder) / name / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse.astype(np.uint8)).resize(MADE_UP_SIZE).save(place, quality=90)
    return Path(folder)


def _device() -> str:
    if torch.cuda.is_available():
        gigabytes = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.cuda.get_device_name()}, {gigabytes:.0f} GiB"
    if torch.backends.mps.is_available():
        return "Apple GPU (MPS)"
    return f"CPU only ({platform.processor() or platform.machine()})"


def _backend_trial() -> Check:
    """What is loaded beside torch; with another backend kclf is not imported."""
    foreign = ", ".join(name for name in ("tensorflow", "jax") if name in sys.modules)
    return Check("backend", True, "keras runs on torch" + (f"; {foreign} is loaded too" if foreign else ""))


def _overfit_trial(model: ImageClassifier, batch: Any) -> Check:
    """What cannot learn eight photos by heart will learn nothing else."""
    photos, labels = (part[:OVERFIT_PHOTOS] for part in batch)
    seen = model.augmentation(send(photos), training=False)
    losses = []
    for _ in range(OVERFIT_STEPS + 1):
        model.reset_metrics()
        losses.append(float(model.train_on_batch(seen, labels, return_dict=True)["loss"]))
    fell = losses[-1] <= OVERFIT_TO * losses[0]
    detail = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {OVERFIT_STEPS} steps on {len(labels)} photos"
    return Check("overfit one batch", fell, detail)


def _range_test_trial(model: ImageClassifier, data: ImageData) -> Check:
    """The range test finds a usual rate and leaves the weights as they were."""
    before = [np.array(value) for value in model.get_weights()]
    test = find_learning_rate(model, data.train, num_steps=RANGE_TEST_STEPS, verbose=0)
    same = all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))
    rates = [rate for rate in (test.valley, test.slide, test.minimum, test.steep) if rate is not None]
    sane = any(SANE_RATES[0] <= rate <= SANE_RATES[1] for rate in rates)
    words = ", ".join(f"{rate:.1e}" for rate in rates) or "none"
    detail = f"rates {words}; weights {'unchanged' if same else 'CHANGED'}"
    return Check("range test", same and (sane or not rates), detail)


def _stages(
    model: ImageClassifier, data: ImageData, batch: Any, seconds: float
) -> Iterator[tuple[str, float]]:
    photos, labels = send(batch[0]), batch[1]
    batches = chain.from_iterable(repeat(data.train))
    yield "decode", _rate(lambda: len(next(batches)[1]), seconds)
    yield "augment", _rate(lambda: len(model.augmentation(photos, training=True)), seconds)
    seen = model.augmentation(photos, training=False)

    def step() -> int:
        model.train_on_batch(seen, labels)
        return len(labels)

    model.freeze()
    yield "step (head)", _rate(step, seconds)
    model.unfreeze()
    yield "step (all)", _rate(step, seconds)


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Photos a second, after one run that does not count."""
    work()
    _wait()
    start, photos = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        photos += work()
        _wait()
    return photos / (time.perf_counter() - start)


def _wait() -> None:
    """A GPU works on after the call returns; wait for it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
