"""What `accelerate(model, compile=True)` costs at the first training step, and gains at each later one.

    .venv/bin/python tests/benchmarks/compiling.py --set model=ResNet50 batch=8 size=128

torch keeps compiled code on the disk. Here each process compiles anew, unless `--set cache=FOLDER` names a
folder to keep it in: then a second run shows what a later process pays. CPU time counts the C++ compiler.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from types import SimpleNamespace

import harness
from train_step import DEFAULTS, fitting, keras_model


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def first_and_later_steps(settings: SimpleNamespace, *, compiles: bool) -> harness.Round:
    """Rounds of `steps` training steps, each of which tells how long the very first step took."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = settings.cache or tempfile.mkdtemp()
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # workers of torch's own would not be counted
    import torch

    from kclf.acceleration import accelerate

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = accelerate(keras_model(settings), compile=compiles)
    start, cpu = time.perf_counter(), cpu_seconds()
    fitting(SimpleNamespace(**(vars(settings) | {"steps": 1})), model)()
    found = {"first step, s": time.perf_counter() - start, "its CPU s": cpu_seconds() - cpu}
    later = fitting(settings, model)
    return lambda: (later(), found)


@harness.contestant("kclf", reference=True)
def kclf(settings: SimpleNamespace) -> harness.Round:
    return first_and_later_steps(settings, compiles=False)


@harness.contestant("kclf, compile=True")
def kclf_compiled(settings: SimpleNamespace) -> harness.Round:
    return first_and_later_steps(settings, compiles=True)


if __name__ == "__main__":
    harness.main("torch.compile of the plan", unit="step", settings=DEFAULTS | {"cache": ""})
