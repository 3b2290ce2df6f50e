"""docs/migration-keras.md is true: its right columns run, and its left ones are answered with them."""

from __future__ import annotations

import ast
import re

import keras
import numpy as np
import pytest
from PIL import Image

import kclf
from kclf._core import keywords
from tests.test_compile_names import small_backbone
from tests.test_docs import DOCS, blocks

PAGE = DOCS / "migration-keras.md"
TEXT = PAGE.read_text(encoding="utf-8")
ANSWERS = {
    "ImageData.from_folder": keywords.DATA,
    "ImageData.from_table": keywords.DATA,
    "ImageClassifier": keywords.MODEL,
    "build_backbone": keywords.BACKBONE,
    "model.compile": keywords.COMPILE,
    "OneCycle": keywords.SCHEDULE,
    "CosineRestarts": keywords.SCHEDULE,
    "LayerGroupOptimizer": keywords.OPTIMIZER,
    "find_learning_rate": keywords.RANGE_TEST,
    "predict": keywords.PREDICT,
    "aug_transforms": keywords.AUGMENTATION,
    "grad_cam": keywords.GRAD_CAM,
    "Checkpoint": keywords.CHECKPOINT,
}


def rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def keyword_rows() -> list[tuple[str, str, str]]:
    """(call with "..." in it, foreign keyword, what the page says to write)."""
    section = TEXT.split("## Word by word")[1].split("\n## ")[0]
    found = []
    for part in section.split("\n### ")[1:]:
        (call,) = codes(part.splitlines()[0])
        found += [(call, codes(known)[0], write) for known, write in rows(part)]
    return found


def is_expression(code: str) -> bool:
    try:
        return not isinstance(ast.parse(code, mode="eval").body, ast.Name | ast.Attribute | ast.Constant)
    except SyntaxError:
        return False


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the page's lines speak of, in a folder with photos."""
    folder = tmp_path_factory.mktemp("migration")
    generator = np.random.default_rng(0)
    for number in range(24):
        pixels = generator.integers(0, 128, (40, 48, 3), dtype=np.uint8) + 100 * (number % 2)
        path = folder / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype("uint8")).save(path)
    found = {name: getattr(kclf, name) for name in kclf.__all__}
    files = sorted(path.relative_to(folder / "photos") for path in folder.glob("photos/*/*.png"))
    found |= {"keras": keras, "kclf": kclf}
    found["table"] = {"name": [str(path) for path in files], "label": [path.parent.name for path in files]}
    inputs = keras.Input((None, None, 3))
    found["features"] = keras.Model(inputs, keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found["data"] = kclf.ImageData.from_folder("photos", size=32, batch_size=8)
        found["x"], found["y"], *_ = (np.asarray(part) for part in next(iter(found["data"].train)))
        found["images"] = found["x"][:2]
        found["model"] = kclf.ImageClassifier(
            found["features"], ["cat", "dog"], size=32, normalization="tf", hidden=(8,)
        )
        found["model"].compile()
        yield found


def with_keyword(call: str, keyword: str) -> str:
    return call.replace(", ...", f", {keyword}" if keyword else "").replace("...", keyword)


@pytest.mark.parametrize(("call", "foreign", "write"), keyword_rows())
def test_a_foreign_keyword_is_answered_with_ours(names, call, foreign, write):
    with pytest.raises(TypeError) as caught:
        eval(with_keyword(call, foreign), names)
    message, word = str(caught.value), foreign.partition("=")[0]
    assert f"takes no {word}=." in message
    if write.startswith("leave it out"):
        assert "eave it out" in message
        eval(with_keyword(call, ""), names)
        return
    ours = [code for code in codes(write) if re.fullmatch(r"\w+=.+", code)]
    if ours and "` of `" not in write:
        assert ours[0].partition("=")[0] + "=" in message
        eval(with_keyword(call, ours[0]), names)
    for code in filter(is_expression, codes(write)):
        eval(code, names)


def test_every_answer_stands_on_the_page():
    on_page: dict[int, set[str]] = {}
    for call, foreign, _ in keyword_rows():
        table = ANSWERS[call.partition("(")[0]]
        word = foreign.partition("=")[0]
        assert word in keywords.by_word(table)
        on_page.setdefault(id(table), set()).add(word)
    for name, table in ANSWERS.items():
        left_out = set(keywords.by_word(table)) - on_page[id(table)]
        assert name == "build_backbone" or not left_out, name


def parts() -> list[str]:
    """The lines of code in the middle column of the first table."""
    table = TEXT.split("## One part at a time")[1].split("\n## ")[0]
    return [code for _, ours, _ in rows(table) for code in codes(ours)]


def test_the_parts_of_the_first_table_run(names):
    assert len(blocks(PAGE, "python")) == 3
    space = dict(names)
    ran = 0
    for code in parts():
        statement = "=" in code.split("(")[0]
        if statement or is_expression(code):
            exec(code, space)
            ran += 1
            if code.startswith("model = "):
                space["model"].compile()
    assert ran > 18
    assert kclf.load("x.keras").class_names == ["cat", "dog"]


def test_a_keyword_that_is_nearly_right_is_answered():
    with pytest.raises(TypeError, match=r"Write batch_size=\. Received: batchsize=2"):
        kclf.ImageData.from_folder("photos", batchsize=2)
    with pytest.raises(TypeError, match=r"takes no colour=\. Received"):
        kclf.ImageClassifier(small_backbone(), ["a", "b"], colour=2)


def test_arrays_go_in_as_one_argument():
    images = np.zeros((4, 8, 8, 3), "uint8")
    with pytest.raises(TypeError, match=r"from_arrays\(\(images, labels\)\)"):
        kclf.ImageData.from_arrays(images, [0, 1, 0, 1])
    with pytest.raises(kclf.DataError, match="astype"):
        kclf.ImageData.from_arrays((images.astype("int64"), [0, 1, 0, 1]))
