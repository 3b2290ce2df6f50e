"""What is asked of a photo: its class, all of its classes, or a number; and the probabilities of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

Task = Literal["single_label", "multi_label", "regression"]
TASKS: tuple[str, ...] = get_args(Task)
SEPARATOR = ";"  # between the labels of a photo, in text


def probabilities_of(logits: torch.Tensor, task: str) -> torch.Tensor:
    """Probabilities of logits: rows of sum 1 for one class, each by itself for several; numbers stay.

    Args:
        logits: float (batch, classes).
        task: "single_label", "multi_label" or "regression".

    Example:
        >>> probabilities_of(torch.zeros(1, 4), "single_label").tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    if task == "single_label":
        return torch.softmax(logits, dim=-1)
    return torch.sigmoid(logits) if task == "multi_label" else logits


def label_text(label: Any, class_names: Sequence[str], task: str) -> str:
    """A label or a prediction of one image in words: its classes by name, or its numbers.

    Args:
        label: an index, n-hot values (classes,), or one or more numbers.
        class_names: names of the classes.
        task: what the label is for.

    Example:
        >>> label_text([1, 1, 0], ["cat", "dog", "pig"], "multi_label")
        'cat;dog'
    """
    if task == "single_label":
        return class_names[int(label)]
    if task == "multi_label":
        return SEPARATOR.join(name for name, on in zip(class_names, label, strict=True) if on)
    return " ".join(f"{value:.6g}" for value in np.atleast_1d(label))
