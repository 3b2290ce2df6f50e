"""The built-in demo's photos: scikit-learn's handwritten digits as a folder of PNG files."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image


def write_digits(folder: str | PathLike[str], *, size: int = 32) -> Path:
    """Write the 1,797 digits of scikit-learn as PNG files, one class folder a digit.

    Args:
        folder: where to; made where it is missing.
        size: side of the images, pixels (the digits themselves are 8 x 8).

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> folder = write_digits(tempfile.mkdtemp())
        >>> len(list(folder.glob("*/*.png")))
        1797
    """
    from sklearn.datasets import load_digits

    folder = Path(folder)
    digits = load_digits()
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        grey = Image.fromarray(np.uint8(np.round(image * (255 / 16))))  # 17 levels of grey, 0 to 16
        grey.resize((size, size), Image.Resampling.BICUBIC).save(folder / str(label) / f"{number:04d}.png")
    return folder
