"""How the help of the command reads, and which words of other tools it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from ..errors import DataError

# What an option takes, in a word; nothing for a switch.
KINDS: dict[Any, str] = {bool: "", Path: "PATH", int: "NUMBER", float: "NUMBER"}

# Options of fastai, timm, Ultralytics and torchvision's scripts, and what they are called here.
ELSEWHERE = {
    "--lr": "--learning-rate",
    "--base-lr": "--learning-rate",
    "--bs": "--batch-size",
    "--batch": "--batch-size",
    "-b": "--batch-size",
    "-e": "--epochs",
    "-o": "--out",
    "--output": "--out",
    "--output-dir": "--out",
    "--project": "--out",
    "--arch": "--backbone",
    "-a": "--backbone",
    "--model": "--backbone",
    "--img-size": "--size",
    "--image-size": "--size",
    "--imgsz": "--size",
    "--amp": "--mixed-precision",
    "--fp16": "--mixed-precision",
    "--time": "--minutes",
}


def refuse_words_of_other_tools(words: Sequence[str]) -> None:
    """Name the option that is meant where one of another tool is given.

    Raises:
        DataError: a word is such an option.
    """
    for word in words:
        name = word.split("=")[0]
        if name in ELSEWHERE:
            raise DataError(f"There is no option {name}. Did you mean {ELSEWHERE[name]}?")


def choices(kind: Any) -> tuple[str, ...]:
    """The words that an option may be; none where it may be anything of its kind."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def reworded(command: Any) -> Any:
    """A command whose help fits 80 columns: choices in the text, kinds in a word, paragraphs that flow."""
    for part in getattr(command, "commands", {}).values():
        reworded(part)
    command.help = _flowing(command.help)
    context = typer.Context(command, info_name=command.name, help_option_names=["-h", "--help"])
    for parameter in command.get_params(context):
        if parameter.param_type_name == "option" and parameter.metavar is None:
            _reword_option(parameter)
    return command


def _reword_option(parameter: Any) -> None:
    kind = parameter.type_descriptor.annotation
    if words := choices(kind):
        parameter.metavar = "WORD"
        parameter.help = f"{parameter.help} One of {', '.join(words)}."
    else:
        parameter.metavar = KINDS.get(kind, "TEXT")


def _flowing(text: str | None) -> str | None:
    """Paragraphs without line ends of their own."""
    return text and "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
