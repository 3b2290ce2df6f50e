"""The house stands: floors, exports, and what must never be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kclf

PACKAGE = Path(kclf.__file__).parent
FLOORS = [
    {"errors", "losses", "metrics"},
    {"_core", "datasets"},
    {"acceleration", "distributed", "optimizers", "precision", "schedules", "weights"},
    {"layers"},
    {"backbones", "callbacks"},
    {"data"},
    {"checks", "models", "prediction"},
    {"interpret"},
    {"recipe", "report"},
    {"learner"},
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


def loaded_after(statement: str, suspects: list[str]) -> list[str]:
    """Which of the suspects a fresh interpreter has loaded after the statement."""
    code = f"import importlib, sys\n{statement}\nprint(*[m for m in {suspects!r} if m in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_no_module_brings_in_a_foreign_framework():
    everything = f"[importlib.import_module('kclf.' + m) for m in {ROOMS!r}]"
    assert loaded_after(everything, ["tensorflow", "jax", "torchvision", "pandas", "fastai"]) == []


def test_import_brings_in_little_that_keras_does_not():
    heavy = ["matplotlib.pyplot", "sklearn", "typer", "jinja2", "PIL.ImageFilter"]
    by_keras = loaded_after("import os; os.environ['KERAS_BACKEND'] = 'torch'; import keras", heavy)
    assert set(loaded_after("import kclf", heavy)) <= set(by_keras)


def syntax_nodes():
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            yield f"{file.name}:{getattr(node, 'lineno', 0)}", node


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
