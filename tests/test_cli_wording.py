"""How the command's help reads at 80 columns, and what it says of other tools' words."""

from __future__ import annotations

import pytest
import typer

from kclf.cli.main import app, main
from kclf.cli.train import RunSettings
from kclf.cli.wording import ELSEWHERE, choices, reworded


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


def test_an_option_of_another_tool_is_answered_with_ours(capsys):
    assert "2 kclf: There is no option --lr. Did you mean --learning-rate?" in printed(
        capsys, "train", "photos", "--lr=3e-3"
    )


def test_the_options_that_are_named_exist():
    known = {option for parameter in commands()["train"].params for option in parameter.opts}
    assert set(ELSEWHERE.values()) <= known
    assert not set(ELSEWHERE) & known


def test_doctor_measures_the_backbone_that_train_takes():
    backbone = next(p for p in commands()["doctor"].params if p.name == "backbone")
    assert backbone.default == RunSettings.backbone
