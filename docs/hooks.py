"""Part of building the site: no public name without its place, and the options as the code has them."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import commands  # noqa: E402  beside this file


def public_names() -> set[str]:
    """`kclf.__all__`, read from the source."""
    tree = ast.parse((ROOT / "kclf" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    raise PluginError("kclf/__init__.py has no __all__")


def documented_names(page: str) -> set[str]:
    """The names that the API page documents, `::: kclf.Name`."""
    return set(re.findall(r"^::: kclf\.(\w+)$", page, re.MULTILINE))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Compare the API page with the package; fill the page of the commands."""
    if page.file.src_path == "commands.md":
        return commands.filled(markdown)
    if page.file.src_path == "api.md":
        missing = public_names() - documented_names(markdown)
        unknown = documented_names(markdown) - public_names()
        if missing or unknown:
            raise PluginError(
                f"docs/api.md: names without docs: {sorted(missing)}; not public: {sorted(unknown)}"
            )
    return markdown
