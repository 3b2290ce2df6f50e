"""What `accuracy.py` measured, as tables: those it prints, and those of the page.

A row has the figures of one trial: set, seed and contestant, mistakes, accuracy, log loss, calibration error,
CPU seconds to train and CPU milliseconds a prediction.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t

BEST_OF_FASTAI = "fastai at its best number of epochs"
Row = dict[str, Any]


def contestants(rows: Sequence[Row]) -> list[str]:
    """In the order in which they came."""
    return list(dict.fromkeys(row["contestant"] for row in rows))


def of(rows: Sequence[Row], name: str, contestant: str) -> list[Row]:
    return [row for row in rows if (row["set"], row["contestant"]) == (name, contestant)]


def read_rows(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def mean_with_error(values: Sequence[float]) -> str:
    """The mean with its standard error."""
    if len(values) < 2:
        return f"{values[0]:.3g}" if values else ""
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values) / len(values) ** 0.5:.2g}"


COLUMNS = {
    "accuracy": "accuracy",
    "log loss": "log_loss",
    "calibration error": "calibration",
    "CPU s to train": "train_cpu",
    "CPU ms to predict a photo": "predict_cpu",
    "peak MB": "peak_memory",
}


def set_table(rows: Sequence[Row], name: str) -> str:
    """One set: each contestant's means over the seeds."""
    lines = [f"| {name} | {' | '.join(COLUMNS)} | seeds |", "|---" * (len(COLUMNS) + 2) + "|"]
    for contestant in contestants(rows):
        mine = of(rows, name, contestant)
        if mine:
            cells = [mean_with_error([row[key] for row in mine]) for key in COLUMNS.values()]
            lines.append(f"| {contestant} | {' | '.join(cells)} | {len(mine)} |")
    return "\n".join(lines)


def pairs_of(rows: Sequence[Row], mine: str, theirs: str) -> dict[str, list[tuple[Row, Row]]]:
    """Rows of two contestants on the trials that both have, by set."""
    place = {(row["set"], row["seed"]): row for row in rows if row["contestant"] == theirs}
    pairs = defaultdict(list)
    for row in rows:
        if row["contestant"] == mine and (row["set"], row["seed"]) in place:
            pairs[row["set"]].append((row, place[row["set"], row["seed"]]))
    return dict(pairs)


def log_ratio(pairs: Sequence[tuple[Row, Row]], key: str) -> float:
    """Mean over the seeds of the logarithm of the ratio."""
    return statistics.mean(math.log(max(a[key], 1e-4) / max(b[key], 1e-4)) for a, b in pairs)


def geometric(pairs: dict[str, list[tuple[Row, Row]]], key: str) -> str:
    """Geometric mean of the ratios over sets, with its 95 % interval by Student's t over the sets."""
    means = [log_ratio(of_set, key) for of_set in pairs.values()]
    middle = statistics.mean(means)
    if len(means) < 2:
        return short(math.exp(middle))
    error = t.ppf(0.975, len(means) - 1) * statistics.stdev(means) / len(means) ** 0.5
    low, high = (short(math.exp(middle + side)) for side in (-error, error))
    return f"{short(math.exp(middle))} ({low}-{high})"


def short(value: float) -> str:
    """Two digits after the point below 10, and no zero before it."""
    return (f"{value:.2f}" if value < 10 else f"{value:.0f}").removeprefix("0")


def summary(rows: Sequence[Row], reference: str) -> str:
    """All contestants against one, over all sets."""
    heads = [
        f"against {reference}",
        "log loss (95 %)",
        "worst set",
        "mistakes",
        "CPU to train (95 %)",
        "trials",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for contestant in contestants(rows):
        pairs = pairs_of(rows, contestant, reference) if contestant != reference else {}
        if pairs:
            worst = max(pairs, key=lambda name: log_ratio(pairs[name], "log_loss"))
            both = [pair for of_set in pairs.values() for pair in of_set]
            wrong = [mistakes(side) for side in zip(*both, strict=True)]
            cells = [
                geometric(pairs, "log_loss"),
                f"{math.exp(log_ratio(pairs[worst], 'log_loss')):.2f} {worst}",
                f"{wrong[0]} : {wrong[1]} = {wrong[0] / max(wrong[1], 1):.2f}",
                geometric(pairs, "train_cpu"),
                str(len(both)),
            ]
            lines.append(f"| {contestant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best_of_fastai(rows: Sequence[Row]) -> list[Row]:
    """fastai at the epochs with the lowest log loss on the test photos of each set: in its favour."""
    runs = defaultdict(list)
    for row in rows:
        if row["contestant"].startswith("fastai"):
            runs[row["set"], row["contestant"]].append(row)
    best = {}
    for (name, _), mine in runs.items():
        best[name] = min(
            best.get(name, mine), mine, key=lambda runs: statistics.mean(row["log_loss"] for row in runs)
        )
    return [row | {"contestant": BEST_OF_FASTAI} for mine in best.values() for row in mine]


def report(rows: Sequence[Row]) -> str:
    """All tables."""
    rows = [row for row in rows if "log_loss" in row]
    names = list(dict.fromkeys(row["set"] for row in rows))
    rivals = [summary(rows + best_of_fastai(rows), rival) for rival in ("logistic", BEST_OF_FASTAI)]
    return "\n\n".join([*rivals, *(set_table(rows, name) for name in names)])


# ---- the page

NAMES = {"kclf quick": "quick", "kclf standard": "standard", "logistic": "logistic regression"}
NAMES |= {BEST_OF_FASTAI: "fastai"}
COMPARED = [("kclf quick", "logistic"), ("kclf standard", "logistic"), ("kclf standard", "kclf quick")]
COMPARED += [("kclf standard", BEST_OF_FASTAI)]
PACKAGES = ("torch", "keras", "scikit-learn", "fastai")


def with_best(rows: Sequence[Row]) -> list[Row]:
    """The rows of the page's contestants, fastai at its best."""
    return [row for row in [*rows, *best_of_fastai(rows)] if row["contestant"] in NAMES]


def losses(rows: Sequence[Row]) -> str:
    """A row for each set: mean log loss and mistakes of all draws, the lowest log loss in bold."""
    lines = [f"| | {' | '.join(NAMES.values())} | draws |", "|---" * (len(NAMES) + 2) + "|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        found = {contestant: of(rows, name, contestant) for contestant in NAMES}
        loss = {who: statistics.mean(row["log_loss"] for row in mine) for who, mine in found.items() if mine}
        cells = [f"{short(loss[who])}, {mistakes(found[who])}" if who in loss else "" for who in NAMES]
        best = short(min(loss.values()))
        cells = [f"**{cell}**" if cell.startswith(f"{best},") else cell for cell in cells]
        lines.append(f"| {name} | {' | '.join(cells)} | {max(map(len, found.values()))} |")
    return "\n".join(lines)


def mistakes(rows: Sequence[Row]) -> int:
    return round(sum(row["mistakes"] for row in rows))


def ratios(rows: Sequence[Row]) -> str:
    """Who beats whom: log loss, mistakes and CPU time, over the sets that both have.

    Times are compared where both ran in processes of their own, or both in one.
    """
    lines = ["| | sets | log loss (95 %) | at most | mistakes | CPU time to train (95 %) |", "|---" * 6 + "|"]
    found = {pair: pairs_of(rows, *pair) for pair in COMPARED}
    for (mine, theirs), pairs in [(pair, pairs) for pair, pairs in found.items() if pairs]:
        worst = max(log_ratio(of_set, "log_loss") for of_set in pairs.values())
        every = [pair for of_set in pairs.values() for pair in of_set]
        ours, other = (mistakes(side) for side in zip(*every, strict=True))
        cells = [str(len(pairs)), geometric(pairs, "log_loss"), short(math.exp(worst))]
        alike = all(a.get("together", False) == b.get("together", False) for a, b in every)
        cells += [short(ours / max(other, 1)), geometric(pairs, "train_cpu") if alike else ""]
        lines.append(f"| {NAMES[mine]} against {NAMES[theirs]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(rows: Sequence[Row]) -> str:
    """A row for each set: what the standard recipe reaches, and what it costs."""
    keys = ("accuracy", "calibration", "train_cpu", "predict_cpu")
    heads = ("accuracy", "calibration error", "CPU s to train", "CPU ms a prediction")
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = of(rows, name, "kclf standard")
        means = (statistics.mean(row[key] for row in mine) for key in keys)
        lines.append(f"| {name} | {' | '.join(map(short, means))} |")
    return "\n".join(lines)


def headline(rows: Sequence[Row]) -> str:
    """Mistakes of the standard recipe and of fastai on the sets of both; in brackets without digits."""
    cells = []
    pairs = pairs_of(rows, "kclf standard", BEST_OF_FASTAI)
    for side in (0, 1):
        wrong = {name: mistakes([pair[side] for pair in found]) for name, found in pairs.items()}
        photos = sum(count for name, count in wrong.items() if not name.startswith("digits"))
        cells.append(f"{sum(wrong.values()):,} ({photos:,})")
    return f"**{cells[0]}** | {cells[1]} | -"


def described(rows: Sequence[Row]) -> str:
    """One line: size, threads, machine, versions."""
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
    size, machine = rows[0]["size"], rows[0]["machine"]
    return f"Photos at {size} px, one of {machine['cores']} cores of {machine['cpu']}; {packages}."
