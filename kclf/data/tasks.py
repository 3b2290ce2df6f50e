"""What is asked of a photo: its class, all of its classes, or a number; and the probabilities of that."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Task = Literal["single_label", "multi_label", "regression"]
TASKS: tuple[str, ...] = get_args(Task)


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
