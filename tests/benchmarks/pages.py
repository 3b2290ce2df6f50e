"""The tables of the benchmark pages and of README, made from what the benchmarks wrote.

    make bench PEERS=VENV                                # writes build/bench.jsonl
    .venv/bin/python tests/benchmarks/pages.py build/bench.jsonl

The records go to `docs/benchmarks/results.jsonl`, where one of the same title and settings is replaced. Each
table between `<!-- bench TITLE, NAME=VALUE -->` and `<!-- end -->` is then written anew, and so are those
between `<!-- accuracy NAME -->` and `<!-- end -->`, from `docs/benchmarks/accuracy.jsonl` (the rows of
`accuracy.py`), and the rows of figures that README and the start page share. Without an argument only the
tables are written.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import accuracy_tables
import harness

RESULTS = harness.ROOT / "docs" / "benchmarks" / "results.jsonl"
TRIALS = RESULTS.with_name("accuracy.jsonl")
PAGES = [
    harness.ROOT / name
    for name in (
        "docs/backbones.md",
        "docs/benchmarks.md",
        "docs/benchmarks/accuracy.md",
        "docs/methods/presizing.md",
        "README.md",
        "docs/index.md",
    )
]
PLACE = re.compile(r"(<!-- (?P<kind>bench|accuracy) (?P<wanted>[^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
OWN = ("folder", "weights")  # settings that say where something lies on one machine
NAMED = ("torch", "keras", "torchvision", "timm", "fastai")
SHARED_ROWS = "## Beside what you use now"
FEW_PHOTOS = "mistakes of classifiers of 10 to 100 photos (without the digits)"
Record = dict[str, Any]


def read(path: Path = RESULTS) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kept(record: Record) -> Record:
    """A record without what belongs to one machine alone."""
    settings = {name: value for name, value in record["settings"].items() if name not in OWN}
    return {name: value for name, value in record.items() if name != "table"} | {"settings": settings}


def merged(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """The old records with the new ones in their place."""
    records = {key_of(record): record for record in old}
    records |= {key_of(record): record for record in map(kept, new)}
    return list(records.values())


def key_of(record: Record) -> tuple[str, str]:
    """Title and settings, in whatever order these are."""
    return record["title"], json.dumps(record["settings"], sort_keys=True)


def find(records: Iterable[Record], wanted: str) -> Record:
    """The record of a title, followed by the settings that it must have: `Training step, model=ResNet50`."""
    title, *settings = wanted.split(", ")
    pairs = [setting.split("=") for setting in settings]
    for record in reversed(list(records)):  # the newest first
        has = record["settings"]
        if record["title"] == title and all(str(has.get(name)) == value for name, value in pairs):
            return record
    raise KeyError(f"no benchmark of {wanted!r} in {RESULTS.name}")


def rows(record: Record, word: str = "") -> dict[str, Record]:
    """The contestants that were measured, by name; those of one race where a word is given."""
    return {row["name"]: row for row in record["rows"] if row["wall"] and row["name"].startswith(word)}


def milliseconds(row: Record, clock: str = "wall") -> float:
    return 1000 * statistics.median(row[clock])


def share(row: Record, reference: Record, clock: str) -> str:
    """Median, lowest and highest of the round-by-round ratios."""
    pairs = [mine / theirs for mine, theirs in zip(row[clock], reference[clock], strict=False)]
    found = statistics.median(pairs), min(pairs), max(pairs)
    middle, low, high = (f"{one:.2f}".removeprefix("0") for one in found)
    return f"{middle} ({low}-{high})"


def number(value: float) -> str:
    """Three digits, and no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(record: Record, word: str = "") -> str:
    """Contestants by time a unit, beside the reference; or figures by name, of a record that has them."""
    if "figures" in record:
        heads = record.get("heads", [""])
        lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for name, value in record["figures"].items():
            shown = f"**{name}**" if "kclf" in name else name
            lines.append(f"| {shown} | {' | '.join([value] if isinstance(value, str) else value)} |")
        return "\n".join([*lines, "", f"{described(record)}."])
    found = rows(record, word)
    reference = next((row for row in found.values() if row["reference"]), None) or next(iter(found.values()))
    unit = record["unit"]
    heads = ["", f"ms per {unit} (quartiles)", f"{unit}s/s", "CPU ms", "CPU time, share", "peak MB"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in sorted(found.items(), key=lambda item: milliseconds(item[1])):
        low, middle, high = (1000 * value for value in harness.quartiles(row["wall"]))
        shown = name.removeprefix(word).strip()
        shown = f"**{shown}**" if "kclf" in shown else shown
        lines.append(
            f"| {shown} | {number(middle)} ({number(low)}-{number(high)}) | {number(1000 / middle)} "
            f"| {number(milliseconds(row, 'cpu'))} | {share(row, reference, 'cpu')} "
            f"| {number(row['peak_memory'])} |"
        )
    return "\n".join(
        [*lines, "", f"{described(record)}; 1 is {reference['name'].removeprefix(word).strip()}."]
    )


def described(record: Record) -> str:
    """One line: rounds, threads, machine, versions."""
    versions: dict[str, str] = {}
    for row in record.get("rows", [record]):
        versions |= row["versions"]
    machine = record["machine"]
    packages = ", ".join(f"{name} {versions[name]}" for name in NAMED if name in versions)
    place = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    return f"{record['day']}, {record['rounds']} rounds, {record['threads']} threads, {place}; {packages}"


def headlines(records: list[Record]) -> dict[str, str]:
    """Rows of README's table, by the text of their first cell: kclf, fastai, Keras."""
    loader, augment = find(records, "Photos to batches"), rows(find(records, "Augmentation 460 -> 224"))
    inference = rows(find(records, "Inference, model=ResNet50"))
    update = rows(find(records, "One update of ResNet50's variables in three groups"))
    head = rows(find(records, "Training the head"))
    whole = rows(loader, "augment:")
    fast = lambda row: number(1000 / milliseconds(row))  # noqa: E731
    beside = lambda row: share(row, inference["torch channels_last"], "wall").split()[0]  # noqa: E731
    return {
        "JPEG to augmented batch, 460 to 224 px, images/s": f"**{fast(whole['augment: kclf'])}**; "
        f"{fast(whole['augment: kclf from its cache'])} from the presized cache "
        f"| {fast(whole['augment: fastai, no workers'])} | -",
        "augmentation alone, images/s": f"**{fast(augment['kclf aug_transforms'])}** "
        f"| {fast(augment['fastai aug_transforms'])} | {fast(augment['Keras layers'])}",
        "ResNet50 prediction, share of plain PyTorch's time": f"**{beside(inference['kclf'])}** | - "
        f"| {beside(inference['stock Keras'])}",
        "one AdamW update of ResNet50 in layer groups, ms of CPU": "**"
        f"{milliseconds(update['kclf LayerGroupOptimizer'], 'cpu'):.2g}** | - "
        f"| {milliseconds(update['Keras, one rate for all'], 'cpu'):.3g}",
        "training the head: cached features, share of the full model's time": "**"
        f"{share(head['on cached activations'], head['through the backbone'], 'cpu').split()[0]}** | - | -",
    }


def filled(text: str, records: list[Record]) -> str:
    """A page with its tables and its rows of figures as the records have them."""
    trials = accuracy_tables.with_best(accuracy_tables.read_rows(TRIALS))

    def place(found: re.Match[str]) -> str:
        if found["kind"] == "accuracy":
            made = getattr(accuracy_tables, found["wanted"])(trials)
        else:
            wanted, _, word = found["wanted"].partition("; ")
            made = table(find(records, wanted), word)
        return f"{found[1]}{made}\n{found[4]}"

    text, shared = PLACE.sub(place, text), SHARED_ROWS in text
    for first, cells in (headlines(records) | {FEW_PHOTOS: accuracy_tables.headline(trials)}).items():
        text, count = re.subn(
            rf"^\| {re.escape(first)} \|.*\| (\[[^|]*) \|$",
            lambda found, first=first, cells=cells: f"| {first} | {cells} | {found[1]} |",
            text,
            flags=re.MULTILINE,
        )
        if count != shared:
            raise KeyError(f"expected one row {first!r} in a page with {SHARED_ROWS!r}, found {count}")
    return text


def main(arguments: list[str]) -> None:
    records = merged(read() if RESULTS.exists() else [], read(Path(arguments[0])) if arguments else [])
    RESULTS.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), records), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
