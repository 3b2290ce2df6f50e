"""`ImageData.summary()`: what was found, and the way of one photo through the loader, step by step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np

from .._core.sizes import Size, shape_name, sides, size_text
from .._core.terminal import one_line
from ..errors import ImageError, KclfError
from .image_dataset import ImageDataset
from .images import image_size
from .sources import FileImages
from .tasks import label_text

CLASSES_SHOWN = 20
SIZES_SAMPLED = 200  # headers read to tell the sizes of the photos: about 30 ms


class Text(str):
    """Text that a notebook shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def summary(splits: Mapping[str, ImageDataset], size: Size, notes: Iterable[str], index: int | None) -> Text:
    """The whole summary as text; see `ImageData.summary`."""
    train = splits["train"]
    parts = (_splits(splits, size), notes, _classes(splits), _sizes(train), _steps(train, index))
    return Text("\n".join(line for part in parts for line in part))


def _splits(splits: Mapping[str, ImageDataset], size: Size) -> Iterator[str]:
    train = splits["train"]
    read, seen = size_text(train.presize), size_text(size)
    frames = f"{read} px {shape_name(train.presize)}s, the model sees {seen} px"
    classes = f"{len(train.class_names)} classes, " if train.class_names else ""
    yield f"{train.task.replace('_', ' ').capitalize()} images, {classes}{frames}"
    for name, split in splits.items():
        notes = [
            "shuffled" * split.shuffle,
            "random windows" * split.random_crop,
            f"{_left_out(split)} images left over an epoch" * bool(_left_out(split)),
            "no labels" * (split.labels is None),
            f"{len(split.skipped)} unreadable" * bool(split.skipped),
        ]
        batches = f"{len(split):,} {'batch' if len(split) == 1 else 'batches'} of {split.batch_size}"
        yield f"  {name:6}{split.num_images:9,} images  {', '.join([batches, *filter(None, notes)])}"


def _left_out(split: ImageDataset) -> int:
    return max(0, split.num_images - len(split) * split.batch_size)


def _classes(splits: Mapping[str, ImageDataset]) -> Iterator[str]:
    names = splits["train"].class_names
    if not names:
        return
    labelled = {name: split for name, split in splits.items() if split.labels is not None}
    counts = {name: split.class_counts() for name, split in labelled.items()}
    width = max(5, *(len(one_line(name)) for name in names[:CLASSES_SHOWN]))
    yield f"Classes{' ' * (width - 3)}" + "".join(f"{name:>9}" for name in counts)
    for i, name in enumerate(names[:CLASSES_SHOWN]):
        yield f"  {one_line(name):{width}}  " + "".join(f"{count[i]:9,}" for count in counts.values())
    if len(names) > CLASSES_SHOWN:
        ranges = "; ".join(f"{name} {count.min():,} to {count.max():,}" for name, count in counts.items())
        yield f"  and {len(names) - CLASSES_SHOWN} more. Images a class: {ranges}"


def _sizes(split: ImageDataset) -> Iterator[str]:
    if not isinstance(split.dataset, FileImages):
        return
    found = photo_sizes(split, SIZES_SAMPLED)
    if len(found):
        (w0, h0), (w, h), (w1, h1) = (np.quantile(found, q, axis=0).astype(int) for q in (0, 0.5, 1))
        sizes = f"width {w0} to {w1}, median {w}; height {h0} to {h1}, median {h}"
        yield f"Photos ({len(found)} looked at): {sizes}"
        small = int((found < sides(split.presize)[::-1]).any(axis=1).sum())
        if small:
            yield f"  {small} of them have a side shorter than {size_text(split.presize)} px and are enlarged"


def photo_sizes(split: ImageDataset, limit: int | None = None) -> np.ndarray:
    """Width and height of the readable photos, or of `limit` of them spread evenly: int64 (n, 2)."""
    chosen = np.unique(np.linspace(0, split.num_images - 1, limit or split.num_images).astype(int))
    sizes = []
    for path in split.paths[chosen]:
        try:
            sizes.append(image_size(path))
        except ImageError:
            continue  # the loader reports it when it comes to it
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _steps(split: ImageDataset, index: int | None) -> Iterator[str]:
    if index is None:
        return
    path = str(split.paths[index])
    yield f"The way of training image {index}, {path}"
    frame = partial(split.dataset.frame, index, split.presize, split.resize_method)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("file", lambda: f"{os.path.getsize(path):,} bytes"),
        ("decode", lambda: _array(split.dataset[index])),
        (f"{shape_name(split.presize)} by {split.resize_method}", lambda: _array(frame())),
        ("label", lambda: _label(split, index)),
        ("batch", lambda: _batch(split)),
    ]
    if not isinstance(split.dataset, FileImages):
        steps = steps[1:]
    for number, (name, step) in enumerate(steps, start=1):
        try:
            yield f"  {number}. {name:16} {step()}"
        except (KclfError, OSError, ValueError, RuntimeError, MemoryError) as error:
            yield f"  {number}. {name:16} FAILED with {type(error).__name__}: {error}"
            yield f"  No step after it was tried. Another image: summary(index), index < {split.num_images}"
            return


def _array(image: np.ndarray) -> str:
    return f"{image.dtype} {image.shape} in [{image.min()}, {image.max()}], mean {image.mean():.1f}"


def _label(split: ImageDataset, index: int) -> str:
    if split.labels is None:
        return "none"
    label = split.labels[index]
    text = label_text(label, split.class_names, split.task) or "none"
    return f"{text}, class {label} of {len(split.class_names)}" if split.task == "single_label" else text


def _batch(split: ImageDataset) -> str:
    parts = split.peek()
    return ", ".join(f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}" for part in parts)
