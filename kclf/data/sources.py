"""Where the pixels of a split come from: files on disk, or an array in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from ..errors import DataError
from ..images import ResizeMethod, read_image, to_square


class FileImages(Dataset):
    """Photos in files; `images[i]` decodes the whole photo i to uint8 (height, width, 3)."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.paths = np.array([os.fspath(path) for path in paths], dtype=np.str_)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_image(str(self.paths[index]))

    def square(
        self, index: int, size: int, method: ResizeMethod, position: tuple[float, float]
    ) -> np.ndarray:
        """Photo `index` as a uint8 (size, size, 3) square."""
        image = read_image(str(self.paths[index]), at_least=size)
        return to_square(image, size, method, position)


class ArrayImages(Dataset):
    """Images in memory: uint8 (n, height, width, 3), or (n, height, width) for grey ones."""

    def __init__(self, images: np.ndarray) -> None:
        images = np.asarray(images)
        if images.ndim == 3 and images.dtype == np.uint8:
            images = np.repeat(images[..., None], 3, axis=-1)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise DataError(
                "Expected uint8 images in [0, 255] of shape (n, height, width, 3) or (n, height, width). "
                f"Received: dtype={images.dtype}, shape={images.shape}"
            )
        self.images = images
        self.paths = np.array([f"[{i}]" for i in range(len(images))], dtype=np.str_)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]

    def square(
        self, index: int, size: int, method: ResizeMethod, position: tuple[float, float]
    ) -> np.ndarray:
        """Image `index` as a uint8 (size, size, 3) square."""
        return to_square(self.images[index], size, method, position)


Images = FileImages | ArrayImages
