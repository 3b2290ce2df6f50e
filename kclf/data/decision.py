"""What a classifier makes of its logits: probabilities that hold, labels by thresholds, sets of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .._core.arguments import in_open

LARGEST_TABLE = 10_000  # numbers that a file may bring


@dataclass(frozen=True)
class Decision:
    """Kept in a classifier's file and applied by every prediction.

    Args:
        temperature: logits are divided by it before they become probabilities (Guo et al. 2017,
            https://arxiv.org/abs/1706.04599).
        thresholds: for several labels, the probability from which each is given, (classes,); () is 0.5.
        conformity: for one label, 1 - probability of the right class of photos that the classifier was not
            trained on, sorted (Vovk et al. 2005; Angelopoulos & Bates 2021, https://arxiv.org/abs/2107.07511).

    Example:
        >>> decision = Decision(conformity=(0.1, 0.2, 0.3, 0.6))
        >>> decision.sets(np.array([[0.5, 0.45, 0.05], [0.9, 0.08, 0.02]]), 0.8).tolist()
        [[True, True, False], [True, False, False]]
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    conformity: tuple[float, ...] = ()

    def sets(self, probabilities: np.ndarray, coverage: float) -> np.ndarray:
        """Classes that hold the right one in a share of `coverage` of photos like those set aside.

        Args:
            probabilities: float (n, classes) of one label a photo.
            coverage: in (0, 1).

        Returns:
            Bool (n, classes); the most probable class is always in.

        Raises:
            ValueError: no scores are kept, since there were too few photos or they have several labels.
        """
        in_open("coverage", coverage, 0, 1)
        if not self.conformity:
            raise ValueError(
                "This classifier keeps no scores of photos set aside, which sets of classes need: there were "
                "too few of them, or they have several labels. Train with more validation photos"
            )
        rank = math.ceil((len(self.conformity) + 1) * coverage)
        most = self.conformity[rank - 1] if rank <= len(self.conformity) else 1.0
        chosen = 1 - probabilities <= most
        chosen[np.arange(len(chosen)), probabilities.argmax(axis=1)] = True
        return chosen

    def get_config(self) -> dict[str, Any]:
        """Plain values that `from_config` takes."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> Decision | None:
        """The decision of a config; None of None.

        Raises:
            ValueError: values that no decision has.
        """
        if config is None:
            return None
        temperature = float(config["temperature"])
        thresholds, conformity = (_numbers(config[name]) for name in ("thresholds", "conformity"))
        if not (math.isfinite(temperature) and temperature > 0) or list(conformity) != sorted(conformity):
            raise ValueError(f"Expected a positive temperature and sorted scores. Received: {temperature=}")
        return cls(temperature, thresholds, conformity)


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) > LARGEST_TABLE or not all(0 <= number <= 1 for number in numbers):
        raise ValueError(f"Expected at most {LARGEST_TABLE:,} shares. Received: {len(numbers):,} numbers")
    return numbers
