"""Tables as programs leave them: Excel, pandas, archives; each read right, or refused with what to do."""

from __future__ import annotations

import datetime
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from photo_makers import counts, make_tree

from kclf.data import ImageData
from kclf.errors import DataError

SMALL = {"size": 16, "batch_size": 2, "num_threads": 1}
ROWS = [(f"{i}.png", "ab"[i % 2]) for i in range(8)]
BOTH = {"train": {"a": 3, "b": 3}, "valid": {"a": 1, "b": 1}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("photos"), {"./": [name for name, _ in ROWS]})


def read(photos, tmp_path, text, **options):
    file = tmp_path / "t.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ImageData.from_csv(file, folder=photos, **SMALL, **options)


def table(row, header="file,label\n", end="\n"):
    return header + "".join(row(i, name, kind) + end for i, (name, kind) in enumerate(ROWS))


def plain(i, name, kind):
    return f"{name},{kind}"


# How it is written


@pytest.mark.parametrize(
    "text",
    [
        table(plain).encode("utf-16"),
        table(plain).encode("utf-16-le"),
        table(plain).encode("utf-16-be"),
        table(plain).encode("utf-32"),
        table(plain).encode("utf-8-sig"),
        table(plain, "file,label\r", "\r"),
        "sep=;\r\n" + table(lambda i, n, k: f"{n};{k}", "file;label\r\n", "\r\n"),
        "\n\n" + table(lambda i, n, k: f"{n};{k}", "file;label\n"),
        table(lambda i, n, k: f"{n},{k},"),
        table(lambda i, n, k: f"{n},{k},,,", "file,label,,,\n"),
        table(plain) + ",\n,,,\n\n",
        table(lambda i, n, k: f"{n} {k}", "file label\n"),
        table(lambda i, n, k: f"{n} {k}", ""),
        table(lambda i, n, k: f"{n}   {k} ", ""),
        table(lambda i, n, k: f'"{n}","{k}"', '"file","label"\n'),
        table(plain) + "0.png,a\n7.png,b\n",
        table(lambda i, n, k: f"{i:03},{k}", "id,label\n"),
        table(lambda i, n, k: f"photos/deep/{n},{k}"),
    ],
)
def test_dialects(photos, tmp_path, text):
    assert counts(read(photos, tmp_path, text)) == BOTH


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a header row and a row for each image"),
        ("\ufeff", "expected a header row and a row for each image"),
        ("file,label\n", "expected a header row and a row for each image"),
        ("file\n0.png\n1.png\n", "Received: file alone"),
        (table(lambda i, n, k: f"{n}:{k}", "file:label\n"), "--delimiter"),
        (table(lambda i, n, k: f"{n},{k},x"), r"row 2: expected 2 fields.*Found 3"),
        ("My table\n" + table(plain), r"row 2: expected 2 fields"),
        (table(lambda i, n, k: f"'{n}',{k}"), "None of the 8 files exists"),
        (table(plain) + "0.png,b\n", "two labels: 'a' in row 1 and 'b' in row 9"),
    ],
)
def test_what_cannot_be_understood_is_named(photos, tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read(photos, tmp_path, text)


def test_rows_that_say_the_same_are_counted(photos, tmp_path):
    data = read(photos, tmp_path, table(plain) + "0.png,a\n./1.png,b\n")
    assert data.notes == ["2 rows say what others do, and count once"]


@pytest.mark.parametrize(
    ("named", "there", "how"),
    [
        ("{}", "{:04}.png", "zeros in front of a number"),
        ("{:02}.png", "{}.png", "zeros in front of a number"),
        ("a%20{}.png", "a {}.png", "percent signs for other characters"),
        (unicodedata.normalize("NFD", "é{}.png"), "é{}.png", "another spelling in Unicode"),
        ("é{}.png", unicodedata.normalize("NFD", "é{}.png"), "another spelling in Unicode"),
        ("img/{}.png", "{}.png", "files in another folder than they are named in"),
    ],
)
def test_names_that_mean_one_file(tmp_path, named, there, how):
    make_tree(tmp_path, {"./": [there.format(i) for i in range(8)]})
    text = "id,label\n" + "".join(f"{named.format(i)},{'ab'[i % 2]}\n" for i in range(8))
    data = read(tmp_path, tmp_path, text)
    assert counts(data) == BOTH
    assert data.notes == [f"8 file names were mended: {how}"]
    for part in data.splits.values():
        for path, label in zip(part.paths, part.labels, strict=True):
            assert int("".join(filter(str.isdecimal, Path(path).stem))) % 2 == label


def test_a_number_that_two_files_have_is_not_guessed(tmp_path):
    make_tree(tmp_path, {"./": ["07.png", "007.png", "1.png", "2.png", "3.png", "4.png"]})
    rows = {"id": ["7", "1", "2", "3", "4"], "label": ["x", "x", "y", "y", "x"]}
    data = ImageData.from_table(rows, folder=tmp_path, max_unreadable=0.5, **SMALL)
    assert any("1 of 5 files of the table are not there" in note for note in data.notes)


# What is a label


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["007", "7"], ["007", "7"]),
        (["1", "1.0", "2", "2.0"], ["1", "2"]),
        (["01.0", "02.0"], ["01", "02"]),
        (["-1", "1"], ["-1", "1"]),
        (["1e3", "2e3"], ["1e3", "2e3"]),
        (["2020-01-01", "2021-02-03"], ["2020-01-01", "2021-02-03"]),
        (["TRUE", "FALSE"], ["FALSE", "TRUE"]),
        (["nan", "NA"], ["NA", "nan"]),
        (["a/b", "c\\d"], ["a/b", "c\\d"]),
        (['"say ""x"""', "it's"], ["it's", 'say "x"']),
        (['"a, b"', "c"], ["a, b", "c"]),
        (["=1+1", "'+x"], ["'+x", "=1+1"]),
        (["cat\u200b", "\ufeffdog"], ["cat", "dog"]),
        (["v1.2", "v1.3"], ["v1.2", "v1.3"]),
    ],
)
def test_labels_are_text_as_they_stand(photos, tmp_path, labels, names):
    text = table(lambda i, n, k: f"{n},{labels[i % len(labels)]}")
    assert read(photos, tmp_path, text).class_names == names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([True, False], ["False", "True"]),
        ([datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)], ["2020-01-01", "2021-01-01"]),
        ([1, "a"], ["1", "a"]),
        ([1, "1", 2, "2"], ["1", "2"]),
        (["007", 7], ["007", "7"]),
        ([b"cat", "dög".encode()], ["cat", "dög"]),
    ],
)
def test_labels_of_other_types(photos, labels, names):
    columns = {"file": [name for name, _ in ROWS], "label": [labels[i % len(labels)] for i in range(8)]}
    assert ImageData.from_table(columns, folder=photos, **SMALL).class_names == names


@pytest.mark.parametrize("labels", [["0.5", "1.5"], [0.25, 0.75], ["1.5", "2"]])
def test_fractions_are_no_classes(photos, labels):
    columns = {"file": [name for name, _ in ROWS], "label": labels * 4}
    with pytest.raises(DataError, match=r"numbers such as .*--task regression"):
        ImageData.from_table(columns, folder=photos, **SMALL)
    assert ImageData.from_table(columns, folder=photos, task="regression", **SMALL).task == "regression"
    named = ImageData.from_table(columns, folder=photos, task="single_label", **SMALL).class_names
    assert named == [str(label) for label in labels]


@pytest.mark.parametrize(
    "text",
    [
        table(lambda i, n, k: f"{i},{n},{i % 2},{1 - i % 2}", "id,file,b,a\n"),
        table(lambda i, n, k: f"{n},{i % 2},{1 - i % 2},{i * 0.3}", "file,b,a,score\n"),
        table(lambda i, n, k: f"{n},{2 * (i % 2) - 1},{1 - 2 * (i % 2)}", "file,b,a\n"),
        table(lambda i, n, k: f"{n},{bool(i % 2)},{not i % 2}".upper().replace(".PNG", ".png"), "file,b,a\n"),
    ],
)
def test_columns_of_classes_beside_others(photos, tmp_path, text):
    assert counts(read(photos, tmp_path, text)) == BOTH


def test_columns_of_classes_beside_other_facts_are_not_guessed(photos, tmp_path):
    text = table(lambda i, n, k: f"{n},{i % 2},{1 - i % 2},{'xy'[i // 4]}", "file,b,a,camera\n")
    with pytest.raises(DataError, match=r"b, a hold 0 and 1.*others: camera.*--columns"):
        read(photos, tmp_path, text)
    assert counts(read(photos, tmp_path, text, label_column=["a", "b"])) == BOTH


def test_the_column_of_labels_is_named_where_there_are_others(photos, tmp_path):
    data = read(photos, tmp_path, table(lambda i, n, k: f"{n},{k},{'xy'[i // 4]}", "file,kind,camera\n"))
    assert data.class_names == ["a", "b"]
    assert data.notes == ["Labels are taken from column 'kind'; not used: camera (--columns FILE,LABEL)"]


def test_missing_labels_among_several_are_no_class(photos):
    rows = [["a", None], ["b", float("nan")]] * 4
    data = ImageData.from_table({"file": [name for name, _ in ROWS], "label": rows}, folder=photos, **SMALL)
    assert data.class_names == ["a", "b"]


@pytest.mark.parametrize(
    "rows",
    [
        np.array(ROWS),
        np.array(ROWS, dtype=[("file", "U9"), ("label", "U9")]),
        np.array(ROWS, dtype=[("label2", "S9"), ("label", "S9")]),
        {"file": iter([name for name, _ in ROWS]), "label": iter([kind for _, kind in ROWS])},
    ],
)
def test_arrays_of_rows_are_tables(photos, rows):
    assert counts(ImageData.from_table(rows, folder=photos, **SMALL)) == BOTH


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"file": [], "label": []}, "a table without rows"),
        ({"label": ["a", "b"]}, "label alone.*reset_index"),
        ({}, "Received: none alone"),
    ],
)
def test_tables_without_what_is_needed(photos, table, said):
    with pytest.raises(DataError, match=said):
        ImageData.from_table(table, folder=photos, **SMALL)


# Splits


@pytest.mark.parametrize(
    ("header", "cells", "sizes"),
    [
        ("Usage", ["Training"] * 4 + ["PublicTest"] * 2 + ["PrivateTest"] * 2, (2, 2, 4)),
        ("is_train", ["1"] * 6 + ["0"] * 2, (6, 2, 0)),
        ("is_test", ["0"] * 6 + ["1"] * 2, (4, 2, 2)),
        ("is_train,is_test", ["1,0"] * 6 + ["0,1"] * 2, (4, 2, 2)),
        ("is_train,is_val,is_test", ["1,0,0"] * 4 + ["0,1,0"] * 2 + ["0,0,1"] * 2, (4, 2, 2)),
        ("split", ["trainval"] * 6 + ["test"] * 2, (4, 2, 2)),
        ("split", ["TRAIN"] * 6 + ["Val"] * 2, (6, 2, 0)),
    ],
)
def test_columns_of_splits(photos, tmp_path, header, cells, sizes):
    data = read(photos, tmp_path, table(lambda i, n, k: f"{n},{k},{cells[i]}", f"file,label,{header}\n"))
    found = [part.num_images if part else 0 for part in (data.train, data.valid, data.test)]
    assert tuple(found) == sizes
    assert "the split" in data.notes[-1]


def test_a_split_of_which_some_rows_are_in_none_is_refused(photos, tmp_path):
    cells = ["train"] * 5 + ["unused"] * 3
    with pytest.raises(DataError, match=r"column 'split'. Received: train, unused"):
        read(photos, tmp_path, table(lambda i, n, k: f"{n},{k},{cells[i]}", "file,label,split\n"))


def test_a_column_called_split_that_names_none_is_noted(photos, tmp_path):
    data = read(photos, tmp_path, table(lambda i, n, k: f"{n},{k},{i % 2}", "file,label,split\n"))
    assert data.notes == ["Column 'split' is not used: 0, 1 name no splits (--valid-column)"]


def test_a_file_in_training_and_test_is_refused(photos, tmp_path):
    text = table(lambda i, n, k: f"{n},{k},train", "file,label,split\n") + "0.png,a,test\n"
    with pytest.raises(DataError, match=r"twice.*training.*test"):
        read(photos, tmp_path, text)
