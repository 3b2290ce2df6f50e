"""How the command's help reads at 80 columns, and what it says of other tools' words."""

from __future__ import annotations

import pytest
import typer

from kclf.cli.main import app, main
from kclf.cli.train import RunSettings
from kclf.cli.wording import ELSEWHERE, INSTEAD, choices, reworded
from kclf.data.files import image_files
from kclf.errors import DataError


def printed(capsys, *words) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    out = capsys.readouterr()
    return f"{stopped.value.code or 0} {out.out}{out.err}"


def commands() -> dict:
    return reworded(typer.main.get_command(app)).commands


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_fits_80_columns_and_breaks_no_word(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(capsys, name, "--help")
    assert max(map(len, text.splitlines()[1:])) <= 80
    words = set(text.replace(",", " ").replace(".", " ").split())
    assert not words & {"<bool>", "<str>", "<int>", "<float>"}
    kinds = [parameter.type_descriptor.annotation for parameter in commands()[name].params]
    assert {word for kind in kinds for word in choices(kind)} <= words


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("train photos --lr=3e-3", "There is no option --lr. Did you mean --learning-rate?"),
        ("train photos --epoch 2", "There is no option --epoch. Did you mean --epochs?"),
        ("train photos --device cuda", "CUDA_VISIBLE_DEVICES"),
        ("train photos --xyzzy 1", "There is no option --xyzzy. All options: kclf train --help"),
        ("predict a b -o c.csv", "There is no option -o. It prints: add > FILE"),
        ("predict a b --topk 3", "Did you mean --top?"),
        ("predict a b --csv c.csv", "it prints, and takes no file: add > c.csv"),
        ("similar a b --top 2", "Did you mean --count?"),
        ("train photos --epochs two", "--epochs: expected a whole number. Received: two."),
        ("train photos --minutes=20m", "--minutes: expected a number. Received: 20m."),
        ("train photos --effort fast", "expected one of 'quick', 'standard', 'best'. Received: fast."),
        ("predict a b --top 0", "--top: expected 1 or more. Received: 0."),
        ("trian photos", "No such command 'trian'. Did you mean 'train'?"),
        ("train photos --epochs", "requires an argument. All options: kclf train --help"),
        ("train photos --minutes= --epochs 2", "--minutes: expected a number. Received: nothing."),
        ("export a --format onnx", "There is no option --format. Did you mean --to?"),
        ("serve a --out x", "There is no option --out."),
        ("doctor --format json", "There is no option --format."),
        ("evaluate photos", "Missing argument 'folder'. All options: kclf evaluate --help"),
    ],
)
def test_wrong_words_are_answered_in_one_line(words, answer, capsys):
    said = printed(capsys, *words.split())
    assert said.startswith("2 kclf: ")
    assert answer in said
    assert len(said.splitlines()) == 1


def test_the_options_that_are_named_exist():
    known = {option for one in commands().values() for parameter in one.params for option in parameter.opts}
    assert set(ELSEWHERE.values()) <= known
    train = {option for parameter in commands()["train"].params for option in parameter.opts}
    assert not set(ELSEWHERE) & train
    for name, answers in INSTEAD.items():
        assert not set(answers) & {o for p in (commands()[name].params if name else []) for o in p.opts}


@pytest.mark.parametrize("words", [[], ["weights"]])
def test_a_command_alone_prints_the_help(words, capsys):
    said = printed(capsys, *words)
    assert said.startswith("2 ")
    assert "Usage" in said
    assert "kclf:" not in said


def test_a_classifier_that_is_not_there_is_looked_for_nearby(tmp_path, capsys):
    (tmp_path / "photos-classifier").mkdir()
    said = printed(capsys, "predict", str(tmp_path / "photos-classifer"), "new")
    assert f"Did you mean {tmp_path / 'photos-classifier'}?" in said
    said = printed(capsys, "evaluate", str(tmp_path / "photos-classifier"), str(tmp_path))
    assert "Photos come after the classifier" in said


def test_folders_and_addresses_in_the_wrong_place(tmp_path, capsys):
    assert "kclf check" in printed(capsys, "clean", str(tmp_path))
    assert "No such folder" in printed(capsys, "runs", str(tmp_path / "nope"))
    with pytest.raises(DataError, match="download first"):
        image_files("https:/example.org/cat.jpg")


def test_the_name_of_a_backbone_is_looked_at_before_the_photos(tmp_path, capsys):
    said = printed(capsys, "train", str(tmp_path), "--backbone", "resnet-18", "--out", str(tmp_path / "run"))
    assert "Did you mean ResNet18?" in said
    assert "photos" not in said


def test_doctor_measures_the_backbone_that_train_takes():
    backbone = next(p for p in commands()["doctor"].params if p.name == "backbone")
    assert backbone.default == RunSettings.backbone
