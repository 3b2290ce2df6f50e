"""The flags of a command, made from the fields of its settings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Annotated, Any

import typer

from .._core.settings import DATA, MODEL, TRAINING, TrainSettings, default_of, described, is_size, kinds
from .._core.sizes import Size, as_size

FOR_PYTHON = re.compile(r"; None [^;.]*| \([^)]* in Python\)")  # what the command has no words for


def size_of(name: str, word: str, least: int = 32, most: int = 8192) -> Size:
    """The size of photos that a word says: SIDE of a square, or HEIGHTxWIDTH, in pixels.

    Args:
        name: of the option.
        word: what was given.
        least: pixels of a side.
        most: the same.

    Raises:
        typer.BadParameter: it says none.

    Example:
        >>> size_of("--size", "224"), size_of("--size", "224x336")
        (224, (224, 336))
    """
    match = re.fullmatch(r"(\d{1,9})(?:[xX×](\d{1,9}))?", word.strip())
    try:
        return as_size(name, match and [int(side) for side in match.groups(match[1])], least, most)
    except ValueError as error:
        raise typer.BadParameter(
            f"expected SIDE or HEIGHTxWIDTH of {least} to {most} pixels, such as 224 or 224x336. "
            f"Received: {name} {word}"
        ) from error


SizeSeen = Annotated[
    str, typer.Option(metavar="SIZE", help="What the network sees, in pixels: SIDE, or HEIGHTxWIDTH.")
]


def flags_of(settings: type[TrainSettings]) -> Iterator[inspect.Parameter]:
    """A parameter for each setting that has a flag, part by part of the help."""
    texts = described(settings)
    for part in (DATA, MODEL, TRAINING):
        for one in (one for one in fields(settings) if one.metadata.get("part") == part):
            text = FOR_PYTHON.sub("", texts.get(one.name, one.name))  # python -OO has no docstrings
            word, kind, default = one.metadata["word"], kinds(settings)[one.name], default_of(one)
            option = typer.Option(
                *([f"--{one.name.replace('_', '-')}"] if isinstance(default, bool) else []),
                help=text[0].upper() + text[1:],
                metavar="SIZE" if is_size(kind) else None,
                min=None if word else one.metadata["least"],
                max=None if word else one.metadata["most"],
                show_default=bool(default),
                rich_help_panel=part,
            )
            shown = None if word and not default else default
            yield inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=shown,
                annotation=Annotated[word or kind, option],
            )


def with_flags(settings: type[TrainSettings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command that ends in `**values` show the flags of settings, before its keyword-only ones."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        first = [one for one in own if one.kind is one.POSITIONAL_OR_KEYWORD]
        last = [one for one in own if one.kind is one.KEYWORD_ONLY]
        shown = [*first, *flags_of(settings), *last]
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
