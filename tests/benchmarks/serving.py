"""`kclf serve` under load: requests a second from many clients beside `kclf predict` on the same photos.

    python tests/benchmarks/serving.py PHOTOS [--requests 1000 --clients 16 --backbone EfficientNetLite0]

Prints images/s of both, their ratio, latencies, errors, and the server's memory before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import harness
import numpy as np

import kclf


def memory_of(pid: int) -> float:
    """Resident memory of a process, MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def cpu_of(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(classifier: Path, port: int) -> subprocess.Popen:
    """A server that answers."""
    server = subprocess.Popen([sys.executable, "-m", "kclf", "serve", str(classifier), "--port", str(port)])
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
            return server
        except urllib.error.URLError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def load(port: int, contents: list[bytes], requests: int, clients: int) -> tuple[float, np.ndarray, int]:
    """Seconds, latencies and errors of so many requests."""
    numbers, lock = iter(range(requests)), threading.Lock()
    latencies: list[float] = []
    errors: list[str] = []

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict",
                contents[number % len(contents)],
                {"Content-Type": "image/jpeg"},
            )
            began = time.perf_counter()
            try:
                urllib.request.urlopen(request).read()
            except urllib.error.URLError as error:
                errors.append(str(error))
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, np.array(latencies), len(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--backbone", default="EfficientNetLite0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--json", type=Path, help="append the record to this file, as a line of JSON")
    words = parser.parse_args()
    files = sorted(words.photos.rglob("*.jpg"))[: words.requests]
    contents = [file.read_bytes() for file in files]
    with tempfile.TemporaryDirectory() as folder:
        classifier = Path(folder) / "classifier.h5"
        kclf.ImageClassifier(words.backbone, ["cat", "dog"]).save(classifier)
        server = start(classifier, words.port)
        model = kclf.load(classifier)
        kclf.predict_files(model, files[:64])
        load(words.port, contents, 64, words.clients)
        memory, rows = [round(memory_of(server.pid))], []
        for _ in range(words.rounds):
            cpu = cpu_of(server.pid)
            seconds, latencies, errors = load(words.port, contents, words.requests, words.clients)
            served = cpu_of(server.pid) - cpu
            began, cpu = time.perf_counter(), time.process_time()
            for part in range(0, words.requests, len(files)):
                kclf.predict_files(model, files[: words.requests - part])
            spent = time.perf_counter() - began, time.process_time() - cpu
            rows.append((seconds, served, *spent, latencies, errors))
            memory.append(round(memory_of(server.pid)))
        server.terminate()
        server.wait()
    settings = {"requests": words.requests, "clients": words.clients, "backbone": words.backbone}
    told = figures(words.requests, rows, memory)
    print(json.dumps(harness.write_figures(words, "Requests to a server", told, **settings), indent=2))


def figures(requests: int, rows: list[tuple], memory: list[int]) -> dict[str, str]:
    """What is told of the rounds: medians, and quantiles of all latencies."""
    pick = lambda place: float(np.median([row[place] for row in rows]))  # noqa: E731
    latencies = 1000 * np.concatenate([row[4] for row in rows])
    return {
        "images/s, serve": f"{requests / pick(0):.1f}",
        "images/s, predict": f"{requests / pick(2):.1f}",
        "share of predict's images/s": f"{pick(2) / pick(0):.2f}".removeprefix("0"),
        "CPU ms an image, serve": f"{1000 * pick(1) / requests:.1f}",
        "CPU ms an image, predict": f"{1000 * pick(3) / requests:.1f}",
        "latency p50, p99, ms": ", ".join(f"{np.quantile(latencies, part):.0f}" for part in (0.5, 0.99)),
        "errors": str(sum(row[5] for row in rows)),
        "memory after each round, MB": ", ".join(map(str, memory)),
    }


if __name__ == "__main__":
    main()
