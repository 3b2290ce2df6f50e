"""Draws `data-way.svg`: the way of a photo from its file to an answer.

python docs/images/data_way.py
"""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).with_name("data-way.svg")
BOX, GAP, TOP = 168, 22, 72
STEPS = [  # (row, title, lines, colour)
    (0, "files", ["labels: folder, name, table", "split: train, valid, test"], "cpu"),
    (0, "decode", ["turned by EXIF, to RGB", "large JPEGs at half size"], "cpu"),
    (0, "presize", ["one square, 280 or 460 px", "random window in training"], "cpu"),
    (0, "batch", ["uint8 (64, 280, 280, 3)", "threads, prefetched"], "cpu"),
    (1, "augmentation", ["crop, flip, turn, zoom, warp", "in ONE read; then light"], "model"),
    (1, "normalisation", ["what this backbone was", "trained with"], "model"),
    (1, "backbone", ["pretrained features", "groups 1 and 2"], "model"),
    (1, "head", ["pooling, 512, classes", "group 3: float32 logits"], "model"),
    (2, "loss", ["cross-entropy", "from logits"], "use"),
    (2, "prediction", ["softmax; plain, TTA,", "snapshot ensemble"], "use"),
    (2, "interpretation", ["confusion, top losses,", "calibration"], "use"),
    (2, "report", ["one HTML page,", "one .h5 file"], "use"),
]
COLOURS = {"cpu": ("#e8eefc", "#3f51b5"), "model": ("#fdeee4", "#d9480f"), "use": ("#e6f5ea", "#2b8a3e")}
ROWS = ["loader, on the CPU", "model, on the device", "use"]


def box(row: int, column: int, title: str, lines: list[str], kind: str) -> list[str]:
    """One step."""
    x, y = 14 + column * (BOX + GAP), 34 + row * (TOP + 44)
    fill, edge = COLOURS[kind]
    parts = [
        f'<rect x="{x}" y="{y}" width="{BOX}" height="{TOP}" rx="7" fill="{fill}" stroke="{edge}"/>',
        f'<text x="{x + 10}" y="{y + 21}" class="t">{title}</text>',
    ]
    parts += [
        f'<text x="{x + 10}" y="{y + 41 + 15 * n}" class="l">{line}</text>' for n, line in enumerate(lines)
    ]
    if column:
        parts.append(f'<path d="M{x - GAP + 3} {y + TOP / 2}h{GAP - 9}" class="a" marker-end="url(#m)"/>')
    return parts


def turn(row: int) -> str:
    """The arrow from the end of a row to the start of the next."""
    right, left = 14 + 3 * (BOX + GAP) + BOX / 2, 14 + BOX - 22
    y = 34 + row * (TOP + 44) + TOP
    return f'<path d="M{right} {y}v14H{left}v19" class="a" marker-end="url(#m)"/>'


def main() -> None:
    """Write the picture."""
    width, height = 28 + 4 * BOX + 3 * GAP, 34 + 3 * (TOP + 44) - 30
    counts = [0, 0, 0]
    parts = []
    for row, title, lines, kind in STEPS:
        parts += box(row, counts[row], title, lines, kind)
        counts[row] += 1
    parts += [turn(0), turn(1)]
    parts += [
        f'<text x="14" y="{26 + row * (TOP + 44)}" class="r">{name}</text>' for row, name in enumerate(ROWS)
    ]
    style = (
        "text{font-family:system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1c2333}"
        ".t{font-size:14px;font-weight:600}.l{font-size:11px}.r{font-size:11px;fill:#5b6478}"
        ".a{fill:none;stroke:#5b6478;stroke-width:1.4}"
    )
    marker = (
        '<marker id="m" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#5b6478"/></marker>'
    )
    TARGET.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="The way of a photo from its file to an answer">'
        f"<style>{style}</style><defs>{marker}</defs>"
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>' + "".join(parts) + "</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
