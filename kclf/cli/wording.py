"""How the help of the command reads, and which words of other tools it knows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

# What an option takes, in a word; nothing for a switch.
KINDS: dict[Any, str] = {bool: "", Path: "PATH", int: "NUMBER", float: "NUMBER"}

# Our options, and what fastai, timm, Ultralytics, torchvision's scripts and other commands call them.
NAMES_ELSEWHERE = {
    "--learning-rate": ("--lr", "--base-lr"),
    "--batch-size": ("--bs", "--batch", "-b"),
    "--epochs": ("--epoch", "-e"),
    "--out": ("--output", "--output-dir", "--project", "-o"),
    "--backbone": ("--arch", "--model", "-a"),
    "--size": ("--img-size", "--image-size", "--imgsz"),
    "--mixed-precision": ("--amp", "--fp16"),
    "--minutes": ("--time",),
    "--to": ("--format", "--target"),
    "--top": ("--topk", "--top-k", "-k"),
    "--count": ("--top", "-n"),
}
ELSEWHERE = {name: meant for meant, names in NAMES_ELSEWHERE.items() for name in names}

# Options that other tools have and kclf has not, and what to do instead, by command; "" is any.
_GPU = "A GPU is taken where there is one; the environment variable CUDA_VISIBLE_DEVICES='' hides it"
_THREADS = "It takes as many threads as there are cores"
_PRINTS = {"--out": "It prints: add > FILE, with --csv or --json where there is one"}
INSTEAD: dict[str, dict[str, str]] = {
    "": {"--device": _GPU, "--gpu": _GPU, "--num-workers": _THREADS, "--workers": _THREADS},
    **dict.fromkeys(("predict", "evaluate", "similar", "runs", "choose", "doctor"), _PRINTS),
}
# What a value should have been, by how the parser of the words says it.
EXPECTED = {
    r"Input should be a valid integer.*": "expected a whole number",
    r"Input should be a valid number.*": "expected a number",
    r"Input should be greater than or equal to (\S+)": r"expected \1 or more",
    r"Input should be less than or equal to (\S+)": r"expected at most \1",
    r"Value error, '.*' is not one of (.*?)\.?": r"expected one of \1",
}


def complaint(error: Any, words: Sequence[str]) -> str:
    """What is wrong with the words of a command, in one line.

    Args:
        error: of typer.
        words: of the command.
    """
    context = getattr(error, "ctx", None)
    command = context.command_path if context else f"kclf {words[0]}"
    if hasattr(error, "possibilities"):
        known = [one for p in error.ctx.command.params for one in p.opts if one.startswith("-")]
        said = _no_option(error.option_name, known, command.split()[-1])
    else:
        said = _about(error, words)
    return f"{said}{'' if said.endswith(('.', '?')) else '.'} All options: {command} --help"


def _no_option(name: str, known: Sequence[str], command: str) -> str:
    meant = ELSEWHERE.get(name, name)
    instead = (INSTEAD[""] | INSTEAD.get(command, {})).get(meant)
    near = [meant] if meant in known else difflib.get_close_matches(name, known, 1, cutoff=0.7)
    hint = instead or (f"Did you mean {near[0]}?" if near else "")
    return f"There is no option {name}. {hint}".strip()


def _about(error: Any, words: Sequence[str]) -> str:
    message, names = error.message, getattr(getattr(error, "param", None), "opts", [])
    for pattern, expected in EXPECTED.items():
        if found := re.fullmatch(pattern, message):
            message = found.expand(expected)
            break
    else:
        return error.format_message().removeprefix("Invalid value: ")
    given = [
        word.partition("=")[2] if "=" in word else following
        for word, following in zip(words, [*words[1:], ""], strict=True)
        if word.partition("=")[0] in names
    ]
    return f"{names[0]}: {message}. Received: {(given or ['another value'])[-1] or 'nothing'}"


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
