"""Which values the settings of a run can have, where they come from a file and not from the command."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..backbones import backbone_names
from ..models.classifier import BATCHNORM_POLICIES

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16", "auto")
_SIDES = range(1, 8193)
_COUNTS = range(100_001)
_SEEDS = range(2**32)


def _is_rate(value: float) -> bool:
    return math.isfinite(value) and 0 < value < 1e6


def check_values(settings: Mapping[str, Any], augmentations: Mapping[str, Any]) -> None:
    """Raise where a setting has a value that no run could have had.

    Args:
        settings: by name, of the right types.
        augmentations: by the names that `augment` can have.

    Raises:
        ValueError: one has.
    """
    allowed: dict[str, Callable[[Any], bool]] = {
        "valid_fraction": lambda value: 0 < value < 1,
        "backbone": backbone_names().__contains__,
        "batchnorm": BATCHNORM_POLICIES.__contains__,
        "augment": augmentations.__contains__,
        "mixed_precision": PRECISIONS.__contains__,
        "size": _SIDES.__contains__,
        "presize": _SIDES.__contains__,
        "epochs": _COUNTS.__contains__,
        "freeze_epochs": _COUNTS.__contains__,
        "batch_size": lambda value: value is None or value >= 0,
        "recipe": ("lp-ft", "course").__contains__,
        "effort": ("quick", "standard", "best").__contains__,
        "minutes": lambda value: value is None or _is_rate(value),
        "learning_rate": _is_rate,
        "unfrozen_learning_rate": lambda value: value is None or _is_rate(value),
        "seed": _SEEDS.__contains__,
    }
    for name, is_allowed in allowed.items():
        if not is_allowed(settings[name]):
            raise ValueError(f"no run can have had {name}={settings[name]!r}")
