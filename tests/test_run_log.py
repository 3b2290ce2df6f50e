"""A run told to TensorBoard and a CSV file as it goes, and runs side by side."""

from __future__ import annotations

import csv
import json

import keras
import numpy as np
import pytest

import kclf
from kclf.callbacks.run_log import LOG_CSV, LOG_TENSORBOARD, RunLog, open_logs
from kclf.errors import DataError
from kclf.optimizers import LayerGroupOptimizer
from tests.test_cli import SMALL, photos, read_csv, run  # noqa: F401 - a fixture


def fitted(folder, names, fits=2):
    """A tiny model that was fitted twice, as a run with two stages is."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)]
    )
    optimizer = LayerGroupOptimizer(
        keras.optimizers.SGD(0.1), [[model.layers[0]], [model.layers[1]]], [0.1, 1.0]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(24, 4)).astype("float32"), draw.integers(0, 2, 24)
    log = RunLog(open_logs(names, folder, {"backbone": "none", "seed": 3}), num_images=24)
    for _ in range(fits):
        model.fit(x, y, batch_size=8, epochs=2, validation_data=(x, y), callbacks=[log], verbose=0)
    return log


def test_tensorboard_s_event_file_holds_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = fitted(tmp_path, ["tensorboard"])
    matrix = kclf.Interpretation(kclf.Predictions(np.eye(2), np.array([0, 1]), class_names=["a", "b"]))
    log.finish({"accuracy": 0.75}, {"confusion matrix": matrix.plot_confusion_matrix().figure_})

    events = EventAccumulator(str(tmp_path / LOG_TENSORBOARD))
    events.Reload()
    tags = events.Tags()
    assert {
        "train/loss",
        "valid/loss",
        "train/accuracy",
        "train/images_per_second",
        "train/memory_mb",
    } <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("valid/loss")] == [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("batch/learning_rate_1")] == list(range(12))
    rates = [events.Scalars(f"batch/learning_rate_{group}")[0].value for group in (0, 1)]
    assert rates == pytest.approx([0.01, 0.1])
    assert events.Scalars("run/accuracy")[0].value == 0.75
    assert events.Scalars("train/memory_mb")[0].value > 10
    assert tags["images"] == ["confusion matrix"]
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| backbone | none |" in text


def test_the_csv_file_goes_on_through_the_fits_of_a_run(tmp_path):
    fitted(tmp_path, ["csv"])
    rows = list(csv.DictReader((tmp_path / LOG_CSV).read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[0]["learning_rate_0"]) == pytest.approx(0.01)
    assert float(rows[0]["images_per_second"]) > 0
    assert float(rows[3]["val_loss"]) < float(rows[0]["val_loss"])


def test_a_log_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(DataError, match="pip install wandb"):
        open_logs(["wandb"], tmp_path, {})


def test_a_run_is_told_to_its_logs_and_repeated_by_one_line(photos, tmp_path):  # noqa: F811
    pytest.importorskip("tensorboard")
    first, second = tmp_path / "runs" / "first", tmp_path / "runs" / "second"
    logs = ["--log", "csv,tensorboard"]
    assert run("train", photos, *SMALL, *logs, "--out", first) == 0
    assert len(read_csv(first / LOG_CSV)) == 2
    assert list((first / LOG_TENSORBOARD).iterdir())

    assert run("train", "--repeat", first, "--out", second) == 0
    settings = [json.loads((place / "settings.json").read_text())["settings"] for place in (first, second)]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {"out"}
    assert (first / "predictions.csv").read_bytes() == (second / "predictions.csv").read_bytes()
    assert run("train", "--repeat", first) == 2  # needs another --out
    assert run("train", "--repeat", first, "--out", second, "--seed", 3) == 2


# ---- kclf runs ------------------------------------------------------------


def write_run(folder, right, task="single_label", **settings):
    """What `kclf runs` reads of a run: settings and predictions of 40 photos, so many of them right."""
    folder.mkdir(parents=True)
    described = {
        "settings": {"out": str(folder)} | settings,
        "data": {"task": task},
        "versions": {"kclf": "1"},
    }
    (folder / "settings.json").write_text(json.dumps(described))
    labels = np.arange(40) % 2
    given = np.where(np.arange(40) < right, labels, 1 - labels)
    paths = np.array([f"{number}.jpg" for number in range(40)])
    if task == "regression":
        predictions = kclf.Predictions(given[:, None] + 0.5, labels[:, None] * 1.0, paths, ["age"], task)
    elif task == "multi_label":
        rows = np.eye(2)[given] * 0.8 + 0.1
        predictions = kclf.Predictions(rows, np.eye(2)[labels], paths, ["cat", "dog"], task)
    else:
        predictions = kclf.Predictions(np.eye(2)[given] * 0.8 + 0.1, labels, paths, ["cat", "dog"])
    predictions.to_csv(folder / "predictions.csv")


def test_runs_are_compared_with_the_best(tmp_path, capsys):
    write_run(tmp_path / "small", 38, backbone="A", seed=1)
    write_run(tmp_path / "deep" / "large", 39, backbone="B", seed=1)
    write_run(tmp_path / "poor", 20, backbone="A", seed=1)
    assert run("runs", tmp_path, "--json") == 0
    best, next_best, worst = json.loads(capsys.readouterr().out)
    assert (best["run"], best["accuracy"], best["backbone"]) == ("deep/large", 0.975, "B")
    assert best["from"] < 0.975 < best["to"]
    assert (next_best["run"], next_best["p"]) == ("small", 1.0)
    assert worst["p"] < 0.001
    assert "seed" not in worst
    assert run("runs", tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["run", "photos", "accuracy"]
    assert run("runs", tmp_path / "small", "--json") == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == ["small"]


@pytest.mark.parametrize(("task", "name"), [("regression", "mean error"), ("multi_label", "accuracy")])
def test_runs_of_other_tasks_have_their_own_figures(tmp_path, capsys, task, name):
    write_run(tmp_path / "one", 40, task)
    write_run(tmp_path / "two", 30, task)
    assert run("runs", tmp_path, "--json") == 0
    best, other = json.loads(capsys.readouterr().out)
    assert (best["run"], best[name]) == ("one", 0.5 if task == "regression" else 1.0)
    assert other[name] == 0.75 if task == "multi_label" else other[name] > 0.5


def test_a_folder_without_runs_says_so(tmp_path, capsys):
    assert run("runs", tmp_path) == 2
    assert "no finished run" in capsys.readouterr().err
