"""How many photos a second 1, 2, 4 ... processes train on, and what share of that is lost to waiting.

    python tests/benchmarks/scaling.py --processes 1 2 4 8                   # on a machine with 8 GPUs
    python tests/benchmarks/scaling.py --processes 1 2 --model MobileNetV2 --size 64 --batch 8 --steps 4

The batch is that of one process: all together train on `processes` times as many photos ("weak scaling").
Photos are in memory, so that neither disk nor decoding counts. Each row is the median of the steps after the
first ones; `update` is what the averaging of gradients takes when it is done alone, as often as there were
steps. On a CPU the processes share the cores that there are: only the share of `update` says something there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", default="ResNet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64, help="photos of each process")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--json", type=Path, default=Path("scaling.json"))
    return parser.parse_args()


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """What one of the processes does."""
    import numpy as np
    import torch

    import kclf
    from kclf import distributed

    ranks, steps = distributed.world_size(), chosen.warmup + chosen.steps
    photos = np.zeros((chosen.batch * ranks, chosen.size, chosen.size, 3), np.uint8)
    classes = np.arange(len(photos)) % 2
    data = kclf.ImageDataset(
        photos, classes, class_names=["a", "b"], presize=chosen.size, batch_size=len(photos)
    )
    model = kclf.ImageClassifier(
        chosen.model, data.class_names, size=chosen.size, weights=None, dtype=chosen.precision
    )
    model.unfreeze()
    model.compile(kclf.LayerGroupOptimizer("adamw", model))

    seconds = [time_of(lambda: model.fit(data, epochs=1, verbose=0, shuffle=False)) for _ in range(steps)]
    gradients = [torch.zeros_like(variable.value) for variable in model.trainable_variables]
    updates = [time_of(lambda: distributed.average(gradients)) for _ in range(steps)]
    step, update = (float(np.median(times[chosen.warmup :])) for times in (seconds, updates))
    return {
        "processes": ranks,
        "photos a second": round(len(photos) / step, 1),
        "step ms": round(1e3 * step, 1),
        "update ms": round(1e3 * update, 1),
        "gradient MB": round(sum(gradient.nbytes for gradient in gradients) / 1e6, 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }


def time_of(work: Any) -> float:
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else int
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def main() -> None:
    chosen = options()
    if "RANK" in os.environ:
        row = measure(chosen)
        if os.environ["RANK"] == "0":
            chosen.json.write_text(json.dumps(row))
        return
    rows = []
    for processes in chosen.processes:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        subprocess.run([*launcher, f"--nproc-per-node={processes}", *sys.argv], check=True)
        rows.append(json.loads(chosen.json.read_text()))
        alone = rows[0]["photos a second"] / rows[0]["processes"]
        rows[-1]["efficiency"] = round(rows[-1]["photos a second"] / processes / alone, 3)
        print(rows[-1], flush=True)
    chosen.json.write_text(json.dumps({"options": vars(chosen) | {"json": str(chosen.json)}, "rows": rows}))


if __name__ == "__main__":
    main()
