"""The house in figures: how large its modules and functions are, and what hangs together.

    .venv/bin/python tests/house_figures.py [ROOT]

ROOT is a checkout, this one by default. Imports outside functions count for cycles, also those for the type
checker: what a function imports when it is called ties no knot. The last line is a JSON object.
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
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
    """Imports outside functions: those that run with the module, and those for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom):
            yield child
        elif not isinstance(child, Function):
            yield from at_import(child)


def file_of(*candidates: Path) -> Path | None:
    """The first module or package of these names that exists."""
    files = (file for path in candidates for file in (path.with_suffix(".py"), path / "__init__.py"))
    return next((file for file in files if file.exists()), None)


def imported(file: Path, nodes: Iterable[ast.AST]) -> set[Path]:
    """Files of the package that a file imports by these nodes; a name that is a module counts as that."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            start = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found |= {file_of(start / alias.name, start) for alias in node.names}
    return {target for target in found if target is not None}


def cycles(package: Path) -> list[str]:
    """Files from which a way of imports, those for the type checker included, leads back to themselves."""
    direct = {file: imported(file, at_import(ast.parse(file.read_text()))) for file in package.rglob("*.py")}

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


def room_of(file: Path, package: Path) -> str:
    """The module or package at the top that a file belongs to."""
    return file.relative_to(package).parts[0].removesuffix(".py")


def rooms(package: Path) -> list[str]:
    """Modules and packages at the top that a user may import."""
    found = {room_of(file, package) for file in package.rglob("*.py")}
    return sorted(name for name in found if not name.startswith("_"))


def arrows(package: Path) -> set[tuple[str, str]]:
    """Pairs of rooms, plumbing included, of which the first imports the second anywhere in its code."""
    found = set()
    for file in package.rglob("*.py"):
        for target in imported(file, ast.walk(ast.parse(file.read_text()))):
            found.add((room_of(file, package), room_of(target, package)))
    return {(one, other) for one, other in found if one != other and "__" not in one + other}


def names_twice(package: Path) -> list[str]:
    """Names of modules that stand in more than one folder."""
    counted = Counter(file.stem for file in package.rglob("*.py") if not file.stem.startswith("__"))
    return sorted(name for name, count in counted.items() if count > 1)


PRIVATE_ROOM = "_core/keras_private.py"


def private_imports(package: Path) -> list[str]:
    """Imports from `keras.src` outside the room for them."""
    return [
        f"{file.relative_to(package)}:{node.lineno}"
        for file in sorted(package.rglob("*.py"))
        if str(file.relative_to(package).as_posix()) != PRIVATE_ROOM
        for node in ast.walk(ast.parse(file.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras.src"))
        or (isinstance(node, ast.Import) and any(name.name.startswith("keras.src") for name in node.names))
    ]


def attributes_made(nodes: Iterable[ast.AST]) -> set[str]:
    """Attributes with an underscore that classes of these nodes make: methods, and what is set on `self`."""
    found = set()
    for node in nodes:
        if isinstance(node, Function):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return {name for name in found if re.match(r"_[a-z]", name)}


@cache
def attributes_of_keras() -> frozenset[str]:
    """Names with an underscore that Keras' classes give their objects."""
    source = Path(find_spec("keras").origin).parent / "src"
    files = (file for file in source.rglob("*.py") if not file.name.endswith("_test.py"))
    made = re.compile(r"\bself\.(_[a-z]\w*)(?=(?: *:[^=\n]+)? *=[^=])|^    +def (_[a-z]\w*)\(", re.MULTILINE)
    return frozenset(
        name for file in files for pair in made.findall(file.read_text()) for name in pair if name
    )


def private_attributes(package: Path) -> list[str]:
    """Names with an underscore of Keras' objects that are used outside their room, as names or as words.

    What a file's own classes make is its own, and on `self` what any class of the package makes.
    """
    trees = {file: ast.parse(file.read_text()) for file in package.rglob("*.py")}
    made = {file: attributes_made(ast.walk(tree)) for file, tree in trees.items()}
    anywhere = set().union(*made.values())
    found = set()
    for file, tree in trees.items():
        if file.relative_to(package).as_posix() == PRIVATE_ROOM:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                own = made[file] | (anywhere if ast.unparse(node.value) == "self" else set())
                found |= {node.attr} & attributes_of_keras() - own
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                "attr"
            ):  # getattr and the like
                words = {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
                found |= words & attributes_of_keras() - made[file]
    return sorted(found)


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
        "rooms at the top": len(rooms(package)),
        "arrows between rooms": len(arrows(package)),
        "modules in import cycles, type checking included": len(cycles(package)),
        "module names that stand twice": len(names_twice(package)),
        "imports from keras.src outside their room": len(private_imports(package)),
        "private attributes of Keras' objects outside it": len(private_attributes(package)),
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
