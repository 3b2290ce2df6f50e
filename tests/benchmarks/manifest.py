"""A table of a million photos: seconds to the first batch, and the memory that it takes.

    .venv/bin/python tests/benchmarks/manifest.py --rows 1000000

The rows name a thousand small files through a thousand links to their folder, under as many labels as asked
for. What is measured is from the call of `ImageData.from_csv` to the first training batch; imports and the
writing of the table come before. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
from PIL import Image

import kclf


def write_table(folder: Path, rows: int, classes: int) -> Path:
    """A thousand photos in as many folders, which are links to one, and a table of them."""
    draw = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(1000):
        image = Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        image.save(folder / "photos" / f"{number:04}.jpg")
    for number in range(-(-rows // 1000)):
        (folder / f"{number:03}").symlink_to("photos")
    table = folder / "labels.csv"
    with table.open("w") as file:
        file.write("id,breed\n")
        file.writelines(
            f"{row // 1000:03}/{row % 1000:04}.jpg,class {row % 1000 % classes:03}\n" for row in range(rows)
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        table = write_table(Path(name), options.rows, options.classes)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        wall, cpu = time.perf_counter(), time.process_time()
        data = kclf.ImageData.from_csv(table, folder=name, size=32, presize=36, batch_size=64)
        images, _ = next(iter(data.train))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        time.sleep(2)  # the batches ahead are read, before their photos go
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"rows": data.train.num_images + data.valid.num_images, "batch": list(images.shape)}
    found |= {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "peak_mb": round(peak)}
    print(json.dumps(found | {"peak_mb_before": round(before)}))


if __name__ == "__main__":
    main()
