"""Measure contestants side by side: one process each, rounds interleaved, medians with their spread.

A benchmark is a script with contestants in it. Each is a function that gets the settings, prepares its work
and returns the function that does one round of it; a round returns how many units it did (images, steps), or
a pair of that and what else it found, as in `1, {"accuracy": .97}`: a column each, with their medians.

    import harness

    @harness.contestant("torch", reference=True)
    def torch_sum(settings):
        import torch
        x = torch.ones(settings.size)
        def one_round():
            x.sum()
            return 1
        return one_round

    if __name__ == "__main__":
        harness.main("Sums", unit="sum", settings={"size": 1000})

Every contestant lives in a process of its own (so that peak memory is its own, and peers may live in another
virtual environment: `peer=True` and `--peers VENV`), is warmed up, and then runs one round in turn with the
others, in another order each time. Wall time and process CPU time are both kept: on a machine that is shared,
CPU time and the ratio to the reference are what counts. A contestant that cannot be set up is a row with its
reason. This file needs nothing but the standard library.

    .venv/bin/python tests/benchmarks/NAME.py --rounds 9 --threads 2 --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("kclf", "keras", "torch", "torchvision", "timm", "fastai", "numpy", "pillow")
Round = Callable[[], float | tuple[float, dict[str, float]]]


@dataclass(frozen=True)
class Contestant:
    """One way of doing the work; `peer` ones run on the interpreter of `--peers`."""

    name: str
    prepare: Callable[[SimpleNamespace], Round]
    peer: bool = False
    reference: bool = False


@dataclass
class Row:
    """What was measured of one contestant; times are seconds a unit, memory is MB."""

    name: str
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    found: dict[str, list[float]] = field(default_factory=dict)
    peak_memory: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None
    absent: bool = False  # a peer that is not installed, or has no part in this work: no fault of the race


class NotHere(Exception):
    """A contestant has no part in a race."""


CONTESTANTS: dict[str, Contestant] = {}


def contestant(
    name: str, *, peer: bool = False, reference: bool = False
) -> Callable[[Callable[[SimpleNamespace], Round]], Callable[[SimpleNamespace], Round]]:
    """Enter a function in the race under a name."""

    def enter(prepare: Callable[[SimpleNamespace], Round]) -> Callable[[SimpleNamespace], Round]:
        CONTESTANTS[name] = Contestant(name, prepare, peer, reference)
        return prepare

    return enter


# ---- the worker's side: one contestant, told what to do over a pipe


def rounds_of_fit(model: Any, batches: Sequence[Any]) -> Round:
    """Rounds of Keras' `fit` over batches that are at hand, as a loader gives them; counts steps."""
    import torch

    class Repeated(torch.utils.data.DataLoader):
        def __iter__(self) -> Any:
            return iter(batches)

        def __len__(self) -> int:
            return len(batches)

    loader = Repeated(torch.utils.data.TensorDataset(torch.zeros(len(batches))), batch_size=1)

    def one_round() -> float:
        model.fit(loader, epochs=1, shuffle=False, verbose=0)
        return len(batches)

    return one_round


def synchronize() -> None:
    """Wait for the GPU, where torch is loaded and has one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> float:
    """Most memory held so far, in MB: of the GPU where there is one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def timed(one_round: Round) -> dict[str, Any]:
    """Seconds of wall and process CPU time a unit, and what the round found."""
    synchronize()
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = one_round()
    synchronize()
    seconds = time.perf_counter() - wall, cpu_seconds() - cpu
    units, found = result if isinstance(result, tuple) else (result, {})
    return {"wall": seconds[0] / units, "cpu": seconds[1] / units, "found": found}


def loaded_versions() -> dict[str, str]:
    """Versions of the packages that this contestant has loaded."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        module = sys.modules.get({"pillow": "PIL"}.get(name, name))
        if module is not None:
            try:
                found[name] = str(getattr(module, "__version__", None) or metadata.version(name))
            except metadata.PackageNotFoundError:
                found[name] = "unknown"
    return found


def work(name: str, settings: dict[str, Any], threads: int) -> None:
    """Prepare one contestant, then do a round for each line that comes in."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        one_round = CONTESTANTS[name].prepare(SimpleNamespace(**settings))
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        print(json.dumps({"versions": loaded_versions()}), file=answers)
    except Exception as error:
        absent = isinstance(error, NotHere | (ModuleNotFoundError if CONTESTANTS[name].peer else NotHere))
        said = f"{type(error).__name__}: {error}"
        print(json.dumps({"skipped": said, "absent": absent}), file=answers)
        raise
    for _ in sys.stdin:
        print(json.dumps(timed(one_round) | {"peak_memory": peak_memory()}), file=answers)


# ---- the driver's side


class Worker:
    """The process of one contestant."""

    def __init__(self, entry: Contestant, options: argparse.Namespace, settings: dict[str, Any]) -> None:
        self.row = Row(entry.name)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(options.threads),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "KERAS_BACKEND": "torch",
        }
        task = json.dumps({"name": entry.name, "settings": settings, "threads": options.threads})
        self.process = subprocess.Popen(
            [interpreter_of(entry, options.peers), sys.argv[0], "--work", task],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            text=True,
        )

    def wait(self) -> None:
        """Until the contestant is prepared; all of them prepare at the same time."""
        answer = self._answer()
        self.row.skipped = answer.get("skipped")
        self.row.absent = answer.get("absent", False)
        self.row.versions = answer.get("versions", {})

    @property
    def running(self) -> bool:
        return self.row.skipped is None

    def round(self, *, keep: bool) -> None:
        """One round; a contestant that dies in it is out of the race."""
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.row.skipped = answer.get("skipped")
        self.row.peak_memory = answer.get("peak_memory")
        if keep and self.row.skipped is None:
            self.row.wall.append(answer["wall"])
            self.row.cpu.append(answer["cpu"])
            for name, value in answer["found"].items():
                self.row.found.setdefault(name, []).append(value)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"skipped": "its process died (see --verbose)"}


def interpreter_of(entry: Contestant, peers: str | None) -> str:
    """The Python that a contestant runs on: peers have their own where `--peers` names it."""
    return str(Path(peers) / "bin" / "python") if entry.peer and peers else sys.executable


def race(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """All contestants, round by round, in a shuffled order that is the same each time."""
    if options.alone:
        return [alone(entry, options, settings) for entry in chosen(options.only)]
    order = random.Random(0)
    workers = [Worker(entry, options, settings) for entry in chosen(options.only)]
    for worker in workers:
        worker.wait()
    for number in range(options.warmup + options.rounds):
        order.shuffle(running := [worker for worker in workers if worker.running])
        for worker in running:
            worker.round(keep=number >= options.warmup)
    for worker in workers:
        worker.close()
    return [worker.row for worker in workers]


def alone(entry: Contestant, options: argparse.Namespace, settings: dict[str, Any]) -> Row:
    """All rounds of one contestant, which is gone before the next one begins; written down at once."""
    worker = Worker(entry, options, settings)
    worker.wait()
    for number in range(options.warmup + options.rounds):
        if worker.running:
            worker.round(keep=number >= options.warmup)
    worker.close()
    write(options, {"settings": settings, "row": asdict(worker.row), "machine": machine()})
    return worker.row


def write(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """A line more in the JSON file."""
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps(record) + "\n")


def write_figures(
    options: argparse.Namespace,
    title: str,
    figures: dict[str, Any],
    *,
    heads: Sequence[str] = ("",),
    **settings: Any,
) -> dict[str, Any]:
    """The record of a script without contestants, appended to the JSON file.

    Args:
        options: with `json` and `rounds`.
        title: of the table.
        figures: a text by name, or several, one a column.
        heads: of the columns.
        **settings: by which `pages.py` tells one record from another.
    """
    record = {
        "title": title,
        "day": time.strftime("%Y-%m-%d"),
        "rounds": options.rounds,
        "threads": sys.modules["torch"].get_num_threads(),
        "machine": machine(),
        "versions": loaded_versions(),
        "settings": settings,
        "heads": list(heads),
        "figures": figures,
    }
    write(options, record)
    return record


def chosen(only: Sequence[str] | None) -> list[Contestant]:
    """All contestants, or those whose name holds one of the given words."""
    return [c for c in CONTESTANTS.values() if not only or any(word in c.name for word in only)]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": gpu_name(),
    }


def cpu_seconds() -> float:
    """CPU time of this process so far, and of the processes that it started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def gpu_name() -> str | None:
    """The first GPU's name, asked of nvidia-smi so that the driver need not load torch."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(row: Row, reference: Row | None, clock: str) -> float | None:
    """Median of the round-by-round ratios of times: what foreign load spoils least."""
    mine, theirs = getattr(row, clock), getattr(reference, clock) if reference else []
    pairs = [a / b for a, b in zip(mine, theirs, strict=False)]
    return statistics.median(pairs) if pairs else None


def table(rows: Iterable[Row], reference: Row | None, unit: str) -> str:
    """The rows in Markdown: milliseconds a unit (quartiles), units a second, time against the reference."""
    rows, rival = list(rows), reference.name if reference else "-"
    extras = list(dict.fromkeys(name for row in rows for name in row.found))
    heads = [
        "",
        f"ms {'an' if unit[0] in 'aeiou' else 'a'} {unit} (quartiles)",
        f"{unit}s/s",
        "CPU ms",
        f"wall x {rival}",
        f"CPU x {rival}",
        "peak MB",
    ]
    heads += [f"{name} (range)" for name in extras]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        if not row.wall:
            lines.append(f"| {row.name} | not measured: {row.skipped}{' |' * (len(heads) - 1)}")
            continue
        low, wall, high = quartiles(row.wall)
        against = [f"{value:.2f}" if (value := ratio(row, reference, c)) else "" for c in ("wall", "cpu")]
        lines.append(
            f"| {row.name} | {wall * 1e3:.4g} ({low * 1e3:.4g}-{high * 1e3:.4g}) | {1 / wall:.4g} "
            f"| {statistics.median(row.cpu) * 1e3:.4g} | {against[0]} | {against[1]} "
            f"| {row.peak_memory:.0f} |" + "".join(f" {spread(row.found.get(name, []))} |" for name in extras)
        )
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    if not values:
        return ""
    return f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"


def settings_from(options: argparse.Namespace, defaults: dict[str, Any]) -> dict[str, Any]:
    """The defaults with what `--set name=value` changes, each value read as its default's type."""
    settings = dict(defaults)
    for change in options.set or []:
        name, _, value = change.partition("=")
        if name not in defaults:
            raise SystemExit(f"--set takes {', '.join(defaults)}. Received: {change}")
        kind = type(defaults[name])
        settings[name] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
    return settings


def parser() -> argparse.ArgumentParser:
    """The options of every benchmark."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=7, help="rounds that count")
    options.add_argument("--warmup", type=int, default=2, help="rounds that do not")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument(
        "--peers", default=os.environ.get("KCLF_PEERS"), help="virtual environment of the peers"
    )
    options.add_argument("--only", nargs="*", help="words in the names of the contestants to run")
    options.add_argument("--set", nargs="*", metavar="NAME=VALUE", help="change settings")
    options.add_argument("--alone", action="store_true", help="one contestant after another, not in turn")
    options.add_argument("--json", type=Path, help="append the result to this file, a line of JSON each")
    options.add_argument("--verbose", action="store_true", help="show what the contestants print")
    options.add_argument("--work", help=argparse.SUPPRESS)
    return options


def photos_and_backbone(description: str, out: str) -> argparse.ArgumentParser:
    """The options of scripts that look at a folder of photos through a backbone."""
    options = argparse.ArgumentParser(description=description.splitlines()[0])
    options.add_argument("photos", type=Path)
    options.add_argument("--backbone", default="EfficientNetLite0")
    options.add_argument("--weights", default="imagenet", help="a weights file without top")
    options.add_argument("--out", type=Path, default=Path(out), help="where activations are kept")
    return options


def measure(
    title: str, *, unit: str, settings: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Run the race, print its table, append it to the JSON file; returns the record."""
    rows = race(options, settings)
    winners = {entry.name for entry in CONTESTANTS.values() if entry.reference}
    reference = next((row for row in rows if row.name in winners and row.wall), None)
    text = table(rows, reference, unit)
    record = {
        "title": title,
        "day": time.strftime("%Y-%m-%d"),
        "unit": unit,
        "settings": settings,
        "rounds": options.rounds,
        "threads": options.threads,
        "machine": machine(),
        "reference": reference.name if reference else None,
        "rows": [asdict(row) | {"reference": row.name in winners} for row in rows],
        "table": text,
    }
    named = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"\n### {title}\n\n{named}; {options.rounds} rounds, {options.threads} threads\n\n{text}\n")
    write(options, record)
    return record


def main(title: str, *, unit: str, settings: dict[str, Any]) -> None:
    """The whole of a benchmark script: the driver, or (with --work) one contestant's process."""
    options = parser().parse_args()
    if options.work:
        task = json.loads(options.work)
        work(task["name"], task["settings"], task["threads"])
    else:
        record = measure(title, unit=unit, settings=settings_from(options, settings), options=options)
        missing = [row["name"] for row in record["rows"] if not row["wall"] and not row["absent"]]
        if missing:
            raise SystemExit(f"Not measured: {', '.join(missing)}")
