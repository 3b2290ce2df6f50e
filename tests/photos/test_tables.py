"""Tables as people have them: understood where they have one meaning, else refused by row."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from photo_makers import counts, labels_of, make_tree

from kclf.data import ImageData
from kclf.data.labels import parent_label
from kclf.errors import DataError

FILES = [f"{i}.png" for i in range(8)]
KINDS = ["cat", "dog"] * 4
SMALL = {"size": 16, "batch_size": 2, "num_threads": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight photos in a folder, and two below it."""
    return make_tree(tmp_path_factory.mktemp("photos"), {"./": FILES, "below/": ["x.png", "y.png"]})


def from_text(photos, tmp_path, text, **options):
    file = tmp_path / "labels.csv"
    file.write_text(text, newline="")
    return ImageData.from_csv(file, folder=photos, **SMALL, **options)


def from_columns(photos, columns, **options):
    return ImageData.from_table(columns, folder=photos, **SMALL, **options)


def all_labels(data):
    """Name of each file -> its labels, of training and validation together."""
    found = {}
    for part in (data.train, data.valid):
        for path, row in zip(part.paths, part.labels, strict=True):
            names = (
                [part.class_names[row]]
                if part.task == "single_label"
                else np.array(part.class_names)[row > 0]
            )
            found[Path(path).name] = sorted(names)
    return found


ONE = {file: [kind] for file, kind in zip(FILES, KINDS, strict=True)}


def table(row, header="file,label\n"):
    return header + "".join(
        row(i, file, kind) + "\n" for i, (file, kind) in enumerate(zip(FILES, KINDS, strict=True))
    )


# How a table is written


@pytest.mark.parametrize(
    "text",
    [
        table(lambda i, f, k: f"{f},{k}"),
        table(lambda i, f, k: f"{f};{k}", "file;label\n"),
        table(lambda i, f, k: f"{f}\t{k}", "file\tlabel\n"),
        table(lambda i, f, k: f"{f}|{k}", "file|label\n"),
        table(lambda i, f, k: f"{f},{k}", ""),
        table(lambda i, f, k: f"{f[:-4]},{k}", ""),
        table(lambda i, f, k: f"{k},{f}", "label,file\n"),
        table(lambda i, f, k: f"{i},{f},{k}", ",file,label\n"),
        table(lambda i, f, k: f"{f},7,{k}", "image,age,class\n"),
        table(lambda i, f, k: f"{f[:-4]},{k}", "id,breed\n"),
        table(lambda i, f, k: f"{f[:-4]}.PNG,{k}"),
        table(lambda i, f, k: f"{f[:-4]}.jpg,{k}"),
        table(lambda i, f, k: f"./{f},{k}"),
        table(lambda i, f, k: f".\\{f},{k}"),
        table(lambda i, f, k: f" {f} ,{k}"),
        table(lambda i, f, k: f"/home/someone/photos/{f},{k}"),
        table(lambda i, f, k: f"C:\\photos\\{f},{k}"),
        table(lambda i, f, k: f"https://a.org/photos/{f},{k}"),
        table(lambda i, f, k: f"{f}, {k} "),
    ],
)
def test_one_meaning_however_it_is_written(photos, tmp_path, text):
    assert all_labels(from_text(photos, tmp_path, text)) == ONE


def test_what_was_mended_is_said(photos, tmp_path):
    data = from_text(photos, tmp_path, table(lambda i, f, k: f"{f[:-4]},{k}", "id,breed\n"))
    assert data.notes == ["8 file names were mended: no suffix, .png added"]
    assert data.notes[0] in data.summary()


def test_a_name_that_two_files_could_have_is_not_guessed(tmp_path):
    make_tree(tmp_path, {"a/": ["1.png"], "b/": ["1.png"], "c/": ["2.png", "3.png", "4.png", "5.png"]})
    rows = {"file": ["1", "2", "3", "4", "5"], "label": ["x", "x", "y", "y", "x"]}
    data = ImageData.from_table(rows, folder=tmp_path, **SMALL)
    assert any("1 of 5 files of the table are not there" in note for note in data.notes)


# Several labels


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([["cat", "red"], ["dog"]] * 4, {}),
        ([("cat", "red"), ("dog",)] * 4, {}),
        ([np.array(["cat", "red"]), np.array(["dog"])] * 4, {}),
        ([{"cat", "red"}, {"dog"}] * 4, {"task": "multi_label"}),
        (["['cat', 'red']", "['dog']"] * 4, {}),
        (["cat red", "dog"] * 4, {"label_delimiter": " "}),
    ],
)
def test_several_labels(photos, labels, options):
    data = from_columns(photos, {"file": FILES, "tags": labels}, **options)
    assert data.class_names == ["cat", "dog", "red"]
    assert all_labels(data) == {f: [["cat", "red"], ["dog"]][i % 2] for i, f in enumerate(FILES)}


def test_words_are_labels_and_never_letters(photos):
    data = from_columns(photos, {"file": FILES, "tags": KINDS}, task="multi_label")
    assert data.class_names == ["cat", "dog"]


@pytest.mark.parametrize("mark", [" ", ";", ",", "|"])
def test_text_without_a_named_delimiter_is_refused(photos, mark):
    labels = [f"cat{mark}red", "dog"] * 4
    with pytest.raises(DataError, match=r"0\.png: expected a list.*--label-delimiter"):
        from_columns(photos, {"file": FILES, "tags": labels}, task="multi_label")
    with pytest.raises(DataError, match=r"expected a list of labels"):
        ImageData.from_files(photos, lambda path: f"cat{mark}red", task="multi_label", **SMALL)


@pytest.mark.parametrize("cells", [("1", "0"), (" 1", " 0"), ("1.0", "0.0"), ("True", "False")])
@pytest.mark.parametrize("header", ["filename,cat,dog,eel\n", "filename, cat, dog, eel\n"])
def test_one_hot_tables(photos, tmp_path, cells, header):
    on, off = cells
    rows = {"cat": f"{on},{off},{off}", "dog": f"{off},{on},{off}"}
    text = table(lambda i, f, k: f"{f},{rows[k]}", header).replace(
        f"7.png,{rows['dog']}", f"7.png,{off},{off},{on}"
    )
    text = text.replace(f"6.png,{rows['cat']}", f"6.png,{off},{off},{on}")
    data = from_text(photos, tmp_path, text)
    assert (data.task, data.class_names) == ("single_label", ["cat", "dog", "eel"])
    assert all_labels(data) == ONE | {"6.png": ["eel"], "7.png": ["eel"]}


def test_n_hot_tables(photos, tmp_path):
    text = table(lambda i, f, k: f"{f},1,{i % 2}", "filename,cat,dog\n")
    data = from_text(photos, tmp_path, text)
    assert data.task == "multi_label"
    assert all_labels(data)["1.png"] == ["cat", "dog"]


# Splits in a column


@pytest.mark.parametrize(
    ("name", "cells", "found"),
    [
        ("is_valid", ["0", "0", "0", "0", "0", "0", "1", "1"], (6, 2, 0)),
        ("is_valid", [False] * 6 + [True] * 2, (6, 2, 0)),
        ("is_valid", ["False"] * 6 + ["True"] * 2, (6, 2, 0)),
        ("split", ["train"] * 4 + ["val"] * 2 + ["test"] * 2, (4, 2, 2)),
        ("data set", ["train"] * 6 + ["valid"] * 2, (6, 2, 0)),
        ("Subset", ["Training"] * 6 + ["Validation"] * 2, (6, 2, 0)),
        ("fold", [1, 1, 0, 0, 2, 2, 1, 1], (6, 2, 0)),
    ],
)
def test_split_columns_are_heeded(photos, name, cells, found):
    data = from_columns(photos, {"file": FILES, "label": KINDS, name: cells})
    sizes = [part.num_images if part else 0 for part in (data.train, data.valid, data.test)]
    assert tuple(sizes) == found
    assert any(repr(name) in note for note in data.notes)
    if cells[-1] == "test":
        assert labels_of(data.test) == {"6.png": "cat", "7.png": "dog"}


def test_a_test_set_in_a_column_leaves_the_rest_to_be_split(photos):
    cells = ["train"] * 6 + ["test"] * 2
    data = from_columns(photos, {"file": FILES, "label": KINDS, "split": cells})
    assert counts(data) == {
        "train": {"cat": 2, "dog": 2},
        "valid": {"cat": 1, "dog": 1},
        "test": {"cat": 1, "dog": 1},
    }


def test_a_column_that_is_named(photos):
    data = from_columns(photos, {"file": FILES, "label": KINDS, "who": [0] * 6 + [1] * 2}, valid_column="who")
    assert sorted(Path(path).name for path in data.valid.paths) == ["6.png", "7.png"]


# Twins, doubles and what is missing


def test_spellings_of_a_label_are_one_class(photos):
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    data = from_columns(photos, {"file": FILES, "label": [forms[0], forms[1], "tea", "tea "] * 2})
    assert data.class_names == [forms[0], "tea"]


def test_labels_that_differ_in_case_alone_are_refused(photos):
    with pytest.raises(DataError, match="'CAT', 'cat'"):
        from_columns(photos, {"file": FILES, "label": ["cat", "CAT"] * 4})


@pytest.mark.parametrize("other", ["./0.png", "below/../0.png", ".//0.png"])
def test_one_file_under_two_spellings(photos, other):
    files = [*FILES[:7], other]
    with pytest.raises(DataError, match=r"'cat' .*1.*'dog' .*8"):
        from_columns(photos, {"file": files, "label": KINDS})
    with pytest.raises(DataError, match=r"twice.*training.*validation"):
        from_columns(photos, {"file": files, "label": [*KINDS[:7], "cat"]}, valid_indices=[7, 1])


@pytest.mark.parametrize("empty", ["", " ", None, float("nan")])
def test_rows_without_a_file_are_named(photos, empty):
    with pytest.raises(DataError, match=r"1 of 8 rows.*'file'.*3"):
        from_columns(photos, {"file": [*FILES[:2], empty, *FILES[3:]], "label": KINDS})


@pytest.mark.parametrize("labels", [[0.0, 1.0] * 4, ["0.0", "1.0"] * 4, [0, 1] * 4, np.array([0, 1] * 4)])
def test_whole_numbers_are_classes_without_a_point(photos, labels):
    assert from_columns(photos, {"file": FILES, "label": labels}).class_names == ["0", "1"]


# Kinds of tables


class PandasLike:
    """The little of a data frame's interface that is asked for, for where pandas is not installed."""

    def __init__(self, columns):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name):
        return np.array(self._columns[name], dtype=object)


def frames():
    rows = {"file": FILES, "label": KINDS}
    yield "list of dicts", lambda: [{"file": f, "label": k} for f, k in zip(FILES, KINDS, strict=True)]
    yield "list of tuples", lambda: list(zip(FILES, KINDS, strict=True))
    yield "frame", lambda: PandasLike(rows)
    yield "pandas", lambda: pytest.importorskip("pandas").DataFrame(rows)
    yield "pandas string", lambda: pytest.importorskip("pandas").DataFrame(rows).astype("string")
    yield "pandas category", lambda: pytest.importorskip("pandas").DataFrame(rows).astype("category")
    yield "polars", lambda: pytest.importorskip("polars").DataFrame(rows)
    yield "polars lazy", lambda: pytest.importorskip("polars").LazyFrame(rows)
    yield "pyarrow", lambda: pytest.importorskip("pyarrow").table(rows)


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in frames()])
def test_tables_of_any_library(photos, make):
    assert all_labels(from_columns(photos, make())) == ONE


@pytest.mark.parametrize("dtype", ["string", "Int64", "float64"])
def test_missing_values_of_pandas_are_named_by_file(photos, dtype):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"file": FILES, "label": [0, 1] * 4}).astype({"label": dtype})
    frame.loc[3, "label"] = pandas.NA if dtype != "float64" else None
    with pytest.raises(DataError, match=r"1 of 8 .*no label.*3\.png"):
        from_columns(photos, frame)


@pytest.mark.parametrize("given", [3, "labels", [1, 2], [], None])
def test_what_is_no_table_is_refused(photos, given):
    with pytest.raises(DataError, match="Expected a table"):
        from_columns(photos, given)


# Functions and arrays


def test_label_functions_get_paths_as_they_were_given(tmp_path):
    make_tree(tmp_path, {"cat/": 3, "dog/": 3})
    paths = sorted(tmp_path.rglob("*.png"))
    for label in (lambda path: path.parent.name, parent_label, lambda path: Path(path.parent.name)):
        assert counts(ImageData.from_files(paths, label, **SMALL))["train"] == {"cat": 2, "dog": 2}


IMAGES = np.zeros((8, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 0, 1, 0, 1], "8 images, 6 labels"),
        ([0, 1] * 5, "8 images, 10 labels"),
        ([1, 2] * 4, "from 0 on without a gap.*none of 0"),
        ([0, 2] * 4, "none of 1"),
        (["cat", None] * 4, "4 of 8 images have no label"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels, said):
    with pytest.raises(DataError, match=said):
        ImageData.from_arrays((IMAGES, np.array(labels)))
    if len(labels) == 8 and None not in labels:
        assert ImageData.from_arrays((IMAGES, labels), class_names=["a", "b", "c"]).class_names == [
            "a",
            "b",
            "c",
        ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"valid_indices": [0, 2, 4, 6]}, "1 of 2 classes have no training image.*cat"),
        ({"valid_indices": [0, 2]}, "1 of 2 classes have no validation image.*dog"),
        ({"group_column": "label"}, "classes have no"),
    ],
)
def test_splits_that_leave_a_class_out_are_refused(photos, options, said):
    with pytest.raises(DataError, match=said):
        from_columns(photos, {"file": FILES, "label": KINDS}, **options)
