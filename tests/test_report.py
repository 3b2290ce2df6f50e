"""The report as a file: what it holds, what it leaves out, what it refuses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kclf.checks import Finding, Findings
from kclf.errors import DataError, FileFormatError
from kclf.interpret import Interpretation
from kclf.models import ImageClassifier
from kclf.prediction.predictions import Predictions
from kclf.report import ReportInputs, read_run, write_ledger_page, write_report
from kclf.report.charts import Curve, line_chart
from tests.conftest import with_random_logits


def write_csv(path: Path, *rows: list) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run of two epochs with four validation photos, one of them gone."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    photos = [str(folder / f"{number}.png") for number in range(4)]
    for photo in photos[:3]:
        Image.new("RGB", (50, 40), "navy").save(photo)
    write_csv(
        folder / "predictions.csv",
        ["path", "label", "predicted", "confidence", "cat", "dog"],
        [photos[0], "cat", "cat", 0.9, 0.9, 0.1],
        [photos[1], "cat", "dog", 0.8, 0.2, 0.8],
        [photos[2], "dog", "dog", 0.7, 0.3, 0.7],
        [photos[3], "dog", "dog", 0.6, 0.4, 0.6],
    )
    write_csv(
        folder / "history.csv",
        ["epoch", "stage", "train_loss", "valid_loss", "accuracy", "time"],
        [0, "frozen", 0.7, 0.6, 0.5, 61.0],
        [1, "unfrozen", 0.5, "", 0.75, 59.0],
    )
    write_csv(
        folder / "batches.csv",
        ["step", "learning_rate", "momentum", "smoothed_loss"],
        [0, 0.1, 0.9, 1],
        [1, 0.2, 0.8, 0.9],
    )
    (folder / "settings.json").write_text(
        json.dumps({"backbone": "ResNet50", "versions": {"keras": "3.15.1"}})
    )
    return folder


def page(inputs, tmp_path: Path) -> str:
    return write_report(inputs, tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("recipe", "shown", "hidden"),
    [("lp-ft", "effort", "freeze epochs"), ("course", "freeze epochs", "effort"), (None, "effort", "none")],
)
def test_settings_of_the_other_recipe_are_left_out(run, tmp_path, recipe, shown, hidden):
    settings = {"effort": "quick", "freeze_epochs": 1, "batch_size": 0} | (
        {"recipe": recipe} if recipe else {}
    )
    (run / "settings.json").write_text(json.dumps({"settings": settings, "versions": {}}))
    rows = set(re.findall(r'<th scope="row">(.*?)</th>', page(read_run(run), tmp_path)))
    assert shown in rows
    assert hidden not in rows
    assert ("batch size" in rows) == (recipe is None)


def test_a_run_is_read_as_written(run):
    inputs = read_run(run)
    assert inputs.title == "dogs"
    assert inputs.interpretation.predicted.tolist() == [0, 1, 1, 1]
    assert inputs.history["stage"].tolist() == ["frozen", "unfrozen"]
    assert np.isnan(inputs.history["valid_loss"][1])
    assert inputs.settings["versions"] == {"keras": "3.15.1"}


def test_the_page_shows_the_run(run, tmp_path):
    text = page(run, tmp_path)
    for shown in (
        "75.0%",
        "2.0 min",
        "ResNet50",
        "versions keras",
        "Loss by epoch",
        "Learning rate",
        "no such file",
    ):
        assert shown in text
    assert text.count("data:image/jpeg") == 3


def test_heat_maps_come_from_the_classifier_of_the_run(run, tmp_path):
    model = with_random_logits(ImageClassifier("MobileNet_025", ["cat", "dog"], size=32, weights=None))
    model.save(run / "classifier.h5")
    assert page(run, tmp_path).count('class="heat"') == 3
    without = write_report(run, tmp_path / "plain.html", heat=False).read_text(encoding="utf-8")
    assert 'class="heat"' not in without


def test_the_page_names_no_other_file(run, tmp_path):
    text = page(run, tmp_path)
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert "url(" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize("missing", ["predictions.csv", "history.csv", "batches.csv", "settings.json"])
def test_a_missing_file_leaves_its_part_out(run, tmp_path, missing):
    (run / missing).unlink()
    text = page(run, tmp_path)
    assert ("75.0%" in text) == (missing != "predictions.csv")
    assert ("ResNet50" in text) == (missing != "settings.json")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"predictions\.csv"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("settings.json", "{", "no JSON"),
        ("history.csv", "epoch,accuracy\n1\n", "2 fields a row"),
        ("predictions.csv", "path,class\n", "and one a class"),
        ("predictions.csv", "path,label,predicted,confidence,cat\na.jpg,wolf,cat,1,1\n", "wolf"),
        ("predictions.csv", "path,label,predicted,confidence,cat\na.jpg,cat,cat,1,high\n", "high"),
    ],
)
def test_a_damaged_file_is_named(run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_run(run)
    assert name in str(caught.value)


def test_many_photos_stay_under_three_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    noisy = tmp_path / "noise.png"
    Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(noisy)
    probabilities = rng.dirichlet(np.ones(120), 2000).astype(np.float32)
    names = [f"a rather long name of a breed {number}" for number in range(120)]
    paths = np.array([str(noisy)] * 2000)
    answers = Interpretation(Predictions(probabilities, rng.integers(0, 120, 2000), paths, names))
    file = write_report(ReportInputs(interpretation=answers), tmp_path / "report.html")
    assert file.stat().st_size < 3_000_000


def test_predictions_without_files_have_no_pictures(tmp_path):
    answers = Interpretation(Predictions(np.array([[0.9, 0.1]]), np.array([1]), class_names=["cat", "dog"]))
    assert "data:image/jpeg" not in page(ReportInputs(interpretation=answers), tmp_path)


def test_a_ledger_page_shows_photo_and_advice(tmp_path):
    Image.new("RGB", (50, 40), "navy").save(tmp_path / "a.png")
    rows = [
        Finding("a.png", "label", 0.9, "looks like dog (0.97)", "cat", target="dog", folder=str(tmp_path))
    ]
    text = write_ledger_page(Findings(rows, ["uneven"], 9), tmp_path / "ledger.html").read_text(
        encoding="utf-8"
    )
    assert text.count("data:image/jpeg") == 1
    assert "looks like dog (0.97)" in text
    assert "9 photos looked at" in text
    assert "advice: " not in text


def test_advice_is_shown_where_there_is_some(tmp_path):
    rows = [Finding("a.png", "label", 0.9, "", "cat", advice="relabel", target="dog", folder=str(tmp_path))]
    text = write_ledger_page(Findings(rows), tmp_path / "ledger.html").read_text(encoding="utf-8")
    assert "advice: relabel to dog" in text


def test_a_chart_of_nothing_is_nothing():
    nothing = [Curve("loss", [0, 1], [np.nan, np.nan])]
    assert line_chart(nothing, title="Loss", x_label="epoch", y_label="loss") == ""


@pytest.mark.parametrize("log_x", [False, True])
def test_a_chart_stays_inside_its_frame(log_x):
    x, y = np.geomspace(1e-7, 10, 1000), np.sin(np.arange(1000))
    chart = line_chart([Curve("loss", x, y)], title="t", x_label="x", y_label="y", log_x=log_x)
    points = np.array([pair.split(",") for pair in re.search(r'points="([^"]*)"', chart)[1].split()], float)
    assert points.min() >= 0
    assert points[:, 0].max() <= 460
    assert points[:, 1].max() <= 240
    assert len(points) <= 300


def test_a_chart_of_one_value_can_be_drawn():
    chart = line_chart([Curve("accuracy", [1], [0.5])], title="t", x_label="x", y_label="y")
    assert "nan" not in chart
    assert "<circle" in chart
