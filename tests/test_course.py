"""The scripts of the course, as its notes have them but for imports and the place of the photos."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kclf.fastai
from kclf.data import ImageData
from kclf.data.labels import regex_label
from kclf.fastai import *  # noqa: F403
from kclf.fastai import (
    ClassificationInterpretation,
    ConvLearner,
    ImageClassifierData,
    accuracy,
    aug_transforms,
    cnn_learner,
    error_rate,
    get_cv_idxs,
    log_loss,
    tfms_from_model,
    transforms_side_on,
    transforms_top_down,
)

sz = 32
arch = "MobileNetV2"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Random weights, a small head and quiet, in a folder of our own; the scripts stay as they are."""
    make = kclf.fastai.Learner
    few = {"weights": None, "hidden": (16,), "verbose": False}
    monkeypatch.setattr(kclf.fastai, "Learner", lambda *a, **k: make(*a, **(few | k)))
    monkeypatch.chdir(tmp_path)


def picture(name: str, number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 128, (40, 48, 3), dtype=np.uint8)
    pixels[..., hash_of(name)] += 100
    return Image.fromarray(pixels)


def hash_of(name: str) -> int:
    return sum(name.encode()) % 3


@pytest.fixture
def dogscats_folder(tmp_path):
    for split, count in (("train", 12), ("valid", 4)):
        for name in ("cats", "dogs"):
            folder = tmp_path / "dogscats" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(name, number).save(folder / f"{name[:3]}.{number}.jpg")
    return tmp_path / "dogscats"


@pytest.mark.filterwarnings("ignore:The augmentation has no effect")
def test_lesson_1_eight_steps(small, dogscats_folder):
    PATH = dogscats_folder
    tfms = tfms_from_model(arch, sz, aug_tfms=transforms_side_on, max_zoom=1.1)
    data = ImageClassifierData.from_paths(PATH, bs=64, tfms=tfms)
    learn = ConvLearner.pretrained(arch, data, precompute=True)
    learn.lr_find(num_it=6)
    learn.sched.plot_lr()
    learn.sched.plot()
    learn.fit(1e-2, 1)

    learn.precompute = False
    learn.fit(1e-2, 3, cycle_len=1)
    learn.sched.plot_lr()
    learn.save("224_lastlayer")
    learn.load("224_lastlayer")

    learn.unfreeze()
    lr = np.array([1e-4, 1e-3, 1e-2])
    learn.fit(lr, 3, cycle_len=1, cycle_mult=2)
    assert len(learn.recorder.losses) == (1 + 3 + 7) * len(data.train)

    log_preds, y = learn.TTA()
    probs = np.exp(log_preds)
    assert 0 <= accuracy(log_preds, y) <= 1
    assert log_loss(y, probs) > 0
    log_preds = learn.predict()
    preds = np.argmax(log_preds, axis=1)
    probs = np.exp(log_preds[:, 1])
    assert preds.tolist() == (probs > 0.5).astype(int).tolist()


@pytest.mark.filterwarnings("ignore:The augmentation has no effect")
def test_lesson_2_dog_breeds(small, tmp_path):
    PATH = str(tmp_path / "dogbreed")
    for folder in ("train", "test"):
        (tmp_path / "dogbreed" / folder).mkdir(parents=True)
    breeds = [f"breed_{number % 3}" for number in range(30)]
    with (tmp_path / "dogbreed" / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "breed"], *([f"{n:04}", b] for n, b in enumerate(breeds))])
    for number, breed in enumerate(breeds):
        picture(breed, number).save(tmp_path / "dogbreed" / "train" / f"{number:04}.jpg")
    for number in range(3):
        picture("breed_0", 90 + number).save(tmp_path / "dogbreed" / "test" / f"t{number}.jpg")
    label_csv = f"{PATH}/labels.csv"
    n = len(Path(label_csv).read_text().splitlines()) - 1
    val_idxs = get_cv_idxs(n)
    bs = 64

    def get_data(sz, bs):
        tfms = tfms_from_model(arch, sz, aug_tfms=transforms_side_on, max_zoom=1.1)
        return ImageClassifierData.from_csv(
            PATH,
            "train",
            f"{PATH}/labels.csv",
            test_name="test",
            val_idxs=val_idxs,
            suffix=".jpg",
            tfms=tfms,
            bs=bs,
        )

    data = get_data(32, bs)
    learn = ConvLearner.pretrained(arch, data, precompute=True, ps=0.5)
    learn.fit(1e-2, 2)
    learn.precompute = False
    learn.fit(1e-2, 2, cycle_len=1)
    learn.set_data(get_data(48, bs))
    learn.freeze()
    learn.fit(1e-2, 1, cycle_len=1)
    learn.fit(1e-2, 1, cycle_len=1, cycle_mult=2)
    log_preds, y = learn.TTA()
    assert log_preds.shape == (n // 5, 3)
    assert log_loss(y, np.exp(log_preds)) > 0
    assert np.exp(learn.predict(is_test=True)).sum(axis=1) == pytest.approx(np.ones(3), rel=1e-5)
    learn.submission("subm.csv")
    assert (tmp_path / "subm.csv").read_text().splitlines()[0] == "id,breed_0,breed_1,breed_2"


def test_chapter_5_pets(small, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(30):
        name = ("great_pyrenees", "beagle", "Birman")[number % 3]
        picture(name, number).save(images / f"{name}_{number}.jpg")
    dls = ImageData.from_files(images, regex_label(r"(.+)_\d+.jpg$"), presize=46, size=sz, batch_size=64)

    learn = cnn_learner(dls, arch, metrics=error_rate, augmentation=aug_transforms(min_scale=0.75))
    learn.fine_tune(2)
    x, y = next(iter(dls.valid))
    preds, targets = learn.get_preds(dl=[(x, y)])
    assert preds[0].sum() == pytest.approx(1, rel=1e-5)
    assert targets.tolist() == y.tolist()

    interp = ClassificationInterpretation.from_learner(learn)
    interp.plot_confusion_matrix(figsize=(12, 12), dpi=60)
    interp.most_confused(min_val=5)

    learn = cnn_learner(dls, arch, metrics=error_rate)
    lr_min, lr_steep = learn.lr_find(num_it=6)
    print(f"Minimum/10: {lr_min:.2e}, steepest point: {lr_steep:.2e}")
    learn.fit_one_cycle(1, 3e-3)
    learn.unfreeze()
    learn.fit_one_cycle(2, lr_max=slice(1e-6, 1e-4))
    learn.recorder.plot_loss()
    assert learn.model.optimizer.num_groups == 3

    learn = cnn_learner(dls, arch, metrics=error_rate).to_bf16()
    learn.fine_tune(1, freeze_epochs=1)
    assert "val_error_rate" in learn.recorder.epochs[-1]


def test_transforms_carry_the_augmentation_to_the_learner(small, dogscats_folder):
    tfms = tfms_from_model(arch, sz, transforms_top_down, max_zoom=1.2)
    learn = ConvLearner.pretrained(arch, ImageClassifierData.from_paths(dogscats_folder, 64, tfms))
    assert learn.model.augmentation.max_zoom == 1.2
    assert learn.model.size == sz
    plain = ImageClassifierData.from_paths(dogscats_folder, 64, tfms_from_model(arch, sz))
    assert not kclf.fastai.cnn_learner(plain, arch).model.augmentation.flip
