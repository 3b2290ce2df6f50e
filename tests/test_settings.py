"""One type of settings for the command's flags, a run's file, the learner and Python."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import typer

import kclf
from kclf._core.settings import RunSettings, described
from kclf.cli.flags import flags_of
from kclf.cli.main import app
from kclf.cli.train import read_settings
from kclf.errors import FileFormatError

FLAGS = {one.name: one for one in fields(RunSettings) if one.metadata.get("part")}
RUN = RunSettings(Path("photos"), Path("out"), epochs=7, task="regression", minutes=2, csv=Path("t.csv"))


def flags():
    group = typer.main.get_command(app)
    return {option.name: option for option in group.commands["train"].params}


def test_every_setting_with_a_part_is_a_flag_with_its_words():
    assert set(flags()) - set(FLAGS) == {"folder", "out", "force", "repeat", "resume"}
    assert [name for name in FLAGS if not flags()[name].help] == []
    assert "epochs with everything trainable" in flags()["epochs"].help
    undescribed = {one.name for one in fields(RunSettings)} ^ set(described(RunSettings))
    assert not undescribed, f"no such line under Args of RunSettings or TrainSettings: {undescribed}"


def test_flags_need_no_docstrings(monkeypatch):
    monkeypatch.setattr("kclf.cli.flags.described", lambda settings: {})  # as python -OO has it

    assert {flag.name for flag in flags_of(RunSettings)} == set(FLAGS)


def test_flags_have_the_defaults_of_the_settings():
    shown = {name: flags()[name].default for name in FLAGS}
    assert shown == {name: one.default for name, one in FLAGS.items()} | {"batch_size": None}


def test_settings_come_back_from_json():
    assert RunSettings.from_json(json.loads(json.dumps(RUN.to_json()))) == RUN


def test_settings_that_an_older_version_had_not_are_their_defaults(tmp_path):
    older = {name: value for name, value in RUN.to_json().items() if name not in ("log", "refit", "depth")}
    (tmp_path / "settings.json").write_text(json.dumps({"settings": older}))
    assert read_settings(tmp_path / "settings.json") == RUN


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"colour": "red", "warp": 9},
            "settings.json: this kclf has no settings of these names: colour, warp",
        ),
        ({"folder": None}, "settings.json: no settings of a run"),
    ],
)
def test_settings_that_no_version_had_are_named(tmp_path, change, said):
    values = {name: value for name, value in (RUN.to_json() | change).items() if value is not None}
    (tmp_path / "settings.json").write_text(json.dumps({"settings": values}))
    with pytest.raises(FileFormatError, match=said):
        read_settings(tmp_path / "settings.json")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"effort": "huge"}, TypeError),
        ({"epochs": -1}, ValueError),
        ({"epochs": "3"}, TypeError),
        ({"minutes": float("nan")}, ValueError),
        ({"learning_rate": 0.0}, ValueError),
    ],
)
def test_values_that_a_setting_cannot_have_are_refused_everywhere(values, error):
    (name,) = values
    with pytest.raises(error, match=f"Received: {name}="):
        kclf.TrainSettings(**values)
    with pytest.raises(error, match=f"Received: {name}="):
        RunSettings.from_json(RUN.to_json() | values)


def test_photos_are_read_a_quarter_larger_by_themselves():
    assert RunSettings(Path("a"), Path("b"), size=96).presize == 120
    assert RunSettings(Path("a"), Path("b"), size=96, presize=96).presize == 96
