"""New figures for whatever draws on axes of the caller's; matplotlib is loaded when it is first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Inches = tuple[float, float]


def new_axes(figsize: Inches | None = None, *, dpi: float | None = None) -> Axes:
    """The axes of a new figure.

    Args:
        figsize: width and height in inches; None for matplotlib's own.
        dpi: dots an inch; None for matplotlib's own.
    """
    from matplotlib import pyplot

    return pyplot.subplots(figsize=figsize, dpi=dpi, layout="constrained")[1]


def new_grid(rows: int, columns: int, figsize: Inches, *, title: str = "") -> np.ndarray:
    """The axes of a new figure with several, row by row: (rows * columns,).

    Args:
        rows: of the grid.
        columns: of the grid.
        figsize: width and height in inches.
        title: above all of them.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained")
    if title:
        figure.suptitle(title)
    return axes.ravel()


def returned(figure: Figure) -> Figure:
    """A figure that a method returns: a notebook shows it as what the cell gives, and not a second time."""
    from matplotlib import pyplot

    pyplot.close(figure)
    return figure
