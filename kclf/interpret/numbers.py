"""How far a model's numbers are from the truth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.plotting import new_grid, returned
from .answers import Answers
from .gallery import Example
from .statistics import Interval, mean_interval, wilson_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class RegressionInterpretation(Answers):
    """Predicted numbers beside the true ones.

    Args:
        predictions: that carry their labels, of the task "regression".

    Example:
        >>> from kclf import Predictions
        >>> said, true = np.array([[20.0], [34.0], [51.0]]), np.array([22.0, 30.0, 50.0])
        >>> ages = RegressionInterpretation(Predictions(said, true, task="regression"))
        >>> ages.residuals.tolist()
        [-2.0, 4.0, 1.0]
        >>> round(ages.mean_absolute_error.value, 3), round(ages.r_squared, 3)
        (2.333, 0.95)
    """

    task = "regression"

    @cached_property
    def actual(self) -> np.ndarray:
        """The true numbers, float64 (n,), or (n, outputs) where a photo has several."""
        return self._shaped(self.predictions.labels)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The predicted numbers, in the shape of `actual`."""
        return self._shaped(self.probabilities)

    def _shaped(self, values: object) -> np.ndarray:
        rows = np.asarray(values, np.float64).reshape(len(self), -1)
        return rows[:, 0] if rows.shape[1] == 1 else rows

    @property
    def residuals(self) -> np.ndarray:
        """Predicted minus true, in the shape of `actual`."""
        return self.predicted - self.actual

    @property
    def mean_absolute_error(self) -> Interval:
        """Mean of |residual|, with its 95 % interval."""
        return mean_interval(self.losses)

    @property
    def root_mean_squared_error(self) -> float:
        """Square root of the mean of residual²: large errors count for more."""
        return float(np.sqrt((self.residuals**2).mean()))

    @property
    def bias(self) -> float:
        """Mean residual: above 0 where the predictions are too high."""
        return float(self.residuals.mean())

    @property
    def r_squared(self) -> float:
        """Share of the variance that is explained; 0 is what the mean of the numbers would give."""
        spread = ((self.actual - self.actual.mean(axis=0)) ** 2).sum()
        return float(1 - (self.residuals**2).sum() / spread) if spread else float("nan")

    def within(self, distance: float) -> Interval:
        """Share of the photos whose numbers are all at most `distance` off, with its 95 % interval."""
        close = np.abs(self.residuals).reshape(len(self), -1).max(axis=1) <= distance
        return wilson_interval(int(close.sum()), len(self))

    def plot_residuals(self, *, figsize: tuple[float, float] = (10, 4)) -> Figure:
        """Predicted over true numbers, and the residuals over the predicted ones: a pattern there is a fault.

        Args:
            figsize: inches.
        """
        left, right = new_grid(1, 2, figsize)
        true, said = self.actual.ravel(), self.predicted.ravel()
        ends = [min(true.min(), said.min()), max(true.max(), said.max())]
        left.plot(ends, ends, color="0.6", linestyle="--", linewidth=1)
        left.scatter(true, said, s=12, alpha=0.5)
        left.set(xlabel="actual", ylabel="predicted")
        left.set_title(f"mean absolute error {self.mean_absolute_error.value:.4g}", fontsize=10)
        right.axhline(0, color="0.6", linestyle="--", linewidth=1)
        right.scatter(said, said - true, s=12, alpha=0.5)
        right.set(xlabel="predicted", ylabel="predicted - actual")
        right.set_title(f"bias {self.bias:+.4g}, R² {self.r_squared:.3f}", fontsize=10)
        return returned(left.figure)

    def figures(self) -> dict[str, Any]:
        """Errors with the interval of their mean, bias and explained variance, as plain numbers."""
        error = self.mean_absolute_error
        return {
            "photos": len(self),
            "mean_absolute_error": error.value,
            "interval": [error.low, error.high],
            "root_mean_squared_error": self.root_mean_squared_error,
            "bias": self.bias,
            "r_squared": self.r_squared,
        }

    def summary(self) -> str:
        """Errors, bias and explained variance, in a few lines."""
        error = self.mean_absolute_error
        by_the_mean = float(np.abs(self.actual - np.median(self.actual, axis=0)).mean())
        return "\n".join(
            [
                f"mean absolute error {error.value:.4g} ({error.low:.4g} to {error.high:.4g}) on "
                f"{len(self):,} photos; always the median would give {by_the_mean:.4g}",
                f"root mean squared error {self.root_mean_squared_error:.4g}, bias {self.bias:+.4g}, "
                f"R² {self.r_squared:.4f}",
                f"half of the photos within {np.median(np.abs(self.residuals)):.4g}",
            ]
        )

    def _answer(self, place: int) -> Example:
        return self._said(place, self.actual, judged=False)
