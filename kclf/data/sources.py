"""Where the pixels of a split come from: files on disk, or an array in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy

import numpy as np
from torch.utils.data import Dataset

from .._core.sizes import Size, num_pixels
from ..errors import DataError
from .decoding import decoding
from .images import CENTRE, ResizeMethod, check_file_channels, covering, read_image, to_frame

Position = tuple[float, float]


class Images(Dataset):
    """n images: `images[i]` is image i as uint8 (height, width, channels); `paths` names each.

    Subclasses give `paths` and `__getitem__`, and name in `_by_image` what else has a row for each image.

    Attributes:
        paths: what names each image, (n,).
        in_files: whether that is its file.
        largest: the largest size worth asking for; None where that depends on the image.
        depth: bits that the values of deep images were said to have; None where nothing was.
        channels: of every image.
    """

    paths: np.ndarray
    in_files = True
    largest: Size | None = None
    depth: int | None = None
    channels: int = 3
    _by_image: tuple[str, ...] = ("paths",)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def take(self, indices: np.ndarray) -> Images:
        """A source of some of the images, in the order of the indices."""
        taken = copy(self)
        for name in self._by_image:
            setattr(taken, name, getattr(self, name)[indices])
        return taken

    def with_channels(self, channels: int) -> Images:
        """The same images read with another number of channels.

        Raises:
            DataError: they have that number and can be read with no other.
        """
        if channels != self.channels:
            raise DataError(
                f"Expected images of {channels} channels, as photos in files are read. Arrays have those of "
                "their last axis: images[..., None] has one. "
                f"Received: {type(self).__name__} of {self.channels}"
            )
        return self

    def shapes_at(self, size: Size) -> np.ndarray | None:
        """Int64 (n, 2), heights and widths, where all images just cover this size, so that frames of it are
        only cut; None where they do not, or where one of them cannot be read.
        """
        return None

    def frame(
        self,
        index: int,
        size: Size,
        method: ResizeMethod = "crop",
        position: Position = CENTRE,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Image `index` at a size, uint8 (*sides(size), channels), in `out` where that is given."""
        return to_frame(self.at_least(index, size), size, method, position, out)

    def at_least(self, index: int, size: Size) -> np.ndarray:
        """Image `index`, decoded no larger than a frame of a size needs."""
        return self[index]


class FileImages(Images):
    """Photos in files.

    Args:
        paths: the files.
        depth: bits of the values of deep images; None for what `set_decoding` says now.
        channels: 3 for colour, 1 for grey.

    Attributes:
        paths: the files, as an array of Python's own texts: parts of it share them, whatever their length.
        depth: of deep images, also in another process; None for the rule by type.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]] | np.ndarray,
        depth: int | None = None,
        channels: int = 3,
    ) -> None:
        self.depth = depth or decoding().depth
        self.channels = check_file_channels(channels)
        if not (isinstance(paths, np.ndarray) and paths.dtype == object):
            texts = paths.tolist() if isinstance(paths, np.ndarray) else [os.fspath(path) for path in paths]
            paths = np.array(texts, dtype=object)
        self.paths = paths

    def __getitem__(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], depth=self.depth, channels=self.channels)

    def with_channels(self, channels: int) -> FileImages:
        """The same files, read in colour (3) or grey (1)."""
        return self if channels == self.channels else FileImages(self.paths, self.depth, channels)

    def at_least(self, index: int, size: Size) -> np.ndarray:
        """Photo `index`, decoded no larger than a frame of a size needs."""
        return read_image(self.paths[index], at_least=size, depth=self.depth, channels=self.channels)


class ArrayImages(Images):
    """Images in memory: uint8 (n, height, width, channels); (n, height, width) is grey in three channels."""

    in_files = False

    def __init__(self, images: np.ndarray) -> None:
        images = np.asarray(images)
        if images.ndim == 3 and images.dtype == np.uint8:
            images = np.repeat(images[..., None], 3, axis=-1)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] < 1:
            raise DataError(
                "Expected uint8 images in [0, 255] of shape (n, height, width, 3) or (n, height, width), or "
                "of as many channels as the classifier has. "
                'Whole numbers of another type go by images.astype("uint8"), shares of 1 by (images * 255) '
                f"first. Received: dtype={images.dtype}, shape={images.shape}"
            )
        self.images = images
        self.channels = images.shape[-1]
        self.paths = np.array([f"[{i}]" for i in range(len(images))], dtype=np.str_)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]

    def shapes_at(self, size: Size) -> np.ndarray | None:
        """All alike, where they just cover this."""
        shape = self.images.shape[1:3]
        return np.tile(shape, (len(self.images), 1)) if covering(shape, size) == shape else None

    def take(self, indices: np.ndarray) -> ArrayImages:
        """Some of the images."""
        return ArrayImages(self.images[indices])


class JoinedImages(Images):
    """The images of several sources, one source after the other.

    Args:
        sources: the sources.

    Attributes:
        places: int (n, 2), number of the source and of the image in it, of each image.
    """

    _by_image = ("paths", "places")

    def __init__(self, sources: Sequence[Images]) -> None:
        self.channels = sources[0].channels
        self.sources = [source.with_channels(self.channels) for source in sources]
        self.places = np.array([(number, i) for number, one in enumerate(sources) for i in range(len(one))])
        self.paths = np.concatenate([source.paths.astype(object) for source in sources])
        self.in_files = all(source.in_files for source in sources)
        known = [source.largest for source in sources if source.largest]
        self.largest = min(known, key=num_pixels, default=None)

    def __getitem__(self, index: int) -> np.ndarray:
        number, place = self.places[index]
        return self.sources[number][place]

    def at_least(self, index: int, size: Size) -> np.ndarray:
        """Image `index`, as its source decodes it."""
        number, place = self.places[index]
        return self.sources[number].at_least(place, size)
