"""The flags of a command, made from the fields of its settings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Annotated, Any

import typer

from .._core.settings import DATA, MODEL, TRAINING, TrainSettings, default_of, described, kinds

FOR_PYTHON = re.compile(r"; None [^;.]*| \([^)]* in Python\)")  # what the command has no words for


def flags_of(settings: type[TrainSettings]) -> Iterator[inspect.Parameter]:
    """A parameter for each setting that has a flag, part by part of the help."""
    texts = described(settings)
    for part in (DATA, MODEL, TRAINING):
        for one in (one for one in fields(settings) if one.metadata.get("part") == part):
            text = FOR_PYTHON.sub("", texts.get(one.name, one.name))  # python -OO has no docstrings
            default = default_of(one)
            option = typer.Option(
                *([f"--{one.name.replace('_', '-')}"] if isinstance(default, bool) else []),
                help=text[0].upper() + text[1:],
                min=None if one.metadata["word"] else one.metadata["least"],
                max=one.metadata["most"],
                show_default=bool(default),
                rich_help_panel=part,
            )
            kind = one.metadata["word"] or kinds(settings)[one.name]
            shown = None if one.metadata["word"] and not default else default
            yield inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=Annotated[kind, option]
            )


def with_flags(settings: type[TrainSettings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command that ends in `**values` show the flags of settings, before its keyword-only ones."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        first = [one for one in own if one.kind is one.POSITIONAL_OR_KEYWORD]
        last = [one for one in own if one.kind is one.KEYWORD_ONLY]
        shown = [
            *first,
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*flags_of(settings), *last)),
        ]
        command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in shown}
        return command

    return decorate


def given(context: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that stand on the command line."""
    return {name: value for name, value in values.items() if is_given(context, name)}


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line."""
    return context.get_parameter_source(name).name == "COMMANDLINE"  # type: ignore[union-attr]
