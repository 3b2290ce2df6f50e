"""The figures of README and the benchmark page are those that the benchmarks wrote."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import pages


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_table_is_made_from_the_records(page):
    text = page.read_text(encoding="utf-8")
    assert text == pages.filled(text, pages.read())


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_a_figure_that_was_typed_is_found(page):
    text = page.read_text(encoding="utf-8")
    changed = re.sub(r"^(\| .*?(?:\*\*|\| ))(?=\.?\d)", r"\g<1>9", text, flags=re.MULTILINE)
    assert changed not in (text, pages.filled(changed, pages.read()))


ROOT = Path(__file__).parent.parent
OF_A_RECIPE = re.compile(r"\[recipe (\d+)\]\([./]*recipes\.md\)")
CITING = [
    pytest.param(int(found[1]), line, id=f"{path.stem}-{found[1]}")
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for line in path.read_text(encoding="utf-8").splitlines()
    for found in OF_A_RECIPE.finditer(line)
]


def printed_by(recipe: int) -> list[float]:
    """The numbers in the outputs of an executed notebook."""
    (file,) = (ROOT / "recipes").glob(f"{recipe:02d}_*.ipynb")
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    words = "".join("".join(output.get("text", "")) for output in outputs)
    return [float(number) for number in re.findall(r"\d*\.?\d+", words)]


def cited(recipe: int, line: str) -> list[str]:
    """The fractions since the last link, or the counts of a line without fractions."""
    before = line[: line.index(f"[recipe {recipe}]")].rpartition("](")[2]
    if before.endswith("none ("):
        return []
    return re.findall(r"(?<![\d.])\.\d+", before) or re.findall(r"\d{2,}", line)


@pytest.mark.parametrize(("recipe", "line"), CITING)
def test_what_a_page_says_of_a_recipe_is_in_its_notebook(recipe, line):
    printed = printed_by(recipe)
    for figure in cited(recipe, line):
        half = 0.5001 * 10.0 ** -len(figure.partition(".")[2])
        assert any(abs(float(figure) - number) <= half for number in printed), figure
