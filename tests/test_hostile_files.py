"""Files of weights that lie about their size, lead elsewhere or are half sound: refused fast and whole."""

from __future__ import annotations

import os
import pickle
import resource
import struct
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
import torch

from kclf.errors import FileFormatError
from kclf.weights import load_model, load_weights

SECONDS, MEMORY = 2.0, 200e6  # of the processor; bytes more than before


@pytest.fixture
def model():
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")], name="small"
    )


@pytest.fixture
def refused(model):
    """Call it with a file: it must be refused in bounds, and the model stay as it was."""

    def check(path, read=load_weights, match=None):
        before = [weight.copy() for weight in model.get_weights()]
        peak, begun = peak_memory(), time.process_time()
        with pytest.raises(FileFormatError, match=match) as caught:
            read(model, path) if read is load_weights else read(path)
        assert time.process_time() - begun < SECONDS
        assert peak_memory() - peak < MEMORY
        assert os.fspath(path) in str(caught.value)
        assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))

    return check


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def saved(model, path):
    model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)
    return path


# ---- archives ------------------------------------------------------------


BOMBS = [(load_weights, "model.weights.h5")]
BOMBS += [(load_model, name) for name in ("model.weights.h5", "config.json", "metadata.json")]
PACKINGS = {"deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
SLOW = [*(("lzma", bomb) for bomb in BOMBS), *(("bzip2", bomb) for bomb in BOMBS[1:])]


@pytest.mark.parametrize(
    ("packing", "bomb"),
    [
        pytest.param(packing, bomb, marks=pytest.mark.heavy if (packing, bomb) in SLOW else ())
        for packing in PACKINGS
        for bomb in BOMBS
    ],
)
def test_an_archive_that_unpacks_to_gigabytes_is_refused(refused, tmp_path, packing, bomb):
    read, member = bomb
    path = tmp_path / "bomb.keras"
    names = ["model.weights.h5", "config.json", "metadata.json"]
    with zipfile.ZipFile(path, "w", PACKINGS[packing], compresslevel=1) as archive:
        for name in names:
            with archive.open(name, "w") as file:
                for _ in range(300 if name == member else 0):
                    file.write(bytes(2**20))
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 300 * 2**20), struct.pack("<I", 1000)))

    refused(path, read)


# ---- torch ------------------------------------------------------------


def expanded():
    return torch.ones(1, dtype=torch.bfloat16).expand(2_000_000_000)


TENSORS = {
    "stride 0": expanded,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.ones(3, device="meta"),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
}


@pytest.mark.filterwarnings("ignore")  # torch warns of sparse and of quantized tensors
@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "pickle"])
def test_tensors_that_are_no_plain_numbers_are_refused(refused, tmp_path, kind, new):
    tensor = TENSORS[kind]()
    torch.save({"a.weight": tensor}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)

    refused(tmp_path / "a.pth")


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def test_the_refusal_of_a_program_does_not_advise_to_run_it(refused, tmp_path):
    torch.save({"a": Evil()}, tmp_path / "a.pth")

    with pytest.raises(FileFormatError) as caught:
        load_weights(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), tmp_path / "a.pth")
    assert "weights_only" not in str(caught.value)
    assert pickle.__name__ not in str(caught.value)


# ---- HDF5 ------------------------------------------------------------


def test_a_root_group_that_is_a_link_is_not_followed(refused, model, tmp_path):
    other = saved(model, tmp_path / "other.weights.h5")
    os.mkfifo(tmp_path / "pipe")
    for number, target in enumerate((other, tmp_path / "pipe")):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file["model_weights"] = h5py.ExternalLink(os.fspath(target), "/")
        refused(path, match="link")


def last_bias(file: h5py.File) -> str:
    return sorted(name for name in file["layers"] if name.startswith("dense"))[-1]


def broken_chunk(file, path, array):
    del file[path]
    made = file.create_dataset(path, data=array, chunks=array.shape, fletcher32=True)
    return made.id.get_chunk_info(0).byte_offset


def text(file, path, array):
    del file[path]
    file[path] = array.astype("S2")


def complex_numbers(file, path, array):
    del file[path]
    file[path] = array.astype("complex64")


@pytest.mark.parametrize("change", [broken_chunk, text, complex_numbers], ids=lambda change: change.__name__)
def test_a_last_array_that_cannot_be_read_leaves_the_model_as_it_was(refused, model, tmp_path, change):
    path = saved(model, tmp_path / "a.weights.h5")
    with h5py.File(path, "r+") as file:
        place = f"layers/{last_bias(file)}/vars/1"
        offset = change(file, place, file[place][()])
    if offset is not None:
        with open(path, "r+b") as raw:
            raw.seek(offset)
            raw.write(b"\x7f")
    model.set_weights([weight + 1 for weight in model.get_weights()])

    refused(path)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_text_that_claims_gigabytes_is_refused(refused, model, tmp_path, length):
    path = saved(model, tmp_path / "a.weights.h5")
    content = bytearray(path.read_bytes())
    heap = struct.pack("<Q", content.find(b"GCOL\1"))
    place = content.find(heap)
    assert place > 0
    while place > 0:
        content[place - 4 : place] = struct.pack("<I", length)
        place = content.find(heap, place + 8)
    path.write_bytes(content)

    refused(path, match="claims")


@pytest.mark.parametrize("mark", [b"GCOL\1\0\0\0", b"HEAP\0\0\0\0"])
def test_many_places_that_look_like_heaps_cost_little(refused, model, tmp_path, mark):
    path = saved(model, tmp_path / "a.weights.h5")
    sound = path.read_bytes()
    length = len(sound)
    marks = range(length, length + 1_600_000, 32)
    size = struct.pack("<QQQ", 1_600_000, 16, length)  # of the heap; free block; its address
    path.write_bytes(sound + b"".join(mark + size for _ in marks) + struct.pack(f"<{len(marks)}Q", *marks))

    refused(path)


@pytest.mark.parametrize("mark", [b"GCOL\1\0\0\0", b"HEAP\0\0\0\0"])
def test_weights_that_look_like_the_inside_of_hdf5_are_read(model, tmp_path, mark):
    weights = model.get_weights()
    weights[0].ravel()[2:] = np.frombuffer(mark * 5, np.float32)
    model.set_weights(weights)
    path = saved(model, tmp_path / "a.weights.h5")
    model.set_weights([np.zeros_like(weight) for weight in weights])

    load_weights(model, path)

    np.testing.assert_array_equal(model.get_weights()[0], weights[0])
