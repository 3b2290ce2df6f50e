"""Arrays and JSON attributes in one HDF5 file that is checked before anything in it is believed.

A file is a user block of 512 bytes and a plain HDF5 file after it:

    kclf-storage 1 sha256 <64 hex digits> bytes <length of the HDF5 part>
    /attributes      one fixed-length string: a JSON object
    /arrays/<name>   contiguous datasets of numbers; a "/" in a name makes a group

Two guards stand before the data. The checksum is verified before the HDF5 library parses a single byte, so
damage of any kind is found in Python and never reaches C code. A file with a valid checksum can still be
hostile: links, dataset shapes that the file cannot hold and types other than plain numbers are refused before
memory is taken. Nothing in a file is ever executed. Any HDF5 reader opens it: `h5py.File(path)["arrays"]`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import h5py
import numpy as np

from ..errors import FileFormatError, KclfError
from .atomic import replacing

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None
AnyPath: TypeAlias = str | os.PathLike[str]

VERSION = 1
USER_BLOCK = 512  # bytes; the smallest user block HDF5 allows
NUMBER_KINDS = "biuf"  # numpy kinds: bool, signed, unsigned, floating
# zlib, the strongest of the filters every HDF5 library has, shrinks at most 1032 : 1.
LARGEST_COMPRESSION = 1032
_SUPERBLOCK = b"\x89HDF\r\n\x1a\n"
_STRING_HEAP = b"GCOL\1"  # three bytes that mean nothing follow, then the size
_NAME_HEAP = b"HEAP\0"  # the same; then the place of the first free block, and the address of the blocks
_LAST_BLOCK = 1  # in the place of the next free block
_MARK = re.compile(rb"kclf-storage (\d{1,9}) ")


def write_arrays(
    path: AnyPath, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, JSON] | None = None
) -> None:
    """Write arrays and JSON attributes to one file, complete or not at all.

    Args:
        path: the file to write; an old one is replaced when the new one is complete.
        arrays: name -> array of numbers or booleans, of any shape; a "/" in a name makes a group.
        attributes: what else the file says, as JSON values (no NaN or infinity, which JSON lacks).

    Raises:
        TypeError: an array does not hold plain numbers, or an attribute is no JSON value.
        ValueError: a name is empty or has an empty, "." or ".." part.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "two.h5"
        >>> write_arrays(path, {"head/kernel": np.eye(2, dtype="float32")}, {"classes": ["cat", "dog"]})
        >>> arrays, attributes = read_arrays(path)
        >>> arrays["head/kernel"].tolist(), attributes["classes"]
        ([[1.0, 0.0], [0.0, 1.0]], ['cat', 'dog'])
    """
    numbers = {_checked_name(name): _plain_numbers(name, array) for name, array in arrays.items()}
    text = np.bytes_(json.dumps(dict(attributes or {}), allow_nan=False).encode())
    with replacing(path) as temporary:
        with (
            _patient(temporary, os.fspath(path)) as content,
            h5py.File(content, "w", userblock_size=USER_BLOCK) as file,
        ):
            file.create_dataset("attributes", data=text)
            group = file.create_group("arrays", track_order=True)
            for name, array in numbers.items():
                group.create_dataset(name, data=array)
        seal(temporary)


@contextmanager
def whole_file(path: AnyPath) -> Iterator[BinaryIO]:
    """Give a library what it may write a file to; complete or not at all, and no disk is full meanwhile.

    HDF5, which Keras writes with too, does not survive an error while it writes: it cannot close the file,
    and the next file that it closes ends the process with a segmentation fault (seen with HDF5 1.14). So an
    error is raised only when the block ends.

    Args:
        path: the file to write; an old one is replaced when the new one is complete.

    Yields:
        An open binary file, to write and to read; its `str` is the path, whose ending Keras looks at.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "plain.h5"
        >>> with whole_file(path) as content, h5py.File(content, "w") as file:
        ...     file["answer"] = 42
        >>> int(h5py.File(path)["answer"][()])
        42
    """
    with replacing(path) as temporary, _patient(temporary, os.fspath(path)) as file:
        yield file


@contextmanager
def _patient(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file to write, whose error comes last."""
    with open(path, "w+b", buffering=0) as file:
        disk = _Disk(file, name)
        yield disk
        if disk.error is not None:
            raise disk.error


class _Disk(io.BytesIO):  # which Keras takes in place of a path
    """A file that goes on in memory when the disk takes no more, so that its writer notices nothing.

    Args:
        file: the open file, without a buffer.
        name: what it is called.
    """

    def __init__(self, file: FileIO, name: str) -> None:
        super().__init__()
        self._file: FileIO | io.BytesIO = file
        self._name = name
        self.error: OSError | None = None

    def __str__(self) -> str:
        return self._name

    def read(self, size: int | None = -1) -> bytes:
        """Read from the present position."""
        return self._file.read(-1 if size is None else size)

    def readinto(self, buffer: Any) -> int:
        """Read as much as the buffer holds."""
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Change the position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._file.tell()

    def write(self, data: Any) -> int:
        """Write all of it."""
        start, rest = self.tell(), memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._go_on_in_memory(error)
            self._file.seek(start)
            self._file.write(data)
        return size

    def truncate(self, size: int | None = None) -> int:
        """Cut off, or extend by zeros."""
        size = self.tell() if size is None else size
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._go_on_in_memory(error)
            return size

    def _go_on_in_memory(self, error: OSError) -> None:
        self.error = error
        self._file.seek(0)
        self._file = io.BytesIO(self._file.read())


def read_arrays(
    path: AnyPath, names: Collection[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, JSON]]:
    """Read what `write_arrays` wrote, after checking it.

    Args:
        path: the file to read.
        names: the arrays wanted; None reads all of them.

    Returns:
        The arrays by name, and the attributes.

    Raises:
        OSError: there is no such file, or it is a folder.
        FileFormatError: the file is not one of ours, is newer, damaged, hostile or lacks a wanted array.
    """
    check_seal(path)
    with open_h5(path) as file:
        attributes = _read_attributes(file)
        datasets = dict(_walk(_member(file, "arrays", h5py.Group)))
        _refuse_if(missing := sorted(set(names or ()) - set(datasets)), f"it has no arrays named {missing}")
        size = file.id.get_filesize()
        claimed = sum(_checked_size(dataset, size) for dataset in datasets.values())
        _refuse_if(claimed > size, f"its arrays claim {claimed} bytes, and the file has {size}")
        wanted = datasets if names is None else {name: datasets[name] for name in names}
        return {name: _read(dataset) for name, dataset in wanted.items()}, attributes


def read_attributes(path: AnyPath) -> dict[str, JSON]:
    """The attributes of a file written by `write_arrays`; its arrays stay unread.

    Args:
        path: the file to read.

    Raises:
        OSError: there is no such file, or it is a folder.
        FileFormatError: the file is not one of ours, is newer, damaged or hostile.
    """
    check_seal(path)
    with open_h5(path) as file:
        return _read_attributes(file)


@contextmanager
def open_h5(path: AnyPath, content: bytes | None = None) -> Iterator[h5py.File]:
    """Open any HDF5 file for reading; whatever fails inside the block is a `FileFormatError` with the path.

    Args:
        path: the file to read.
        content: what to read instead, as from an archive; `path` then only names it.

    Raises:
        OSError: there is no such file, or it is a folder.
        FileFormatError: the HDF5 library cannot read the file.
    """
    _require_file(path)
    try:
        _check_heaps(path, content)
        with h5py.File(path if content is None else io.BytesIO(content), "r") as file:
            yield file
    except FileFormatError as error:
        raise FileFormatError(f"{os.fspath(path)}: {error}") from error
    except KclfError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise FileFormatError(f"{os.fspath(path)}: damaged, or no HDF5 file ({error}).") from error


def _check_heaps(path: AnyPath, content: bytes | None) -> None:
    """Refuse heaps that the HDF5 library would walk over for ever, or out of its memory, when it opens them.

    It goes from object to object by lengths that it believes, and stays where one is 0; and from free block
    to free block, without an end and into all memory where they go in a circle (both seen with HDF5 2.0).
    """
    if content is not None:
        _check_heaps_in(content)
        return
    with open(path, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        _check_heaps_in(mapped)


def _check_heaps_in(content: bytes | mmap.mmap) -> None:
    base = _superblock_of(content)
    if base is None:
        return  # no HDF5 file, as the library will say
    sizes = base + (13 if content[base + len(_SUPERBLOCK)] < 2 else 9)
    _refuse_if(content[sizes : sizes + 2] != b"\x08\x08", "its addresses or lengths are not of 8 bytes")
    for start in _places(content, _STRING_HEAP):
        _check_string_heap(content, start)
    for start in _places(content, _NAME_HEAP):
        _check_name_heap(content, start, base)


def _superblock_of(content: bytes | mmap.mmap) -> int | None:
    """Where the HDF5 part begins: after no user block, or after one of 512, 1,024, 2,048 ... bytes."""
    base = 0
    while base + len(_SUPERBLOCK) < len(content):
        if content[base : base + len(_SUPERBLOCK)] == _SUPERBLOCK:
            return base
        base = 2 * base or USER_BLOCK
    return None


def _places(content: bytes | mmap.mmap, mark: bytes) -> Iterator[int]:
    start = content.find(mark)
    while start >= 0:
        yield start
        start = content.find(mark, start + len(mark))


def _check_string_heap(content: bytes | mmap.mmap, start: int) -> None:
    place, size = start + 16, int.from_bytes(content[start + 8 : start + 16], "little")
    end = start + size
    _refuse_if(max(place, end) > len(content), "a heap is longer than the file")
    _refuse_if(size % 8, "a heap has a size that cannot be")
    while place + 16 <= end:
        index, length = struct.unpack_from("<H6xQ", content, place)
        step = 16 + -(-length // 8) * 8 if index else length  # object 0 is what is free, with its header
        _refuse_if(step < 16 or place + step > end, "an object in a heap has a length that cannot be")
        place += step


def _check_name_heap(content: bytes | mmap.mmap, start: int, base: int) -> None:
    if start + 32 > len(content):
        return
    size, free, address = struct.unpack_from("<QQQ", content, start + 8)
    seen: set[int] = set()
    while free != _LAST_BLOCK and free < size and base + address + free + 8 <= len(content):
        _refuse_if(free in seen, "the free blocks of a heap go in a circle")
        seen.add(free)
        (free,) = struct.unpack_from("<Q", content, base + address + free)


def datasets_of(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Every dataset below a group of any HDF5 file, by its path, links and absurd sizes refused.

    Args:
        group: an open group or file.

    Raises:
        FileFormatError: a link leaves the tree, or a dataset claims more than the file can hold.
    """
    size = group.file.id.get_filesize()
    datasets = dict(_walk(group))
    for dataset in datasets.values():
        _checked_size(dataset, size, compressed=True)
    return datasets


def seal(path: AnyPath) -> None:
    """Write the user block with the checksum of the HDF5 part: what `write_arrays` does last."""
    with open(path, "r+b") as file:
        file.write(_seal_of(file))


def is_sealed(path: AnyPath) -> bool:
    """True for a file that begins as `write_arrays` begins it; says nothing about the rest."""
    with open(path, "rb") as file:
        return _MARK.match(file.read(USER_BLOCK)) is not None


def _require_file(path: AnyPath) -> None:
    if Path(path).is_dir():
        raise IsADirectoryError(f"Expected a file. Received a folder: {os.fspath(path)!r}.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"No such file: {os.fspath(path)!r}.")


def check_seal(path: AnyPath) -> None:
    """Verify the user block without parsing any HDF5.

    Args:
        path: the file to check.

    Raises:
        OSError: there is no such file, or it is a folder.
        FileFormatError: the file is not one of ours, is newer, or has changed since it was written.
    """
    _require_file(path)
    with open(path, "rb") as file:
        block = file.read(USER_BLOCK)
        mark = _MARK.match(block)
        if mark is None:
            raise FileFormatError(
                f"{os.fspath(path)}: not a file that kclf wrote (it starts with {block[:12]!r}, "
                "expected b'kclf-storage'). Weights of Keras or torch are read by load_weights."
            )
        if int(mark[1]) > VERSION:
            raise FileFormatError(
                f"{os.fspath(path)}: written by a newer kclf (storage version {int(mark[1])}, this one reads "
                f"up to {VERSION}). Upgrade with: pip install --upgrade kclf"
            )
        if block != _seal_of(file):
            raise FileFormatError(
                f"{os.fspath(path)}: damaged or changed since it was written (the checksum does not agree). "
                "Copy or save it again."
            )


def _seal_of(file: BufferedReader | BufferedRandom) -> bytes:
    """The user block that belongs to an open file; leaves the position at 0."""
    file.seek(USER_BLOCK)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    length = file.seek(0, os.SEEK_END) - USER_BLOCK
    file.seek(0)
    return f"kclf-storage {VERSION} sha256 {digest} bytes {length}\n".encode().ljust(USER_BLOCK, b"\0")


def _checked_name(name: str) -> str:
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f'Array names are parts joined by "/", none empty, "." or "..". Received: {name!r}.')
    return name


def _plain_numbers(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in NUMBER_KINDS:
        raise TypeError(
            f"Expected an array of numbers. Received: {name}={array.dtype} of shape {array.shape}."
        )
    return array


def _refuse_if(wrong: object, reason: str) -> None:
    if wrong:
        raise FileFormatError(f"refused: {reason}.")


def _member(group: h5py.Group, name: str, kind: type | None = None) -> h5py.Group | h5py.Dataset:
    """The named member through a hard link only: soft and external links can lead out of the file."""
    link = group.get(name, getlink=True)
    _refuse_if(link is None, f"it has no {name!r}")
    _refuse_if(not isinstance(link, h5py.HardLink), f"{name!r} is a link to somewhere else")
    member = group[name]
    _refuse_if(not isinstance(member, kind or (h5py.Group, h5py.Dataset)), f"{name!r} is a {type(member)}")
    return member


def _walk(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Path and dataset of everything below, each object once: a second hard link to one is refused."""
    waiting = [("", group)]
    seen = {h5py.h5o.get_info(group.id).addr}
    while waiting:
        prefix, current = waiting.pop()
        for name in current:
            path = f"{prefix}{name}"
            member = _member(current, name)
            address = h5py.h5o.get_info(member.id).addr
            _refuse_if(address in seen, f"{path!r} is in it twice")
            seen.add(address)
            if isinstance(member, h5py.Group):
                waiting.append((f"{path}/", member))
            else:
                yield path, member


def _checked_size(dataset: h5py.Dataset, file_size: int, compressed: bool = False) -> int:
    """Bytes of a dataset in memory, once it is sure that they lie in this file."""
    name, stored = dataset.name, dataset.id.get_storage_size()
    _refuse_if(dataset.is_virtual or dataset.external, f"the data of {name!r} lie in another file")
    _refuse_if(
        dataset.dtype.hasobject and not compressed, f"{name!r} holds {dataset.dtype}, expected numbers"
    )
    expected = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
    _refuse_if(stored > file_size, f"{name!r} claims {stored} stored bytes, and the file has {file_size}")
    if compressed and dataset.chunks:
        _refuse_if(expected > stored * LARGEST_COMPRESSION, f"{name!r} claims {expected} bytes, not stored")
    else:
        _refuse_if(
            dataset.chunks or expected != stored, f"{name!r} claims {expected} bytes and stores {stored}"
        )
    return expected


def _read(dataset: h5py.Dataset) -> np.ndarray:
    _refuse_if(
        dataset.dtype.kind not in NUMBER_KINDS, f"{dataset.name!r} holds {dataset.dtype}, expected numbers"
    )
    return np.asarray(dataset[()])


def _read_attributes(file: h5py.File) -> dict[str, JSON]:
    dataset = _member(file, "attributes", h5py.Dataset)
    _checked_size(dataset, file.id.get_filesize())
    _refuse_if(dataset.dtype.kind != "S" or dataset.shape != (), "its attributes are not one string")
    try:
        attributes = json.loads(dataset[()])
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"refused: its attributes are not JSON ({error}).") from error
    _refuse_if(not isinstance(attributes, dict), "its attributes are not a JSON object")
    return attributes
