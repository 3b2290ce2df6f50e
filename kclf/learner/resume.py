"""What a `Learner` keeps, so that its commands go on after a crash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import keras

from .._core.h5_store import JSON
from ..callbacks import Checkpoint

if TYPE_CHECKING:
    from .learner import Learner


def with_checkpoint(
    learner: Learner, callbacks: Sequence[keras.callbacks.Callback], train: Any, resume: bool
) -> list[keras.callbacks.Callback]:
    """The callbacks of a fit, with the learner's checkpoint as the last where there is to be one.

    Args:
        learner: what is trained; its `checkpoint` is made if need be.
        callbacks: of the fit, its schedule first.
        train: the data that the fit is given.
        resume: make a checkpoint where the learner has none.
    """
    if resume and learner.checkpoint is None:
        learner.checkpoint = Checkpoint(learner.path / "checkpoints", resume=resume)
    checkpoint = learner.checkpoint
    if checkpoint is None:
        return list(callbacks)
    checkpoint.folders = [learner.path / "models"]
    checkpoint.data = train
    checkpoint.whole = learner.model
    checkpoint.others = [part for part in callbacks if hasattr(part, "state_dict")]
    checkpoint.settings = describe(learner, callbacks[0])
    return [*callbacks, checkpoint]


def describe(learner: Learner, schedule: keras.callbacks.Callback) -> dict[str, JSON]:
    """What must be the same when a fit goes on: model, photos, and how they are trained."""
    rates = {name: repr(value) for name, value in vars(schedule).items() if not name.startswith("_")}
    training = {f.name: getattr(learner.training, f.name) for f in fields(learner.training)}
    return {
        "backbone": learner.model.backbone_name,
        "policy": learner.model.dtype_policy.name,
        "first_trainable_group": learner.model.first_trainable_group,
        "precompute": learner.precompute,
        "photos": photos_digest(learner.data),
        "schedule": {"kind": type(schedule).__name__, **{k: v for k, v in rates.items() if k != "params"}},
        "training": {
            name: v for name, v in training.items() if v is None or isinstance(v, str | int | float)
        },
    }


def photos_digest(data: Any) -> str:
    """Sixteen hexadecimal digits that change with the names, the labels and the split of the photos."""
    digest = hashlib.sha256()
    for name, split in data.splits.items():
        digest.update(f"{name} {len(split.paths)} {split.batch_size} {split.presize}\n".encode())
        digest.update("\n".join(os.path.basename(path) for path in split.paths).encode())
        digest.update(b"" if split.labels is None else split.labels.tobytes())
    return digest.hexdigest()[:16]
