"""Arrays and attributes come back as they went in, and a file that is not what it claims is refused."""

from __future__ import annotations

import json
import os
import random
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from kclf._core.h5_store import USER_BLOCK, read_arrays, write_arrays, write_sealed
from kclf.errors import FileFormatError
from kclf.weights.h5_reading import open_h5

ARRAYS = {
    "head/kernel": np.arange(12, dtype="float32").reshape(3, 4),
    "head/bias": np.zeros(4, "float16"),
    "steps": np.array(7, "int64"),
    "mask": np.array([True, False]),
    "nothing": np.zeros((0, 3), "float32"),
}
ATTRIBUTES = {"classes": ["cat", "Köter", "犬"], "size": 224, "dropout": 0.5, "weights": None}


@pytest.fixture
def path(tmp_path):
    write_arrays(tmp_path / "saved.h5", ARRAYS, ATTRIBUTES)
    return tmp_path / "saved.h5"


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_what_went_in_comes_back(path):
    arrays, attributes = read_arrays(path)
    assert_same(arrays, ARRAYS)
    assert attributes == ATTRIBUTES


@settings(max_examples=30, deadline=None)
@given(
    array=st_numpy.arrays(
        st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int64", "bool"]),
        st_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    )
)
def test_any_array_of_numbers_comes_back_bit_for_bit(tmp_path_factory, array):
    file = tmp_path_factory.mktemp("any") / "any.h5"
    write_arrays(file, {"array": array})
    found = read_arrays(file)[0]["array"]
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_plain_h5py_reads_it(path):
    with h5py.File(path) as file:
        assert json.loads(file["attributes"][()]) == ATTRIBUTES
        np.testing.assert_array_equal(file["arrays/head/kernel"], ARRAYS["head/kernel"])


def test_only_the_arrays_asked_for_are_read(path):
    assert list(read_arrays(path, ["steps"])[0]) == ["steps"]


def test_attributes_are_read_alone(path):
    assert read_arrays(path, ()) == ({}, ATTRIBUTES)


def test_an_array_that_is_not_there_is_named(path):
    with pytest.raises(FileFormatError, match=r"no arrays named \['tail'\]"):
        read_arrays(path, ["tail"])


@pytest.mark.parametrize("name", ["", "/a", "a//b", "a/", "../a", "a/./b"])
def test_a_name_that_could_wander_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="Array names are parts"):
        write_arrays(tmp_path / "a.h5", {name: np.zeros(1)})


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([{}]), np.zeros(2, "complex64")])
def test_what_is_no_number_is_refused(tmp_path, array):
    with pytest.raises(TypeError, match="Expected an array of numbers"):
        write_arrays(tmp_path / "a.h5", {"a": array})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_a_plain_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_arrays(tmp_path / "absent.h5")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"Expected a file\. Received a folder"):
        read_arrays(tmp_path)


def test_a_foreign_file_is_named_as_such(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    with pytest.raises(FileFormatError, match="not a file that kclf wrote"):
        read_arrays(tmp_path / "photo.png")


@pytest.mark.parametrize(("version", "word"), [(b"3", "newer kclf"), (b"1", "older kclf")])
def test_a_file_of_another_version_is_named_as_such(path, version, word):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"kclf-storage 2 ", b"kclf-storage " + version + b" ", 1))
    with pytest.raises(FileFormatError, match=word):
        read_arrays(path)


def damaged(content: bytes, kind: str, dice: random.Random) -> bytes:
    at = dice.randrange(len(content))
    if kind == "bit":
        return content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "zeros":
        return content[:at] + bytes(min(64, len(content) - at)) + content[at + 64 :]
    return content + dice.randbytes(1 + at % 100)


@pytest.mark.parametrize("kind", ["bit", "cut", "zeros", "longer"])
def test_damage_anywhere_is_found(path, kind):
    content, dice = path.read_bytes(), random.Random(kind)
    for _ in range(100):
        broken = damaged(content, kind, dice)
        path.write_bytes(broken)
        if broken == content:  # zeros over zeros change nothing
            continue
        with pytest.raises(FileFormatError):
            read_arrays(path)


def rewritten(path, change):
    """Change the index of a file, under a checksum that agrees."""
    content = path.read_bytes()
    end = USER_BLOCK + int(content.split()[5])
    index = json.loads(content[end:])
    changed = change(index)
    text = changed if isinstance(changed, bytes) else json.dumps(index).encode()
    write_sealed(path, content[USER_BLOCK:end], text)


def entry(**changes):
    """A change of one array's entry in the index."""

    def change(index):
        for place, value in changes.items():
            index["arrays"]["head/kernel"][("dtype", "shape", "offset").index(place)] = value

    return change


ATTACKS = {
    "behind the end": entry(offset=1 << 40),
    "over the end": entry(shape=[1 << 40]),
    "huge": entry(shape=[1 << 200, 1 << 200]),
    "negative": entry(shape=[-1, -12]),
    "negative offset": entry(offset=-600),
    "a true side": entry(shape=[True]),
    "many dimensions": entry(shape=[1] * 100),
    "objects": entry(dtype="|O8"),
    "text": entry(dtype="|S8"),
    "complex": entry(dtype="<c8"),
    "no such type": entry(dtype="<f3"),
    "a type of code": entry(dtype="os.system"),
    "one place for many": lambda index: index["arrays"].update(
        {f"{i}": ["|u1", [4000], USER_BLOCK] for i in range(100)}
    ),
    "short entry": lambda index: index["arrays"].update(x=["<f4"]),
    "no entry": lambda index: index["arrays"].update(x=None),
    "no arrays": lambda index: index.pop("arrays"),
    "no attributes": lambda index: index.pop("attributes"),
    "attributes elsewhere": lambda index: index.update(attributes=[0, 1 << 60]),
    "attributes are an array": lambda index: index.update(attributes=[index["arrays"]["head/kernel"][2], 8]),
    "a list": lambda index: b"[]",
    "deep": lambda index: b"[" * 100_000,
    "digits": lambda index: b'{"arrays": ' + b"9" * 100_000 + b"}",
    "nothing": lambda index: b"",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_file_with_a_valid_checksum_is_refused(path, attack):
    rewritten(path, ATTACKS[attack])
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=os.fspath(path)):
        read_arrays(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


@pytest.mark.parametrize("mark", [b"GCOL\1\0\0\0", b"HEAP\0\0\0\0"])
def test_numbers_that_look_like_the_inside_of_hdf5_come_back(tmp_path, mark):
    array = np.frombuffer(mark * 100, np.float32)

    write_arrays(tmp_path / "a.h5", {"a": array})

    np.testing.assert_array_equal(read_arrays(tmp_path / "a.h5")[0]["a"], array)


def test_what_is_read_can_be_changed(path):
    read_arrays(path)[0]["head/kernel"][:] = 1


def test_the_hdf5_library_never_sees_what_is_read(path, monkeypatch):
    monkeypatch.setattr(h5py, "File", lambda *_: pytest.fail("the HDF5 part was opened"))
    assert_same(read_arrays(path)[0], ARRAYS)


def test_errors_of_the_reader_s_own_code_keep_their_type(path):
    with pytest.raises(ZeroDivisionError), open_h5(path):
        _ = 1 / 0
