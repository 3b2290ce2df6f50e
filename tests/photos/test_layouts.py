"""Folders as people have them: which photos train, validate and test, as which class, and what is unused."""

from __future__ import annotations

import os
import re
import unicodedata

import pytest
from photo_makers import counts, labels_of, make_tree

from kclf.checks.file_info import photos_of
from kclf.cli.train import RunSettings, find_data
from kclf.data import ImageData
from kclf.data.files import split_folders, split_named
from kclf.errors import DataError

TWO = {"cat": 4, "dog": 4}


def read(folder, **options):
    return ImageData.from_folder(folder, size=16, batch_size=2, num_threads=1, **options)


def split(name, cat=4, dog=4):
    return {f"{name}/cat/": cat, f"{name}/dog/": dog}


# Names of splits


NAMES = {
    "train": "train Train TRAINING training_set train_set trainset train_images train-images images_train "
    "TrainImages train1 train2017 imgs_train train_data traindata train_split trainval train_val train+val",
    "valid": "valid val validation Validation valid_set val2017 val_images dev dev_set eval "
    "evaluation hold_out",
    "test": "test Test test1 testing test_set Testing test_images testset TestSet",
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, n) for kind, names in NAMES.items() for n in names.split()]
)
def test_names_of_splits(kind, name):
    assert split_named(name) == kind


@pytest.mark.parametrize(
    "name", ["cat", "steam_train", "test_tube", "trainer", "valley", "developer", "contest", "latest", "1"]
)
def test_names_of_classes(name):
    assert split_named(name) == ""


def test_other_words_count_where_two_splits_share_them():
    assert split_folders(["pets_train", "pets_test", "models"]) == {
        "train": ["pets_train"],
        "test": ["pets_test"],
    }
    assert split_folders(["steam_train", "tram"]) == {}


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train", "valid", "test"),
        ("training_set", "validation_set", "test_set"),
        ("train_images", "val_images", "test_images"),
        ("Training", "dev", "Testing"),
        ("seg_train", "seg_val", "seg_test"),
        ("imagenet_train", "imagenet_val", "imagenet_test"),
    ],
)
def test_splits_under_usual_names(tmp_path, train, valid, test):
    make_tree(tmp_path, {**split(train), **split(valid, 2, 2), **split(test, 1, 1)})
    assert counts(read(tmp_path)) == {
        "train": TWO,
        "valid": {"cat": 2, "dog": 2},
        "test": {"cat": 1, "dog": 1},
    }


def test_training_and_test_set_alone_set_photos_aside(tmp_path):
    make_tree(tmp_path, {**split("training_set"), **split("test_set", 2, 2)})
    data = read(tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert counts(data)["test"] == {"cat": 2, "dog": 2}
    assert all("training_set" in path for path in [*data.train.paths, *data.valid.paths])


def test_a_split_that_lies_in_a_folder_of_its_own_name(tmp_path):
    make_tree(tmp_path, {**split("training_set/training_set"), **split("test_set/test_set", 1, 1)})
    assert counts(read(tmp_path))["test"] == {"cat": 1, "dog": 1}


def test_a_class_called_train(tmp_path):
    make_tree(tmp_path, {"bus/": 4, "car/": 4, "train/": 4})
    assert read(tmp_path).class_names == ["bus", "car", "train"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (split("Testing", 3, 3) | split("test", 1, 1), r"Testing/ \(6 images\)"),
        (split("val", 2, 2) | split("validation", 3, 3), r"validation/ \(6 images\)"),
        ({"cat/": 5}, r"cat/ \(5 images\)"),
        ({"x.png": None, "y.png": None}, r"2 images in"),
        (
            {"train/cat/a.jp_": "", "train/cat/b": "", "train/c.JPG.1": ""},
            r"1 without a suffix, 1 \.1, 1 \.jp_",
        ),
        ({"train/cat/a.jpg_large": "", "train/dog/b.jpg~": ""}, r"1 \.jpg_large, 1 \.jpg~"),
    ],
)
def test_one_line_counts_what_is_not_used(tmp_path, extra, said):
    data = read(make_tree(tmp_path, {**split("train"), **split("valid", 1, 1), **extra}))
    (note,) = data.notes
    assert note.startswith("Not used: ")
    assert re.search(said, note)
    assert note in data.summary()


def test_nothing_is_said_where_all_is_used(tmp_path):
    assert read(make_tree(tmp_path, split("train"))).notes == []


# Classes


def test_one_rule_for_training_and_checks(tmp_path):
    tree = {
        "cat/persian/": ["a.png", "b.png"],
        "cat/tabby/": ["c.png", "d.png"],
        "dog/husky/x/": ["e.png", "f.png"],
    }
    make_tree(tmp_path, tree)
    data = read(tmp_path)
    expected = {**dict.fromkeys("abcd", "cat"), **dict.fromkeys("ef", "dog")}
    trained = {name[0]: label for part in (data.train, data.valid) for name, label in labels_of(part).items()}
    checked = {os.path.basename(photo.path)[0]: photo.label for photo in photos_of(tmp_path)[1]}
    assert trained == checked == expected


def test_the_check_sees_the_splits_that_training_sees(tmp_path):
    make_tree(tmp_path, {**split("training_set"), **split("test_set"), "holiday/": 3})
    sets = [photo.set_name for photo in photos_of(tmp_path)[1]]
    assert (sets.count("train"), sets.count("test"), len(sets)) == (8, 8, 16)


@pytest.mark.parametrize(
    "system", ["@eaDir", "$RECYCLE.BIN", "__MACOSX", "lost+found", "#recycle", ".Trash-1000"]
)
@pytest.mark.parametrize("place", ["", "cat/", "cat/x.png/"])
def test_system_folders_are_neither_classes_nor_photos(tmp_path, system, place):
    make_tree(tmp_path, {"cat/": ["x1.png", "x2.png"], "dog/": 2, f"{place}{system}/": 3})
    data = read(tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert data.train.num_images + data.valid.num_images == 4


def test_a_class_whose_name_begins_with_a_dot(tmp_path):
    make_tree(tmp_path, {".net/": 4, "java/": 4, ".ipynb_checkpoints/": 4})
    assert read(tmp_path).class_names == [".net", "java"]
    assert {photo.label for photo in photos_of(tmp_path)[1]} == {".net", "java"}


def test_spellings_of_one_class_are_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make_tree(tmp_path, {f"{composed}/": 3, f"{apart}/": 3, "tea/": 3, "tea /": 3})
    data = read(tmp_path)
    assert data.class_names == [composed, "tea"]
    assert data.train.num_images + data.valid.num_images == 12


def test_spellings_differ_between_the_splits(tmp_path):
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    make_tree(tmp_path, {f"train/{forms[0]}/": 3, "train/tea/": 3, f"valid/{forms[1]}/": 1, "valid/tea/": 1})
    assert counts(read(tmp_path))["valid"] == {forms[0]: 1, "tea": 1}


def test_names_that_differ_in_case_alone_are_refused(tmp_path):
    make_tree(tmp_path, {"cat/": 3, "CAT/": 3, "dog/": 3})
    with pytest.raises(DataError, match=r"case of letters alone: 'CAT', 'cat'"):
        read(tmp_path)
    assert read(tmp_path, lenient=True).class_names == ["CAT", "cat", "dog"]


@pytest.mark.parametrize("name", ["cat\u200b", "\u2060cat", "cat\u00a0", "\ufeffcat\u3000"])
def test_what_no_one_sees_makes_no_class(tmp_path, name):
    assert read(make_tree(tmp_path, {f"{name}/": 3, "cat/": 3, "dog/": 3})).class_names == ["cat", "dog"]


def test_two_links_to_one_folder_are_not_two_classes(tmp_path):
    make_tree(tmp_path, {"all/cat/": 3, "data/dog/": 3})
    (tmp_path / "data/cat").symlink_to(tmp_path / "all/cat")
    assert read(tmp_path / "data").class_names == ["cat", "dog"]
    (tmp_path / "data/kitty").symlink_to(tmp_path / "all/cat")
    with pytest.raises(DataError, match=r"cat, kitty in .* are one folder, by links"):
        read(tmp_path / "data")


@pytest.mark.parametrize(
    "name", ["a\\b", "c:d", 'say "x"', "it's", "a\nb", "007", "nan", "None", "=1+1", "🐱", "x" * 200]
)
def test_any_name_of_a_folder_is_a_class(tmp_path, name):
    assert set(read(make_tree(tmp_path, {f"{name}/": 3, "dog/": 3})).class_names) == {name, "dog"}


@pytest.mark.parametrize(
    ("tree", "classes"),
    [
        ({"test/": 4, "control/": 4}, ["control", "test"]),
        ({"dev/": 4, "prod/": 4}, ["dev", "prod"]),
        ({"val/": 4, "mad/": 4}, ["mad", "val"]),
        (
            {"cat/": ["a.jpg.png", "b.PNG"], "dog/": ["a.tar.png", "b.Png"], "cat/x.png.bak": ""},
            ["cat", "dog"],
        ),
    ],
)
def test_words_of_splits_as_classes(tmp_path, tree, classes):
    assert read(make_tree(tmp_path, tree)).class_names == classes


def test_links_that_lead_nowhere_or_round_are_no_endless_way(tmp_path):
    make_tree(tmp_path, {"cat/": 3, "dog/": 3})
    (tmp_path / "cat/up").symlink_to("..")
    (tmp_path / "dog/self").symlink_to("self")
    assert counts(read(tmp_path))["train"] == {"cat": 2, "dog": 2}


def test_letters_are_classes(tmp_path):
    make_tree(tmp_path, {"a/": 3, "A/": 3})
    assert read(tmp_path).class_names == ["A", "a"]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({**split("day"), **split("night")}, "day, night all hold the same folders: cat, dog"),
        ({"cat/train/": 2, "cat/test/": 2, "dog/train/": 2, "dog/test/": 2}, "expected train/CLASS"),
        ({"PetImages/Cat/": 3, "PetImages/Dog/": 3}, "'PetImages', which holds folders: Cat, Dog"),
        ({"a/b/train/x/": 3, "a/b/train/y/": 3, "a/b/test/x/": 1}, "'a/b', which holds folders: test, train"),
    ],
)
def test_folders_on_another_level_are_named(tmp_path, tree, said):
    with pytest.raises(DataError, match=said):
        read(make_tree(tmp_path, tree))


def test_splits_around_classes_with_the_same_folders_are_no_fault(tmp_path):
    make_tree(tmp_path, {f"train/{name}/{time}/": 2 for name in ("cat", "dog") for time in ("day", "night")})
    assert read(tmp_path).class_names == ["cat", "dog"]


def test_one_class_of_several_is_pointed_to_its_parent(tmp_path, monkeypatch):
    make_tree(tmp_path, {"photos/cat/": 4})
    monkeypatch.chdir(tmp_path / "photos" / "cat")
    with pytest.raises(DataError, match=rf"If cat is one class of several, give {tmp_path / 'photos'}\."):
        read(".")


# Stops that a switch turns into warnings


@pytest.mark.parametrize(
    ("tree", "stop", "found"),
    [
        ({"cat/": 4, "dog/": 4, "owl/": 0}, "owl", TWO),
        ({"cat/": 4, "dog/": 4, "x.png": None}, "outside any class folder", TWO),
        ({"cat/": 4, "dog/": 4, "owl/": 1}, "single image.*owl", {**TWO, "owl": 1}),
        (
            {**split("train"), "train/owl/": 2, **split("valid", 1, 1)},
            "no validation.*owl",
            {**TWO, "owl": 2},
        ),
        ({**split("train"), "valid/": 0}, "No image file in", TWO),
        ({**split("train"), "test/": 0}, "No image file in", TWO),
        ({**split("train"), **split("valid", 1, 1), "valid/owl/": 2}, "'owl' is not among", TWO),
        ({"cat/a/": 2, "cat/b/": 2, "dog/a/": 2, "dog/b/": 2}, "the same folders", TWO),
    ],
)
def test_stops_become_warnings_with_a_switch(tmp_path, tree, stop, found):
    make_tree(tmp_path, tree)
    with pytest.raises(DataError, match=rf"{stop}.*--lenient"):
        read(tmp_path)
    data = read(tmp_path, lenient=True)
    parts = counts(data)
    extra = parts["valid"] if "valid/cat/" not in tree else {}
    assert {name: n + extra.get(name, 0) for name, n in parts["train"].items()} == found
    assert data.notes


@pytest.mark.parametrize("files", [{"labels/a.txt": "0"}, {"labels/a.xml": "<x/>", "docs/b.md": "x"}])
def test_folders_of_descriptions_are_no_classes(tmp_path, files):
    data = read(make_tree(tmp_path, {"cat/": 2, "dog/": 2, **files}))
    assert data.class_names == ["cat", "dog"]
    assert "Not used" in data.notes[0]


# Classes from names


@pytest.fixture
def dogs_vs_cats(tmp_path):
    """Kaggle's archive: names hold the classes, and the test photos have none."""
    names = [f"{kind}.{i}.png" for kind in ("cat", "dog") for i in range(4)]
    return make_tree(tmp_path, {"train/": names, "test1/": ["1.png", "2.png"]})


def test_the_command_reads_names_as_python_does(dogs_vs_cats):
    settings = RunSettings(dogs_vs_cats, dogs_vs_cats / "out", label_regex="(cat|dog)", size=16, presize=16)
    data = find_data(settings)
    assert {name.split(".")[0] == label for name, label in labels_of(data.train).items()} == {True}
    assert (data.train.num_images + data.valid.num_images, data.test.num_images) == (8, 2)
    assert data.test.labels is None


def test_the_command_keeps_splits_apart(tmp_path):
    for name, count in (("train", 8), ("valid", 4), ("test", 2)):
        make_tree(tmp_path, {f"{name}/": [f"{'cat' if i % 2 else 'dog'}_{i}.png" for i in range(count)]})
    data = find_data(RunSettings(tmp_path, tmp_path / "out", label_regex=r"(.+)_\d", size=16, presize=16))
    sides = {
        name: {os.path.basename(os.path.dirname(p)) for p in part.paths} for name, part in data.splits.items()
    }
    assert sides == {"train": {"train"}, "valid": {"valid"}, "test": {"test"}}
    assert labels_of(data.test) == {"dog_0.png": "dog", "cat_1.png": "cat"}
