"""Makers of the photos, folders and tables that the tests of this folder read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number=0, size=(24, 16)) -> Image.Image:
    """A smooth photo; another one for each number."""
    width, height = size
    noise = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def photo_bytes(number=0, size=(24, 16)) -> bytes:
    return encoded(picture(number, size), "PNG")


_NUMBER = iter(range(10**9))


def make_tree(root: Path, tree: dict) -> Path:
    """Files below a folder: of each folder how many photos, or a list of names, or text, or bytes.

    A key that ends in "/" is a folder: the value counts photos `0.png`, `1.png`, ... or lists their names.
    Another key is a file with the text or bytes of the value, or a photo where the value is None.
    """
    for name, value in tree.items():
        place = os.path.join(root, name)
        os.makedirs(place if name.endswith("/") else os.path.dirname(place), exist_ok=True)
        if name.endswith("/"):
            names = [f"{i}.png" for i in range(value)] if isinstance(value, int) else value
            for file in names:
                Path(place, file).write_bytes(photo_bytes(next(_NUMBER)))
        elif value is None:
            Path(place).write_bytes(photo_bytes(next(_NUMBER)))
        else:
            Path(place).write_bytes(value if isinstance(value, bytes) else value.encode())
    return root


def labels_of(split) -> dict[str, str]:
    """Name of each file of a split -> its class."""
    return {
        os.path.basename(str(path)): split.class_names[label]
        for path, label in zip(split.paths, split.labels, strict=True)
    }


def counts(data) -> dict:
    """Images of each class in each split; of a split without labels their number."""
    found = {}
    for name, split in data.splits.items():
        if split.labels is None:
            found[name] = split.num_images
        else:
            numbers = np.bincount(split.labels, minlength=len(split.class_names))
            found[name] = dict(zip(split.class_names, numbers.tolist(), strict=True))
    return found
