"""What the photos look like: figures, returned and never shown (a notebook shows what a cell returns)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .._core.plotting import new_axes, new_grid, returned
from .._core.sizes import sides, size_text
from .image_dataset import ImageDataset
from .images import as_colours
from .summary import photo_sizes
from .tasks import label_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Augment = Callable[..., Any]
TILE = 2.2  # inches


def show_batch(
    split: ImageDataset, count: int = 9, columns: int | None = None, augmentation: Augment | None = None
) -> Figure:
    """The first images of the next batch with their labels, augmented where that is given."""
    images, *labels = split.peek()
    shown = _pixels(images[:count] if augmentation is None else augmentation(images[:count], training=True))
    known = labels[0][:count].numpy(force=True) if labels else ()
    titles = [label_text(label, split.class_names, split.task) for label in known] or None
    return tiles(shown, titles, columns)


def show_augmented(split: ImageDataset, augmentation: Augment | None, index: int, count: int) -> Figure:
    """One image `count` times, as training meets it in so many epochs."""
    frames = np.empty((count, *sides(split.presize), split.channels), dtype=np.uint8)
    for epoch, frame in enumerate(frames):
        position = split.positions(epoch)[index]
        split.dataset.frame(index, split.presize, split.resize_method, position, out=frame)
    if augmentation is None:
        return tiles(frames)
    return tiles(_pixels(augmentation(torch.from_numpy(frames), training=True)))


def _pixels(images: torch.Tensor) -> np.ndarray:
    """Images in [0, 255] as uint8 on the host."""
    return images.numpy(force=True).clip(0, 255).astype(np.uint8)


def tiles(images: np.ndarray, titles: Sequence[str] | None = None, columns: int | None = None) -> Figure:
    """Images in a grid, near to a square unless told, each under its title: uint8 (n, height, width, any)."""
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = int(np.ceil(len(images) / columns))
    axes = new_grid(rows, columns, (TILE * columns, TILE * rows))
    for ax in axes:
        ax.axis("off")
    for i, image in enumerate(images):
        axes[i].imshow(as_colours(image))
        if titles is not None:
            axes[i].set_title(titles[i], fontsize="small", parse_math=False)
    return returned(axes[0].figure)


def show_sizes(split: ImageDataset, limit: int | None) -> Figure:
    """Histograms of the widths and heights of the photos."""
    sizes = photo_sizes(split, limit)
    wanted, label = sides(split.presize)[::-1], f"presize {size_text(split.presize)}"
    axes = new_grid(1, 2, (7, 3))
    for ax, values, name, side in zip(axes, sizes.T, ("width", "height"), wanted, strict=True):
        ax.hist(values, bins=40)
        ax.axvline(side, color="black", linestyle=":", label=label)
        ax.set(xlabel=f"{name} in pixels", ylabel="photos")
        ax.legend()
    return returned(axes[0].figure)


def show_classes(splits: Mapping[str, ImageDataset]) -> Figure:
    """Images of each class, as bars, split by split."""
    names = splits["train"].class_names
    ax: Any = new_axes((7, max(2.0, 0.22 * len(names))))
    before = np.zeros(len(names), dtype=np.int64)
    for name, split in splits.items():
        if split.labels is not None:
            counts = split.class_counts()
            ax.barh(range(len(names)), counts, left=before, label=name)
            before += counts
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.invert_yaxis()
    ax.set(xlabel="images")
    ax.legend()
    return returned(ax.figure)
