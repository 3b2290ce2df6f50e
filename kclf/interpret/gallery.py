"""Photos with what the model says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from .._core.plotting import new_grid
from .._core.sizes import sides
from ..data.image_dataset import ImageDataset
from ..data.images import as_colours, read_image
from ..data.show import tiles
from ..errors import DataError, ImageError
from ..prediction.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_NAME = 24  # letters above a picture


def short(name: str) -> str:
    """A name as it fits above a picture of a grid."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


class Indexed(Protocol):
    """Images by number."""

    def __getitem__(self, index: int, /) -> Any:
        """Image `index`, uint8 (height, width, 3)."""


@dataclass(frozen=True)
class Example:
    """What a model said of one photo.

    Args:
        index: place of the photo in the predictions.
        path: its file, or None where the predictions know no files.
        actual: name of its class, of all its labels, or its number.
        predicted: what the model says, in the same form.
        loss: of the photo; for one label, minus log of `actual_probability`.
        probability: of the predicted class; None where there is not one.
        actual_probability: of the actual class; None where there is not one.
        note: the probabilities of labels that are wrong.
        judged: False for numbers, which are neither right nor wrong.
    """

    index: int
    path: str | None
    actual: str
    predicted: str
    loss: float
    probability: float | None = None
    actual_probability: float | None = None
    note: str = ""
    judged: bool = True

    @property
    def is_right(self) -> bool:
        """Whether what is predicted is what is there."""
        return not self.judged or self.actual == self.predicted

    def __str__(self) -> str:
        said = _beside(self.predicted, self.probability)
        true = _beside(self.actual, self.actual_probability)
        return f"{said} / {true}" + (f" ({self.note})" if self.note else "")


def _beside(name: str, probability: float | None) -> str:
    return name if probability is None else f"{name} {probability:.2f}"


@dataclass(repr=False)
class Gallery(Sequence[Example]):
    """Answers in an order of interest: a sequence that can be drawn.

    Args:
        answers: the photos with what the model said.
        title: what is interesting about them.

    Attributes:
        axes_, figure_: where `plot` drew last.
    """

    answers: Sequence[Example]
    title: str = ""
    axes_: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)
    figure_: Figure | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.answers)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Gallery: ...
    def __getitem__(self, place: int | slice) -> Example | Gallery:
        if isinstance(place, slice):
            return Gallery(self.answers[place], self.title)
        return self.answers[place]

    def __repr__(self) -> str:
        return f"Gallery of {len(self):,} photos: {self.title}"

    def __str__(self) -> str:
        lines = [f"{answer.loss:7.3f}  {answer}  {answer.path or answer.index}" for answer in self.answers]
        return "\n".join([f"{self.title}: loss, predicted / actual with probabilities, photo", *lines])

    def plot(
        self,
        axes: Sequence[Axes] | np.ndarray | None = None,
        *,
        columns: int | None = None,
        figsize: tuple[float, float] | None = None,
        images: Indexed | None = None,
    ) -> Gallery:
        """Draw the photos under "predicted p / actual p"; wrong answers in red.

        Args:
            axes: at least as many axes as photos; a new figure, if None.
            columns: of a new figure; None for a grid near to a square, of at most 4.
            figsize: of a new figure, in inches; None for as large as the photos need.
            images: what gives the uint8 image (height, width, 3) of an index, such as an array or
                `data.valid.dataset`; None reads the files.

        Returns:
            This object, with `axes_` and `figure_`.
        """
        if images is None and any(answer.path is None for answer in self.answers):
            raise ValueError(
                "Expected answers with the files of their photos, or images in memory: "
                "images=data.valid.dataset. Received: paths=None, images=None"
            )
        self.axes_ = self._grid(columns, figsize) if axes is None else np.asarray(axes).ravel()
        for ax in self.axes_:
            ax.axis("off")
        for ax, answer in zip(self.axes_, self.answers, strict=False):
            _show(ax, answer, images)
        self.figure_ = self.axes_[0].figure if len(self.axes_) else None
        return self

    def _grid(self, columns: int | None, figsize: tuple[float, float] | None) -> np.ndarray:
        columns = columns or min(4, max(1, math.ceil(math.sqrt(len(self)))))
        rows = max(1, math.ceil(len(self) / columns))
        return new_grid(rows, columns, figsize or (2.6 * columns, 2.8 * rows), title=self.title)


def _show(ax: Axes, answer: Example, images: Indexed | None) -> None:
    colour = "black" if answer.is_right else "tab:red"
    said = f"predicted {_beside(short(answer.predicted), answer.probability)}"
    truth = f"actual {_beside(short(answer.actual), answer.actual_probability)}"
    ax.set_title(f"{said}\n{truth}", fontsize=8, color=colour, parse_math=False)
    try:
        own = None if images is None else np.asarray(images[answer.index])
        ax.imshow(read_image(str(answer.path), at_least=256) if own is None else as_colours(own))
    except ImageError as error:
        ax.text(0.5, 0.5, error.reason, ha="center", va="center", wrap=True, fontsize=8)


def show_results(photos: ImageDataset, found: Predictions, rows: np.ndarray) -> Figure:
    """Some photos as the model sees them, each under what it said and what is right, in red where it errs.

    Args:
        photos: the split.
        found: what the model said of those that can be read, with labels.
        rows: which of these to show.
    """
    if found.labels is None:
        raise DataError("Expected photos with labels, to show beside the predictions. Received: labels=None")
    said = [found.label_text(found.predicted[row]) or "none" for row in rows]
    right = [found.label_text(found.labels[row]) or "none" for row in rows]
    wrong = [found.task != "regression" and a != b for a, b in zip(said, right, strict=True)]
    if found.task == "single_label":
        said = [f"{short(a)} {found.confidence[row]:.2f}" for a, row in zip(said, rows, strict=True)]
    titles = [f"predicted {short(a)}\nactual {short(b)}" for a, b in zip(said, right, strict=True)]
    frames = np.empty((len(rows), *sides(photos.presize), photos.channels), dtype=np.uint8)
    for place, frame in zip(_places(photos, found, rows), frames, strict=True):
        photos.dataset.frame(place, photos.presize, photos.resize_method, out=frame)
    figure = tiles(frames, titles)
    for ax, is_wrong in zip(figure.axes, wrong, strict=False):
        ax.title.set_color("tab:red" if is_wrong else "black")
    return figure


def _places(photos: ImageDataset, found: Predictions, rows: np.ndarray) -> list[int]:
    """Which of the photos the rows are of: predictions leave out those that cannot be read."""
    if found.paths is None:
        return rows.tolist()
    place = {path: index for index, path in enumerate(photos.paths)}
    return [place[path] for path in found.paths[rows]]
