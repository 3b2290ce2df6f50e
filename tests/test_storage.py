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

from kclf._core.h5_store import USER_BLOCK, open_h5, read_arrays, read_attributes, seal, write_arrays
from kclf.errors import FileFormatError

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
    assert read_attributes(path) == ATTRIBUTES


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


def test_a_newer_file_asks_for_an_upgrade(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"kclf-storage 1 ", b"kclf-storage 2 ", 1))
    with pytest.raises(FileFormatError, match="newer kclf"):
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


def external_link(file):
    file["arrays/x"] = h5py.ExternalLink("other.h5", "/secret")


def soft_link(file):
    file["arrays/x"] = h5py.SoftLink("/arrays/steps")


def second_name(file):
    file["arrays/x"] = file["arrays/steps"]


def loop(file):
    file["arrays/head/again"] = file["arrays"]


def external_storage(file):
    file["arrays"].create_dataset("x", (8,), "float32", external=[("/etc/hostname", 0, 32)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "float32")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file["arrays"].create_virtual_dataset("x", layout)


def absurd_shape(file):
    file["arrays"].create_dataset("x", (1 << 40,), "float32")


def zip_bomb(file):
    file["arrays"].create_dataset("x", data=np.zeros(1 << 22, "float32"), compression="gzip")


def text(file):
    file["arrays/x"] = "not a number"


def compound(file):
    file["arrays/x"] = np.zeros(2, [("a", "f4"), ("b", "f4")])


def attributes_are_numbers(file):
    del file["attributes"]
    file["attributes"] = np.zeros(2)


def attributes_are_a_list(file):
    del file["attributes"]
    file["attributes"] = np.bytes_(b"[]")


def attributes_are_deep(file):
    del file["attributes"]
    file["attributes"] = np.bytes_(b"[" * 100_000)


def no_arrays(file):
    del file["arrays"]


ATTACKS = [
    external_link,
    soft_link,
    second_name,
    loop,
    external_storage,
    virtual,
    absurd_shape,
    zip_bomb,
    text,
    compound,
    attributes_are_numbers,
    attributes_are_a_list,
    attributes_are_deep,
    no_arrays,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_file_with_a_valid_checksum_is_refused(path, attack):
    with h5py.File(path, "r+") as file:
        attack(file)
    seal(path)
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=os.fspath(path)):
        read_arrays(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_the_checksum_is_checked_before_hdf5_is_parsed(path, monkeypatch):
    monkeypatch.setattr(h5py, "File", lambda *_: pytest.fail("the HDF5 part was opened"))
    path.write_bytes(path.read_bytes()[:USER_BLOCK] + b"no HDF5 at all")
    with pytest.raises(FileFormatError, match="checksum"):
        read_arrays(path)


def test_errors_of_the_reader_s_own_code_keep_their_type(path):
    with pytest.raises(ZeroDivisionError), open_h5(path):
        _ = 1 / 0
