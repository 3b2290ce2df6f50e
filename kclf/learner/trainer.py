"""What a `Learner` is made of: data, a classifier, what of it trains, and how a fit runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict

import keras
import numpy as np

from .._core.keywords import LEARNER, answering
from .._core.warning import warn_caller
from ..callbacks import (
    Checkpoint,
    DeliveredModel,
    EpochTable,
    FiniteGuard,
    MemoryGuard,
    ProgressBar,
    Recorder,
    Schedule,
)
from ..callbacks.snapshots import BestSoFar
from ..callbacks.steps import FinishAccumulation
from ..data import ImageData, ImageDataset
from ..data.mixed_dataset import mixed
from ..distributed import distribute, print_on_main
from ..errors import DataError, NotFiniteError
from ..layers import CutMix, MixUp
from ..prediction.activation_cache import precompute
from .adapt import classifier_for, head_for, one_dropout
from .plots import Sched
from .resume import describe
from .training import Training

Rates = float | slice | Sequence[float]
Callbacks = Sequence[keras.callbacks.Callback]
AnyPath = str | os.PathLike[str]


class FitOptions(TypedDict, total=False):
    """What every fit of a learner takes.

    Attributes:
        wd: weight decay: one for all layer groups, or a list; None for the learner's.
        callbacks: more callbacks for this fit.
        resume: as for `Learner.fit`.
    """

    wd: float | Sequence[float] | None
    callbacks: Callbacks
    resume: bool


class Trainer:
    """The state of a `Learner`, whose arguments and attributes these are, and its one way to fit."""

    recorder_type: type[Recorder] = Recorder

    @answering(LEARNER)
    def __init__(
        self,
        data: ImageData | None,
        backbone: str | keras.Model,
        *,
        precompute: bool = False,
        precompute_views: int = 1,
        precompute_dtype: str = "float32",
        path: AnyPath = ".",
        ps: float | Sequence[float] | None = None,
        xtra_fc: Sequence[int] | None = None,
        callbacks: Callbacks = (),
        verbose: bool = True,
        **settings: Any,
    ) -> None:
        training = {f.name: settings.pop(f.name) for f in fields(Training) if f.name in settings}
        settings |= {} if ps is None else {"dropout": one_dropout(ps)}
        settings |= {} if xtra_fc is None else {"hidden": tuple(xtra_fc)}
        self.training = Training(**training)
        self._auto = "adamw"  # what the optimizer "auto" was in the last fit
        self.data = data
        self.model = classifier_for(data, backbone, settings)
        self.path = Path(path)
        self.callbacks = checked(callbacks)
        self.verbose = verbose
        self.recorder = self.recorder_type()
        self.table = EpochTable(recorder=self.recorder)
        self.memory = MemoryGuard()
        self.checkpoint: Checkpoint | None = None
        self.sched = Sched(self.recorder)
        self.precompute_views = precompute_views
        self.precompute_dtype = precompute_dtype
        self.precompute = precompute

    def __repr__(self) -> str:
        return f"Learner({self.data!r}, {self.model.backbone_name or self.model.backbone.name!r})"

    # ---- layer groups ------------------------------------------------------------

    @property
    def precompute(self) -> bool:
        """Whether the head trains on cached activations; setting it to True freezes the backbone.

        The activations are computed at the next fit and kept in `path/activations`. Augmentation has no
        effect on them unless `precompute_views` asks for several augmented views.
        """
        return self._precompute

    @precompute.setter
    def precompute(self, on: bool) -> None:
        if on:
            self.model.freeze()
        self._precompute = bool(on)

    def freeze(self) -> None:
        """Train the head alone."""
        self.model.freeze()

    def unfreeze(self) -> None:
        """Train all layer groups; this ends `precompute`."""
        self.freeze_to(0)

    def freeze_to(self, n: int) -> None:
        """Freeze the layer groups before group `n`; ends `precompute` where more than the head trains."""
        self.model.freeze_to(n)
        if n not in (-1, len(self.model.layer_groups) - 1):
            self._precompute = False

    # ---- how it works ------------------------------------------------------------

    def _fit(
        self,
        epochs: int,
        schedule: Schedule,
        *,
        wd: Any = None,
        callbacks: Callbacks = (),
        resume: bool = False,
        auto: str = "adamw",
        validate: bool = True,
    ) -> keras.callbacks.History:
        self._auto = auto
        self.model.decision = None  # that of other weights
        self.sched.first, self.sched.tested_last = len(self.recorder.learning_rates), False
        if resume and self.checkpoint is None:
            self.checkpoint = Checkpoint(self.path / "checkpoints", resume=resume)
        bar, best = ProgressBar(self._require_data().batch_size), BestSoFar()
        table = [bar, self.table] if self.verbose else []
        model, train, valid = self._trained()
        guards = [self.memory, FiniteGuard(self.checkpoint, _photos_of(train)), best]
        last = [FinishAccumulation()] if self.training.gradient_accumulation else []
        more = checked([*self.callbacks, *callbacks])
        listening = [schedule, *last, self.recorder, *table, *more, *guards]
        self._compile(model, wd)
        try:
            with closing(bar):
                history = model.fit(
                    train,
                    validation_data=valid if validate else None,
                    epochs=epochs,
                    callbacks=[DeliveredModel(train), *self._with_checkpoint(listening, train)],
                    shuffle=False,
                    verbose=0,
                )
        except (KeyboardInterrupt, NotFiniteError) as cut:
            self._cut_short(cut, best)
            raise
        history._ipython_display_ = lambda: None  # the table has said it; a cell would echo an object
        return history

    def _cut_short(self, cut: BaseException, best: BestSoFar) -> None:
        """Leave the best weights so far, unless a checkpoint has brought back good ones."""
        self.memory.on_train_end()
        self.memory.on_test_end()
        if isinstance(cut, KeyboardInterrupt):
            said = f"Interrupted. {best.restore()}"
            if self.verbose:
                print_on_main(said)
        elif self.checkpoint is None:
            cut.add_note(best.restore())

    def _with_checkpoint(self, callbacks: list[Any], train: Any) -> list[Any]:
        """The callbacks of a fit, its schedule first, with the checkpoint last where there is to be one."""
        if self.checkpoint is None:
            return callbacks
        self.checkpoint.folders = [self.path / "models"]
        self.checkpoint.data = train
        self.checkpoint.whole = self.model
        self.checkpoint.others = [part for part in callbacks if hasattr(part, "state_dict")]
        self.checkpoint.settings = describe(
            self.model, self._require_data(), self.training, self.precompute, callbacks[0]
        )
        return [*callbacks, self.checkpoint]

    def _trained(self) -> tuple[keras.Model, Any, Any]:
        """What trains now, its training and its validation data: the head alone where that is precomputed."""
        data, mixes = self._require_data(), (self.training.mixup, self.training.cutmix)
        if not self.precompute:
            return self.model, mixed(data.train, *mixes), data.valid
        if self.precompute_views == 1 and self.model.augmentation.is_random:
            warn_caller(
                "The augmentation has no effect with precompute=True: the head trains on activations of the "
                "plain photos. Set precompute = False to train with it, or precompute_views=4 to compute "
                "activations of 4 augmented views of each photo."
            )
        cached = precompute(
            self.model, data, views=self.precompute_views, dtype=self.precompute_dtype, **self._cache
        )
        return head_for(self.model), mixed(cached.train, *mixes), cached.valid

    @property
    def _cache(self) -> dict[str, Any]:
        return {"folder": self.path / "activations", "progress": self.verbose}

    def _compile(self, model: keras.Model, weight_decay: Any = None) -> None:
        groups = self.model.layer_groups[-1:] if self.precompute else self.model.layer_groups
        self.training.compile(model, groups, self.model.task, weight_decay, self._auto)
        distribute(model)

    def _check_rates(self, rates: Rates) -> Rates:
        if self.precompute and not isinstance(rates, slice) and np.size(rates) > 1:
            raise ValueError(
                "With precompute=True only the head trains, which is one layer group: pass one rate, or set "
                f"precompute = False first. Received: {np.size(rates)} rates, {rates}"
            )
        return rates

    def _require_data(self) -> ImageData:
        if self.data is None:
            raise DataError("This learner has no data: pass some to set_data")
        return self.data

    def _split(self, name: str) -> ImageDataset:
        data = self._require_data()
        split = data.splits.get(name)
        if split is None:
            raise DataError(
                f"The data has no {name} photos, only: {', '.join(data.splits)}. Make data that has some "
                f"(such as test=folder) and pass it to set_data. Received: split={name!r}"
            )
        return split

    def _place(self, path: AnyPath) -> Path:
        """Where a file is to be written below the learner's `path`, in a folder that is there."""
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _file(self, name: str, ending: str = "") -> Path:
        return self.path / "models" / f"{name}{ending}"


def checked(callbacks: Callbacks) -> list[keras.callbacks.Callback]:
    """The callbacks, refused where they are something else."""
    for one in callbacks:
        if isinstance(one, MixUp | CutMix):
            name = type(one).__name__.lower()
            raise TypeError(
                f"Expected callbacks. {type(one).__name__} is a layer, which a learner applies by itself: "
                f"Learner(data, backbone, {name}={one.alpha:g}). Received: {one!r}"
            )
        if isinstance(one, type) or not hasattr(one, "on_train_batch_begin"):
            hint = f"Make one of the class: {one.__name__}(). " if isinstance(one, type) else ""
            raise TypeError(f"Expected Keras callbacks, or such of kclf. {hint}Received: {one!r}")
    return list(callbacks)


def _photos_of(train: Any) -> Any:
    """The photos behind activations and mixtures of them."""
    while hasattr(train, "images"):
        train = train.images
    return train
