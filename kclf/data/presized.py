"""Photos decoded and scaled once, kept in one file, each with a checksum."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .._core.atomic import replacing, sweep
from .._core.h5_store import read_arrays, write_arrays
from .._core.locks import FolderLock
from .._core.progress import Progress
from .._core.sizes import Size, num_pixels, sides, size_text
from ..errors import DataError, FileFormatError, ImageError
from .decoding import decoding
from .images import covering, image_size, read_image, resize
from .sources import Images

log = logging.getLogger("kclf.data")

FORMAT = 5  # part of the key: a change of what is stored makes old caches unread
TODO, DONE = 0, 1 << 32  # of the sums: what could not be read is tried again when the cache is next asked for
AT_ONCE = 256  # images marked as done together, after their pixels are on disk
LONGEST = 4  # photos more than 4 times as long as the size are kept as they are: scaled they could be huge


@dataclass(frozen=True)
class Layout:
    """Where each image lies in the file of pixels."""

    shapes: np.ndarray  # int64 (n, 2), height and width; 0 for a file whose header cannot be read
    offsets: np.ndarray  # int64 (n + 1,), bytes


class _Pixels:
    """The file of pixels. It is read, not mapped: a map of a truncated file ends the process.

    Args:
        file: its path.
        layout: where each image lies.
        sums: uint64 (n,), `_sum` of each image.
        channels: of every image.
    """

    def __init__(self, file: Path, layout: Layout, sums: np.ndarray, channels: int) -> None:
        self._file, self.layout, self._sums, self.channels = file, layout, sums, channels
        self._verified = np.zeros(len(sums), bool)

    def read(self, row: int) -> np.ndarray | None:
        """An image; None where its bytes are not those that were written."""
        start, end = self.layout.offsets[row : row + 2]
        pixels = np.empty(end - start, np.uint8)
        with open(self._file, "rb", buffering=0) as file:
            file.seek(start)
            if file.readinto(pixels.data) != len(pixels):
                return None
        if not self._verified[row]:
            if _sum(pixels) != self._sums[row]:
                return None
            self._verified[row] = True
        return pixels.reshape(*self.layout.shapes[row], self.channels)


def _sum(pixels: np.ndarray) -> int:
    """What stands for an image that is done: its checksum, and a bit that tells it from none."""
    return DONE | zlib.crc32(pixels.data)


class CachedImages(Images):
    """Photos scaled so that they just cover a size, in one file. One that is damaged there is read anew.

    Args:
        paths: the n files the images come from.
        pixels: the images of the cache.
        reasons: why an image of the cache is not there.
        largest: the size that the images of the cache just cover.
        depth: that they were read at, as `read_image` has it.
    """

    _by_image = ("paths", "_rows")

    def __init__(
        self,
        paths: np.ndarray,
        pixels: _Pixels,
        reasons: dict[int, str],
        largest: Size,
        depth: int | None = None,
    ) -> None:
        self.paths = paths
        self.depth = depth
        self.channels = pixels.channels
        self.largest: Size = largest
        self._pixels = pixels
        self._reasons = reasons
        self._rows = np.arange(len(paths))  # which image of the cache each path is

    def __getitem__(self, index: int) -> np.ndarray:
        row = int(self._rows[index])
        if row in self._reasons:
            raise ImageError(str(self.paths[index]), self._reasons[row])
        image = self._pixels.read(row)
        if image is None:
            path = str(self.paths[index])
            log.warning("Damaged in its cache, so that it is presized again each time: %s", path)
            height, width = self._pixels.layout.shapes[row]
            photo = read_image(path, at_least=self.largest, depth=self.depth, channels=self.channels)
            return resize(photo, int(width), int(height))
        return image

    def shapes_at(self, size: Size) -> np.ndarray | None:
        """Those in the cache, where it is of this size and whole."""
        shapes = self._pixels.layout.shapes[self._rows]
        fits = bool(((shapes - sides(size)).min(axis=1) == 0).all())  # what is longer than `LONGEST` may not
        return shapes if self.largest == size and not self._reasons and fits else None


def cached(
    paths: np.ndarray,
    size: Size,
    folder: str | os.PathLike[str],
    num_threads: int,
    depth: int | None = None,
    channels: int = 3,
) -> CachedImages:
    """The photos from the cache in a folder, which is filled first, or filled to the end.

    The cache is keyed by the photos' paths, file sizes and times of change, so that a stale one is never
    read. A build that is killed resumes where it stopped.

    Args:
        paths: the files, each once.
        size: that each photo just covers, in pixels: its short side, for a square.
        folder: where caches are kept, made if need be.
        num_threads: threads that decode.
        depth: bits of the values of deep images, as `read_image` has it.
        channels: 3 for colour, 1 for grey.

    Raises:
        DataError: the disk has not the room.
    """
    depth = depth or decoding().depth
    cache = Path(folder) / f"{size_text(size)}px-{_key(paths, size, depth, channels)}"
    read = partial(read_image, at_least=size, depth=depth, channels=channels)
    lock = FolderLock(cache, wait=True)  # another process may be at it: then it is found done
    with lock, ThreadPoolExecutor(num_threads, thread_name_prefix="kclf-cache") as pool:
        sweep(cache)
        layout = _layout(paths, size, cache, pool, channels)
        sums, reasons = _fill(paths, size, cache, layout, pool, read)
    pixels = _Pixels(cache / "pixels", layout, sums, channels)
    return CachedImages(paths, pixels, reasons, size, depth=depth)


def bytes_of_cache(count: int, size: Size) -> int:
    """What so many photos of the usual shape, 4 to 3, take where they just cover a size in pixels."""
    return 4 * num_pixels(size) * count


def has_room(folder: Path, needed: int) -> bool:
    """Whether half of the free room on the disk of a folder, there yet or not, is enough for a cache."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return 2 * needed <= shutil.disk_usage(folder).free


def _key(paths: np.ndarray, size: Size, depth: int | None, channels: int) -> str:
    """Sixteen hexadecimal digits that change with any of the files."""
    read = f"{FORMAT} {size_text(size)} {depth}" + f" {channels}" * (channels != 3)
    digest = hashlib.sha256(read.encode())
    for path in paths:
        try:
            status = os.stat(path)
            state = (status.st_size, status.st_mtime_ns)
        except OSError:
            state = (-1, -1)
        digest.update(repr((os.path.abspath(path), *state)).encode())
    return digest.hexdigest()[:16]


def _layout(paths: np.ndarray, size: Size, folder: Path, pool: ThreadPoolExecutor, channels: int) -> Layout:
    file = folder / "shapes.h5"
    shapes = _read_shapes(file, len(paths))
    # A file whose header could not be read once may have one now.
    if shapes is None or any(_stored_shape(str(path), size) != (0, 0) for path in paths[~shapes.any(axis=1)]):
        _start_over(folder)
        shapes = np.array(list(pool.map(lambda path: _stored_shape(str(path), size), paths)), dtype=np.int64)
        write_arrays(file, {"shapes": shapes})
    return Layout(shapes, np.concatenate([[0], np.cumsum(shapes.prod(axis=1) * channels)]))


def _read_shapes(file: Path, count: int) -> np.ndarray | None:
    """The shapes in a file; None where it is missing or damaged."""
    try:
        shapes = read_arrays(file, ["shapes"])[0]["shapes"]
    except FileNotFoundError:
        return None
    except FileFormatError as error:
        log.warning("Presizing again what a damaged cache held: %s", error)
        return None
    return shapes if shapes.shape == (count, 2) else None


def _start_over(folder: Path) -> None:
    """Forget what was done: one part of the cache is damaged, or gone."""
    (folder / "sums").unlink(missing_ok=True)
    (folder / "unreadable.json").unlink(missing_ok=True)


def _stored_shape(path: str, size: Size) -> tuple[int, int]:
    """Height and width that a photo has in the cache."""
    try:
        width, height = image_size(path)
    except ImageError:
        return 0, 0
    lines, across = sides(size)
    if max(height * across, width * lines) > LONGEST * min(height * across, width * lines):
        return height, width
    return covering((height, width), size)


def _fill(
    paths: np.ndarray,
    size: Size,
    folder: Path,
    layout: Layout,
    pool: ThreadPoolExecutor,
    read: Callable[[str], np.ndarray],
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode what is still to do; the sums of all, and the reasons of those that cannot be."""
    reasons = _read_reasons(folder)
    if _reserve(folder / "pixels", int(layout.offsets[-1])) or reasons is None:
        _start_over(folder)
        reasons = {}
    _reserve(folder / "sums", 8 * len(paths))
    sums = np.fromfile(folder / "sums", np.uint64)[: len(paths)]
    todo = np.flatnonzero(sums == TODO)
    if not len(todo):
        return sums, reasons
    # Written, not mapped, as they are read: a map of a file that somebody cuts off ends the process.
    with (
        open(folder / "pixels", "r+b") as pixels,
        open(folder / "sums", "r+b") as stored,
        Progress(len(paths), f"presizing to {size_text(size)} px", done=len(paths) - len(todo)) as bar,
    ):
        store = partial(_store, paths, layout, pixels, threading.Lock(), read)
        for some in np.split(todo, range(AT_ONCE, len(todo), AT_ONCE)):
            for index, found in zip(some.tolist(), pool.map(store, some.tolist()), strict=True):
                reasons.pop(index, None)
                if isinstance(found, str):
                    reasons[index] = found
                else:
                    sums[index] = found
            _to_disk(pixels)
            with replacing(folder / "unreadable.json") as temporary:
                temporary.write_text(json.dumps(reasons, indent=1))
            stored.seek(8 * int(some[0]))
            stored.write(sums[some[0] : some[-1] + 1].tobytes())
            _to_disk(stored)
            bar.update(len(some))
    return sums, reasons


def _store(
    paths: np.ndarray,
    layout: Layout,
    pixels: BinaryIO,
    lock: threading.Lock,
    read: Callable[[str], np.ndarray],
    index: int,
) -> int | str:
    """Decode a photo into its place in the file of pixels; its sum, or why it cannot be read."""
    height, width = map(int, layout.shapes[index])
    try:
        photo = read(str(paths[index]))
        if not height:
            return "its header cannot be read"
        image = np.ascontiguousarray(resize(photo, width, height))
    except ImageError as error:
        return error.reason
    with lock:
        pixels.seek(int(layout.offsets[index]))
        pixels.write(image.data)
    return _sum(image)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _reserve(file: Path, size: int) -> bool:
    """Make a file of zeros of a size, with its room on the disk; False where it is there."""
    if file.exists() and file.stat().st_size == max(1, size):
        return False
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise DataError(
            f"The cache needs {size / 1e9:.1f} GB, and {file.parent} has {free / 1e9:.1f} GB free. "
            "Take a smaller size or another cache_folder"
        )
    with open(file, "wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, max(1, size))
        else:
            stream.truncate(max(1, size))
    return True


def _read_reasons(folder: Path) -> dict[int, str] | None:
    """Why images are not there; None where the file is damaged."""
    file = folder / "unreadable.json"
    try:
        return {int(i): str(reason) for i, reason in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        log.warning("Presizing again what a damaged cache held: %s: %s", file, error)
        return None
