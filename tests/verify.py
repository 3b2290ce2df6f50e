"""What kclf promises, measured on this machine: `make verify` prints what was asked, what came, and how.

    .venv/bin/python tests/verify.py                      # everything: hours
    .venv/bin/python tests/verify.py --only layers loader # claims whose name holds one of these words
    .venv/bin/python tests/verify.py --list               # the claims, without running them

Each claim names a command and how to read its output. The same command is run once for all its claims.

What a command left is kept in build/verify, so that a table of hours can be made in parts: a command runs
again only when the package or the tests beside it have changed, or when `--anew` asks for it. `--shown` runs
nothing.
Photos, weights and the peers' environment are looked for where KCLF_DOGSCATS, KCLF_PETS, KCLF_WEIGHTS and
KCLF_PEERS point; a claim whose command needs what is not there is a row that says so.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import operator
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "verify"
SHARED = ROOT.parent / "shared"
PLACES = {
    "DOGSCATS": Path(os.environ.get("KCLF_DOGSCATS", SHARED / "data" / "dogscats")),
    "PETS": Path(os.environ.get("KCLF_PETS", SHARED / "data" / "pets")),
    "WEIGHTS": Path(os.environ.get("KCLF_WEIGHTS", "/tmp/kclf-weights")),
    "PEERS": Path(os.environ.get("KCLF_PEERS", "/tmp/peers")),
}
MOBILENET = "{WEIGHTS}/mobilenet_v2_1.0_224_no_top.weights.h5"
RESNET = "{WEIGHTS}/resnet50_no_top.weights.h5"


@dataclass(frozen=True)
class Outcome:
    """What a command left.

    Args:
        status: exit status.
        text: what it printed.
        complaints: what it wrote to the standard error.
        minutes: that it took.
        day: when it ended, as 2026-01-31.
        out: the folder of `{OUT}`.
    """

    status: int
    text: str
    complaints: str
    minutes: float
    day: str
    out: Path

    def records(self) -> list[dict]:
        """The tables of a benchmark."""
        return [json.loads(line) for line in (self.out / "result.json").read_text().splitlines()]

    def last_line(self) -> dict:
        """The JSON object in the last line."""
        return json.loads(self.text.strip().splitlines()[-1])


@dataclass(frozen=True)
class Found:
    """A figure, and whether it is what was asked; None where there was nothing to ask of it."""

    figure: str
    holds: bool | None


@dataclass(frozen=True)
class Claim:
    """One thing asked, the command that shows it, and how to read the figure from what it leaves.

    `{OUT}` in a word of the command is an empty folder; `{DOGSCATS}`, `{PETS}`, `{WEIGHTS}` and `{PEERS}` are
    places outside of the project.
    """

    name: str
    asked: str
    command: tuple[str, ...]
    read: Callable[[Outcome], Found]


# ---- ways to read a figure ------------------------------------------------------------


def passed(outcome: Outcome) -> Found:
    """Of a pytest run: how many tests passed, failed and were left out."""
    counts = ElementTree.parse(outcome.out / "junit.xml").getroot().find("testsuite")
    total, left_out = int(counts.get("tests")), int(counts.get("skipped"))
    failed = int(counts.get("failures")) + int(counts.get("errors"))
    figure = f"{total - failed - left_out} passed, {failed} failed, {left_out} left out"
    return Found(figure, failed == 0 and total > left_out)


def went_well(outcome: Outcome) -> Found:
    return Found(f"exit status {outcome.status}", outcome.status == 0)


def identical(outcome: Outcome) -> Found:
    """Of kills: how many runs ended bit for bit as one that was left alone, and the most that one lost."""
    last = outcome.last_line()
    lost = last["most_intervals_lost"]
    figure = (
        f"{last['kills']} killed, {last['identical']} of {last['runs']} runs identical, {lost} intervals lost"
    )
    return Found(figure, outcome.status == 0 and lost <= 1)


def figure(
    name: str, asked: str, command: tuple[str, ...], find: Callable[[Outcome], float], form: str = "{:.4f}"
) -> Claim:
    """A claim of one number, asked as in "<= 1.05"."""
    sign, bound = asked.split()
    holds = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}[sign]
    return Claim(
        name,
        asked,
        command,
        lambda outcome: Found(form.format(value := find(outcome)), holds(value, float(bound))),
    )


def rounds(outcome: Outcome, name: str, what: str = "wall") -> list[float]:
    """Of a contestant of a benchmark: seconds a unit in each round, or its peak memory."""
    rows = {row["name"]: row for record in outcome.records() for row in record["rows"]}
    if not rows[name][what]:
        raise LookupError(f"{name}: {rows[name]['skipped']}")
    found = rows[name][what]
    return found if isinstance(found, list) else [found]


def pairs(outcome: Outcome, one: str, other: str, what: str) -> Iterator[tuple[float, float]]:
    """Two contestants round by round: what foreign load spoils least."""
    return zip(rounds(outcome, one, what), rounds(outcome, other, what), strict=True)


def times(slower: str, faster: str, what: str = "wall") -> Callable[[Outcome], float]:
    """How many times longer one contestant takes than another, or how much more memory."""
    return lambda outcome: statistics.median(a / b for a, b in pairs(outcome, slower, faster, what))


def over(slower: str, faster: str, what: str = "wall") -> Callable[[Outcome], float]:
    """How many seconds longer one contestant takes than another."""
    return lambda outcome: statistics.median(a - b for a, b in pairs(outcome, slower, faster, what))


def printed(pattern: str) -> Callable[[Outcome], float]:
    """The mean of the numbers that a pattern finds in what was printed."""

    def find(outcome: Outcome) -> float:
        found = [float(number) for number in re.findall(pattern, outcome.text)]
        if not found:
            raise LookupError(f"nothing printed looks like {pattern}")
        return statistics.mean(found)

    return find


def step(name: str) -> Callable[[Outcome], float]:
    """Mean accuracy over the seeds after one of the eight steps."""

    def find(outcome: Outcome) -> float:
        runs = json.loads((outcome.out / "result.json").read_text())["runs"].values()
        return statistics.mean(
            row["accuracy"] for rows in runs for row in rows if row["step"].startswith(name)
        )

    return find


# ---- ways to make a command ------------------------------------------------------------


def suite(*chosen: str, heavy: bool = True, only: str = "") -> tuple[str, ...]:
    marks = "" if heavy else "not heavy"
    words = ("-k", only) if only else ()
    return (
        "-m",
        "pytest",
        *chosen,
        "-m",
        marks,
        *words,
        "-p",
        "no:cacheprovider",
        "--junitxml",
        "{OUT}/junit.xml",
    )


def script(path: str, *arguments: str) -> tuple[str, ...]:
    return (f"tests/{path}", *arguments)


def race(name: str, *arguments: str, peers: bool = True) -> tuple[str, ...]:
    extra = ("--peers", "{PEERS}") if peers else ()
    return script(
        f"benchmarks/{name}.py", "--threads", "2", "--json", "{OUT}/result.json", *extra, *arguments
    )


def train_step(model: str) -> tuple[str, ...]:
    return race("train_step", "--rounds", "9", "--set", f"model={model}")


DEMO = ("-m", "kclf", "demo", "--out", "{OUT}/run")
LOADER = race("loader", "--rounds", "5", "--set", "folder={DOGSCATS}")
AUGMENT = race("augment", "--rounds", "9")
INFERENCE = race("inference", "--rounds", "5")
EIGHT = ("{DOGSCATS}", "--no-range-tests", "--out", "{OUT}/run", "--json", "{OUT}/result.json")
COURSE_NORM = ("--batchnorm", "frozen")  # the policy that the course's rates were found with
RESNET_STEPS = script(
    "benchmarks/eight_steps.py", *EIGHT, *COURSE_NORM, "--backbone", "ResNet50", "--weights", RESNET
)
RESNET_LAST = script(
    "benchmarks/eight_steps.py", *EIGHT, "--split", "last", "--backbone", "ResNet50", "--weights", RESNET
)
RESNET_HEADS = (*RESNET_STEPS, "--last-step", "3", "--seeds", *(str(seed) for seed in range(20)))
LITE_STEPS = script("benchmarks/eight_steps.py", *EIGHT, "--seeds", "0", "1", "2")
WALK = ("-m", "kclf", "train", "{DOGSCATS}", "--label-regex", r"(cat|dog)\.\d+", "--backbone", "MobileNetV2")
TEXTS = ("settings", "table", "labels", "ledger", "columns", "predictions")
BINARIES = ("sealed", "checkpoints", "keras_weights", "torch_weights", "cache")

CLAIMS = [
    figure("demo: accuracy", ">= .95", DEMO, printed(r"accuracy +(?:on validation )?(\.\d+|0\.\d+)")),
    figure(
        "train: dogs and cats, MobileNetV2 at 160 px",
        ">= .97",
        (*WALK, "--weights", MOBILENET, "--size", "160", "--seed", "0", "--out", "{OUT}/run"),
        printed(r"[Aa]ccuracy[^.0-9]*(0?\.\d+)"),
    ),
    Claim(
        "backbones: every application", "all build, split, freeze", suite("tests/test_backbones.py"), passed
    ),
    figure(
        "loader: fastai's time / kclf's",
        ">= 5",
        LOADER,
        times("augment: fastai, no workers", "augment: kclf"),
        "{:.1f}x",
    ),
    figure(
        "loader: the same from the presized cache",
        ">= 12",
        LOADER,
        times("augment: fastai, no workers", "augment: kclf from its cache"),
        "{:.1f}x",
    ),
    figure(
        "loader: Pillow + DataLoader's time / kclf's",
        ">= 1.5",
        LOADER,
        times("presize: Pillow + DataLoader, 2 workers", "presize: kclf"),
        "{:.1f}x",
    ),
    Claim(
        "data: files, splits, labels, broken photos, order",
        "tests",
        suite("tests/test_files.py", "tests/test_images.py", "tests/test_data.py", "tests/test_datasets.py"),
        passed,
    ),
    figure(
        "layers: fastai's time / kclf's",
        ">= 8",
        AUGMENT,
        times("fastai aug_transforms", "kclf aug_transforms"),
        "{:.1f}x",
    ),
    figure(
        "layers: Keras' time / kclf's",
        ">= 60",
        AUGMENT,
        times("Keras layers", "kclf aug_transforms"),
        "{:.0f}x",
    ),
    Claim("layers: goldens, identities, contracts", "tests", suite("tests", only="test_layers"), passed),
    Claim(
        "training: optimizers beside torch, files in the middle of a cycle",
        "<= 1e-5; bit-exact",
        suite("tests/test_optimizers.py", "tests/test_optimizers_saving.py"),
        passed,
    ),
    Claim(
        "training: schedules, range test, callbacks",
        "goldens to 1e-6; no bit changed",
        suite("tests/test_schedules.py", "tests", only="test_schedules or test_callbacks"),
        passed,
    ),
    figure(
        "training: an update's time / torch foreach's",
        "<= 1",
        race("optimizer", "--set", "kind=adamw", "scale=overhead", peers=False),
        times("kclf LayerGroupOptimizer", "torch foreach", "cpu"),
        "{:.2f}x",
    ),
    figure(
        "speed: ResNet50 step / torch's",
        "<= 1.00",
        train_step("ResNet50"),
        times("kclf", "torch channels_last"),
        "{:.2f}x",
    ),
    figure(
        "speed: its peak memory / torch's",
        "<= 1.1",
        train_step("ResNet50"),
        times("kclf", "torch channels_last", "peak_memory"),
        "{:.2f}x",
    ),
    figure(
        "speed: EfficientNetB0 step / torch's",
        "<= 1.05",
        train_step("EfficientNetB0"),
        times("kclf", "torch channels_last"),
        "{:.2f}x",
    ),
    figure(
        "speed: MobileNetV2 step / torch's",
        "<= 1.05",
        train_step("MobileNetV2"),
        times("kclf", "torch channels_last"),
        "{:.2f}x",
    ),
    figure(
        "speed: torch's prediction / kclf's",
        ">= 1.15",
        INFERENCE,
        times("torch channels_last", "kclf"),
        "{:.2f}x",
    ),
    figure(
        "speed: ms over torch, a step of two layers",
        "<= .25",
        race("overhead", "--rounds", "25", peers=False),
        lambda o: 1e3 * over("kclf", "torch")(o),
        "{:.2f} ms",
    ),
    Claim(
        "speed: equality with stock Keras, waits for the device",
        "1e-5; 0",
        suite("tests", only="test_acceleration or test_precision or test_gpu"),
        passed,
    ),
    figure("learner: ResNet50, precompute, 2 epochs", ">= .990", RESNET_STEPS, step("precompute")),
    figure("learner: the same, mean of 20 seeds", ">= .990", RESNET_HEADS, step("precompute")),
    figure(
        "learner: ResNet50, eight steps with TTA, the last 200 photos of each class",
        ">= .995",
        RESNET_LAST,
        step("with TTA"),
    ),
    figure("learner: the same, 400 drawn photos", ">= .995", RESNET_STEPS, step("with TTA")),
    figure(
        "learner: EfficientNetLite0, eight steps with TTA, 3 seeds", ">= .990", LITE_STEPS, step("with TTA")
    ),
    figure(
        "learner: head on activations / through the backbone",
        ">= 100",
        race("precompute", "--rounds", "3", "--set", "photos=64", peers=False),
        times("through the backbone", "on cached activations"),
        "{:.0f}x",
    ),
    Claim(
        "learner: course scripts, snapshots, stale activations",
        "tests",
        suite(
            "tests/test_learner.py",
            "tests/test_course.py",
            "tests/test_activations.py",
            "tests/test_ensembles.py",
        ),
        passed,
    ),
    Claim(
        "looking inside: report, checks, interpretation",
        "tests",
        suite("tests", only="test_report or test_checks or test_interpret or test_doctor"),
        passed,
    ),
    Claim(
        "files: torch and Keras weights, damage, export",
        "1e-4; refused or equal",
        suite("tests", only="test_weights or test_file_format or test_export or test_storage"),
        passed,
    ),
    Claim(
        "nothing lost: 60 kills",
        "60 bit-identical",
        script("reliability/kills.py", "--kills", "60"),
        identical,
    ),
    Claim(
        "nothing lost: 40 kills with a torn file",
        "40 end; one interval lost at most",
        script("reliability/kills.py", "--kills", "40", "--tear"),
        identical,
    ),
    Claim(
        "nothing lost: 10,000 damaged photos",
        "no crash",
        script("reliability/fuzz.py", "images", "--count", "10000"),
        lambda o: Found(", ".join(f"{k} {v}" for k, v in o.last_line().items()), o.status == 0),
    ),
    *(
        Claim(
            f"nothing lost: ten minutes of damaged {parser}",
            "nothing found",
            script("reliability/fuzz.py", parser, "--seconds", "600"),
            lambda o: Found(
                f"{o.last_line()['files']} files, {len(o.last_line()['failures'])} failures",
                not o.last_line()["failures"],
            ),
        )
        for parser in (*TEXTS, *BINARIES)
    ),
    Claim(
        "nothing lost: soak of 20 minutes, MB an hour",
        "within noise",
        script("reliability/soak.py", "--minutes", "20"),
        lambda o: Found("{} +- {} in use".format(*o.last_line()["slope_in_use_mb_per_hour"]), None),
    ),
    Claim(
        "nothing lost: memory, NaN, full disk, locks",
        "tests",
        suite("tests/reliability", "tests/test_atomic.py", "tests/test_locks.py", heavy=False),
        passed,
    ),
    Claim(
        "many GPUs: 2 and 4 processes as one, a killed rank, one that fails",
        "<= 1e-5; bit-identical",
        suite("tests/test_distributed.py", "tests/test_shards.py"),
        passed,
    ),
    figure(
        "many GPUs: seconds to the first batch of a million rows",
        "< 10",
        script("benchmarks/manifest.py"),
        lambda o: o.last_line()["wall_s"],
        "{:.1f} s",
    ),
    figure(
        "many GPUs: MB that it takes",
        "< 1000",
        script("benchmarks/manifest.py"),
        lambda o: o.last_line()["peak_mb"],
        "{:.0f} MB",
    ),
    Claim("recipes: all in small mode", "10 minutes", ("recipes/run.py", "--small"), went_well),
    Claim(
        "docs: every block runs, every name is documented",
        "tests",
        suite("tests/test_docs.py", "tests/test_house.py"),
        passed,
    ),
    figure(
        "house: seconds of CPU that import kclf takes after import keras",
        "<= .3",
        script("import_cost.py"),
        lambda o: o.last_line()["median"],
        "{:.2f} s",
    ),
]


# ---- running them ------------------------------------------------------------


def missing(command: tuple[str, ...]) -> list[str]:
    """Places outside of the project that a command needs and that are not there."""
    named = {name for word in command for name in PLACES if f"{{{name}}}" in word}
    return sorted(str(PLACES[name]) for name in named if not PLACES[name].exists())


@functools.cache
def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    here = Path(__file__).resolve()  # left out: it only reads what the others leave
    files = sorted(f for f in path.rglob("*") if f.is_file() and f != here and "__pycache__" not in f.parts)
    named = (f"{file.relative_to(path)} {digest_of(file)}\n" for file in files)
    return hashlib.sha256("".join(named).encode()).hexdigest()


def folder_of(command: tuple[str, ...]) -> Path:
    """Where the outcome of a command is kept: another place once the package or its tests have changed.

    Of the tests that is all of them for a run of pytest, and for a script the folder it lies in.
    """
    sources = [ROOT / "kclf"]
    if "pytest" in command:
        sources.append(ROOT / "tests")
    elif command[0].endswith(".py"):
        sources.append((ROOT / command[0]).parent)
    parts = [*command, *(digest_of(folder) for folder in sources)]
    return KEPT / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def kept(command: tuple[str, ...]) -> Outcome | None:
    """What the command left when it was last run on these sources; None where it was not."""
    ended = folder_of(command) / "ended.json"
    return Outcome(**json.loads(ended.read_text()), out=ended.parent / "out") if ended.exists() else None


def run(command: tuple[str, ...]) -> Outcome:
    """Run a command of Python's, and keep what it leaves. One of the eight steps that was cut off goes on."""
    folder = folder_of(command)
    out = folder / "out"
    cut_off = folder.exists() and not (folder / "ended.json").exists()
    if not (cut_off and command in (RESNET_STEPS, RESNET_LAST, LITE_STEPS)):
        shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    places = {name: str(path) for name, path in PLACES.items()} | {"OUT": str(out)}
    words = [re.sub(r"\{([A-Z]+)\}", lambda match: places[match[1]], word) for word in command]
    known = {f"KCLF_{name}": str(path) for name, path in PLACES.items() if path.exists()}
    environment = os.environ | known | {"PYTHONPATH": str(ROOT), "KERAS_BACKEND": "torch"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # imports are measured as users have them
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
    )
    ended = {
        "status": done.returncode,
        "text": done.stdout,
        "complaints": done.stderr,
        "minutes": (time.perf_counter() - start) / 60,
        "day": time.strftime("%Y-%m-%d"),
    }
    (folder / "ended.json").write_text(json.dumps(ended))
    return Outcome(**ended, out=out)


def judge(claim: Claim, outcome: Outcome) -> Found:
    """Read the figure of a claim from what its command left."""
    try:
        return claim.read(outcome)
    except (LookupError, OSError, ValueError, ElementTree.ParseError) as error:
        last = (outcome.complaints.strip().splitlines() or ["nothing said"])[-1]
        return Found(f"exit status {outcome.status}, no figure ({error}): {last[:120]}", False)


def row(claim: Claim, found: Found, outcome: Outcome | None) -> str:
    holds = {True: "yes", False: "**no**", None: "-"}[found.holds]
    ran = f"{outcome.minutes:.1f} | {outcome.day}" if outcome else " | "
    how = "python " + " ".join(claim.command)
    return f"| {claim.name} | {claim.asked} | {found.figure} | {holds} | {ran} | `{how}` |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="words in the names of the claims")
    parser.add_argument("--list", action="store_true", help="print the claims and their commands")
    parser.add_argument("--shown", action="store_true", help="print what is known already and run nothing")
    parser.add_argument("--anew", action="store_true", help="run every command again")
    options = parser.parse_args()
    chosen = [claim for claim in CLAIMS if any(word in claim.name for word in options.only)]
    print("| what | asked | measured | holds | minutes | on | how |\n|---|---|---|---|---|---|---|")
    all_hold, fresh = True, set()
    for claim in chosen:
        outcome = None if options.list else kept(claim.command)
        if options.list:
            found = Found("", None)
        elif absent := missing(claim.command):
            found = Found(f"not run: no {', '.join(absent)}", None)
        elif outcome is None and options.shown:
            found = Found("not run yet", None)
        else:
            if outcome is None or (options.anew and claim.command not in fresh):
                outcome = run(claim.command)
                fresh.add(claim.command)
            found = judge(claim, outcome)
        print(row(claim, found, outcome), flush=True)
        all_hold = all_hold and found.holds is not False
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
