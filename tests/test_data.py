from __future__ import annotations

import csv
import errno
import gc
import io
import logging
import os
import re
import shutil
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from PIL import Image

from kclf.checks.file_info import photos_of
from kclf.data import ImageData, ImageDataset, presized
from kclf.data.images import covering, read_image, resize
from kclf.data.labels import parent_label, regex_label
from kclf.data.splits import cv_indices
from kclf.errors import DataError, ImageError


def save_photos(folder, counts, size=(40, 30)):
    """Photos of smooth noise, `counts` by folder; the same names give the same pixels."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = np.random.default_rng([number, i]).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize(size).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def pets_folder(tmp_path):
    """Ten cats and ten dogs, each in its folder."""
    return save_photos(tmp_path / "pets", {"cat": 10, "dog": 10})


@pytest.fixture
def split_folder(tmp_path):
    """The course's layout."""
    counts = {"train/cat": 6, "train/dog": 6, "valid/cat": 2, "valid/dog": 2, "test1": 3, "models": 0}
    return save_photos(tmp_path / "dogscats", counts)


def small(folder, **arguments):
    return ImageData.from_folder(folder, **{"size": 16, "batch_size": 4, "num_threads": 2, **arguments})


def contents(batches):
    """Batches as something that `==` compares to the last bit."""
    return [tuple(part.numpy().tobytes() for part in batch) for batch in batches]


def numbered(n, **arguments):
    """A dataset of n images whose every pixel is the image's number."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 3))
    return ImageDataset(images, np.arange(n), **{"presize": 8, "batch_size": 4, **arguments})


def numbers(batch):
    return batch[0][:, 0, 0, 0].tolist()


@pytest.fixture
def decoded(monkeypatch):
    """The index of every image that is decoded, in any thread."""
    seen = []
    fill = ImageDataset.fill

    def counted(self, square, index, position):
        seen.append(index)
        return fill(self, square, index, position)

    monkeypatch.setattr(ImageDataset, "fill", counted)
    return seen


def tiny_model(outputs=2):
    model = keras.Sequential(
        [keras.layers.Rescaling(1 / 255), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(outputs)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


# Folders


def test_class_folders_are_split_with_each_class_in_both(pets_folder):
    data = small(pets_folder)

    assert data.class_names == ["cat", "dog"]
    assert np.bincount(data.train.labels).tolist() == [8, 8]
    assert np.bincount(data.valid.labels).tolist() == [2, 2]
    assert not set(data.train.paths) & set(data.valid.paths)
    assert data.test is None
    assert data.train.labels.dtype == np.int32


def test_train_and_valid_folders_are_kept_apart(split_folder):
    data = small(split_folder)

    assert all("/train/" in path for path in data.train.paths)
    assert all("/valid/" in path for path in data.valid.paths)
    assert [parent_label(path) for path in data.valid.paths] == [
        data.class_names[i] for i in data.valid.labels
    ]


def test_a_test_folder_without_classes_has_no_labels(split_folder):
    data = small(split_folder)

    assert data.test.num_images == 3
    assert data.test.labels is None
    assert [len(batch) for batch in data.test] == [1]


def test_a_test_folder_with_classes_has_labels(split_folder):
    save_photos(split_folder, {"test/dog": 2})

    assert small(split_folder).test.labels.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["val", "validation", "Valid"])
def test_other_names_of_the_validation_folder(split_folder, name):
    (split_folder / "valid").rename(split_folder / name)

    assert small(split_folder).valid.num_images == 4


@pytest.mark.parametrize("name", ["training", "Train"])
def test_other_names_of_the_training_folder(split_folder, name):
    (split_folder / "train").rename(split_folder / name)
    data = small(split_folder)
    assert (data.class_names, data.train.num_images, data.valid.num_images) == (["cat", "dog"], 12, 4)


def test_the_check_knows_the_splits_that_the_loader_knows(split_folder):
    photos = photos_of(split_folder)[1]
    sets = {Path(photo.path).relative_to(split_folder).parts[0]: photo.set_name for photo in photos}
    assert sets == {"train": "train", "valid": "valid", "test1": "test"}


def test_train_without_valid_sets_images_aside(split_folder):
    shutil.rmtree(split_folder / "valid")

    data = small(split_folder)

    assert (data.train.num_images, data.valid.num_images) == (10, 2)


def test_labels_by_regex_from_a_flat_folder(tmp_path):
    save_photos(tmp_path, {".": 0})
    for i in range(4):
        for kind in ("cat", "dog"):
            Image.new("RGB", (20, 20)).save(tmp_path / f"{kind}.{i}.png")

    data = small(tmp_path, label_regex=r"^(\w+)\.")

    assert data.class_names == ["cat", "dog"]
    with pytest.raises(DataError, match=r"label_regex.*from_files"):
        small(tmp_path)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 3}, "at least 2 classes.*Found one, 'cat', with 3 images"),
        ({"cat": 3, "dog": 1}, "single image.*: dog"),
        ({"cat": 3, "dog": 3, "owl": 0}, "1 folders in .* hold no image.*: owl"),
        ({"cat": 0}, "No image file.*Found: cat/"),
        ({"train/cat": 3, "train/dog": 3, "valid/cat": 1}, r"1 of 2 classes have no validation.*: dog"),
        (
            {"train/cat": 3, "train/dog": 3, "valid/cat": 1, "valid/dog": 1, "valid/owl": 1},
            r"valid/owl/0\.png: its label 'owl' is not among the 2 classes: cat, dog",
        ),
        ({"train/cat": 3, "train/dog": 3, "valid": 0}, r"No image file in .*valid.*it is empty"),
    ],
)
def test_folders_that_cannot_be_used_say_what_was_found(tmp_path, counts, message):
    save_photos(tmp_path, counts)

    with pytest.raises(DataError, match=message):
        small(tmp_path)


def test_real_photos_of_two_classes(dogscats):
    data = ImageData.from_folder(dogscats, label_regex=r"^(\w+)\.", size=64, batch_size=8)

    images, labels = next(iter(data.train))

    assert data.class_names == ["cat", "dog"]
    assert (data.train.num_images, data.valid.num_images) == (1602, 400)
    assert images.shape == (8, 64, 64, 3)
    assert images.float().std() > 20
    assert set(labels.tolist()) <= {0, 1}


def test_real_photos_of_37_breeds(pets):
    data = ImageData.from_folder(pets, size=64)

    assert len(data.class_names) == 37
    assert np.bincount(data.valid.labels).tolist() == [2] * 37


# Files, tables, arrays


def test_files_with_a_label_function(pets_folder):
    data = ImageData.from_files(pets_folder, parent_label, size=16)

    assert data.class_names == ["cat", "dog"]
    assert data.task == "single_label"


def test_a_group_of_files_stays_on_one_side(pets_folder):
    def animal(path):
        return regex_label(r"(\d+)")(path)

    data = ImageData.from_files(pets_folder, parent_label, group=animal, size=16)

    sides = [{animal(path) for path in split.paths} for split in (data.train, data.valid)]
    assert not sides[0] & sides[1]


def test_several_labels_an_image_are_n_hot(pets_folder):
    data = ImageData.from_files(
        pets_folder,
        lambda path: [parent_label(path), "animal"] if "cat" in path else [],
        size=16,
        batch_size=4,
    )

    assert data.task == "multi_label"
    assert data.class_names == ["animal", "cat"]
    assert data.train.labels.dtype == np.float32
    assert {tuple(row) for row in data.train.labels.tolist()} == {(1, 1), (0, 0)}
    assert next(iter(data.train))[1].shape == (4, 2)


def test_numbers_are_for_regression_only_when_said_so(pets_folder):
    data = ImageData.from_files(pets_folder, lambda path: 1.5, task="regression", size=16, batch_size=4)

    assert data.class_names == []
    assert next(iter(data.train))[1].tolist() == [1.5] * 4
    with pytest.raises(DataError, match=r"its label is 1\.5.*task=\"regression\""):
        ImageData.from_files(pets_folder, lambda path: 1.5)


def write_csv(folder, rows, header="id,breed"):
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "labels.csv"


def test_a_csv_of_names_without_suffix(pets_folder):
    file = write_csv(
        pets_folder, [f"{kind}/{i},{kind} of the house" for kind in ("cat", "dog") for i in range(10)]
    )

    data = ImageData.from_csv(file, suffix=".png", size=16, valid_indices=cv_indices(20, 0))

    assert data.class_names == ["cat of the house", "dog of the house"]  # a space makes no second label
    assert data.valid.num_images == 4
    assert data.train.paths[0].endswith(".png")


def test_a_csv_with_a_delimiter_has_several_labels(pets_folder):
    file = write_csv(
        pets_folder, [f"cat/{i}.png,{['haze; primary', '', 'primary'][i % 3]}" for i in range(9)]
    )

    data = ImageData.from_csv(file, label_delimiter=";", size=16)

    assert data.class_names == ["haze", "primary"]
    assert data.task == "multi_label"


def test_a_csv_of_numbers(pets_folder):
    file = write_csv(pets_folder, [f"cat/{i}.png,{i / 2}" for i in range(10)], header="file,age")

    data = ImageData.from_csv(file, path_column="file", label_column="age", task="regression", size=16)

    assert sorted([*data.train.labels, *data.valid.labels]) == [i / 2 for i in range(10)]


def test_a_table_s_mistakes_are_named(pets_folder):
    file = write_csv(pets_folder, [f"cat/x{i},{'ab'[i % 2]}" for i in range(10)])

    with pytest.raises(DataError, match=r"None of the 10 files exists.*cat/x0.*suffix"):
        ImageData.from_csv(file)
    with pytest.raises(DataError, match=r"No such column.*'race'.*id, breed"):
        ImageData.from_csv(file, label_column="race")


@pytest.mark.parametrize(
    ("labels", "task", "names"),
    [
        ([0, 1] * 10, "single_label", ["0", "1"]),
        (["dog", "cat"] * 10, "single_label", ["cat", "dog"]),
        (np.eye(2)[[0, 1] * 10], "multi_label", ["0", "1"]),
        (np.linspace(0, 1, 20), "regression", []),
    ],
)
def test_arrays_of_any_task(labels, task, names):
    data = ImageData.from_arrays((np.zeros((20, 12, 12, 3), np.uint8), labels), batch_size=4)

    assert (data.task, data.class_names, data.size) == (task, names, 12)
    assert (data.train.num_images, data.valid.num_images) == (16, 4)


def test_class_numbers_in_a_column_are_class_numbers():
    images, labels = np.zeros((20, 12, 12, 3), np.uint8), np.arange(20, dtype=np.uint8)[:, None] % 4

    data = ImageData.from_arrays((images, labels), (images[:4], labels[:4]), batch_size=4)

    assert (data.task, data.class_names) == ("single_label", ["0", "1", "2", "3"])
    assert data.valid.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 5, 0], {"class_names": ["a", "b"]}, r"in \[0, 2\)\. Received: labels from 0 to 5"),
        ([0, 1, -1, 0], {}, r"in \[0, classes\)\. Received: labels from -1 to 1"),
        ([0.2, 1.9, 0, 1], {}, "which are whole"),
        (np.eye(4), {"task": "multi_label", "class_names": ["a", "b"]}, r"n-hot labels \(n, 2\)"),
        (np.eye(4) * 9, {"task": "multi_label"}, r"in \[0, 1\]\. Received: labels from 0\.0 to 9\.0"),
        ([0.5, np.nan, 1, 2], {"task": "regression"}, "finite numbers"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, options, message):
    with pytest.raises(DataError, match=message):
        ImageDataset(np.zeros((4, 8, 8, 3), np.uint8), labels, presize=8, **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 5, 0] * 2, r"in \[0, 2\)\. Received: labels from 0 to 5"),
        ([0, 1, -1, 0] * 2, "-1 to 1"),
        ([0.5, 1, 1, 0] * 2, "are whole"),
        ([np.nan, 1, 1, 0] * 2, "are whole"),
        ([np.inf, 1, 1, 0] * 2, "are whole"),
    ],
)
def test_class_numbers_are_refused_before_the_split(labels, message):
    images = np.zeros((8, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match=message):
        ImageData.from_arrays((images, labels), class_names=["a", "b"], task="single_label")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([np.nan, 1, 1, 0] * 2, "are whole"),
        ([-2, -1] * 4, r"in \[0, classes\)\. Received: labels from -2 to -1"),
        ([], "No image is left for training: 0 in all"),
    ],
)
def test_class_numbers_are_refused_where_classes_have_no_names(labels, message):
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match=message):
        ImageData.from_arrays((images, labels), task="single_label")


def test_images_may_all_be_without_labels_of_several():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    assert ImageDataset(images, np.zeros((4, 0)), task="multi_label", presize=8).labels.shape == (4, 0)


def test_rows_without_a_label_are_named(pets_folder):
    file = write_csv(pets_folder, [f"cat/{i}.png,{'' if i == 3 else 'ab'[i % 2]}" for i in range(10)])
    with pytest.raises(DataError, match=r"1 of 10 .*no label.*cat/3\.png"):
        ImageData.from_csv(file, size=16)
    table = {"file": [f"cat/{i}.png" for i in range(10)], "breed": ["a", "b"] * 4 + [float("nan"), None]}
    with pytest.raises(DataError, match=r"2 of 10 .*no label"):
        ImageData.from_table(table, folder=pets_folder, size=16)


def test_a_class_of_one_image_is_named(pets_folder):
    file = write_csv(pets_folder, [f"cat/{i}.png,{'owl' if i == 3 else 'ab'[i % 2]}" for i in range(10)])
    with pytest.raises(DataError, match=r"1 of 3 classes.*: owl\."):
        ImageData.from_csv(file, size=16)


def test_columns_are_of_one_length(pets_folder):
    table = {"file": [f"cat/{i}.png" for i in range(10)], "breed": ["a", "b"] * 4, "who": "abc"}
    with pytest.raises(DataError, match="10 paths, 8 labels"):
        ImageData.from_table(table, folder=pets_folder, size=16)
    table["breed"] = ["a", "b"] * 5
    with pytest.raises(DataError, match="10 paths, 10 labels, 3 groups"):
        ImageData.from_table(table, folder=pets_folder, group_column="who", size=16)


def test_no_file_is_in_training_and_in_validation(pets_folder):
    files = [f"cat/{i % 5}.png" for i in range(20)]
    table = {"file": files, "breed": ["a", "a", "a", "b", "b"] * 4}
    with pytest.raises(DataError, match=r"of 5 files stand twice.*group_column"):
        ImageData.from_table(table, folder=pets_folder, valid_indices=[0, 3], size=16, batch_size=2)
    once = ImageData.from_table(table, folder=pets_folder, size=16, batch_size=2)
    assert sorted([*once.train.paths, *once.valid.paths]) == sorted(
        set(once.train.paths) | set(once.valid.paths)
    )
    assert once.notes == ["15 rows say what others do, and count once"]
    data = ImageData.from_table(
        table, folder=pets_folder, group_column="file", size=16, batch_size=2, lenient=True
    )
    assert not set(data.train.paths) & set(data.valid.paths)


def test_weights_are_for_training_alone():
    data = ImageData.from_arrays((np.zeros((20, 8, 8, 3), np.uint8), [0] * 15 + [1] * 5), batch_size=4)

    other = data.replace(sampling_weights="balanced", class_weight="balanced")

    assert other.train.sampling_weights is not None
    assert len(next(iter(other.train))) == 3
    assert other.valid.order(0).tolist() == list(range(other.valid.num_images))
    assert len(next(iter(other.valid))) == 2


@pytest.mark.parametrize("name", ["test", "valid"])
def test_a_split_beside_the_classes_is_no_class(pets_folder, name):
    save_photos(pets_folder, {f"{name}/cat": 2})
    with pytest.raises(DataError, match=rf"folders of other splits \({name}\) and none for training"):
        small(pets_folder)


def test_to_look_at_the_only_batch_is_no_epoch():
    data = ImageData.from_arrays((np.zeros((5, 8, 8, 3), np.uint8), [0, 1, 0, 1, 0]), batch_size=64)
    data.show_batch()
    data.summary()
    assert data.train.state_dict()["epoch"] == 0


def test_arrays_with_their_own_validation_and_test():
    images = np.zeros((6, 12, 12), np.uint8)  # grey

    data = ImageData.from_arrays((images, [0, 1] * 3), (images[:2], [1, 0]), test=images)

    assert data.valid.labels.tolist() == [1, 0]
    assert data.test.labels is None
    assert next(iter(data.test))[0].shape == (6, 12, 12, 3)


def test_float_images_are_refused():
    with pytest.raises(DataError, match=r"Expected uint8 images.*float32"):
        ImageData.from_arrays((np.zeros((20, 12, 12, 3), np.float32), [0, 1] * 10))


# Batches


def test_a_batch_is_uint8_squares_and_class_numbers(pets_folder):
    images, labels = next(iter(small(pets_folder, presize=24).train))

    assert (images.shape, images.dtype) == ((4, 24, 24, 3), torch.uint8)
    assert (labels.shape, labels.dtype) == ((4,), torch.int64)


def test_labels_belong_to_their_images():
    for images, labels in numbered(11, shuffle=True):
        assert images[:, 0, 0, 0].tolist() == labels.tolist()


def test_validation_is_in_order_and_whole_and_the_same_each_time(pets_folder):
    valid = small(pets_folder, batch_size=3).valid

    assert [len(y) for _, y in valid] == [3, 1]
    assert torch.cat([y for _, y in valid]).tolist() == valid.labels.tolist()
    assert contents(valid) == contents(valid)


def test_training_is_shuffled_with_full_batches(pets_folder):
    train = small(pets_folder, batch_size=5).train

    epochs = [contents(train) for _ in range(2)]

    assert [len(y) for _, y in train] == [5, 5, 5]
    assert len(train) == 3
    assert epochs[0] != epochs[1]


def test_an_only_batch_that_is_not_full_is_kept():
    dataset = numbered(3, shuffle=True, drop_last=True)

    assert [len(y) for _, y in dataset] == [3]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_batches_do_not_depend_on_the_threads_nor_on_a_restart(pets_folder, threads):
    def two_epochs(**arguments):
        train = small(pets_folder, presize=24, **arguments).train
        return contents(train) + contents(train)

    assert two_epochs(num_threads=threads) == two_epochs(num_threads=3)
    assert two_epochs(num_threads=threads) != two_epochs(num_threads=threads, seed=1)


def test_windows_move_in_training_and_stay_in_the_centre_in_validation(pets_folder):
    data = small(pets_folder)
    data.train.shuffle = False

    moved = contents(data.train) != contents(data.train)

    assert moved
    square = next(iter(data.valid))[0][0].numpy()
    assert np.array_equal(square, data.valid.dataset.frame(0, 16))


def test_the_window_of_an_image_depends_on_seed_epoch_and_index_alone():
    few, many = (numbered(n, random_crop=True, seed=5) for n in (10, 20))

    assert np.array_equal(few.positions(3), many.positions(3)[:10])
    assert not np.array_equal(few.positions(3), few.positions(4))


# Epochs and what is read in them


@pytest.mark.parametrize("n", [12, 13])
def test_fit_reads_each_image_once_an_epoch(decoded, n):
    dataset = numbered(n, shuffle=True).replace(class_names=[str(i) for i in range(n)])

    tiny_model(n).fit(dataset, epochs=3, verbose=0)

    assert len(decoded) == 3 * n
    assert dataset.state_dict()["epoch"] == 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own, in predict
def test_fit_with_validation_reads_each_image_once(decoded):
    train, valid = numbered(12, shuffle=True), numbered(6)
    model = tiny_model(12)

    model.fit(train, validation_data=valid, epochs=2, verbose=0)

    assert len(decoded) == 2 * 12 + 2 * 6
    decoded.clear()
    model.evaluate(valid, verbose=0)
    assert model.predict(valid, verbose=0).shape == (6, 12)
    assert len(decoded) == 2 * 6


def test_fit_sees_the_epochs_that_a_loop_sees():
    class Seen(keras.Sequential):
        def train_step(self, data):
            seen.extend(numbers(data))
            return {}

    seen = []
    model = Seen([keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")

    model.fit(numbered(12, shuffle=True), epochs=2, verbose=0)

    dataset = numbered(12, shuffle=True)
    assert seen == [i for _ in range(2) for batch in dataset for i in numbers(batch)]


def test_an_iterator_that_nobody_asks_reads_nothing(decoded):
    iter(numbered(12))

    assert decoded == []


def test_looking_at_a_batch_does_not_move_the_epoch_nor_read_twice(decoded):
    dataset = numbered(12, shuffle=True)

    looked_at = next(iter(dataset))
    looked_at[0].zero_()  # what a caller does to it must not reach training
    epoch = [numbers(batch) for batch in dataset]

    assert [i for batch in epoch for i in batch] == dataset.order(0).tolist()
    assert len(decoded) == 12


def test_leaving_in_the_middle_begins_the_epoch_again():
    dataset = numbered(20, shuffle=True)

    for _, _batch in zip(range(3), dataset, strict=False):
        pass

    assert [i for batch in dataset for i in numbers(batch)] == dataset.order(0).tolist()
    assert [i for batch in dataset for i in numbers(batch)] == dataset.order(1).tolist()


def test_two_iterators_at_once_do_not_disturb_each_other():
    dataset = numbered(12)

    assert all(numbers(a) == numbers(b) for a, b in zip(dataset, dataset, strict=True))


def test_the_state_tells_where_it_stands_and_takes_it_there():
    dataset = numbered(20, shuffle=True, seed=7)
    list(dataset)
    iterator = iter(dataset)
    next(iterator), next(iterator)

    state = dataset.state_dict()
    rest = [numbers(batch) for batch in iterator]
    other = numbered(20, shuffle=True)
    other.load_state_dict(state)

    assert state == {"seed": 7, "epoch": 1, "batch": 2}
    assert [numbers(batch) for batch in other] == rest
    assert dataset.state_dict() == other.state_dict() == {"seed": 7, "epoch": 2, "batch": 0}


def test_restoring_the_state_undoes_a_range_test():
    dataset = numbered(20, shuffle=True)
    state = dataset.state_dict()

    list(dataset), next(iter(dataset))
    dataset.load_state_dict(state)

    assert [numbers(batch) for batch in dataset] == [numbers(batch) for batch in numbered(20, shuffle=True)]


def test_an_iterator_that_was_left_does_not_count_in_the_state():
    dataset = numbered(20, shuffle=True)
    for batches in (1, 3):
        for _ in zip(range(batches), dataset, strict=False):
            pass

    assert dataset.state_dict() == {"seed": 0, "epoch": 0, "batch": 0}


def test_the_state_inside_fit_is_the_batch_that_was_done():
    states = []
    tell = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: states.append(dataset.state_dict())
    )
    dataset = numbered(12, shuffle=True)

    tiny_model(12).fit(dataset, epochs=2, verbose=0, callbacks=[tell])

    assert [(s["epoch"], s["batch"]) for s in states] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_a_state_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"batch in \[0, 3\).*'batch': 3"):
        numbered(12).load_state_dict({"seed": 0, "epoch": 0, "batch": 3})


def test_threads_end_with_the_epoch_and_with_the_dataset():
    others = set(threading.enumerate())  # of datasets that earlier tests left to the garbage collector

    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("kclf-data") and t not in others]

    dataset = numbered(40, num_threads=2)
    list(dataset)
    for thread in threads():
        thread.join(5)
    assert threads() == []

    next(iter(dataset))
    del dataset
    gc.collect()
    for thread in threads():
        thread.join(5)
    assert threads() == []


@pytest.mark.gpu
def test_batches_are_on_the_device_and_the_same_as_on_the_cpu():
    on_device, on_cpu = (numbered(50, shuffle=True, presize=64) for _ in range(2))
    on_cpu.device = torch.device("cpu")

    for _ in range(3):
        for sent, kept in zip(on_device, on_cpu, strict=True):
            assert all(part.is_cuda for part in sent)
            assert all(torch.equal(a.cpu(), b) for a, b in zip(sent, kept, strict=True))


# Files that cannot be read


@pytest.fixture
def damaged_folder(pets_folder):
    (pets_folder / "cat" / "3.png").write_bytes(b"")
    (pets_folder / "dog" / "4.png").write_bytes((pets_folder / "dog" / "4.png").read_bytes()[:200])
    return pets_folder


def test_damaged_files_are_replaced_and_listed_once(damaged_folder, caplog):
    data = small(damaged_folder, valid_fraction=0.1)

    with caplog.at_level(logging.WARNING, "kclf.data"):
        sizes = [len(y) for _ in range(3) for _, y in data.train] + [len(y) for _, y in data.valid]

    assert sizes == [4] * 12 + [2]
    assert {path.rsplit("pets/")[1] for path, _ in data.skipped} == {"cat/3.png", "dog/4.png"}
    assert {reason for _, reason in data.skipped} == {"empty file", "image file is truncated"} or data.skipped
    assert len(caplog.messages) == 2


def break_files(folder):
    """Twenty broken files, each broken its own way, in the class folder "cat" beside good ones."""
    good = {suffix: io.BytesIO() for suffix in ("jpeg", "png", "gif", "webp", "tiff", "bmp")}
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for suffix, buffer in good.items():
        Image.fromarray(noise).save(buffer, suffix)
    data = {suffix: buffer.getvalue() for suffix, buffer in good.items()}
    png_header = data["png"][:8]

    def png_of(width, height):
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return png_header + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))

    broken = {
        "empty.jpg": b"",
        "text.jpg": b"not a photo",
        "page.png": b"<!DOCTYPE html><title>404</title>",
        "zeros.jpg": bytes(5000),
        "noise.jpg": noise.tobytes(),
        "half.jpg": data["jpeg"][: len(data["jpeg"]) // 2],
        "head.jpg": data["jpeg"][:40],
        "no_scan.jpg": data["jpeg"][: data["jpeg"].index(b"\xff\xda")],
        "half.png": data["png"][: len(data["png"]) // 2],
        "crc.png": data["png"][:41] + bytes(8) + data["png"][49:],
        "no_pixels.png": png_of(0, 10) + data["png"][33:],
        "bomb.png": png_of(60_000, 60_000) + data["png"][33:],
        "magic_only.gif": b"GIF89a",
        "half.gif": data["gif"][: len(data["gif"]) // 2],
        "half.webp": data["webp"][: len(data["webp"]) // 2],
        "half.tif": data["tiff"][: len(data["tiff"]) // 2],
        "half.bmp": data["bmp"][: len(data["bmp"]) // 2],
    }
    for name, content in broken.items():
        (folder / "cat" / name).write_bytes(content)
    (folder / "cat" / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "cat" / "circle.jpg").symlink_to(folder / "cat" / "circle.jpg")
    os.mkfifo(folder / "cat" / "pipe.jpg")
    return {*broken, "dangling.jpg", "circle.jpg", "pipe.jpg"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_twenty_kinds_of_broken_file_do_not_stop_a_training(pets_folder, tmp_path, caplog):
    broken = break_files(pets_folder)
    data = small(pets_folder)

    with caplog.at_level(logging.WARNING, "kclf.data"):
        history = tiny_model().fit(data.train, validation_data=data.valid, epochs=3, verbose=0)
        list(data.train)

    assert len(broken) == 20
    assert len(history.history["loss"]) == 3
    assert {os.path.basename(path) for path, _ in data.skipped} == broken
    assert all(reason for _, reason in data.skipped)
    assert len(caplog.messages) == 20
    assert data.save_skipped(tmp_path / "skipped.csv") == 20
    with open(tmp_path / "skipped.csv", newline="") as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == data.skipped


def test_a_photo_that_vanishes_is_replaced(pets_folder):
    data = small(pets_folder)
    list(data.train)
    os.remove(data.train.paths[0])

    assert len(list(data.train)) == len(data.train)
    assert data.skipped == [(data.train.paths[0], "no such file")]


def test_memory_does_not_grow_over_epochs():
    dataset = numbered(64, presize=64, batch_size=16, shuffle=True)
    list(dataset)
    tracemalloc.start()
    try:
        grown = []
        for _ in range(14):
            for _batch in dataset:
                pass
            grown.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()

    # Least against least: for a moment after an epoch a thread may hold its last photo, and so the batch.
    assert min(grown[7:]) - min(grown[:7]) < 50_000  # a batch has 196,608 bytes


def test_the_stand_in_brings_its_own_label(damaged_folder):
    paths = [damaged_folder / "cat" / "3.png", damaged_folder / "dog" / "1.png"]
    dataset = ImageDataset(paths, [0, 1], class_names=["cat", "dog"], presize=16)

    ((images, labels),) = dataset

    assert labels.tolist() == [1, 1]
    assert torch.equal(images[0], images[1])
    assert dataset.readable.tolist() == [False, True]


def test_on_error_raise_names_the_file(damaged_folder):
    data = small(damaged_folder, on_error="raise")

    with pytest.raises(ImageError, match=r"cat/3\.png: empty file|dog/4\.png"):
        [list(split) for split in (data.train, data.valid)]


def test_a_dataset_goes_on_after_an_error(damaged_folder):
    data = small(damaged_folder, on_error="raise")
    fine = small(damaged_folder).train
    for _ in range(2):
        with pytest.raises(ImageError):
            [list(split) for split in (data.train, data.valid)]

    assert len(list(fine)) == len(fine)


def test_when_nothing_can_be_read_it_says_so(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    dataset = ImageDataset([tmp_path / f"{i}.jpg" for i in range(3)])

    with pytest.raises(DataError, match=r"3 images.*0\.jpg: empty"):
        list(dataset)


# Presized cache


def caches(folder):
    return sorted(p.name for p in folder.glob("[!.]*"))


def test_the_cache_gives_the_same_pictures(pets_folder, tmp_path):
    data = small(pets_folder, presize=24)

    fast = data.resize(24, tmp_path / "cache")

    for split, close in (("valid", 1), ("train", 12)):  # in training the two cut at other parts of a pixel
        for direct, cached in zip(data.splits[split], fast.splits[split], strict=True):
            assert torch.equal(direct[1], cached[1])
            assert (direct[0].float() - cached[0].float()).abs().mean() < close
    assert (fast.size, fast.presize) == (16, 24)


def test_the_cache_is_read_and_not_the_photos(pets_folder, tmp_path):
    data = small(pets_folder)
    first = contents(data.resize(20, tmp_path / "cache").valid)
    before = caches(tmp_path / "cache")
    fast = data.resize(20, tmp_path / "cache")
    shutil.rmtree(pets_folder)

    assert contents(fast.valid) == first
    assert caches(tmp_path / "cache") == before


def test_another_split_of_the_same_photos_reads_the_same_cache(pets_folder, tmp_path):
    folds = [small(pets_folder, seed=seed).resize(20, tmp_path / "cache") for seed in (0, 1)]

    assert len(caches(tmp_path / "cache")) == 1
    assert not np.array_equal(folds[0].valid.paths, folds[1].valid.paths)
    for fold in folds:
        for index, path in enumerate(fold.valid.paths):
            photo = read_image(path)
            height, width = covering(photo.shape[:2], 20)
            direct = resize(photo, width, height)
            assert np.array_equal(fold.valid.dataset[index], direct)


def test_a_changed_photo_makes_another_cache(pets_folder, tmp_path):
    small(pets_folder).resize(20, tmp_path / "cache")
    before = set(caches(tmp_path / "cache"))
    Image.new("RGB", (40, 30), "red").save(pets_folder / "cat" / "0.png")

    fast = small(pets_folder).resize(20, tmp_path / "cache")

    assert set(caches(tmp_path / "cache")) > before
    reds = [
        split.dataset[i]
        for split in (fast.train, fast.valid)
        for i in [i for i, path in enumerate(split.paths) if path.endswith("cat/0.png")]
    ]
    assert (reds[0] == (255, 0, 0)).all()


def test_a_build_that_is_cut_off_goes_on(pets_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(presized, "AT_ONCE", 4)
    read, count = presized.read_image, []

    def until_killed(path, **how):
        count.append(path)
        if len(count) == 7:
            raise KeyboardInterrupt
        return read(path, **how)

    monkeypatch.setattr(presized, "read_image", until_killed)
    with pytest.raises(KeyboardInterrupt):
        small(pets_folder, num_threads=1).resize(20, tmp_path / "cache")
    fast = small(pets_folder, num_threads=1).resize(20, tmp_path / "cache")

    assert 20 + 3 <= len(count) <= 20 + 4  # the four of the batch that was cut off, at most, once more
    assert [x.float().std() > 10 for x, _ in fast.valid] == [True]


def test_a_damaged_photo_is_known_to_the_cache(damaged_folder, tmp_path):
    for _ in range(2):
        fast = small(damaged_folder).resize(20, tmp_path / "cache")
        list(fast.train), list(fast.valid)

        assert {path.rsplit("pets/")[1] for path, _ in fast.skipped} == {"cat/3.png", "dog/4.png"}


def test_what_could_not_be_read_is_tried_again(pets_folder, tmp_path):
    photo = pets_folder / "cat" / "3.png"
    whole, status = photo.read_bytes(), photo.stat()
    for broken in (b"-" * len(whole), whole[:80] + b"-" * (len(whole) - 80)):  # no header; damaged further on
        photo.write_bytes(broken)
        os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
        data = small(pets_folder)
        fast = data.resize(20, tmp_path / "cache")
        assert len(skipped(fast)) == 1
        photo.write_bytes(whole)
        os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if the disk had failed for a while

        fast = data.resize(20, tmp_path / "cache")

        assert skipped(fast) == []
        shutil.rmtree(tmp_path / "cache")


def skipped(data):
    list(data.train), list(data.valid)
    return data.skipped


def test_too_many_open_files_are_no_damaged_photo(pets_folder, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, "too many open files")

    data = small(pets_folder)
    monkeypatch.setattr("kclf.data.images.open_image", refuse)
    with pytest.raises(OSError, match="too many open files"):
        data.resize(20, tmp_path / "cache")
    with pytest.raises(OSError, match="too many open files"):
        next(iter(data.valid))


def test_a_very_long_photo_is_kept_as_it_is(pets_folder, tmp_path):
    Image.new("RGB", (900, 10), "red").save(pets_folder / "cat" / "long.png")

    fast = small(pets_folder, valid_fraction=0.1).resize(20, tmp_path / "cache")

    (index,) = [i for i, path in enumerate(fast.train.paths) if path.endswith("long.png")]
    assert fast.train.dataset[index].shape == (10, 900, 3)
    assert (fast.train.dataset.frame(index, 20) == (255, 0, 0)).all()


def test_a_cache_does_not_enlarge_its_photos(pets_folder, tmp_path):
    fast = small(pets_folder).resize(20, tmp_path / "cache")

    assert fast.replace(size=20).train.presize == 20
    with pytest.raises(ValueError, match=r"presize <= 20, the size of the photos.*presize=24.*at least 24"):
        fast.replace(size=24)
    with pytest.raises(ValueError, match=r"presize <= 20"):
        fast.valid.replace(presize=21)


def test_what_cannot_be_cached_says_why(pets_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"size >= 16.*size=8"):
        small(pets_folder).resize(8, tmp_path)
    arrays = ImageData.from_arrays((np.zeros((20, 12, 12, 3), np.uint8), [0, 1] * 10))
    with pytest.raises(DataError, match="not in files"):
        arrays.resize(12, tmp_path)
    monkeypatch.setattr(presized.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DataError, match=r"needs 0\.0 GB.*0\.0 GB free"):
        small(pets_folder).resize(20, tmp_path / "cache")


# Summary


def test_the_summary_shows_splits_classes_and_the_way_of_a_photo(split_folder):
    text = small(split_folder, presize=24).summary()

    for line in (
        r"Single label images, 2 classes, 24 px squares, the model sees 16 px",
        r"train +12 images  3 batches of 4, shuffled, random windows",
        r"test +3 images  1 batch of 4, no labels",
        r"dog +6 +2",
        r"width 40 to 40, median 40; height 30 to 30",
        r"2\. decode +uint8 \(30, 40, 3\)",
        r"3\. square by crop +uint8 \(24, 24, 3\)",
        r"4\. label +cat, class 0 of 2",
        r"5\. batch +uint8 \(4, 24, 24, 3\), int64 \(4,\)",
    ):
        assert re.search(line, text), line


def test_the_summary_names_the_step_that_fails(damaged_folder):
    data = small(damaged_folder)
    broken = ("cat/3.png", "dog/4.png")
    index, path = next((i, p) for i, p in enumerate(data.train.paths) if p.endswith(broken))

    text = data.summary(index)

    assert re.search(rf"2\. decode +FAILED with ImageError: {path}: ", text)
    assert "3. square" not in text


@pytest.mark.parametrize("labels", [np.eye(3)[[0, 1, 2] * 4], np.linspace(0, 1, 12)])
def test_the_summary_of_other_tasks(labels):
    data = ImageData.from_arrays((np.zeros((12, 8, 8, 3), np.uint8), labels), batch_size=2)

    assert "float32 (2" in data.summary()


# Plots


def drawn(figure):
    """The figure's axes that hold something, after it could be drawn."""
    figure.savefig(io.BytesIO(), format="png")
    return [ax for ax in figure.axes if ax.has_data()]


def test_a_batch_is_shown_with_its_labels(pets_folder):
    data = small(pets_folder)

    axes = drawn(data.show_batch(3))

    assert len(axes) == 3
    assert [ax.get_title() for ax in axes] == [data.class_names[i] for i in next(iter(data.train))[1][:3]]
    assert len(drawn(data.show_batch(9, "valid"))) == 4


def test_a_batch_without_labels_is_shown(split_folder):
    assert [ax.get_title() for ax in drawn(small(split_folder).show_batch(split="test"))] == [""] * 3


def test_one_photo_is_shown_in_several_views(pets_folder):
    data = small(pets_folder, presize=24)

    windows = drawn(data.show_augmented(count=5))
    mirrored = drawn(data.show_augmented(lambda x, training: x.float().flip(2), count=5))

    pictures = [[ax.images[0].get_array() for ax in axes] for axes in (windows, mirrored)]
    assert len({picture.tobytes() for picture in pictures[0]}) > 1
    assert all(np.array_equal(a, b[:, ::-1]) for a, b in zip(*pictures, strict=True))


def test_sizes_and_classes_are_drawn(pets_folder):
    data = small(pets_folder)

    assert len(drawn(data.show_sizes())) == 2
    (ax,) = drawn(data.show_classes())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog"]


def test_class_names_are_no_formulas():
    images = np.zeros((8, 8, 8, 3), np.uint8)
    names = ["$5 bill$", "under_score$"]
    data = ImageData.from_arrays((images, [0, 1] * 4), class_names=names, size=8)
    (ax,) = drawn(data.show_classes())
    ax.figure.canvas.draw()
    assert not any(label.get_parse_math() for label in ax.get_yticklabels())


def test_a_split_that_is_not_there_is_named(pets_folder):
    with pytest.raises(ValueError, match=r"'train', 'valid'.*split='test'"):
        small(pets_folder).show_batch(split="test")


# Weights, copies, arguments


def test_balanced_weights_count_each_class_alike():
    dataset = ImageDataset(
        np.zeros((4, 8, 8, 3), np.uint8),
        [0, 0, 0, 1],
        class_names=["cat", "dog"],
        presize=8,
        class_weight="balanced",
    )

    ((_, labels, weights),) = dataset

    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert labels.tolist() == [0, 0, 0, 1]


def test_weights_reach_the_loss_in_training_only(pets_folder):
    data = small(pets_folder, class_weight={"cat": 1.0, "dog": 0.0})

    assert len(next(iter(data.train))) == 3
    assert len(next(iter(data.valid))) == 2
    tiny_model().fit(data.train, validation_data=data.valid, verbose=0)


def test_balanced_sampling_draws_the_classes_alike():
    n = 2000
    labels = [0] * (n - 100) + [1] * 100
    images = np.zeros((n, 2, 2, 3), np.uint8)
    dataset = ImageDataset(images, labels, class_names=["cat", "dog"], presize=2, sampling_weights="balanced")

    share = dataset.labels[dataset.order(0)].mean()

    assert share == pytest.approx(0.5, abs=0.05)


def test_replace_changes_the_loading_and_nothing_else(pets_folder):
    data = small(pets_folder, presize=24)

    other = data.replace(size=32, batch_size=2)

    assert (other.size, other.presize, other.batch_size) == (32, 32, 2)
    assert np.array_equal(other.train.paths, data.train.paths)
    assert next(iter(other.train))[0].shape == (2, 32, 32, 3)
    assert (data.size, data.presize, data.batch_size) == (16, 24, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"presize": 8}, "presize >= size.*presize=8, size=16"),
        ({"size": 16.5}, r" size=16\.5"),
        ({"presize": 0}, " presize=0"),
        ({"batch_size": 2.5}, r"batch_size=2\.5"),
        ({"num_threads": -1}, "num_threads=-1"),
        ({"resize_method": "stretch"}, "one of.*'squish'.*resize_method='stretch'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"class_weight": {"cat": 1}}, r"each of the classes \['cat', 'dog'\]"),
        ({"sampling_weights": "even"}, "sampling_weights='even'"),
    ],
)
def test_wrong_arguments_are_named(pets_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        small(pets_folder, **arguments)


@pytest.mark.parametrize("labels", [[0, 1], [[0, 1]] * 3])
def test_labels_must_be_as_many_as_images(labels):
    with pytest.raises(DataError, match=r"n = 3 images"):
        ImageDataset(np.zeros((3, 8, 8, 3), np.uint8), labels)
