"""What the course looks at: plots of the last fit, and the suggestions of the last range test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..callbacks import Recorder
from ..callbacks.range_test import RULES, RangeTest

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class SuggestedRates(RangeTest):
    """A range test that unpacks to the rates the course takes from it.

    Args:
        runs: of the test.
        rules: which suggestions it unpacks to; NaN stands where a rule does not apply.
    """

    rules: tuple[str, ...] = ("minimum", "steep")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown:
            raise ValueError(f"Expected rules of {', '.join(RULES)}. Received: suggest={list(self.rules)}")

    def __iter__(self) -> Iterator[float]:
        """The rate of each of the rules."""
        for rule in self.rules:
            rate = self.suggestions[rule].learning_rate
            yield float("nan") if rate is None else rate


@dataclass
class Sched:
    """Plots under the names of fastai 0.7.

    Args:
        recorder: of the fits.
        finder: of the last range test, or None.
    """

    recorder: Recorder
    finder: SuggestedRates | None = None

    def plot_lr(self, *, ax: Axes | None = None) -> Axes:
        """Learning rate over batches."""
        return self.recorder.plot_lr(ax=ax)

    def plot_loss(self, *, ax: Axes | None = None) -> Axes:
        """Loss over batches."""
        return self.recorder.plot_loss(ax=ax)

    def plot(self, **options: Any) -> Any:
        """Loss over learning rate, of the last `lr_find`."""
        if self.finder is None:
            raise ValueError("There is no range test to plot yet: call lr_find() first")
        return self.finder.plot(**options)
