"""What a `Learner` keeps, so that its commands resume after a crash."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from .._core.h5_store import JSON
from ..data import ImageData
from ..models import ImageClassifier
from .training import Training


def describe(
    model: ImageClassifier, data: ImageData, training: Training, precompute: bool, schedule: Any
) -> dict[str, JSON]:
    """What must be the same when a fit resumes: model, images, and how they are trained.

    Args:
        model: the classifier.
        data: what it is trained on.
        training: settings of all fits.
        precompute: whether its head trains on cached activations.
        schedule: the callback that sets the learning rate.
    """
    public = {k: repr(v) for k, v in vars(schedule).items() if not k.startswith("_") and k != "params"}
    plain = {k: v for k, v in vars(training).items() if v is None or isinstance(v, str | int | float)}
    return {
        "backbone": model.backbone_name,
        "policy": model.dtype_policy.name,
        "first_trainable_group": model.first_trainable_group,
        "precompute": precompute,
        "photos": photos_digest(data),
        "schedule": {"kind": type(schedule).__name__, **public},
        "training": plain,
    }


def photos_digest(data: Any) -> str:
    """Sixteen hexadecimal digits that change with the names, the labels and the split of the photos."""
    digest = hashlib.sha256()
    for name, split in data.splits.items():
        digest.update(f"{name} {len(split.paths)} {split.batch_size} {split.presize}\n".encode())
        digest.update("\n".join(os.path.basename(path) for path in split.paths).encode())
        digest.update(b"" if split.labels is None else split.labels.tobytes())
    return digest.hexdigest()[:16]
