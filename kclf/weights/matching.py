"""Match saved layers with a model's layers, tell what does not fit, and assign only when all fits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import keras

from .._core.arguments import listed
from ..errors import WeightsError
from .h5_reading import array_in
from .layer_keys import layer_keys, named_variables

# Arrays of one saved layer by the variable's name, or by its place ("0", "1", ...) where a file has no names.
# The values need only `.shape` and `[...]`: datasets of an open file stay unread until they are assigned.
SavedLayer = Mapping[str, Any]

NAMES_SHOWN = 4  # of each kind: a whole model's fill a screen, and the report's attributes have them all

# Names that other versions and frameworks give to a variable.
ALIASES = {
    "depthwise_kernel": "kernel",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
    "moving_var": "moving_variance",
}


@dataclass(frozen=True)
class LoadReport:
    """What became of every variable of a file and of a model.

    Attributes:
        matched: variables ("layer/variable") that fit.
        missing: variables of the model that the file lacks.
        unexpected: variables of the file that the model lacks.
        mismatched: (variable, shape in the file, shape in the model).
        skipped: layers left out on purpose.
        by_position: layers that found each other by their place, since their names differ.
    """

    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    skipped: tuple[str, ...] = ()
    by_position: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True where every variable on both sides has its partner."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        shapes = [f"{name} (file {theirs}, model {ours})" for name, theirs, ours in self.mismatched]
        rows: dict[str, Sequence[str]] = {
            "matched": [f"{len(self.matched)} variables"],
            "mismatched": shapes,
            "missing in the file": self.missing,
            "unexpected in the file": self.unexpected,
            "skipped": self.skipped,
            "matched by place": self.by_position,
        }
        return "\n".join(f"{label}: {listed(names, NAMES_SHOWN)}" for label, names in rows.items() if names)


@dataclass
class _Pair:
    """One variable of the model and the array that a file has for it; either may be absent."""

    name: str
    variable: keras.Variable | None = None
    array: Any = None

    @property
    def fits(self) -> bool:
        return self.paired and tuple(self.array.shape) == tuple(self.variable.shape)  # type: ignore[union-attr]

    @property
    def paired(self) -> bool:
        return self.variable is not None and self.array is not None


def assign_saved(
    model: keras.Model,
    saved: Mapping[str, SavedLayer],
    *,
    skip: Collection[str] = (),
    report: bool = False,
    dry_run: bool = False,
    source: str = "the weights",
    part: bool = False,
) -> LoadReport:
    """Assign saved layers to a model, all of them or none.

    Args:
        model: a built model.
        saved: arrays of each saved layer, by the key `layer_keys` gives, in the order of the file.
        skip: layer names or patterns to leave out on both sides.
        report: print the report.
        dry_run: only look whether they fit.
        source: what to call the weights in a message.
        part: the model may be a part of what was saved, such as the backbone of a classifier: layers that
            it does not have are left out where all its own are there and fit.

    Returns:
        What matched and was skipped.

    Raises:
        WeightsError: anything does not fit; the model is as it was.
        FileFormatError: an array does not hold real numbers; the model is as it was.
    """
    layers = {key: named_variables(layer) for key, layer in layer_keys(model).items()}
    skipped = [key for key in {**layers, **saved} if any(fnmatchcase(key, pattern) for pattern in skip)]
    layers = {key: variables for key, variables in layers.items() if key not in skipped}
    saved = {key: arrays for key, arrays in saved.items() if key not in skipped}
    saved, by_position = _renamed_by_position(layers, saved)
    pairs = [pair for key in {**layers, **saved} for pair in _pairs(key, layers.get(key), saved.get(key))]
    result = LoadReport(
        matched=tuple(pair.name for pair in pairs if pair.fits),
        missing=tuple(pair.name for pair in pairs if pair.array is None),
        unexpected=tuple(pair.name for pair in pairs if pair.variable is None),
        mismatched=tuple(
            (pair.name, tuple(pair.array.shape), tuple(pair.variable.shape))  # type: ignore[union-attr]
            for pair in pairs
            if pair.paired and not pair.fits
        ),
        skipped=tuple(skipped),
        by_position=tuple(by_position),
    )
    if report:
        print(result)
    if dry_run:
        return result
    if not (result.complete or (part and not result.missing and not result.mismatched)):
        raise WeightsError(f"{source} does not fit {model.name!r}, which stays as it was.\n{result}")
    fitting = [pair for pair in pairs if pair.paired]
    arrays = [array_in(pair.array) for pair in fitting]  # all of them, before the first is assigned
    for pair, array in zip(fitting, arrays, strict=True):
        pair.variable.assign(array)  # type: ignore[union-attr]
    return result


def _renamed_by_position(
    layers: Mapping[str, Mapping[str, keras.Variable]], saved: Mapping[str, SavedLayer]
) -> tuple[dict[str, SavedLayer], list[str]]:
    """Give saved layers without a namesake the names of the model's layers without one.

    Only where there are as many of them and every shape agrees in order: Keras renamed the layers of its
    applications over the years, and its own loader of legacy files goes by place alone.
    """
    strangers = [key for key in saved if key not in layers]
    waiting = [key for key in layers if key not in saved]
    agree = len(strangers) == len(waiting) and all(
        all(pair.fits for pair in _pairs(ours, layers[ours], saved[theirs]))
        for ours, theirs in zip(waiting, strangers, strict=True)
    )
    if not agree:
        return dict(saved), []
    names = dict(zip(strangers, waiting, strict=True))
    return {names.get(key, key): arrays for key, arrays in saved.items()}, waiting


def _pairs(
    key: str, variables: Mapping[str, keras.Variable] | None, arrays: SavedLayer | None
) -> Iterator[_Pair]:
    """Variables and arrays of one layer side by side: by name, or by place where no name agrees."""
    variables, arrays = variables or {}, arrays or {}
    named = {name if name in variables else ALIASES.get(name, name): array for name, array in arrays.items()}
    if len(named) == len(variables) and not named.keys() & variables.keys():
        named = dict(zip(variables, arrays.values(), strict=True))
    for name in {**variables, **named}:
        yield _Pair(f"{key}/{name}", variables.get(name), named.get(name))
