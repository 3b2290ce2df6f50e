"""Draws `house.svg`: the rooms of the package in floors, each importing only from floors below it.

python docs/images/house.py
"""

from __future__ import annotations

import ast
import sys
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kclf"
TARGET = Path(__file__).with_name("house.svg")
WIDTH, HEIGHT, GAP, COLUMNS, LETTERS = 206, 66, 10, 4, 32
sys.path.insert(0, str(ROOT / "tests"))

import house_figures  # noqa: E402  the one place that reads imports


def floors() -> list[list[str]]:
    """Rooms from the ground up: a room stands one floor above the highest that it imports."""
    below: dict[str, set[str]] = {}
    for one, other in house_figures.arrows(PACKAGE):
        below.setdefault(one, set()).add(other)
        below.setdefault(other, set())

    def height(room: str) -> int:
        return 1 + max((height(other) for other in below[room]), default=-1)

    heights = {room: height(room) for room in below}
    return [
        sorted(room for room in below if heights[room] == floor) for floor in range(max(heights.values()) + 1)
    ]


def purpose(room: str) -> str:
    """The first line of a room's docstring."""
    file = house_figures.file_of(PACKAGE / room)
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file else None
    return (text or "").splitlines()[0].rstrip(".") if text else ""


def box(room: str, x: int, y: int) -> list[str]:
    """One room: its name and what it is for."""
    lines = textwrap.wrap(purpose(room), LETTERS, max_lines=3, placeholder=" ...")
    return [
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        f'<text x="{x + 9}" y="{y + 17}" class="t">{escape(room)}</text>',
        *(
            f'<text x="{x + 9}" y="{y + 33 + 13 * row}" class="l">{escape(line.replace("`", ""))}</text>'
            for row, line in enumerate(lines)
        ),
    ]


def drawn() -> str:
    """The whole picture, top floor first."""
    parts, y = [], GAP
    for rooms in reversed(floors()):
        for start in range(0, len(rooms), COLUMNS):
            for column, room in enumerate(rooms[start : start + COLUMNS]):
                parts += box(room, GAP + column * (WIDTH + GAP), y)
            y += HEIGHT + 4
        parts.append(f'<path d="M{GAP} {y + 3}H{GAP + COLUMNS * (WIDTH + GAP) - GAP}"/>')
        y += GAP + 4
    style = (
        "rect{fill:#eef2fb;stroke:#3f51b5}path{stroke:#9aa5c9;stroke-dasharray:2 4}"
        "text{font-family:system-ui,sans-serif;fill:#1b2440}.t{font-size:14px;font-weight:600}.l{font-size:11px}"
    )
    size = f"{COLUMNS * (WIDTH + GAP) + GAP} {y}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}">',
            f"<style>{style}</style>",
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(drawn(), encoding="utf-8")
