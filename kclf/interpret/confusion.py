"""Which class is taken for which: the confusion matrix, put in an order that shows it, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from .._core.arguments import one_of
from .._core.plotting import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Order = Literal["given", "confusion", "accuracy"]
MANY_CLASSES = 60  # beyond, cells are drawn smaller, and only errors get a number
INCHES_A_CELL = 0.24, 0.17  # for few and for many classes; names of 8 points fit both


class Confusion(NamedTuple):
    """How often one class was taken for another."""

    actual: str
    predicted: str
    photos: int


@dataclass(repr=False)
class ConfusionMatrix:
    """Counts of photos by actual class (rows) and predicted class (columns).

    Args:
        counts: integers, (classes, classes).
        class_names: names in the order of the rows.

    Attributes:
        ax_, figure_: where `plot` drew last.

    Example:
        >>> matrix = ConfusionMatrix([[8, 2], [1, 9]], ["cat", "dog"])
        >>> matrix.most_confused(min_val=2)
        [Confusion(actual='cat', predicted='dog', photos=2)]
    """

    counts: np.ndarray
    class_names: Sequence[str]
    ax_: Axes | None = field(default=None, init=False, repr=False, compare=False)
    figure_: Figure | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.counts = np.asarray(self.counts)
        self.class_names = list(self.class_names)
        expected = (len(self.class_names),) * 2
        if self.counts.shape != expected:
            raise ValueError(
                f"Expected counts of shape {expected} for {len(self.class_names)} class names. "
                f"Received: counts.shape={self.counts.shape}"
            )

    def __repr__(self) -> str:
        return f"Confusion matrix of {len(self.class_names)} classes, {self._found()}"

    def _found(self) -> str:
        errors, photos = int(self.errors.sum()), int(self.counts.sum())
        return f"{errors:,} error{'s' * (errors != 1)} in {photos:,} photo{'s' * (photos != 1)}"

    @property
    def errors(self) -> np.ndarray:
        """The counts with the diagonal (the right answers) at 0."""
        return self.counts - np.diag(np.diag(self.counts))

    def most_confused(self, min_val: int = 1) -> list[Confusion]:
        """Pairs of classes confused at least `min_val` times, the most frequent first (ties by name)."""
        names = self.class_names
        places = np.argwhere(self.errors >= max(1, min_val)).tolist()
        pairs = [Confusion(names[a], names[p], int(self.counts[a, p])) for a, p in places]
        return sorted(pairs, key=lambda pair: (-pair.photos, pair.actual, pair.predicted))

    def ordered(self, order: Order = "confusion") -> ConfusionMatrix:
        """The same matrix with its classes in another order.

        Args:
            order: "confusion" puts classes that are taken for each other side by side, the worst
                groups first; "accuracy" puts the class with the lowest recall first; "given" changes nothing.
        """
        one_of("order", order, get_args(Order))
        if order == "confusion":
            return self._taken(_seriate(self.errors + self.errors.T))
        if order == "accuracy":
            recall = np.diag(self.counts) / np.maximum(self.counts.sum(axis=1), 1)
            return self._taken(np.argsort(recall, kind="stable"))
        return self

    def worst(self, num_classes: int = 20) -> ConfusionMatrix:
        """The block of classes with the most errors among themselves, grown from the most confused pair."""
        both_ways = self.errors + self.errors.T
        chosen = [int(c) for c in np.unravel_index(both_ways.argmax(), both_ways.shape)][:num_classes]
        while len(chosen) < min(num_classes, len(self.class_names)):
            with_chosen = both_ways[chosen].sum(axis=0) + both_ways.sum(axis=0) / (both_ways.sum() + 1)
            with_chosen[chosen] = -1
            chosen.append(int(with_chosen.argmax()))
        return self._taken(np.unique(chosen)).ordered()

    def _taken(self, indices: np.ndarray) -> ConfusionMatrix:
        return ConfusionMatrix(
            self.counts[np.ix_(indices, indices)], [self.class_names[int(i)] for i in indices]
        )

    def plot(
        self,
        ax: Axes | None = None,
        *,
        order: Order = "confusion",
        normalize: bool = False,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
    ) -> ConfusionMatrix:
        """Draw the matrix: right answers in blue, errors in orange, so that a single error is seen.

        Args:
            ax: axes to draw on; a new figure as large as the names need, if None.
            order: see `ordered`.
            normalize: write and colour the share of the actual class in place of the count.
            title: above the plot; the number of errors, if None.
            figsize: inches, for a new figure.
            dpi: of a new figure.

        Returns:
            This object in the drawn order, with `ax_` and `figure_`.
        """
        drawn = self.ordered(order)
        num_classes = len(self.class_names)
        side = 2.2 + num_classes * INCHES_A_CELL[num_classes > MANY_CLASSES]
        axes: Any = ax or new_axes(figsize or (side, side), dpi=dpi)
        drawn.ax_, drawn.figure_ = axes, axes.figure
        _draw(drawn, normalize=normalize)
        axes.set_title(title if title is not None else self._found())
        return drawn


def _seriate(similarity: np.ndarray) -> np.ndarray:
    """An order with similar items side by side: chains joined at their most similar pairs, worst first."""
    chain_of = [[item] for item in range(len(similarity))]
    rows, columns = np.nonzero(np.triu(similarity, 1))
    strongest_first = np.argsort(-similarity[rows, columns], kind="stable")
    for left, right in zip(rows[strongest_first], columns[strongest_first], strict=True):
        head, tail = chain_of[left], chain_of[right]
        if head is tail:
            continue
        if 2 * head.index(left) < len(head) - 1:
            head.reverse()
        if 2 * tail.index(right) > len(tail) - 1:
            tail.reverse()
        head.extend(tail)
        for item in tail:
            chain_of[item] = head
    chains = {id(chain): chain for chain in chain_of}.values()
    worst_first = sorted(chains, key=lambda chain: -similarity[np.ix_(chain, chain)].sum())
    return np.array([item for chain in worst_first for item in chain], dtype=int)


def _draw(matrix: ConfusionMatrix, *, normalize: bool) -> None:
    ax: Any = matrix.ax_
    counts, num_classes = matrix.counts, len(matrix.class_names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(num_classes, dtype=bool)
    # The square root keeps one error in a hundred photos visible beside a full diagonal.
    shade = np.sqrt(share if normalize else counts / max(counts.max(), 1))
    shade = np.where(right, shade / 1.2, 0.3 + 0.6 * shade / max(shade[~right].max(initial=0), 0.5))
    ax.imshow(np.ma.masked_where(~right, shade), cmap="Blues", vmin=0, vmax=1)
    ax.imshow(np.ma.masked_where(right | (counts == 0), shade), cmap="Oranges", vmin=0, vmax=1)
    ax.set_xticks(range(num_classes), matrix.class_names, rotation=90, fontsize=8, parse_math=False)
    ax.set_yticks(range(num_classes), matrix.class_names, fontsize=8, parse_math=False)
    ax.set(xlabel="predicted", ylabel="actual")
    ax.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.88", linewidth=0.4)
    ax.tick_params(which="minor", length=0)
    written = (counts > 0) & ~(right & (num_classes > MANY_CLASSES))
    size = 5 if normalize else 7
    for row, column in np.argwhere(written).tolist():
        text = f"{share[row, column]:.2f}".removeprefix("0") if normalize else f"{counts[row, column]:,}"
        color = "white" if shade[row, column] > 0.6 else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
