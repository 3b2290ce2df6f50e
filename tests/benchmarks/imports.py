"""How long `import` takes in a fresh interpreter: kclf, keras on torch, torch, and peers."""

from __future__ import annotations

import subprocess
import sys

import harness


def importing(module):
    """A contestant that starts an interpreter and imports one module."""

    def prepare(settings):
        code = f"import {module}"
        subprocess.run([sys.executable, "-c", code], check=True)

        def one_round():
            subprocess.run([sys.executable, "-c", code], check=True)
            return 1

        return one_round

    return prepare


for name, peer in (
    ("torch", False),
    ("keras", False),
    ("kclf", False),
    ("timm", True),
    ("fastai.vision.all", True),
):
    harness.contestant(name, peer=peer, reference=name == "torch")(importing(name))

if __name__ == "__main__":
    harness.main("Import", unit="import", settings={})
