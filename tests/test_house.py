"""The house stands: floors, exports, and what must never be imported."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kclf
from tests import house_figures, walks

PACKAGE = Path(kclf.__file__).parent
FLOORS = [
    {"errors", "losses", "metrics"},
    {"_core"},
    {"acceleration", "datasets", "distributed", "optimizers", "precision", "schedules", "weights"},
    {"layers"},
    {"backbones", "callbacks"},
    {"data"},
    {"checks", "models", "prediction"},
    {"interpret"},
    {"recipe", "report"},
    {"learner", "serve"},
    {"cli", "fastai"},
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
ROOMS = sorted(
    ({p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")})
    - {"__init__", "__main__"}
)


def kclf_imports(module: str) -> set[str]:
    """Names of the top-level kclf modules that a module (or package) imports, at any depth of its code."""
    source = PACKAGE / f"{module}.py"
    files = [source] if source.exists() else sorted((PACKAGE / module).rglob("*.py"))
    found = set()
    for file in files:
        inside = len(file.relative_to(PACKAGE).parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == inside:
                found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "kclf":
                found |= {alias.name for alias in node.names}
            elif (
                isinstance(node, ast.ImportFrom) and node.level == 0 and f"{node.module}".startswith("kclf.")
            ):
                found.add(node.module.split(".")[1])
            elif isinstance(node, ast.Import):
                found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("kclf.")}
    return found - {module}


@pytest.mark.parametrize("module", ROOMS)
def test_a_module_imports_only_from_lower_floors(module):
    assert module in FLOOR, f"{module} has no floor: add it to FLOORS"
    too_high = {name for name in kclf_imports(module) if name in FLOOR and FLOOR[name] >= FLOOR[module]}
    assert not too_high


def test_exports_are_sorted_unique_and_there():
    assert kclf.__all__ == sorted(set(kclf.__all__))
    assert [name for name in kclf.__all__ if not hasattr(kclf, name)] == []


def test_public_names_are_documented():
    assert [name for name in kclf.__all__ if not (getattr(kclf, name).__doc__ or "").strip()] == []


FOREIGN = ["tensorflow", "jax", "torchvision", "pandas", "fastai"]
HEAVY = ["matplotlib.pyplot", "sklearn", "scipy.stats", "typer", "jinja2", "PIL.ImageFilter"]


@pytest.fixture(scope="module")
def loaded():
    """Which of the suspects one fresh interpreter has loaded after keras, after kclf, and after all of it."""
    code = f"""
import importlib, json, os, sys
os.environ["KERAS_BACKEND"] = "torch"
suspects, steps = {FOREIGN + HEAVY!r}, []
for modules in (["keras"], ["kclf"], ["kclf." + room for room in {ROOMS!r}]):
    for module in modules:
        importlib.import_module(module)
    steps.append([name for name in suspects if name in sys.modules])
print(json.dumps(steps))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(names) for names in json.loads(done.stdout)]


def test_no_module_brings_in_a_foreign_framework(loaded):
    assert loaded[2] & set(FOREIGN) == set()


def test_import_brings_in_little_that_keras_does_not(loaded):
    assert loaded[1] & set(HEAVY) <= loaded[0]


def syntax_nodes():
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            yield f"{file.name}:{getattr(node, 'lineno', 0)}", node


def test_no_import_leads_back_to_itself():
    assert house_figures.cycles(PACKAGE) == []


def test_no_module_has_the_name_of_another():
    assert house_figures.names_twice(PACKAGE) == []


def test_private_names_of_keras_have_one_room():
    assert house_figures.private_imports(PACKAGE) == []
    assert house_figures.private_attributes(PACKAGE) == []


def test_a_photo_and_a_rate_take_short_ways_and_climb_nowhere(tmp_path):
    photo, rate = walks.walks(PACKAGE.parent, tmp_path)
    assert [*photo.climbs, *rate.climbs] == []
    assert len(photo.files) <= 30
    assert len(rate.files) <= 9


def test_package_has_no_assert():
    assert [place for place, node in syntax_nodes() if isinstance(node, ast.Assert)] == []


def catches_everything(handler: ast.ExceptHandler) -> bool:
    """True for `except:`, `except Exception` and `except BaseException` that do not raise again."""
    names = {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)} if handler.type else {"bare"}
    return bool(names & {"bare", "Exception", "BaseException"}) and not any(
        isinstance(n, ast.Raise) for n in ast.walk(handler)
    )


def test_nothing_is_swallowed():
    handlers = [(place, n) for place, n in syntax_nodes() if isinstance(n, ast.ExceptHandler)]
    assert [place for place, handler in handlers if catches_everything(handler)] == []


@pytest.mark.parametrize("words", [["--help"], ["train", "-h"], ["--version"], ["trian"]])
def test_the_command_answers_before_torch_is_loaded(words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kclf", *words], capture_output=True, text=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert loaded & {"torch", "keras", "numpy", "sklearn"} == set()
