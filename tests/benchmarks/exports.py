"""ONNX files of a run beside `kclf.predict`: size, time a photo, accuracy.

    python tests/benchmarks/exports.py RUN [--rounds 5 --photos 200]

RUN is a folder that `kclf train` left. Photos are in memory, at the side that the files take; the candidates
take turns, on one thread; printed are medians of CPU time with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import kclf
from kclf.cli.train import SETTINGS, find_data, first_photos, read_settings
from kclf.prediction.exported import load_onnx

BATCH_SIZE = 32
CALIBRATION = 128


def pixels(photos, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos uint8 (n, side, side, 3) and their labels."""
    batches = list(first_photos(photos, count))
    return tuple(np.concatenate([np.asarray(batch[part]) for batch in batches]) for part in (0, 1))


def seconds_of(classifier, photos: np.ndarray) -> float:
    """CPU seconds a photo."""
    began = time.process_time()
    for start in range(0, len(photos), BATCH_SIZE):
        kclf.predict(classifier, photos[start : start + BATCH_SIZE])
    return (time.process_time() - began) / len(photos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=200)
    words = parser.parse_args()
    torch.set_num_threads(1)
    model, data = kclf.load(words.run / "classifier.h5"), find_data(read_settings(words.run / SETTINGS))
    photos, labels = pixels(data.valid, words.photos)
    calibration, _ = pixels(data.train, CALIBRATION)
    candidates, sizes = {"kclf.predict": model}, {"kclf.predict": words.run / "classifier.h5"}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "fp16", "int8"):
            file = Path(folder) / f"{precision}.onnx"
            given = calibration if precision == "int8" else None
            kclf.to_onnx(model, file, precision=precision, calibration=given)
            candidates[precision], sizes[precision] = load_onnx(file), file
        sizes = {name: file.stat().st_size / 1e6 for name, file in sizes.items()}
    found = {name: kclf.predict(classifier, photos) for name, classifier in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(words.rounds):
        for name, classifier in candidates.items():
            times[name].append(1000 * seconds_of(classifier, photos))
    print(
        f"onnxruntime {onnxruntime.__version__}, {len(photos)} photos, {model.backbone_name}, {model.size} px"
    )
    for name, predictions in found.items():
        row = np.array(times[name])
        scored = kclf.Predictions(predictions.probabilities, labels, class_names=model.class_names)
        difference = np.abs(predictions.probabilities - found["kclf.predict"].probabilities).max()
        print(
            f"{name:13} {sizes[name]:6.1f} MB  {np.median(row):6.1f} ms ({row.min():.1f}-{row.max():.1f})  "
            f"accuracy {scored.accuracy():.4f}  log loss {scored.log_loss():.4f}  difference {difference:.2g}"
        )


if __name__ == "__main__":
    main()
