"""HDF5 files of others, such as Keras', read so that none can lead out of itself, hang or fill the memory."""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np

from .._core.h5_store import NUMBER_KINDS, AnyPath, refuse_if, require_file
from ..errors import FileFormatError, KclfError

# zlib, the strongest of the filters every HDF5 library has, shrinks at most 1032 : 1.
LARGEST_COMPRESSION = 1032
LONGEST_TEXT = 2**26  # characters
FEW = 16  # places that a file is searched for one by one
PIECE = 2**23  # bytes looked at together
_SUPERBLOCK = b"\x89HDF\r\n\x1a\n"
_STRING_HEAP = b"GCOL\1"  # three bytes that mean nothing follow, then the size
_NAME_HEAP = b"HEAP\0"  # the same; then the place of the first free block, and the address of the blocks
_LAST_BLOCK = 1  # in the place of the next free block


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
    require_file(path)
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


def member_of(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """The named member through a hard link only: soft and external links can lead out of the file."""
    link = group.get(name, getlink=True)
    refuse_if(link is None, f"it has no {name!r}")
    refuse_if(not isinstance(link, h5py.HardLink), f"{name!r} is a link to somewhere else")
    member = group[name]
    refuse_if(not isinstance(member, (h5py.Group, h5py.Dataset)), f"{name!r} is a {type(member)}")
    return member


def group_of(group: h5py.Group, path: str) -> h5py.Group | None:
    """The group at a path below another, by hard links; None where there is none."""
    for part in path.split("/"):
        if part not in group:
            return None
        member = member_of(group, part)
        refuse_if(not isinstance(member, h5py.Group), f"{path!r} is no group")
        group = member
    return group


def datasets_of(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Every dataset below a group, by its path; links and absurd sizes are refused.

    Args:
        group: an open group or file.

    Raises:
        FileFormatError: a link leaves the tree, or a dataset claims more than the file can hold.
    """
    size = group.file.id.get_filesize()
    datasets = dict(_walk(group))
    for dataset in datasets.values():
        _check_size(dataset, size)
    return datasets


def array_in(stored: h5py.Dataset | np.ndarray) -> np.ndarray:
    """The numbers of a dataset, or of an array.

    Raises:
        FileFormatError: it holds anything but real numbers.
    """
    refuse_if(stored.dtype.kind not in NUMBER_KINDS, f"an array holds {stored.dtype}, expected real numbers")
    return np.asarray(stored[...])


def _walk(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Path and dataset of everything below, each object once: a second hard link to one is refused."""
    waiting = [("", group)]
    seen = {h5py.h5o.get_info(group.id).addr}
    while waiting:
        prefix, current = waiting.pop()
        for name in current:
            path = f"{prefix}{name}"
            member = member_of(current, name)
            address = h5py.h5o.get_info(member.id).addr
            refuse_if(address in seen, f"{path!r} is in it twice")
            seen.add(address)
            if isinstance(member, h5py.Group):
                waiting.append((f"{path}/", member))
            else:
                yield path, member


def _check_size(dataset: h5py.Dataset, file_size: int) -> None:
    """Make sure that the data lie in this file."""
    name, stored = dataset.name, dataset.id.get_storage_size()
    refuse_if(dataset.is_virtual or dataset.external, f"the data of {name!r} lie in another file")
    claimed = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
    refuse_if(stored > file_size, f"{name!r} claims {stored} stored bytes, and the file has {file_size}")
    most = stored * LARGEST_COMPRESSION if dataset.chunks else stored
    refuse_if(claimed > most, f"{name!r} claims {claimed} bytes, and {stored} are stored")


# ---- heaps ------------------------------------------------------------


def _check_heaps(path: AnyPath, content: bytes | None) -> None:
    """Refuse heaps that the HDF5 library would walk over for ever, or out of its memory.

    It goes from object to object by lengths that it believes, and stays where one is 0; from free block to
    free block, without an end and into all memory where they go in a circle; and takes 4 GB for a string that
    says so (all seen with HDF5 2.0). Bytes of a weight can look like a heap: one counts only where its
    address is in the file as well.
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
    refuse_if(content[sizes : sizes + 2] != b"\x08\x08", "its addresses or lengths are not of 8 bytes")
    left = len(content)  # heaps do not overlap: together they are no longer than the file
    for start, references in _with_references(content, list(_places(content, _STRING_HEAP)), base):
        left -= _check_string_heap(content, start, references)
        refuse_if(left < 0, "its heaps are longer than the file")
    for start, _ in _with_references(content, list(_places(content, _NAME_HEAP)), base):
        left -= _check_name_heap(content, start, base)
        refuse_if(left < 0, "its heaps are longer than the file")


def _superblock_of(content: bytes | mmap.mmap) -> int | None:
    """Where the HDF5 part begins: after no user block, or after one of 512, 1,024, 2,048 ... bytes."""
    base = 0
    while base + len(_SUPERBLOCK) < len(content):
        if content[base : base + len(_SUPERBLOCK)] == _SUPERBLOCK:
            return base
        base = 2 * base or 512
    return None


def _places(content: bytes | mmap.mmap, mark: bytes) -> Iterator[int]:
    start = content.find(mark)
    while start >= 0:
        yield start
        start = content.find(mark, start + len(mark))


def _with_references(
    content: bytes | mmap.mmap, starts: list[int], base: int
) -> Iterator[tuple[int, list[int]]]:
    """Those of some places whose address is in the file, and where: few are looked for one by one."""
    found: dict[int, list[int]] = {start: [] for start in starts}
    if len(starts) <= FEW:
        for start in starts:
            found[start] += _places(content, struct.pack("<Q", start - base))
    else:
        addresses = np.array(starts, np.uint64) - np.uint64(base)
        for at, address in _equal_words(content, addresses):
            found[address + base].append(at)
    return ((start, references) for start, references in found.items() if references)


def _equal_words(content: bytes | mmap.mmap, values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where a file holds one of some numbers of 8 bytes, at whatever place, in one pass.

    The numbers are addresses in the file, which most words of a weight are far beyond: these are out at once.
    """
    least, most = values.min(), values.max()
    for first in range(0, len(content), PIECE):
        piece = np.frombuffer(content[first : first + PIECE + 7], np.uint8)
        for shift in range(8):
            words = piece[shift:]
            words = words[: len(words) // 8 * 8].view(np.uint64)
            near = np.flatnonzero((words >= least) & (words <= most))
            for hit in near[np.isin(words[near], values)]:
                yield first + shift + 8 * int(hit), int(words[hit])


def _check_string_heap(content: bytes | mmap.mmap, start: int, references: list[int]) -> int:
    """The length of a heap that is sound."""
    place, size = start + 16, int.from_bytes(content[start + 8 : start + 16], "little")
    end, lengths = start + size, {}
    refuse_if(max(place, end) > len(content), "a heap is longer than the file")
    refuse_if(size % 8, "a heap has a size that cannot be")
    while place + 16 <= end:
        index, length = struct.unpack_from("<H6xQ", content, place)
        step = 16 + -(-length // 8) * 8 if index else length  # object 0 is what is free, with its header
        refuse_if(step < 16 or place + step > end, "an object in a heap has a length that cannot be")
        lengths[index] = length
        place += step
    for reference in references:
        _check_text(content, reference, lengths)
    return size


def _check_text(content: bytes | mmap.mmap, reference: int, lengths: dict[int, int]) -> None:
    """Refuse a text that claims far more than its heap holds: 4 bytes of length, the address, 4 of index.

    The same 8 bytes can be part of something else: a text is known by an index that its heap has, and by a
    length that no text has.
    """
    if not 4 <= reference <= len(content) - 12:
        return
    length, index = (struct.unpack_from("<I", content, reference + at)[0] for at in (-4, 8))
    stored = lengths.get(index, 0) if index else 0
    refuse_if(stored and length > max(stored, LONGEST_TEXT), f"a text claims {length:,} characters")


def _check_name_heap(content: bytes | mmap.mmap, start: int, base: int) -> int:
    """The bytes of the free blocks of a heap that is sound, each of which holds 16 of its own."""
    if start + 32 > len(content):
        return 0
    size, free, address = struct.unpack_from("<QQQ", content, start + 8)
    seen: set[int] = set()
    while free != _LAST_BLOCK and free < size and base + address + free + 8 <= len(content):
        refuse_if(free in seen, "the free blocks of a heap go in a circle")
        seen.add(free)
        (free,) = struct.unpack_from("<Q", content, base + address + free)
        refuse_if(16 * len(seen) > len(content), "a heap has more free blocks than room for them")
    return 16 * len(seen)
