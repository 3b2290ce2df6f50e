"""CSV files: exact in and out, and nothing in them that a spreadsheet computes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kclf._core import csv_files
from kclf._core.csv_files import escape_cell, find_delimiter, read_csv, unescape_cell, write_csv
from kclf.data import ImageData
from kclf.errors import DataError
from kclf.prediction.predictions import Predictions
from kclf.report.inputs import read_predictions

NAMES = [
    "cat/x.jpg ",
    " cat/x.jpg",
    "new\nline.jpg",
    "return\rline.jpg",
    "both\r\nlines.jpg",
    "unicode\u2028line.jpg",
    "next\u0085line.jpg",
    "\u00a0space.jpg",
    'a "quoted", name;.jpg',
    "'apostrophe.jpg",
    "",
    "=HYPERLINK(1)",
    "'=1+1",
    "''=1+1",
    "+1",
    "'+1",
    "-1.5e3",
    "@SUM(A1)",
    " =1+1",
    "\t=1",
    "＝1+1",
    "-cat",
]


def test_names_come_back_byte_for_byte(tmp_path):
    write_csv(tmp_path / "a.csv", [["name", "n"], *([name, i] for i, name in enumerate(NAMES))])
    header, *rows = read_csv(tmp_path / "a.csv")
    assert header == ["name", "n"]
    assert [row[0] for row in rows] == NAMES


@given(st.text())
def test_every_text_comes_back_and_none_is_a_formula(text):
    written = escape_cell(text)
    assert unescape_cell(written) == text
    assert not written.startswith(("=", "@", "\t", "\r"))
    assert not written.startswith(("+", "-")) or float(written) is not None


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@A1", "\t=1", "\r=1", " =1"])
def test_a_spreadsheet_sees_no_formula(tmp_path, name):
    write_csv(tmp_path / "a.csv", [[name, "x"]])
    with open(tmp_path / "a.csv", newline="") as file:
        assert next(csv.reader(file))[0] == "'" + name


@pytest.mark.parametrize("number", ["-0.5", "+3", "-1e-7", "-inf"])
def test_numbers_are_written_as_they_are(number):
    assert escape_cell(number) == number


def test_no_other_module_writes_or_reads_csv():
    package = Path(csv_files.__file__).parent.parent
    modules = [
        path for path in package.rglob("*.py") if re.search(r"import csv\b|from csv\b", path.read_text())
    ]
    assert modules == [Path(csv_files.__file__)]


HOSTILE = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "a\rb", "a\nb", "'=1", " =1", 'a","b', "x ", "007", "1e3"]


def test_predictions_come_back_exactly_and_no_cell_is_a_formula(tmp_path):
    count = len(HOSTILE)
    paths = np.array([f"{name}.png" for name in HOSTILE])
    given = Predictions(np.eye(count, dtype=np.float32), np.arange(count), paths, HOSTILE)
    given.to_csv(tmp_path / "predictions.csv")

    found = read_predictions(tmp_path / "predictions.csv").predictions

    assert found.class_names == HOSTILE
    assert found.paths.tolist() == paths.tolist()
    assert found.labels.tolist() == list(range(count))
    require_no_formula(tmp_path / "predictions.csv")


def test_skipped_photos_come_back_exactly_and_no_cell_is_a_formula(tmp_path, monkeypatch):
    rows = [(name, f"{name} cannot be read") for name in HOSTILE]
    data = ImageData.from_arrays((np.zeros((4, 16, 16, 3), np.uint8), [0, 1] * 2))
    monkeypatch.setattr(ImageData, "skipped", property(lambda self: rows))
    data.save_skipped(tmp_path / "skipped.csv")

    assert [tuple(row) for row in read_csv(tmp_path / "skipped.csv")] == [("path", "reason"), *rows]
    require_no_formula(tmp_path / "skipped.csv")


def test_a_path_is_written_as_text(tmp_path):
    write_csv(tmp_path / "a.csv", [[Path("=1.png"), Path("b.png")]])
    assert list(read_csv(tmp_path / "a.csv")) == [["=1.png", "b.png"]]
    require_no_formula(tmp_path / "a.csv")


def require_no_formula(path):
    with open(path, newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_the_tables_of_others_are_not_changed(tmp_path):
    (tmp_path / "a.csv").write_text("file\n'=1.jpg\n")
    assert list(read_csv(tmp_path / "a.csv", escaped=False)) == [["file"], ["'=1.jpg"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "a.csv").write_text(mark + "name;class\na;café\n", encoding=encoding)
    assert list(read_csv(tmp_path / "a.csv", delimiter=None)) == [["name", "class"], ["a", "café"]]


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("name,class\na,café\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"a\.csv: expected CSV in UTF-8"):
        list(read_csv(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("line", "delimiter"), [("a,b", ","), ("a;b,c;d", ";"), ("a\tb", "\t"), ("a|b", "|"), ('"a;b;c",d', ",")]
)
def test_the_delimiter_is_found(line, delimiter):
    assert find_delimiter(line) == delimiter
