from __future__ import annotations

import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kclf.data.files import list_images
from kclf.data.labels import encode, encode_many, encode_numbers, folder_labels, regex_label
from kclf.data.splits import cv_indices, grouped_split, index_split, k_fold, random_split, stratified_split
from kclf.data.tables import read_table
from kclf.errors import DataError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


# Files


def test_images_are_found_at_any_depth_in_sorted_order(tmp_path):
    touch(tmp_path, "b/2.JPEG", "a/1.png", "a/deep/er/0.webp", "c.tif", "readme.md", "Thumbs.db")

    found = list_images(tmp_path)

    assert [os.path.relpath(p, tmp_path) for p in found] == [
        "a/1.png",
        "a/deep/er/0.webp",
        "b/2.JPEG",
        "c.tif",
    ]


def test_names_with_a_dot_in_front_are_no_photos(tmp_path):
    touch(tmp_path, "1.jpg", "._1.jpg", ".thumbnails/1.jpg")

    assert list_images(tmp_path) == [str(tmp_path / "1.jpg")]


def test_a_folder_named_like_a_photo_is_a_folder(tmp_path):
    touch(tmp_path, "shots.jpg/1.png")

    assert list_images(tmp_path) == [str(tmp_path / "shots.jpg" / "1.png")]


def test_links_are_followed_and_a_circle_ends(tmp_path):
    touch(tmp_path, "real/1.jpg")
    (tmp_path / "real" / "again").symlink_to(tmp_path / "real")
    (tmp_path / "linked").symlink_to(tmp_path / "real")

    found = [os.path.relpath(p, tmp_path) for p in list_images(tmp_path)]

    assert found == ["linked/1.jpg", "real/1.jpg"]


def test_a_missing_folder_is_named_with_what_is_there(tmp_path):
    touch(tmp_path, "photos/1.jpg")

    with pytest.raises(DataError, match=r"No such folder.*fotos.*there is: photos/"):
        list_images(tmp_path / "fotos" / "cats")


def test_a_file_is_no_folder(tmp_path):
    (photo,) = touch(tmp_path, "1.jpg")

    with pytest.raises(DataError, match=r"this is a file.*1\.jpg"):
        list_images(photo)


@pytest.mark.parametrize(("names", "found"), [([], "it is empty"), (["a.txt", "b/c.md"], r"a\.txt, b/")])
def test_a_folder_without_images_says_what_it_has(tmp_path, names, found):
    touch(tmp_path, *names)

    with pytest.raises(DataError, match=found):
        list_images(tmp_path)


# Labels


def test_the_class_is_the_folder_right_below_the_root():
    labels = folder_labels(["root/cat/1.jpg", "root/dog/day/2.jpg"], "root")

    assert labels == ["cat", "dog"]


def test_images_outside_class_folders_lead_to_other_ways_of_labelling():
    with pytest.raises(DataError, match=r"1 of 2 images.*root/cat\.1\.jpg.*label_regex.*from_files"):
        folder_labels(["root/cat.1.jpg", "root/dog/2.jpg"], "root")


@pytest.mark.parametrize(
    ("pattern", "path", "label"),
    [
        (r"(.+)_\d+.jpg$", "images/great_pyrenees_173.jpg", "great_pyrenees"),
        (r"(.+)_\d+.jpg$", "a_1/Abyssinian_101_2.jpg", "Abyssinian_101"),
        (r"^[^.]+", "cat.7.jpg", "cat"),
    ],
)
def test_regex_labels(pattern, path, label):
    assert regex_label(pattern)(path) == label


def test_a_name_that_does_not_match_is_named():
    with pytest.raises(DataError, match=r"x/notes\.jpg: .*'notes\.jpg' does not match.*'\(\.\+\)_"):
        regex_label(r"(.+)_\d+")("x/notes.jpg")


def test_a_broken_pattern_is_refused():
    with pytest.raises(DataError, match=r"Not a regular expression.*pattern='\('"):
        regex_label("(")


def test_an_unknown_label_names_file_and_label():
    with pytest.raises(DataError, match=r"b\.jpg.*'owl'.*: cat, dog"):
        encode(["cat", "owl"], ["cat", "dog"], ["a.jpg", "b.jpg"])


def test_an_unknown_label_in_a_set_names_file_and_label():
    with pytest.raises(DataError, match=r"b\.jpg: its label 'owl'"):
        encode_many([["cat"], ["dog", "owl"]], ["cat", "dog"], ["a.jpg", "b.jpg"])


@pytest.mark.parametrize("value", ["many", None, "nan", float("inf")])
def test_a_label_that_is_no_number_names_file_and_label(value):
    with pytest.raises(DataError, match=r"b\.jpg: expected a .*number"):
        encode_numbers([1, value], ["a.jpg", "b.jpg"])


# Tables


def test_a_table_is_read_as_text_columns(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text('\ufeffid,breed\n001,"toy, poodle"\n\n002,borzoi\n', encoding="utf-8")

    assert read_table(file) == {"id": ["001", "002"], "breed": ["toy, poodle", "borzoi"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,breed\n", "Found 1 rows"),
        ("id,id\n1,2\n", "twice in the header"),
        ("id,breed\n1,pug\n2\n", r"row 3: expected 2 fields.*Found 1: 2"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, text, message):
    file = tmp_path / "labels.csv"
    file.write_text(text)

    with pytest.raises(DataError, match=message):
        read_table(file)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"No such file.*labels\.csv"):
        read_table(tmp_path / "labels.csv")


# Splits

LABELS = ["cat"] * 50 + ["dog"] * 30 + ["owl"] * 2
SPLITS = {
    "random": lambda seed: random_split(len(LABELS), 0.2, seed),
    "stratified": lambda seed: stratified_split(LABELS, 0.2, seed),
    "grouped": lambda seed: grouped_split([i // 4 for i in range(len(LABELS))], 0.2, seed),
    "k_fold": lambda seed: k_fold(LABELS, 5, seed)[0],
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_has_every_image_on_one_side_in_order(name):
    train, valid = SPLITS[name](seed=3)

    assert sorted([*train, *valid]) == list(range(len(LABELS)))
    assert all((np.diff(side) > 0).all() for side in (train, valid))
    assert len(valid) == pytest.approx(0.2 * len(LABELS), abs=2)


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_depends_on_its_seed_alone(name):
    np.random.default_rng().random()

    assert np.array_equal(SPLITS[name](seed=3)[1], SPLITS[name](seed=3)[1])
    assert not np.array_equal(SPLITS[name](seed=3)[1], SPLITS[name](seed=4)[1])


def test_random_split_has_fastai_s_sizes(golden):
    n_train, n_valid = golden["RandomSplitter(42) 7390"][:2]

    train, valid = random_split(7390, 0.2, seed=42)

    assert (len(train), len(valid)) == (n_train, n_valid)


def test_stratified_split_gives_each_class_its_share():
    _, valid = stratified_split(LABELS, 0.2)

    assert np.unique([LABELS[i] for i in valid], return_counts=True)[1].tolist() == [10, 6, 1]


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_a_stratified_split_keeps_every_class_on_both_sides(counts, fraction, seed):
    labels = [name for name, count in enumerate(counts) for _ in range(count)]

    train, valid = stratified_split(labels, fraction, seed)

    assert sorted([*train, *valid]) == list(range(len(labels)))
    assert {labels[i] for i in train} == {labels[i] for i in valid} == set(labels)


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(DataError, match=r"1 of 2 classes.*: owl"):
        stratified_split(["cat", "cat", "owl"])


def test_a_group_stays_on_one_side():
    groups = [f"dog{i % 7}" for i in range(40)]

    train, valid = grouped_split(groups, 0.3)

    assert not {groups[i] for i in train} & {groups[i] for i in valid}


def test_one_group_cannot_be_split():
    with pytest.raises(DataError, match=r"at least 2 groups.*1 \(rex\)"):
        grouped_split(["rex", "rex"])


def test_k_folds_hold_each_image_once_and_each_class_evenly():
    folds = [valid for _, valid in k_fold(LABELS, 5)]

    assert sorted(np.concatenate(folds)) == list(range(len(LABELS)))
    assert {sum(LABELS[i] == "dog" for i in fold) for fold in folds} == {6}


def test_cv_indices_are_the_course_s_own():
    indices = cv_indices(10222, 4)

    assert indices[:3].tolist() == [3694, 1573, 6281]
    assert indices[-3:].tolist() == [5734, 5191, 5390]
    assert len(indices) == 2044
    assert cv_indices(10222, 0)[:3].tolist() == [2882, 4514, 7717]


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_that_is_not_there(fold):
    with pytest.raises(DataError, match=rf"fold in \[0, 5\).*fold={fold}"):
        cv_indices(100, fold)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 20])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(DataError, match=f"valid_fraction={fraction}"):
        random_split(10, fraction)


@pytest.mark.parametrize(
    ("indices", "message"), [([3, 10], r"\[0, 10\).*10"), ([1, 1], "twice"), ([0.5], "integer")]
)
def test_indices_that_do_not_fit(indices, message):
    with pytest.raises(DataError, match=message):
        index_split(10, indices)


@pytest.mark.parametrize("n", [2_000, pytest.param(100_000, marks=pytest.mark.heavy)])
def test_files_are_listed_labelled_and_split_at_20_000_a_second(tmp_path, n):
    for breed in range(100):
        folder = tmp_path / f"breed_{breed}"
        folder.mkdir()
        for i in range(n // 100):
            os.close(os.open(folder / f"{i}.jpg", os.O_CREAT))

    start = time.process_time()
    paths = list_images(tmp_path)
    labels = folder_labels(paths, tmp_path)
    codes = encode(labels, sorted(set(labels)), paths)
    train, valid = stratified_split(codes.tolist())
    seconds = time.process_time() - start

    assert (len(train), len(valid)) == (n * 8 // 10, n * 2 // 10)
    assert seconds < n / 20_000


def test_a_file_name_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with open(os.fsencode(tmp_path / "cat") + b"/caf\xe9.png", "wb"):
        pass
    (tmp_path / "cat" / "caf\u00e9.png").touch()
    with pytest.raises(DataError, match=r"Expected names in UTF-8.*caf\\xe9\.png"):
        list_images(tmp_path)
