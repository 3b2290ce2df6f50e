"""The training step on a GPU for each model, batch and precision that counts: tables and one JSON file.

    python tests/benchmarks/gpu_bench.py                       # on a machine with CUDA
    python tests/benchmarks/gpu_bench.py --device cpu --quick  # the same way through, to see that it runs

Needs torch, keras and this checkout; torchvision, timm and fastai are measured beside where they are
installed (`--peers VENV`). For a machine without network, carry the wheels of keras and of what it needs:
`pip download --dest wheels --only-binary :all: --python-version 3.12 --no-deps keras optree h5py namex rich \
ml-dtypes markdown-it-py mdurl pygments absl-py`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = ("ResNet50", "EfficientNetV2S")
BATCHES = (64, 256)
PRECISIONS = ("mixed_bfloat16", "mixed_float16")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--peers", help="virtual environment with torchvision, timm and fastai")
    parser.add_argument("--json", default="gpu_bench.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one small case, two rounds")
    return parser.parse_args()


def cases(chosen: argparse.Namespace) -> list[dict[str, object]]:
    """The settings of each race."""
    if chosen.quick:
        return [{"model": "ResNet50", "batch": 2, "size": 64, "steps": 1, "precision": "float32"}]
    return [
        {"model": model, "batch": batch, "size": 224, "steps": 20, "precision": precision}
        for model, batch, precision in product(MODELS, BATCHES, PRECISIONS)
    ]


def run(script: str, case: dict[str, object], chosen: argparse.Namespace) -> int:
    """One race, in a process of its own."""
    settings = [f"{name}={value}" for name, value in (case | {"device": chosen.device}).items()]
    rounds = "2" if chosen.quick else str(chosen.rounds)
    command = [sys.executable, str(HERE / script), "--rounds", rounds, "--warmup", "1", "--json", chosen.json]
    command += ["--peers", chosen.peers] if chosen.peers else []
    return subprocess.run([*command, "--set", *settings], check=False).returncode


def main() -> int:
    chosen = options()
    scripts = ("train_step.py", "inference.py")
    return max(run(script, case, chosen) for case in cases(chosen) for script in scripts)


if __name__ == "__main__":
    sys.exit(main())
