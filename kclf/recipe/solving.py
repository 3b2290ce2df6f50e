"""Linear models on fixed features, solved to convergence, their regularisation chosen by cross-validation.

All three tasks minimise the same thing over kernel W (features, outputs) and bias b:

    C * sum_i weight_i * loss(features_i @ W + b, label_i) + |W|^2 / 2

with cross-entropy for one label (multinomial logistic regression), binary cross-entropy for each of several
labels, and half the squared error for numbers (ridge regression of strength 1 / C). The bias is free. This
is scikit-learn's `LogisticRegression(C=C)` and `Ridge(alpha=1 / C)`, computed by torch on its device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from ..errors import DataError

LOWEST, HIGHEST = -6.0, 0.5  # of log10 C: where folds of few photos make no error, they ask for more and more
FIRST = (-3.5, -2.5, -1.5)  # log10 C tried first: where standardised features of a backbone mostly end
STEP, FINE_STEP = 1.0, 0.5
DEFAULT_STRENGTH = 1e-2  # where there are too few photos to compare strengths
TOLERANCE, COARSE_TOLERANCE = 1e-6, 1e-4  # largest gradient of the mean loss: in the end, and to compare
LONGEST = 1000  # iterations


@dataclass(frozen=True)
class LinearSolution:
    """Outputs are `features @ kernel + bias`.

    Args:
        kernel: float64 (features, outputs).
        bias: float64 (outputs,).
    """

    kernel: torch.Tensor
    bias: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Outputs (n, outputs) of features (n, features)."""
        return features @ self.kernel + self.bias


@dataclass
class Problem:
    """Photos to fit.

    Args:
        features: float64 (rows, features); several rows may show views of one photo.
        labels: int64 (rows,), or float64 (rows, outputs).
        weights: float64 (rows,), of each row in the loss.
        task: "single_label", "multi_label" or "regression".
        num_outputs: columns of the solution.
    """

    features: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    task: str
    num_outputs: int

    def take(self, rows: torch.Tensor) -> Problem:
        """The problem of some rows."""
        return replace(
            self, features=self.features[rows], labels=self.labels[rows], weights=self.weights[rows]
        )

    def single_precision(self) -> Problem:
        """The problem in float32, at half the time: enough to compare strengths."""
        labels = self.labels.float() if self.labels.is_floating_point() else self.labels
        return replace(self, features=self.features.float(), labels=labels, weights=self.weights.float())


def solve(
    problem: Problem,
    strength: torch.Tensor | float,
    *,
    start: LinearSolution | None = None,
    tolerance: float = TOLERANCE,
) -> LinearSolution:
    """The minimum.

    Args:
        problem: the photos, of two classes or more.
        strength: C, one for all outputs or one for each, (outputs,).
        start: a solution nearby.
        tolerance: largest gradient of the mean loss that is left; ridge regression has a closed form.
    """
    if problem.task == "regression":
        return _ridge(problem, torch.as_tensor(strength, dtype=torch.float64))
    learnable = _learnable(problem)
    x, outputs = problem.features, problem.num_outputs
    solution = start or LinearSolution(x.new_zeros(x.shape[1], outputs), x.new_zeros(outputs))
    if len(learnable):
        kernel, bias = solution.kernel[:, learnable], solution.bias[learnable]
        found = _minimise(problem, learnable, strength, LinearSolution(kernel, bias), tolerance)
        solution = LinearSolution(
            solution.kernel.index_copy(1, learnable, found.kernel),
            solution.bias.index_copy(0, learnable, found.bias),
        )
    return _with_prior(problem, learnable, solution)


def require_two_classes(problem: Problem) -> None:
    """Raise a DataError where fewer than two classes have photos."""
    present = len(problem.labels.unique())
    if problem.task == "single_label" and present < 2:
        raise DataError(
            "Expected photos of two classes or more to tell apart. "
            f"Received: {len(problem.labels)} photos of {present} of {problem.num_outputs} classes"
        )


def losses(outputs: torch.Tensor, labels: torch.Tensor, task: str) -> torch.Tensor:
    """Loss of each photo and each column whose strength is chosen alone: (n, 1), or (n, outputs).

    Log loss; for numbers the absolute error, which is what classifiers of numbers are trained and judged by.
    """
    if task == "single_label":
        return functional.cross_entropy(outputs, labels, reduction="none")[:, None]
    if task == "multi_label":
        return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
    return (outputs - labels).abs().mean(dim=1, keepdim=True)


# ---- the choice of the strength ------------------------------------------------------------


def choose_strength(
    problem: Problem, photo: torch.Tensor, folds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The strength with the lowest loss on photos that a fold held out.

    Args:
        problem: the rows to fit.
        photo: int64 (rows,), which photo each row shows; the first n show each as it is, in order: held-out
            photos are judged by these.
        folds: int64 (n,), the fold that holds each photo out; -1 for none.

    Returns:
        C of each column, float64 (columns,): one, or one for each of several labels. And outputs of each
        photo by the models that did not see it, each fold at the strength that the other folds choose,
        (n, outputs); NaN where a photo was never held out, None where none was.
    """
    columns = problem.num_outputs if problem.task == "multi_label" else 1
    if not (folds >= 0).any():
        return torch.full((columns,), DEFAULT_STRENGTH, dtype=torch.float64), None
    held_out = _HeldOut(problem.single_precision(), photo, folds)
    for exponent in FIRST:
        held_out.at(exponent)
    while (beyond := held_out.beyond_edge()) is not None:
        held_out.at(beyond)
    for exponent in sorted(held_out.best().unique().tolist()):
        held_out.at(max(exponent - FINE_STEP, LOWEST))
        held_out.at(min(exponent + FINE_STEP, HIGHEST))
    return 10 ** held_out.best(), held_out.cross_fitted()


class _HeldOut:
    """Outputs and losses of held-out photos at each strength."""

    def __init__(self, problem: Problem, photo: torch.Tensor, folds: torch.Tensor) -> None:
        self.folds = folds
        numbers, row_folds = sorted(set(folds.tolist()) - {-1}), folds[photo]
        self.training = {number: problem.take((row_folds != number).nonzero()[:, 0]) for number in numbers}
        self.plain = problem.take(photo[: len(folds)])
        self.starts: dict[int, LinearSolution] = {}
        self.outputs: dict[float, torch.Tensor] = {}
        self.losses: dict[float, torch.Tensor] = {}

    def at(self, exponent: float) -> None:
        """Fit all folds at a strength."""
        if exponent in self.losses:
            return
        shape = (len(self.folds), self.plain.num_outputs)
        outputs = self.plain.features.new_full(shape, math.nan)
        for number, part in self.training.items():
            rows, start = self.folds == number, self.starts.get(number)
            found = solve(part, 10**exponent, start=start, tolerance=COARSE_TOLERANCE)
            self.starts[number] = found
            outputs[rows] = found(self.plain.features[rows])
        self.outputs[exponent] = outputs
        self.losses[exponent] = losses(outputs, self.plain.labels, self.plain.task)

    def _mean(self, exponent: float, rows: torch.Tensor) -> torch.Tensor:
        weights = self.plain.weights[rows, None]
        return (self.losses[exponent][rows] * weights).sum(dim=0) / weights.sum()

    def best(self, but: int | None = None) -> torch.Tensor:
        """log10 C of the lowest loss for each column, by all folds or by all but one."""
        rows = (self.folds >= 0) & (self.folds != but)
        exponents = sorted(self.losses)
        means = torch.stack([self._mean(exponent, rows) for exponent in exponents])
        return torch.tensor(exponents, dtype=torch.float64)[means.cpu().argmin(dim=0)]

    def cross_fitted(self) -> torch.Tensor:
        """Outputs of each fold at the strength that the others choose."""
        found = torch.full_like(self.outputs[FIRST[0]], math.nan)
        for number in self.training:
            rows = self.folds == number
            best = self.best(but=number if len(self.training) > 1 else None).tolist()
            if len(best) == 1:
                found[rows] = self.outputs[best[0]][rows]
            for column, exponent in enumerate(best if len(best) > 1 else ()):
                found[rows, column] = self.outputs[exponent][rows, column]
        return found

    def beyond_edge(self) -> float | None:
        """The next exponent to try, while the lowest loss of any column lies at an end of those tried."""
        best, low, high = self.best(), min(self.losses), max(self.losses)
        if (best == low).any() and low - STEP >= LOWEST:
            return low - STEP
        return high + STEP if (best == high).any() and high + STEP <= HIGHEST else None


def make_folds(labels: np.ndarray, task: str, count: int, seed: int = 0) -> np.ndarray:
    """The fold that holds each photo out, int64 (n,); classes are spread evenly over the folds.

    A class with one photo is never held out (-1): what is to be learnt of it is in that photo.

    Args:
        labels: of the photos, as an `ImageDataset` has them.
        task: "single_label", "multi_label" or "regression".
        count: folds, 2 or more.
        seed: of the draw.

    Example:
        >>> make_folds(np.array([0, 0, 1]), "single_label", 2).tolist().count(-1)
        1
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    folds = np.full(len(labels), -1)
    if task == "single_label":
        order = order[np.argsort(labels[order], kind="stable")]
        order = order[np.bincount(labels)[labels[order]] > 1]
    if len(order) > 1:
        folds[order] = np.arange(len(order)) % count
    return folds


# ---- the minimum ------------------------------------------------------------


def _learnable(problem: Problem) -> torch.Tensor:
    """Columns to learn: classes with photos, and labels that some photos have and some have not."""
    if problem.task == "single_label":
        return problem.labels.unique()
    mean = problem.labels.mean(dim=0)
    return ((mean > 0) & (mean < 1)).nonzero()[:, 0]


def _minimise(
    problem: Problem,
    columns: torch.Tensor,
    strength: torch.Tensor | float,
    start: LinearSolution,
    tolerance: float,
) -> LinearSolution:
    """L-BFGS from a start, over some of the columns."""
    x, weights = problem.features, problem.weights / problem.weights.sum()
    strengths = torch.as_tensor(strength).to(x)
    strengths = strengths[columns] if strengths.numel() == problem.num_outputs > 1 else strengths
    penalty = 0.5 / (strengths * problem.weights.sum())
    if problem.task == "single_label" and len(columns) == 2:
        penalty = 2 * penalty  # two opposite columns stand for scikit-learn's one, of twice their length
    gradient = _gradient(problem, columns)
    kernel, bias = start.kernel.clone(), start.bias.clone()
    optimizer = torch.optim.LBFGS(
        [kernel, bias],
        max_iter=LONGEST,
        tolerance_grad=tolerance,
        tolerance_change=tolerance * 1e-6,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        value, slope = gradient(torch.addmm(bias, x, kernel))
        slope = slope * weights[:, None]
        kernel.grad = x.T @ slope + 2 * penalty * kernel
        bias.grad = slope.sum(dim=0)
        return (weights * value).sum() + (penalty * kernel.square()).sum()

    with torch.no_grad():
        optimizer.step(closure)
    return LinearSolution(kernel.detach(), bias.detach())


def _gradient(
    problem: Problem, columns: torch.Tensor
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """A function from outputs (rows, columns) to each row's loss (rows,) and its gradient (rows, columns)."""
    if problem.task == "multi_label":
        wanted = problem.labels[:, columns]

        def binary(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value = functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
            return value.sum(dim=1), outputs.sigmoid() - wanted

        return binary
    rows = torch.arange(len(problem.labels), device=columns.device)
    places = torch.searchsorted(columns, problem.labels)

    def multinomial(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logs = outputs.log_softmax(dim=1)
        slope = logs.exp()
        slope[rows, places] -= 1
        return -logs[rows, places], slope

    return multinomial


def _with_prior(problem: Problem, learnable: torch.Tensor, solution: LinearSolution) -> LinearSolution:
    """Give columns that nothing can be learnt of what their counts say, with half a photo added to each.

    A class without photos gets one chance in twice the number of photos, a label that all photos have, or
    none, the odds of its count; without, their bias would be infinite.
    """
    fixed = torch.ones(problem.num_outputs, dtype=torch.bool, device=learnable.device)
    fixed[learnable] = False
    if not fixed.any():
        return solution
    total = problem.weights.sum()
    if problem.task == "single_label":
        level = solution(problem.features)[:, learnable].logsumexp(dim=1).mean()
        bias = level - torch.log(2 * total)
    else:
        has = (problem.labels * problem.weights[:, None]).sum(dim=0)[fixed]
        bias = torch.log((has + 0.5) / (total - has + 0.5))
    kernel, biases = solution.kernel.clone(), solution.bias.clone()
    kernel[:, fixed], biases[fixed] = 0.0, bias
    return LinearSolution(kernel, biases)


def _ridge(problem: Problem, strength: torch.Tensor) -> LinearSolution:
    """Weighted ridge regression by its normal equations; the features have been reduced to at most n."""
    weights = problem.weights[:, None]
    mean_x, mean_y = (
        (values * weights).sum(dim=0) / weights.sum() for values in (problem.features, problem.labels)
    )
    x, y = problem.features - mean_x, problem.labels - mean_y
    gram = x.T @ (weights * x)
    gram.diagonal().add_(1 / strength.to(gram).reshape(-1)[0])
    kernel = torch.cholesky_solve(x.T @ (weights * y), torch.linalg.cholesky(gram))
    return LinearSolution(kernel, mean_y - mean_x @ kernel)


def row_space(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Coordinates (n, r) of features (n, d) in an orthonormal basis (d, r) of their own span, r <= n.

    A penalised solution lies in that span, so that with fewer photos than features it can be found in n
    dimensions: kernel = basis @ kernel of the coordinates, of the same norm. Where d <= n the features are
    returned with None.
    """
    if features.shape[0] >= features.shape[1]:
        return features, None
    values, vectors = torch.linalg.eigh(features @ features.T)
    kept = values > values[-1].clamp(min=1e-300) * 1e-12
    scale = values[kept].sqrt()
    return vectors[:, kept] * scale, features.T @ vectors[:, kept] / scale
