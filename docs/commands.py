"""Markdown of the command's options, made from the command itself, for the page `commands.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from kclf.cli.main import app
from kclf.cli.wording import choices

PLACE = "<!-- commands -->"
OPTION = re.compile(r"(?<![\w`-])(--[a-z][\w-]*)")


def commands() -> Iterator[tuple[str, Any]]:
    """(name, command) of each command, those of a group after it."""
    for name, command in typer.main.get_command(app).commands.items():
        for inner, part in getattr(command, "commands", {"": command}).items():
            yield f"{name} {inner}".strip(), part


def cell(text: str) -> str:
    """A text as it may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def values(parameter: Any) -> str:
    """What an option takes: its choices, a kind of value, or nothing."""
    kind = parameter.type_descriptor.annotation
    if kind is bool:
        return ""
    if words := choices(kind):
        return ", ".join(f"`{word}`" for word in words)
    return {str: "text", Path: "path", int: "whole number", float: "number"}.get(kind, "text")


def described(parameter: Any) -> str:
    """The help of an option with its default, where it has one."""
    default = getattr(parameter.default, "value", parameter.default)
    known = default not in (None, "", False, ()) and parameter.show_default
    return cell(parameter.help or "") + (f" Default: `{default}`." if known else "")


def section(name: str, command: Any) -> str:
    """A command: what it does, its arguments and its options."""
    rows = [
        (", ".join(f"`{word}`" for word in parameter.opts), values(parameter), described(parameter))
        for parameter in command.params
        if parameter.name != "help"
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [("option", "value", "what"), ("---",) * 3, *rows])
    table = f'<div class="options" markdown>\n\n{table}\n\n</div>'  # style.css keeps its names whole
    text = OPTION.sub(r"`\1`", (command.help or "").strip())
    return f"## kclf {name}\n\n{text}\n\n{table}\n"


def filled(markdown: str) -> str:
    """The page with a section for each command in its place."""
    return markdown.replace(PLACE, "\n".join(section(name, command) for name, command in commands()))
