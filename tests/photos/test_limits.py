"""What may be unreadable, zip files, the command's words for tables, look-alikes by the thousand."""

from __future__ import annotations

import os
import resource
import threading
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from photo_makers import counts, make_tree

from kclf.checks import same_looks
from kclf.cli.train import RunSettings, find_data
from kclf.data import ImageData
from kclf.data.archives import unpacked
from kclf.errors import DataError
from kclf.models import ImageClassifier
from kclf.prediction.activation_cache import activations

SMALL = {"size": 16, "batch_size": 4, "num_threads": 1}


def read_all(data):
    for part in data.splits.values():
        list(part)


@pytest.mark.parametrize("content", [b"x", b""])
def test_a_class_of_which_no_photo_can_be_read_stops_and_is_named(tmp_path, content):
    broken = {f"dog/{i}.jpg": content for i in range(10)}
    data = ImageData.from_folder(make_tree(tmp_path, {"cat/": 30, **broken}), **SMALL)
    with pytest.raises(DataError, match=r"'dog'.*dog/\d\.jpg"):
        read_all(data)


@pytest.mark.parametrize(("most", "stops"), [(0.05, True), (0.5, False), (0, True), (1.0, False)])
def test_a_limit_of_what_may_be_unreadable(tmp_path, most, stops):
    broken = {f"dog/x{i}.png": b"x" for i in range(4)}
    data = ImageData.from_folder(
        make_tree(tmp_path, {"cat/": 12, "dog/": 12, **broken}), max_unreadable=most, **SMALL
    )
    if stops:
        with pytest.raises(DataError, match=r"cannot be read, more than.*--max-unreadable"):
            read_all(data)
    else:
        read_all(data)
        assert len(data.skipped) == 4


@pytest.fixture(scope="module")
def tiny():
    """A classifier whose backbone is one convolution."""
    image = keras.Input((None, None, 3))
    backbone = keras.Model(image, keras.layers.Conv2D(4, 3, strides=4)(image))
    return ImageClassifier(backbone, ["cat", "dog"], size=16, hidden=(), normalization="tf")


def test_what_a_cache_of_activations_finds_unreadable_is_known(tmp_path, tiny):
    make_tree(tmp_path, {"cat/": 12, "dog/": 12, "cat/x.png": b"", "dog/y.png": b"x"})
    for _ in range(2):  # computed, and read from the cache
        data = ImageData.from_folder(tmp_path, valid_fraction=0.1, **SMALL)
        activations(tiny, data.train.replace(batch_size=8), tmp_path / "cache", progress=False)
        broken = {Path(path).name for path in data.train.paths} & {"x.png", "y.png"}
        assert broken
        assert {Path(path).name for path, _ in data.skipped} == broken


def test_a_class_that_the_cache_cannot_read_stops(tmp_path, tiny):
    broken = {f"dog/{i}.png": b"x" for i in range(3)}
    data = ImageData.from_folder(make_tree(tmp_path, {"cat/": 30, **broken}), **SMALL)
    with pytest.raises(DataError, match="'dog'"):
        activations(tiny, data.train, tmp_path / "cache", progress=False)


def test_one_photo_of_few_may_be_unreadable(tmp_path):
    data = ImageData.from_folder(
        make_tree(tmp_path, {"cat/": 5, "dog/": 4, "dog/x.png": b"x"}), max_unreadable=0.05, **SMALL
    )
    read_all(data)
    assert len(data.skipped) == 1


def test_many_missing_files_of_a_table_are_refused(tmp_path):
    make_tree(tmp_path, {"./": ["0.png"]})
    table = {"file": [f"{i}.png" for i in range(20)], "label": ["a", "b"] * 10}
    with pytest.raises(DataError, match=r"19 of 20 files.*1\.png"):
        ImageData.from_table(table, folder=tmp_path, **SMALL)


# Zip files


def zipped(tmp_path, tree, name="photos.zip"):
    root = make_tree(tmp_path / "tree", tree)
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    return tmp_path / name


@pytest.mark.parametrize("above", ["", "PetImages/", "a/b/"])
def test_a_zip_file_is_read_as_the_folder_in_it(tmp_path, monkeypatch, above):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = zipped(tmp_path, {f"{above}cat/": 4, f"{above}dog/": 4, f"__MACOSX/{above}cat/": 3})
    for _ in range(2):
        assert counts(ImageData.from_folder(file, **SMALL))["train"] == {"cat": 3, "dog": 3}
    assert len(list((tmp_path / "cache/kclf/archives").glob("[!.]*"))) == 1


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png", "..\\outside.png"])
def test_a_zip_file_cannot_write_outside(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/0.png", b"x")
        archive.writestr(name, b"x")
    with pytest.raises(DataError, match="leads out of the archive"):
        unpacked(tmp_path / "a.zip", tmp_path / "cache")
    assert not list(tmp_path.rglob("outside.png"))
    assert list((tmp_path / "cache").glob("[!.]*")) == []


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0.png", bytes(10_000_000))
    with pytest.raises(DataError, match="too much"):
        unpacked(tmp_path / "a.zip", tmp_path / "cache")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_whose_pieces_have_no_bounds_are_refused(tmp_path, packing):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", packing) as archive:
        archive.writestr("cat/0.png", b"x")
    with pytest.raises(DataError, match="otherwise than by deflate"):
        unpacked(tmp_path / "a.zip", tmp_path / "cache")


def test_a_second_process_waits_for_the_first_and_what_a_killed_one_left_goes(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    file, cache = zipped(tmp_path, {"cat/": 1, "dog/": 1}), tmp_path / "cache"
    (cache / ".kclf-x.partial").mkdir(parents=True)
    found: list[str] = []
    with open(cache / ".lock", "w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(unpacked(file, cache)))
        second.start()
        second.join(0.1)
        assert second.is_alive()
    second.join(30)
    assert sorted(os.listdir(found[0])) == ["cat", "dog"]
    assert not (cache / ".kclf-x.partial").exists()


# The command


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x;f;k\n{rows}", {"delimiter": ";", "columns": "f,k"}),
        ("x\tf\tk\n{rows}", {"delimiter": "tab", "columns": "1,2"}),
        ("x,f,k,v\n{rows}", {"columns": "f,k", "valid_column": "v"}),
        ("x,f,k\n{rows}", {"columns": "f,k", "label_delimiter": " ", "task": "multi_label"}),
    ],
)
def test_the_command_has_words_for_every_table(tmp_path, text, words):
    make_tree(tmp_path, {"photos/": 8})
    mark = text[1]
    ending = f"{mark}{{}}" if "valid_column" in words else ""
    rows = "".join(f"q{mark}{i}{mark}{'ab'[i % 2]}{ending.format(int(i > 5))}\n" for i in range(8))
    Path(tmp_path / "t.csv").write_text(text.format(rows=rows))
    settings = RunSettings(
        tmp_path / "photos",
        tmp_path / "out",
        csv=tmp_path / "t.csv",
        suffix=".png",
        size=16,
        presize=16,
        **words,
    )
    data = find_data(settings)
    assert data.class_names == ["a", "b"]
    assert data.train.num_images + data.valid.num_images == 8
    assert data.task == words.get("task", "single_label")


# Look-alikes


def test_look_alikes_cost_no_more_than_others():
    base = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
    noise = np.random.default_rng(1).integers(-3, 4, (1500, 1, 1, 3))
    frames = np.clip(base + noise, 0, 255).astype(np.uint8)
    start = time.process_time()
    pairs = same_looks(frames, ["train", "valid"] * 750)
    assert time.process_time() - start < 10
    assert len(pairs) < 20 * 1500
    assert {pair.second for pair in pairs} == set(range(1, 1500))
    assert {(pair.first + pair.second) % 2 for pair in pairs} == {0, 1}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4_000_000


def test_blank_scans_are_no_pairs():
    assert same_looks(np.full((2000, 32, 32, 3), 250, np.uint8)) == []
