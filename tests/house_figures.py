"""The house in figures: how large its modules and functions are, and what hangs together.

    .venv/bin/python tests/house_figures.py [ROOT]

ROOT is a checkout, this one by default. Module-level imports alone count for cycles: what a function imports
when it is called ties no knot. The last line is a JSON object.
"""

from __future__ import annotations

import ast
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines_of(file: Path) -> int:
    return len(file.read_text().splitlines())


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function, clean=False) is not None
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1) * has_docstring


def at_import(node: ast.AST) -> Iterator[ast.ImportFrom]:
    """Imports that run when the module does: not those in functions, nor those for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if isinstance(child, ast.ImportFrom):
            yield child
        elif not isinstance(child, Function) and not typing_only:
            yield from at_import(child)


def imported(file: Path, package: Path) -> set[Path]:
    """Files of the package that a file imports."""
    found = set()
    for node in at_import(ast.parse(file.read_text())):
        if not node.level:
            continue
        folder = file.parents[node.level - 1]
        for name in [node.module] if node.module else [alias.name for alias in node.names]:
            target = folder.joinpath(*name.split("."))
            for candidate in (target.with_suffix(".py"), target / "__init__.py"):
                if candidate.exists() and package in candidate.parents:
                    found.add(candidate)
    return found


def cycles(package: Path) -> list[str]:
    """Files from which a way of imports leads back to themselves."""
    direct = {file: imported(file, package) for file in package.rglob("*.py")}

    def reached(start: Path) -> set[Path]:
        seen: set[Path] = set()
        waiting = list(direct[start])
        while waiting:
            file = waiting.pop()
            if file not in seen:
                seen.add(file)
                waiting += direct[file]
        return seen

    return sorted(str(file.relative_to(package)) for file in direct if file in reached(file))


def undocumented(package: Path) -> list[str]:
    """Public functions, classes and methods without a docstring; nested functions are nobody's business."""
    found = []
    for file in package.rglob("*.py"):
        for scope in [
            tree := ast.parse(file.read_text()),
            *(n for n in tree.body if isinstance(n, ast.ClassDef)),
        ]:
            if isinstance(scope, ast.ClassDef) and scope.name.startswith("_"):
                continue
            for node in scope.body:
                public = isinstance(node, (Function, ast.ClassDef)) and not node.name.startswith("_")
                setter = public and any(ast.unparse(d).endswith(".setter") for d in node.decorator_list)
                if public and not setter and ast.get_docstring(node) is None:
                    found.append(f"{file.relative_to(package)}:{node.lineno} {node.name}")
    return found


def figures(root: Path) -> dict:
    """All figures of a checkout."""
    package = root / "kclf"
    modules = sorted(package.rglob("*.py"))
    sizes = {str(file.relative_to(package)): lines_of(file) for file in modules}
    lengths = [length(f) for file in modules for f in functions(ast.parse(file.read_text()))]
    largest = max(sizes, key=lambda name: sizes[name])
    tests = sum(lines_of(file) for file in (root / "tests").rglob("*.py"))
    return {
        "modules": len(modules),
        "lines": sum(sizes.values()),
        "lines a module, median": statistics.median(sizes.values()),
        "largest module": f"{largest}, {sizes[largest]} lines",
        "functions": len(lengths),
        "lines a function, median": statistics.median(lengths),
        "lines a function, 90th percentile": round(statistics.quantiles(lengths, n=10)[-1], 1),
        "longest function": max(lengths),
        "modules in import cycles": len(cycles(package)),
        "lines of tests and benchmarks a line of code": round(tests / sum(sizes.values()), 2),
        "public names without documentation": len(undocumented(package)),
    }


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = figures(root.resolve())
    print("\n".join(f"{name:45} {value}" for name, value in found.items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
