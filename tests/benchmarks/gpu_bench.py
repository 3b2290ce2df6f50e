"""The table of a machine with CUDA: the tests of a GPU first, then each race, within the minutes there are.

    make bench-gpu PYTHON=python3                                # all cases, in turn
    make bench-gpu PYTHON=python3 ARGS="--part 2 --json out.json"  # what fits into 9 minutes
    make bench-gpu PYTHON=python3 ARGS="--cases learner-jpeg tta"
    make bench-gpu PYTHON=python3 ARGS="--device cpu --quick"    # the same way through, to see that it runs
    make bench-gpu ARGS=--list

A bare machine (Python 3.12, torch with CUDA, torchvision) needs three wheels more, and kclf's own:

    pip download --dest wheels --only-binary :all: --python-version 3.12 --no-deps keras optree namex
    pip wheel --no-deps --wheel-dir wheels .
    pip install --no-index --no-deps --target carried wheels/*.whl; PYTHONPATH=carried make bench-gpu ...

timm and fastai are rows where they are installed (there, or in `--peers VENV`); a row that is missing for
another reason ends with status 1. A line of JSON is written as soon as a contestant is measured. On a GPU
contestants run one after another, so that each has its memory to itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = [sys.executable, "-m", "pytest", "-m", "gpu", str(HERE.parent / "test_gpu.py")]
PHOTOS = 4096  # enough for some seconds a round


@dataclass(frozen=True)
class Case:
    """One race: a script and its settings; `minutes` is what it is expected to take on one GPU."""

    script: str
    minutes: float
    settings: dict[str, object] = field(default_factory=dict)
    quick: dict[str, object] = field(default_factory=dict)


STEP = {"batch": 2, "size": 64, "steps": 1, "precision": "float32"}
SMALL = {"batch": 2, "keras_batch": 1, "source": 80, "size": 64}
USER = {"photos": 8, "batch": 4, "size": 64, "presize": 80, "precision": "float32"}
SHORT = {"mixed_bfloat16": "bf16", "mixed_float16": "fp16"}


def step(script: str, model: str, batch: int, precision: str) -> Case:
    settings = {"model": model, "batch": batch, "size": 224, "steps": 20, "precision": precision}
    return Case(script, 1.5 if model == "ResNet50" else 2.5, settings, {**STEP, "model": "ResNet50"})


def user(work: str, source: str, minutes: float, **settings: object) -> Case:
    settings = {
        "work": work, "source": source, "photos": PHOTOS, "size": 224, "presize": 256, "batch": 256,
        "precision": "mixed_bfloat16", **settings,
    }  # fmt: skip
    return Case("user_path.py", minutes, settings, {**USER, "work": work, "source": source})


CASES: dict[str, Case] = {
    "tests": Case("", 3.0),
    "step-ResNet50-64-bf16": step("train_step.py", "ResNet50", 64, "mixed_bfloat16"),
    "step-ResNet50-256-bf16": step("train_step.py", "ResNet50", 256, "mixed_bfloat16"),
    "learner-memory": user("fit", "memory", 2.5),
    "learner-jpeg": user("fit", "jpeg", 4.0),
    "predict": user("predict", "jpeg", 2.5),
    "tta": user("tta", "memory", 2.0),
    "precompute": user("precompute", "memory", 1.5),
    "augment": Case("augment.py", 1.0, {"batch": 256}, SMALL),
    "learner-EfficientNetB0": user("fit", "memory", 2.5, model="EfficientNetB0"),
    "learner-fp16": user("fit", "memory", 2.5, precision="mixed_float16"),
    **{
        f"infer-ResNet50-{batch}-bf16": step("inference.py", "ResNet50", batch, "mixed_bfloat16")
        for batch in (64, 256)
    },
    **{
        f"step-{model}-{batch}-{SHORT[precision]}": step("train_step.py", model, batch, precision)
        for model, batch, precision in product(("ResNet50", "EfficientNetV2S"), (64, 256), SHORT)
        if (model, precision) != ("ResNet50", "mixed_bfloat16")
    },
}
LIMIT = 9.0  # minutes of a part


def parts() -> list[list[str]]:
    """The cases in their order, in parts of at most `LIMIT` expected minutes."""
    found: list[list[str]] = [[]]
    for name, case in CASES.items():
        if sum(CASES[one].minutes for one in found[-1]) + case.minutes > LIMIT:
            found.append([])
        found[-1].append(name)
    return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help="those alone")
    parser.add_argument("--part", type=int, choices=range(1, len(parts()) + 1), help="the n-th part alone")
    parser.add_argument("--list", action="store_true", help="print the parts and their expected minutes")
    parser.add_argument("--peers", help="virtual environment with torchvision, timm and fastai")
    parser.add_argument("--json", default="gpu_bench.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small settings, two rounds")
    return parser.parse_args()


def run(name: str, chosen: argparse.Namespace) -> int:
    """One case, in a process of its own; its exit status."""
    case = CASES[name]
    print(f"\n## {name}", flush=True)
    if name == "tests":
        if chosen.device == "cpu":
            print("needs CUDA: left out")
            return 0
        return subprocess.run(TESTS, check=False).returncode
    settings = (case.quick if chosen.quick else case.settings) | {"device": chosen.device}
    words = [f"{key}={value}" for key, value in settings.items()]
    rounds = "2" if chosen.quick else str(chosen.rounds)
    command = [sys.executable, str(HERE / case.script), "--rounds", rounds, "--warmup", "1"]
    command += ["--json", chosen.json, "--alone", *(["--peers", chosen.peers] if chosen.peers else [])]
    return subprocess.run([*command, "--set", *words], check=False).returncode


def main() -> int:
    chosen = options()
    if chosen.list:
        for number, part in enumerate(parts(), 1):
            minutes = sum(CASES[name].minutes for name in part)
            print(f"part {number}, about {minutes:g} minutes: {' '.join(part)}")
        return 0
    names = chosen.cases or (parts()[chosen.part - 1] if chosen.part else list(CASES))
    failed = []
    for name in names:
        start = time.monotonic()
        if run(name, chosen):
            failed.append(name)
        print(f"{name}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    if failed:
        print(f"Not whole: {' '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
