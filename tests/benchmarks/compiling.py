"""What `accelerate(model, compile=True)` costs at the first training step, and gains at each later one.

    .venv/bin/python tests/benchmarks/compiling.py --set model=ResNet50 batch=8 size=128

torch keeps compiled code on the disk; here each process compiles anew.
"""

from __future__ import annotations

import os
import tempfile
import time
from types import SimpleNamespace

import harness
from train_step import DEFAULTS, fitting, keras_model


def first_and_later_steps(settings: SimpleNamespace, *, compiles: bool) -> harness.Round:
    """Rounds of `steps` training steps, each of which tells how long the very first step took."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    import torch

    from kclf.acceleration import accelerate

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = accelerate(keras_model(settings), compile=compiles)
    start = time.perf_counter()
    fitting(SimpleNamespace(**(vars(settings) | {"steps": 1})), model)()
    found = {"seconds of the first step": time.perf_counter() - start}
    later = fitting(settings, model)
    return lambda: (later(), found)


@harness.contestant("kclf", reference=True)
def kclf(settings: SimpleNamespace) -> harness.Round:
    return first_and_later_steps(settings, compiles=False)


@harness.contestant("kclf, compile=True")
def kclf_compiled(settings: SimpleNamespace) -> harness.Round:
    return first_and_later_steps(settings, compiles=True)


if __name__ == "__main__":
    harness.main("torch.compile of the plan", unit="step", settings=DEFAULTS)
