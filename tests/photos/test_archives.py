"""Layouts as public archives have them: each is read by one command, with all of its photos and classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from archives import ARCHIVES, heic, painted
from photo_makers import counts, labels_of, make_tree
from PIL import Image

from kclf.cli import train as command
from kclf.cli.main import main
from kclf.data import ImageData, files
from kclf.errors import DataError

COUNT = 10  # photos of each class


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return painted(tmp_path_factory.mktemp("photos"), ["cat", "dog"], COUNT)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The data that the command finds, in an empty folder that is the current one; it does not train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    monkeypatch.setattr(command, "train_run", lambda settings, **_: found.append(command.find_data(settings)))

    def data(*words):
        with pytest.raises(SystemExit):
            main(["train", *words])
        return found[0]

    return data


@pytest.mark.parametrize("archive", ARCHIVES, ids=[archive.name for archive in ARCHIVES])
def test_all_photos_of_an_archive_are_found(photos, read, archive):
    if archive.make is heic and importlib.util.find_spec("pillow_heif") is None:
        pytest.skip("needs pillow-heif")
    archive.make(Path(), photos)
    data = read(*archive.words)
    found = counts(data)
    labels = sorted(map(archive.labels, photos))
    trained = {name: found["train"][name] + found["valid"][name] for name in labels}
    kept_apart = 0.2 if archive.name == "id,breed without suffix" else archive.test
    broken = archive.name == "zip"
    assert trained == dict.fromkeys(labels, COUNT - round(kept_apart * COUNT) + broken)
    assert (0 if data.test is None else data.test.num_images) == round(archive.test * 2 * COUNT)


ROWS = "file_name,label\n" + "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(4))


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("training_set", "validation_set", "test_set")]
)
def test_a_table_in_each_split(tmp_path, names):
    for name in names:
        make_tree(tmp_path, {f"{name}/": 4, f"{name}/metadata.csv": ROWS})
    data = ImageData.from_folder(tmp_path, size=16, batch_size=2)
    assert counts(data) == {split: {"cat": 2, "dog": 2} for split in ("train", "valid", "test")}
    sides = {split: {Path(path).parent.name for path in part.paths} for split, part in data.splits.items()}
    assert sides == {split: {name} for split, name in zip(sides, names, strict=True)}
    assert labels_of(data.test) == {"0.png": "dog", "1.png": "cat", "2.png": "dog", "3.png": "cat"}


def test_a_table_of_training_photos_beside_a_test_set_without_one(tmp_path):
    make_tree(tmp_path, {"train/": 4, "train/labels.csv": ROWS, "test/": 3, "extra/": 2})
    data = ImageData.from_folder(tmp_path, size=16, batch_size=2, lenient=True)
    assert counts(data) == {"train": {"cat": 1, "dog": 1}, "valid": {"cat": 1, "dog": 1}, "test": 3}
    assert data.test.labels is None


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"valid/t.csv": ROWS.replace("label", "kind")}, "columns of the other splits, file_name, label"),
        ({"train/other.csv": ROWS}, "outside any class folder"),
        ({"valid/t.csv": ROWS.replace("2", "9").replace("3", "8")}, "are not there"),
    ],
)
def test_tables_of_splits_that_do_not_fit(tmp_path, tree, said):
    make_tree(tmp_path, {"train/": 4, "train/t.csv": ROWS, "valid/": 4, "valid/t.csv": ROWS, **tree})
    with pytest.raises(DataError, match=said):
        ImageData.from_folder(tmp_path, size=16, batch_size=2)


def test_a_plugin_of_pillow_that_is_registered_at_the_first_look(monkeypatch):
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    numbers = iter(np.arange(10**6))

    def register():
        Image.OPEN["NEW"] = (type("Factory", (), {}), None)
        Image.EXTENSION[f".new{next(numbers)}"] = "NEW"

    monkeypatch.setattr(files, "_register_heif", register)
    assert ".new0" in files.image_suffixes()
