"""Arrays and JSON attributes in one HDF5 file, which is read back without the HDF5 library.

A file is a user block of 512 bytes, a plain HDF5 file, and an index behind it:

    kclf-storage 2 sha256 <64 hex digits> bytes <length of the HDF5 part>
    /attributes      one fixed-length string: a JSON object
    /arrays/<name>   contiguous datasets of numbers; a "/" in a name makes a group
    {"attributes": [offset, length], "arrays": {name: [dtype, shape, offset], ...}}

Any HDF5 reader opens it: `h5py.File(path)["arrays"]`. `read_arrays` takes bytes from where the index says,
once the checksum of all that follows the user block agrees. So damage is found before anything is parsed, and
a hostile file with a valid checksum has nothing to attack but this page of Python: no links, no compression,
no strings of claimed length, and no more memory than the file is long.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import h5py
import numpy as np

from ..errors import FileFormatError
from .atomic import replacing

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None
AnyPath: TypeAlias = str | os.PathLike[str]

VERSION = 2
USER_BLOCK = 512  # bytes; the smallest user block HDF5 allows
NUMBER_KINDS = "biuf"  # numpy kinds: bool, signed, unsigned, floating
_MARK = re.compile(rb"kclf-storage (\d{1,9}) ")
_LENGTH = re.compile(rb"kclf-storage \d+ sha256 [0-9a-f]{64} bytes (\d{1,18})\n\0*")


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
    text = json.dumps(dict(attributes or {}), allow_nan=False).encode()
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=USER_BLOCK) as file:
        index = _fill(file, numbers, text)
    with replacing(path) as temporary:
        write_sealed(temporary, content.getbuffer()[USER_BLOCK:], json.dumps(index).encode())


def _fill(file: h5py.File, arrays: Mapping[str, np.ndarray], text: bytes) -> dict[str, Any]:
    """Put everything into an HDF5 file; returns where it lies there."""
    attributes = file.create_dataset("attributes", data=np.bytes_(text))
    group = file.create_group("arrays", track_order=True)
    places = {}
    for name, array in arrays.items():
        dataset = group.create_dataset(name, data=array)
        places[name] = [array.dtype.str, array.shape, dataset.id.get_offset() or 0]  # None where it is empty
    return {"attributes": [attributes.id.get_offset(), len(text)], "arrays": places}


def write_sealed(path: AnyPath, content: bytes | memoryview, index: bytes) -> None:
    """Write a file of an HDF5 part and an index, under a checksum that agrees."""
    digest = hashlib.sha256(content)
    digest.update(index)
    with open(path, "wb") as file:
        file.write(_user_block(digest.hexdigest(), len(content)))
        file.write(content)
        file.write(index)


def _user_block(digest: str, length: int) -> bytes:
    return f"kclf-storage {VERSION} sha256 {digest} bytes {length}\n".encode().ljust(USER_BLOCK, b"\0")


class _Content(io.BytesIO):
    """What Keras takes in place of a path, and looks at the ending of.

    Args:
        name: the path.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __str__(self) -> str:
        return self._name


@contextmanager
def whole_file(path: AnyPath) -> Iterator[BinaryIO]:
    """Give a library what it may write a file to; complete or not at all.

    The content is collected in memory: HDF5, which Keras writes with too, does not survive a disk that is
    full. It cannot close the file, and the next one that it closes ends the process (seen with HDF5 1.14).

    Args:
        path: the file to write; an old one is replaced when the new one is complete.

    Yields:
        An open binary file, to write and to read; its `str` is the path.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "plain.h5"
        >>> with whole_file(path) as content, h5py.File(content, "w") as file:
        ...     file["answer"] = 42
        >>> int(h5py.File(path)["answer"][()])
        42
    """
    content = _Content(os.fspath(path))
    yield content
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


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
    require_file(path)
    with open(path, "rb") as file:
        try:
            end = _verified_end(file)
            index = _object(file.read())
            attributes = _object(_bytes_at(file, end, *_numbers(index.get("attributes"), 2)))
            entries: Any = index.get("arrays")
            refuse_if(not isinstance(entries, dict), "its index lists no arrays")
            places = {name: _Place(name, entry) for name, entry in entries.items()}
            claimed = sum(place.nbytes for place in places.values())
            refuse_if(claimed > end, f"its arrays claim {claimed} bytes, and it has {end}")
            missing = sorted(set(names or ()) - set(places))
            refuse_if(missing, f"it has no arrays named {missing}")
            wanted = places if names is None else {name: places[name] for name in names}
            return {name: place.read(file, end) for name, place in wanted.items()}, attributes
        except FileFormatError as error:
            raise FileFormatError(f"{os.fspath(path)}: {error}") from error


class _Place:
    """Where an array lies in a file.

    Args:
        name: of the array.
        entry: of the index: dtype, shape, and offset of the first byte.
    """

    def __init__(self, name: str, entry: Any) -> None:
        is_entry = isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)
        refuse_if(not is_entry or not re.fullmatch(r"[<>|][biuf]\d{1,2}", entry[0]), f"{name!r} is no array")
        self.shape, (self.offset,) = _numbers(entry[1]), _numbers(entry[2:])
        refuse_if(len(self.shape) > 32, f"{name!r} has {len(self.shape)} dimensions")
        try:
            self.dtype = np.dtype(entry[0])
        except TypeError as error:
            raise FileFormatError(f"refused: {name!r} holds {entry[0]!r}, expected numbers.") from error
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def read(self, file: BinaryIO, end: int) -> np.ndarray:
        """The array itself."""
        content = bytearray(_bytes_at(file, end, self.offset, self.nbytes))
        return np.frombuffer(content, self.dtype).reshape(self.shape)


def _bytes_at(file: BinaryIO, end: int, offset: int, length: int) -> bytes:
    refuse_if(offset + length > end, f"it has {end} bytes, and claims {length} from {offset} on")
    file.seek(offset)
    return file.read(length)


def _numbers(value: Any, count: int | None = None) -> list[int]:
    """A list of whole numbers from 0 on, which the JSON may or may not hold."""
    if not isinstance(value, list) or not all(type(number) is int and number >= 0 for number in value):
        raise FileFormatError("refused: a place in its index is no number.")
    refuse_if(count not in (None, len(value)), f"expected {count} numbers, found {len(value)}")
    return value


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"refused: its attributes or its index are no JSON ({error}).") from error
    refuse_if(not isinstance(found, dict), "its attributes or its index are no JSON object")
    return found


def is_sealed(path: AnyPath) -> bool:
    """True for a file that begins as `write_arrays` begins it; says nothing about the rest."""
    with open(path, "rb") as file:
        return _MARK.match(file.read(USER_BLOCK)) is not None


def require_file(path: AnyPath) -> None:
    """Raise the right `OSError` where a path names no file."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"Expected a file. Received a folder: {os.fspath(path)!r}.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"No such file: {os.fspath(path)!r}.")


def _verified_end(file: Any) -> int:
    """Where the HDF5 part ends, once the checksum agrees; leaves the file there, at the index."""
    block = file.read(USER_BLOCK)
    mark, length = _MARK.match(block), _LENGTH.fullmatch(block)
    if mark is None:
        raise FileFormatError(
            f"not a file that kclf wrote (it starts with {block[:12]!r}, expected b'kclf-storage'). "
            "Weights of Keras or torch are read by load_weights."
        )
    if int(mark[1]) != VERSION:
        age, way = ("a newer", "Upgrade kclf") if int(mark[1]) > VERSION else ("an older", "Save it again")
        raise FileFormatError(
            f"written by {age} kclf (storage version {int(mark[1])}, this one reads {VERSION}). {way}."
        )
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if length is None or block != _user_block(digest, int(length[1])):
        raise FileFormatError(
            "damaged or changed since it was written (the checksum does not agree). Copy or save it again."
        )
    return file.seek(USER_BLOCK + int(length[1]))


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


def refuse_if(wrong: object, reason: str) -> None:
    """Raise a `FileFormatError` where something is wrong with a file."""
    if wrong:
        raise FileFormatError(f"refused: {reason}.")
