"""`kclf train` and `kclf predict` on machines as people have them: how each ends, and what it says first.

    python tests/reliability/odd_machines.py                      # the table
    python tests/reliability/odd_machines.py --only "2 GB" --only threads

Each machine is a fresh process that trains on twelve photos and predicts one. What cannot be had here (mounts
need `unshare`) is left out and said so. The exit status is 1 where a machine ends otherwise than promised.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
JOB = """
def job():
    from kclf.cli.main import main
    small = ["--backbone", "MobileNet", "--weights", "none", "--size", "32", "--effort", "quick", "--force"]
    for words in (["train", {photos!r}, "--out", {out!r}, *small], ["predict", {out!r}, {photo!r}]):
        try:
            main(words)
        except SystemExit as ended:
            if ended.code:
                raise
"""
RUN = "job()"
IMPORT = "import kclf"
MOUNTS = 'unshare -Urm sh -c \'{} && exec "$@"\' sh "$@"'


@dataclass(frozen=True)
class Machine:
    """One machine.

    Args:
        environment: variables that are set; None takes one away.
        shell: what starts the process, where "$@" is its command.
        flags: of Python.
        code: what runs after the job is defined.
        status: that is promised.
        said: pattern of the last line of the errors, where it fails; of the first line of the output else.
    """

    environment: dict[str, str | None] = field(default_factory=dict)
    shell: str = 'exec "$@"'
    flags: tuple[str, ...] = ()
    code: str = RUN
    status: int = 0
    said: str = ""


BACKEND = "needs Keras' torch backend"
THREAD = """
import threading
errors = []
def guarded():
    try:
        job()
    except BaseException as error:
        errors.append(error)
thread = threading.Thread(target=guarded)
thread.start(); thread.join()
if errors: raise errors[0]
"""
GLOBALS = "import kclf, keras, torch\n{}\njob()"
MACHINES = {
    "plain": Machine(),
    "no HOME": Machine({"HOME": None, "XDG_CACHE_HOME": None}),
    "HOME that is not there": Machine({"HOME": "/nonexistent"}),
    "read-only HOME": Machine(
        {"HOME": "{base}/home", "XDG_CACHE_HOME": None},
        MOUNTS.format("mount --bind {base}/home {base}/home && mount -o remount,ro,bind {base}/home"),
    ),
    "read-only output": Machine(
        shell=MOUNTS.format("mount --bind {base}/out {base}/out && mount -o remount,ro,bind {base}/out"),
        status=4,
        said="cannot be written",
    ),
    "no /dev/shm": Machine(shell=MOUNTS.format("mount -t tmpfs -o ro,size=4k none /dev/shm")),
    "TMPDIR that is not there": Machine({"TMPDIR": "/nonexistent"}),
    "LC_ALL=C, ASCII": Machine({"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}),
    "COLUMNS=20": Machine({"COLUMNS": "20"}),
    "no stdin": Machine(shell='exec "$@" <&-'),
    "stdout closed": Machine(shell='exec "$@" >&-'),
    "stdout is head -n 1": Machine(shell='exec bash -c \'exec "$@" > >(head -n 1)\' bash "$@"'),
    "stdout on a full disk": Machine(
        shell='exec "$@" >/dev/full', status=4, said="standard output cannot be written"
    ),
    "stdout and stderr closed": Machine(shell='exec "$@" >&- 2>&-'),
    "256 file handles, streams closed": Machine(shell='ulimit -n 256; exec "$@" <&- >&- 2>&-'),
    "256 file handles": Machine(shell='ulimit -n 256; exec "$@"'),
    "2 GB of address space": Machine(shell='ulimit -v 2097152; exec "$@"'),
    "float64 as torch's default": Machine(code=GLOBALS.format("torch.set_default_dtype(torch.float64)")),
    "deterministic algorithms": Machine(code=GLOBALS.format("torch.use_deterministic_algorithms(True)")),
    "policy bfloat16": Machine(code=GLOBALS.format("keras.config.set_dtype_policy('bfloat16')")),
    "policy float64": Machine(code=GLOBALS.format("keras.config.set_dtype_policy('float64')")),
    "floatx float64": Machine(code=GLOBALS.format("keras.config.set_floatx('float64')")),
    "channels_first in keras.json": Machine({"KERAS_HOME": "{base}/keras"}, status=2, said="channels_last"),
    "KERAS_BACKEND=jax": Machine({"KERAS_BACKEND": "jax"}, status=1, said=BACKEND),
    "KERAS_BACKEND=tensorflow": Machine({"KERAS_BACKEND": "tensorflow"}, status=1, said=BACKEND),
    "keras imported first": Machine({"KERAS_BACKEND": "torch"}, code="import keras\njob()"),
    "spawn without a main guard": Machine(
        code="import multiprocessing\nmultiprocessing.set_start_method('spawn')\njob()"
    ),
    "-O": Machine(flags=("-O",)),
    "-OO": Machine(flags=("-OO",)),
    "a thread that is not the main one": Machine(code=THREAD),
    "warnings as errors": Machine(flags=("-W", "error::UserWarning:kclf")),
}


def write_photos(base: Path) -> None:
    """Two classes of six photos, and the folders of the machines."""
    for number in range(12):
        path = base / "photos" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    for name in ("home", "out", "keras"):
        (base / name).mkdir()
    settings = '{"image_data_format": "channels_first", "backend": "torch", "floatx": "float32"}'
    (base / "keras" / "keras.json").write_text(settings)


def start(machine: Machine, base: Path, number: int) -> subprocess.CompletedProcess[str]:
    """Run the job on a machine."""
    out = base / "out" / str(number)
    script = base / f"machine{number}.py"
    paths = {"photos": f"{base}/photos", "photo": f"{base}/photos/cat/1.png", "out": str(out)}
    script.write_text(JOB.format(**paths) + machine.code + "\n")
    environment = {**os.environ, "KERAS_BACKEND": None, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = {**environment, **{k: v and v.format(base=base) for k, v in machine.environment.items()}}
    shell = machine.shell.replace("{base}", str(base))
    return subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, *machine.flags, str(script)],
        env={name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=1800,
    )


def first_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a person reads first: the message of a failure, else the first line of the output."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        return lines[-1] if lines else "nothing"
    return next((line for line in done.stdout.splitlines() if line.strip()), "nothing (it cannot be seen)")


def allowed(machine: Machine) -> bool:
    """Whether this system lets the machine be made."""
    if "unshare" not in machine.shell:
        return True
    probe = "unshare -Urm sh -c 'mount -t tmpfs none /mnt'"
    return subprocess.run(["sh", "-c", probe], capture_output=True, check=False).returncode == 0


def verdict(machine: Machine, done: subprocess.CompletedProcess[str]) -> str:
    """ "as promised", or what is otherwise."""
    if done.returncode != machine.status:
        return f"OTHERWISE: expected status {machine.status}"
    if "Traceback" in done.stderr and machine.status != 1:
        return "OTHERWISE: a traceback"
    return (
        "as promised"
        if re.search(machine.said, first_line(done))
        else f"OTHERWISE: expected {machine.said!r}"
    )


def main() -> None:
    """Print the table."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--only", action="append", default=[], help="a part of a machine's name")
    chosen = words.parse_args().only
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_photos(base)
        for number, (name, machine) in enumerate(MACHINES.items()):
            if chosen and not any(part in name for part in chosen):
                continue
            if not allowed(machine):
                print(f"{name:34} left out: no unshare here", flush=True)
                continue
            done = start(machine, base, number)
            said = verdict(machine, done)
            wrong += said != "as promised"
            print(f"{name:34} {done.returncode:3d}  {first_line(done)[:90]:90}  {said}", flush=True)
            if said != "as promised":
                print(done.stderr[-2000:], flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
