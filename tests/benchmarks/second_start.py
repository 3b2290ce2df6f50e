"""Seconds from making a second `Learner` on the same photos to its first batch, in new processes or in one.

    .venv/bin/python tests/benchmarks/second_start.py PHOTOS --backbone ResNet50 --weights FILE

PHOTOS holds files named cat.N.jpg and dog.N.jpg. The first start fills the cache of activations and is not
counted; importing kclf and listing the photos are not part of the time. Prints a line for each part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from harness import photos_and_backbone

os.environ.setdefault("KERAS_BACKEND", "torch")


def one_start(options: argparse.Namespace) -> dict[str, float]:
    """Seconds, of the wall clock and of CPU, until the model stands and from there to the first batch."""
    import keras
    import torch

    import kclf
    from kclf.learner import Learner

    if options.threads:
        torch.set_num_threads(options.threads)
    data = kclf.ImageData.from_files(
        sorted(options.photos.glob("*.jpg")), kclf.regex_label(r"(cat|dog)\.\d+"), presize=256
    )
    times = []

    class FirstBatch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            times.append((time.perf_counter(), time.process_time()))
            self.model.stop_training = True

    times.append((time.perf_counter(), time.process_time()))
    learner = Learner(
        data, options.backbone, weights=options.weights, precompute=True, path=options.out, verbose=False
    )
    times.append((time.perf_counter(), time.process_time()))
    learner.fit(1e-2, 1, callbacks=[FirstBatch()])
    start, built, first = times[:3]
    return {
        "model": built[0] - start[0],
        "to_first_batch": first[0] - built[0],
        "seconds": first[0] - start[0],
        "cpu_seconds": first[1] - start[1],
    }


def start_elsewhere(options: argparse.Namespace) -> dict[str, float]:
    """`one_start` in a new process, which has the arguments of this one."""
    run = subprocess.run([sys.executable, *sys.argv, "--once"], check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = photos_and_backbone(__doc__, "second-start")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves it as it is")
    parser.add_argument("--one-process", action="store_true", help="all starts in one, as in a notebook")
    parser.add_argument("--once", action="store_true", help="one start in this process, and no more")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(one_start(options)))
        return
    measured = one_start if options.one_process else start_elsewhere
    found = [measured(options) for _ in range(options.rounds + 1)]
    for what in found[0]:
        low, median, high = statistics.quantiles([start[what] for start in found[1:]], n=4)
        print(json.dumps({what: round(median, 2), "quartiles": [round(low, 2), round(high, 2)]}))


if __name__ == "__main__":
    main()
