"""Seconds of CPU that `import kclf` takes after `import keras`, in one interpreter after the other.

    .venv/bin/python tests/import_cost.py --rounds 9

`tests/benchmarks/imports.py` races whole imports; between two of them, of several seconds each, a difference
of a tenth of a second is lost. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

CODE = "import time, keras; start = time.process_time(); import kclf; print(time.process_time() - start)"


def seconds() -> float:
    """Of one fresh interpreter."""
    return float(
        subprocess.run([sys.executable, "-c", CODE], check=True, text=True, capture_output=True).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    found = [seconds() for _ in range(parser.parse_args().rounds)]
    low, median, high = statistics.quantiles(found, n=4)
    print(json.dumps({"median": median, "lower_quartile": low, "upper_quartile": high, "rounds": len(found)}))


if __name__ == "__main__":
    main()
