"""What the course looks at: plots of the last fit, and the suggestions of the last range test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..callbacks import EpochTable, Recorder
from ..callbacks.lr_finder import RULES, RangeTest
from ..callbacks.recording import line_plot
from ..report import ReportInputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = ("size", "presize", "resize_method", "task", "batchnorm", "hidden", "dropout")


@dataclass(frozen=True, repr=False)
class SuggestedRates(RangeTest):
    """A range test that unpacks to the rates the course takes from it.

    Args:
        runs: of the test.
        rules: which suggestions it unpacks to; NaN stands where a rule does not apply.
    """

    rules: tuple[str, ...] = ("minimum", "steep")

    def __post_init__(self) -> None:
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown:
            raise ValueError(f"Expected rules of {', '.join(RULES)}. Received: suggest={list(self.rules)}")

    def __iter__(self) -> Iterator[float]:
        """The rate of each of the rules."""
        return map(self._rate, self.rules)

    @property
    def lr_min(self) -> float:
        """A tenth of the rate with the lowest loss; NaN where there is none."""
        return self._rate("minimum")

    @property
    def lr_steep(self) -> float:
        """The rate at which the loss falls fastest; NaN where there is none."""
        return self._rate("steep")

    def _rate(self, rule: str) -> float:
        rate = self.suggestions[rule].learning_rate
        return float("nan") if rate is None else rate


@dataclass
class Sched:
    """Plots under the names of fastai 0.7.

    Args:
        recorder: of the fits.
        finder: of the last range test, or None.
    """

    recorder: Recorder
    finder: SuggestedRates | None = None
    first: int = 0  # batch of the recorder at which the last fit began
    tested_last: bool = False

    def plot_lr(self, *, ax: Axes | None = None) -> Axes:
        """Learning rate over the batches of what came last: the range test, or the fit."""
        if self.tested_last and self.finder is not None:
            return line_plot(self.finder.learning_rates, "learning rate", ax)
        return line_plot(self.recorder.learning_rates[self.first :], "learning rate", ax)

    def plot_loss(self, *, ax: Axes | None = None) -> Axes:
        """Loss over batches."""
        return self.recorder.plot_loss(ax=ax)

    def plot(self, **options: Any) -> Any:
        """Loss over learning rate, of the last `lr_find`."""
        if self.finder is None:
            raise ValueError("There is no range test to plot yet: call lr_find() first")
        return self.finder.plot(**options)


def report_inputs(learner: Any) -> ReportInputs:
    """What a report can show of a learner: its settings, curves, last range test and validation photos."""
    recorder, finder = learner.recorder, learner.sched.finder
    rows = [EpochTable.columns(logs) for logs in recorder.epochs]
    history = {name: [row.get(name, float("nan")) for row in rows] for name in (rows[0] if rows else ())}
    tested = {} if finder is None else {"learning_rate": finder.learning_rates, "loss": finder.losses}
    return ReportInputs(
        title=learner.model.backbone_name or learner.model.backbone.name,
        settings={
            "model": {name: getattr(learner.model, name) for name in _SHOWN},
            "training": {name: str(value) for name, value in asdict(learner.training).items() if value},
        },
        history={"epoch": list(range(len(rows))), **history},
        batches={
            "step": np.arange(len(recorder.losses)),
            "learning_rate": np.array(recorder.learning_rates),
            "momentum": np.array(recorder.momentums),
            "smoothed_loss": recorder.smoothed_losses,
        },
        range_test=tested,
        interpretation=learner.interpret(),
        model=learner.model,
    )
