"""What decides a training run: one type for the flags of the command, the file of a run, and `Learner`."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from ..errors import FileFormatError
from .arguments import listed
from .sizes import Size, as_size, scaled, size_and_presize

DATA, MODEL, TRAINING = "Data", "Model", "Training"  # the parts that the flags of the command are shown in
PRESIZE = 1.25  # sides of what the network sees: room for crops and turns


def setting(
    default: Any, part: str | None, *, least: float | None = None, most: float | None = None, word: Any = None
) -> Any:
    """A field of settings.

    Args:
        default: its value where none is given.
        part: of the command's help, in which its flag is shown; None for a setting without a flag.
        least: the smallest value.
        most: the largest one.
        word: type of the flag, where it is another than that of the field.
    """
    return field(default=default, metadata={"part": part, "least": least, "most": most, "word": word})


# Settings that one recipe alone has.
ONLY_OF = {
    "course": ("epochs", "freeze_epochs", "learning_rate", "unfrozen_learning_rate"),
    "lp-ft": ("effort", "minutes", "refit", "decode_once"),
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How `kclf train` and `Learner.train` train.

    Args:
        recipe: the way: lp-ft solves the last layer and tunes everything from there; course trains the head
            and then everything, for epochs, as fastai does. The command takes course where one of --epochs,
            --freeze-epochs and --learning-rate is given.
        effort: of lp-ft: quick solves the last layer on frozen features; standard and best tune everything.
        minutes: of lp-ft: how long it may take, in place of what the effort would.
        refit: of lp-ft: when all is chosen, train again on training and validation photos together.
        decode_once: of lp-ft: auto keeps decoded photos on disk for the passes where a GPU would wait for
            decoding; never decodes in each pass.
        epochs: of course: epochs with everything trainable.
        freeze_epochs: of course: epochs before, with only the head trainable.
        learning_rate: of course: peak rate of the head while it trains alone.
        unfrozen_learning_rate: peak rate of the head while everything trains, 100 times that of the first
            layer group; None for a tenth of `learning_rate`: a few hundred photos lose by more.
        batch_size: photos a step; auto (None in Python) for the most that the GPU has memory for. Without it
            (0 in Python) by the number of photos, up to 32; 64 of course.

    Raises:
        ValueError, TypeError: a setting has a value that it cannot have.
    """

    recipe: Literal["lp-ft", "course"] = setting("lp-ft", TRAINING)
    effort: Literal["quick", "standard", "best"] = setting("standard", TRAINING)
    minutes: float | None = setting(None, TRAINING, least=0.01, most=1e6)
    refit: bool = setting(False, TRAINING)
    decode_once: Literal["auto", "never"] = setting("auto", TRAINING)
    epochs: int = setting(3, TRAINING, least=0, most=100_000)
    freeze_epochs: int = setting(1, TRAINING, least=0, most=100_000)
    learning_rate: float = setting(2e-3, TRAINING, least=1e-9, most=1e30)
    unfrozen_learning_rate: float | None = setting(None, None, least=1e-9, most=1e30)
    batch_size: int | None = setting(0, TRAINING, least=0, word=str | None)

    def __post_init__(self) -> None:
        allowed = kinds(type(self))
        for one in fields(self):
            value, kind = getattr(self, one.name), allowed[one.name]
            value = of_size(one, value) if is_size(kind) else of_kind(one.name, value, kind)
            check_range(one, value)
            object.__setattr__(self, one.name, value)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Settings from what `to_json` gave; what an older kclf had not is its default.

        Raises:
            FileFormatError: there are others than this kclf has.
            ValueError, TypeError: there are values that they cannot have, or what has no default is missing.
        """
        if unknown := sorted(set(found) - set(kinds(cls))):
            raise FileFormatError(
                f"this kclf has no settings of these names: {listed(unknown)}. A newer one may have written "
                "them: continue with that, or train anew"
            )
        return cls(**found)


@dataclass(frozen=True)
class RunSettings(TrainSettings):
    """All that decides what a training run gives; written to `settings.json`.

    Args:
        folder: the photos.
        out: folder for the results.
        label_regex: takes the class from the file name: the first group of this pattern.
        csv: a table with file names and classes in its first two columns.
        label_delimiter: of a table: what stands between several labels of a photo.
        task: of a table: regression where the labels are numbers to predict; None sees it from the labels.
        valid_fraction: share of the photos kept for validation, where the layout does not say.
        strict: stop at the first photo that cannot be read.
        lenient: warn of what is wrong with the layout (an empty class folder, loose photos) and train.
        max_unreadable: share of the photos that may be unreadable or missing.
        suffix: of a table: added to its file names, such as .jpg.
        delimiter: of a table: between its fields; tab for a tab; None to see it.
        columns: of a table: FILE,LABEL by name or number from 0; None to see them.
        valid_column: of a table: the column that says what validates.
        depth: bits of deep images, such as 12.
        max_pixels: most pixels of a photo, as decoded; None for Pillow's limit.
        backbone: the pretrained network, of `kclf weights list`.
        weights: those it starts with: imagenet, none (None in Python), or a file without top.
        size: what the network sees, in pixels: SIDE of a square, or HEIGHTxWIDTH, such as 224x336.
        presize: what photos are read at, before augmentation, as --size. Default: 1.25 x size.
        channels: of the photos: 3 reads them in colour, 1 in grey.
        augment: what happens to training photos.
        batchnorm: "inference", "frozen", "train" or "sync", as `ImageClassifier` has it.
        mixed_precision: number format to compute in; auto takes what this device is fastest with.
        log: where else the run is told to as it goes: tensorboard, csv, wandb, mlflow; with commas, several.
        seed: governs split, order, augmentation and initial weights.
    """

    folder: Path
    out: Path
    label_regex: str | None = setting(None, DATA)
    csv: Path | None = setting(None, DATA)  # noqa: RUF009 - a field, and no value
    label_delimiter: str | None = setting(None, DATA)
    task: Literal["single_label", "multi_label", "regression"] | None = setting(None, DATA)
    valid_fraction: float = setting(0.2, DATA, least=0.01, most=0.9)
    strict: bool = setting(False, DATA)
    lenient: bool = setting(False, DATA)
    max_unreadable: float = setting(0.05, DATA, least=0, most=1)
    suffix: str = setting("", DATA)
    delimiter: str | None = setting(None, DATA)
    columns: str | None = setting(None, DATA)
    valid_column: str | None = setting(None, DATA)
    depth: int | None = setting(None, DATA, least=1, most=32)
    max_pixels: int | None = setting(None, DATA, least=1)
    backbone: str = setting("EfficientNetLite0", MODEL)
    weights: str | None = setting("imagenet", MODEL, word=str)
    size: Size = setting(224, MODEL, least=16, most=8192, word=str)  # noqa: RUF009 - a field, and no value
    presize: Size | None = setting(None, MODEL, least=16, most=10240, word=str | None)  # noqa: RUF009
    channels: int = setting(3, MODEL, least=1, most=3)
    augment: Literal["standard", "side_on", "top_down", "basic", "none"] = setting("standard", MODEL)
    batchnorm: Literal["inference", "frozen", "train", "sync"] = setting("inference", None)
    mixed_precision: Literal["float32", "mixed_float16", "mixed_bfloat16", "auto"] = setting("float32", MODEL)
    log: str = setting("", TRAINING)
    seed: int = setting(0, TRAINING, least=0, most=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        presize = scaled(self.size, PRESIZE) if self.presize is None else self.presize
        object.__setattr__(self, "presize", size_and_presize(self.size, presize)[1])


def kinds(settings: Any) -> dict[str, Any]:
    """The type of each setting by its name."""
    return typing.get_type_hints(settings)


def is_size(kind: Any) -> bool:
    """Whether a setting of a type is a size of photos, or None."""
    return set(typing.get_args(Size)) <= set(typing.get_args(kind))


def of_size(one: Field[Any], value: Any) -> Size | None:
    """A size in its one form, within the limits of its field; None where that can be."""
    if value is None and one.default is None:
        return None
    return as_size(one.name, value, one.metadata["least"], one.metadata["most"])


def of_kind(name: str, value: Any, kind: Any) -> Any:
    """A value as a field's type has it; a path may be a string, as in JSON."""
    if value in literals(kind):
        return value
    for allowed in typing.get_args(kind) or (kind,):
        if allowed is Path and isinstance(value, str | Path):
            return Path(value)
        if type(value) is allowed or (allowed is float and type(value) is int):
            return value
    expected = ", ".join(map(repr, literals(kind))) or kind
    raise TypeError(f"Expected {name} to be {expected}. Received: {name}={value!r}")


def literals(kind: Any) -> tuple[str, ...]:
    """The words that a setting can be; () where it is no word of a few."""
    parts = (kind, *typing.get_args(kind))
    return next((typing.get_args(part) for part in parts if typing.get_origin(part) is Literal), ())


def check_range(one: Field[Any], value: Any) -> None:
    """Refuse a number below the least or above the most that a field can have; NaN is neither."""
    least, most = one.metadata.get("least"), one.metadata.get("most")
    if value is None or least is None or isinstance(value, tuple):  # a size has been checked
        return
    if not least <= value <= (float("inf") if most is None else most):
        above = f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"Expected {one.name} to be {above}. Received: {one.name}={value!r}")


def described(settings: type[TrainSettings]) -> dict[str, str]:
    """What the docstrings say of each setting."""
    found: dict[str, str] = {}
    for one in settings.__mro__[-2::-1]:
        listed = inspect.cleandoc(one.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
        for name, text in re.findall(r"^ {4}(\w+): ((?:.*\n?(?! {4}\w+: ))*)", listed, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def default_of(one: Field[Any]) -> Any:
    """The value of a field where none is given; None for one that has to be."""
    return None if one.default is MISSING else one.default
