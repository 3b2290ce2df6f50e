"""Kill `kclf train` at random moments, let it go on, and see whether it ends as if nothing had happened.

    python tests/reliability/kills.py --kills 60 --seed 0
    python tests/reliability/kills.py --moments 100 --kinds cli

Each run is a real process: a fork of this one, which has imported everything, so that a run costs a second.
It is killed by SIGKILL at a random moment, its folder may then be torn as a power cut would (--tear), and
`kclf train --resume` takes it to the end. Moments are seconds of the processor, so that they fall within the
run on a busy machine too; those of `clean` and `fetch`, which are over in a tenth of one, are lines of
Python, of which each is as likely. With --moments one run is stopped many times, and what its folder holds
then is where others go on from: a third of the time. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("MPLBACKEND", "agg")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
from PIL import Image

from kclf._core.locks import LOCK_FILE

TraceFunction = Callable[[FrameType, str, Any], Any]
SIZE = 32
CLI = ["--backbone", "MobileNet", "--weights", "none", "--size", SIZE, "--batch-size", 8, "--epochs", 2]


def write_photos(folder: Path, count: int = 20) -> Path:
    """Two classes of noisy squares."""
    for name, colour in {"blue": (40, 60, 200), "red": (200, 60, 40)}.items():
        for number in range(count):
            noise = np.random.default_rng(number).normal(0, 40, (40, 48, 3))
            path = folder / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(np.clip(noise + colour, 0, 255))).save(path)
    return folder


def train_by_command(photos: Path, out: Path, *, again: bool) -> None:
    """`kclf train`, or `kclf train --resume` where an earlier one was killed."""
    from kclf.cli.main import main

    begun = again and (out / "settings.json").exists()
    words = ["--resume", out] if begun else [photos, *CLI, "--out", out, "--force"]
    main(["train", *map(str, words)])


def train_by_learner(photos: Path, out: Path, *, again: bool) -> None:
    """Presized cache, head on cached activations, head, everything in cycles with snapshots and the best."""
    import keras

    import kclf
    from kclf._core.atomic import replacing
    from kclf.callbacks import Checkpoint

    keras.utils.set_random_seed(3)
    layers = [
        keras.layers.Conv2D(8, 3, strides=4),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Conv2D(8, 3),
        keras.layers.BatchNormalization(),
    ]
    data = kclf.ImageData.from_folder(photos, size=SIZE, presize=36, batch_size=4, num_threads=1)
    learner = kclf.Learner(
        data.resize(40, out / "cache"),
        keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers]),
        normalization="tf",
        augmentation=kclf.aug_transforms(),
        path=out,
        precompute=True,
        precompute_views=2,
        verbose=False,
    )
    learner.checkpoint = Checkpoint(out / "checkpoints", every=2)
    learner.fit_one_cycle(1, 1e-2)
    learner.precompute = False
    learner.fit_one_cycle(1, 1e-2)
    learner.unfreeze()
    learner.fit(
        [1e-4, 1e-3, 1e-2][-len(learner.model.layer_groups) :],
        2,
        cycle_len=1,
        cycle_mult=2,
        cycle_save_name="snap",
        best_save_name="best",
    )
    with replacing(out / "models" / "final.weights.h5") as temporary:
        learner.model.save_weights(temporary)
    learner.recorder.to_csv(out / "batches.csv")


def fetch(photos: Path, out: Path, *, again: bool) -> None:
    """`kclf.datasets.fetch` of an archive that lies on this machine."""
    from kclf import datasets

    archive = photos.parent / "archive.zip"
    if not archive.exists():
        shutil.make_archive(str(archive.with_suffix("")), "zip", photos.parent, photos.name)
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    datasets.SOURCES["pets"] = datasets.Source(archive.as_uri(), checksum, photos.name)
    datasets.fetch("pets", out)


def clean(photos: Path, out: Path, *, again: bool, undo: bool = True) -> None:
    """`kclf clean --apply` of a ledger; after a kill, `--undo` of what was done, and once more."""
    from kclf.checks import apply_ledger
    from kclf.checks.ledger import undo_ledger

    ledger, log = out / "ledger.csv", out / "ledger.undo.csv"
    if not ledger.exists():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(photos, out / "photos")
        for path in sorted((out / "photos").rglob("*.jpg")):  # names that a relabelled photo can keep
            path.rename(path.with_name(f"{path.parent.name}{path.name}"))
        write_ledger(out / "photos", ledger)
    if undo and log.exists():
        undo_ledger(log)
    apply_ledger(ledger, apply=True)


def clean_far(photos: Path, out: Path, *, again: bool) -> None:
    """As `clean`, with each folder on a file system of its own; after a kill, `--apply` once more."""
    rename = os.rename

    def far(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "another file system")
        rename(source, target)

    os.rename = far  # type: ignore[assignment] # in a process that ends with this
    clean(photos, out, again=again, undo=False)


def write_ledger(photos: Path, ledger: Path) -> None:
    """A row for each photo: every third one is to be removed, every third one goes to the other class."""
    from kclf.checks import Finding, Findings
    from kclf.checks.file_info import file_digest

    rows = []
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        action = ("delete", "relabel", "keep")[number % 3]
        num_bytes, digest = file_digest(str(path))
        rows.append(
            Finding(
                str(path.relative_to(photos)),
                "label",
                0.5,
                "",
                label=path.parent.name,
                action=action,
                target="red" if path.parent.name == "blue" else "blue",
                folder=str(photos),
                num_bytes=num_bytes,
                digest=digest,
            )
        )
    Findings(rows).to_csv(ledger)


BY_LINE = {"fetch": fetch, "clean": clean, "clean_far": clean_far}
RUNS = {"learner": train_by_learner, "cli": train_by_command, **BY_LINE}


def count_lines(last: int) -> list[int]:
    """Count the lines of Python that run from now on, and die by SIGKILL at the last."""
    count = [0]

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction:
        if event == "line":
            count[0] += 1
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    return count


def start(kind: str, photos: Path, out: Path, *, again: bool = False, last: int | None = None) -> int:
    """The process id of a child that trains; what it says goes to a log beside its folder.

    Args:
        last: the line of Python at which it dies; 0 to write to a file beside its folder how many there are.
    """
    process = os.fork()
    if process:
        return process
    log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 70
    try:
        lines = [0] if last is None else count_lines(last)
        RUNS[kind](photos, out, again=again)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.settrace(None)
        if last == 0:
            Path(f"{out}.lines").write_text(str(lines[0]))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def wait(process: int) -> tuple[int, float]:
    """How a child ended, its status or minus the signal; and the seconds of the processor that it took."""
    _, status, used = os.wait4(process, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def used(process: int) -> float | None:
    """The seconds of the processor that a child has used; None where it is over."""
    state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return None if state == "Z" else (int(rest[10]) + int(rest[11])) / os.sysconf("SC_CLK_TCK")


def kill_after(process: int, seconds: float) -> bool:
    """SIGKILL a child when it has used so many seconds of the processor; False where it was over before."""
    while (spent := used(process)) is not None and spent < seconds:
        time.sleep(0.003)
    os.kill(process, signal.SIGKILL)
    return wait(process)[0] == -signal.SIGKILL


def stopped_at(process: int, moments: list[float], out: Path, place: Path) -> int:
    """Stop a child at each of some moments, seconds of the processor, and copy what its folder holds then.

    That is what SIGKILL would leave there. Copies of equal content are one.

    Returns:
        How many moments came before its end; the copies are in `place`.
    """
    seen: set[str] = set()
    passed = 0
    for moment in sorted(moments):
        while (spent := used(process)) is not None and spent < moment:
            time.sleep(0.001)
        if spent is None:
            break
        os.kill(process, signal.SIGSTOP)
        if os.WIFEXITED(os.waitpid(process, os.WUNTRACED)[1]):
            raise RuntimeError(f"{process} ended while it was to be stopped")
        files = sorted(path for path in out.rglob("*") if path.is_file())
        content = digest(repr([(str(path), digest(path.read_bytes())) for path in files]).encode())
        if content not in seen and out.exists():
            shutil.copytree(out, place / f"{moment:.2f}")
        seen.add(content)
        passed += 1
        os.kill(process, signal.SIGCONT)
    wait(process)
    return passed


def stop_one_run(kind: str, photos: Path, base: Path, moments: int, draw: random.Random) -> bool:
    """Go on from what one run's folder held at many moments; whether each ends as the run itself."""
    out, place = base / "stopped" / kind, base / "copies"
    out.parent.mkdir()
    status, seconds = wait(start(kind, photos, out))
    wanted = result(out)
    shutil.rmtree(out)
    at = [draw.uniform(0.01, 1.0) * seconds for _ in range(moments)]
    passed = stopped_at(start(kind, photos, out), at, out, place)
    same, copies = 0, sorted(place.iterdir(), key=lambda path: float(path.name))
    for copy in copies:
        shutil.rmtree(out)
        copy.rename(out)
        ended, _ = wait(start(kind, photos, out, again=True))
        equal = ended == status == 0 and result(out) == wanted
        same += equal
        print(f"{kind} stopped at {copy.name} s: {'identical' if equal else 'DIFFERENT'}", flush=True)
    counted = {"kind": kind, "moments": passed, "states of its folder": len(copies), "identical": same}
    print(json.dumps(counted))
    return same == len(copies)


def result(out: Path) -> dict[str, str]:
    """What a run left: a digest of each file, but for what tells the time or shows it."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path.name != LOCK_FILE):
        name = str(path.relative_to(out))
        if name.startswith(("checkpoints/stage", "settings", "ledger")) or path.suffix == ".html":
            found[name] = "there"
        elif path.name == "history.csv":
            rows = [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]
            found[name] = digest("\n".join(rows).encode())
        elif path.name.startswith("."):
            found[name] = "stray"
        elif path.suffix == ".h5":
            found[name] = weights_digest(path)
        else:
            found[name] = digest(path.read_bytes())
    return found


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def weights_digest(path: Path) -> str:
    """Of every array in an HDF5 file: its name and its bytes."""
    import h5py

    parts: list[bytes] = []
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                parts.extend([name.encode(), item[()].tobytes()])
                if isinstance(item, h5py.Dataset) and name != "attributes"
                else None
            )
        )
    return digest(b"".join(parts))


def tear(out: Path, draw: random.Random) -> str:
    """Cut one file off at a random byte, as a power cut may where a disk does not keep its word."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and "models" not in path.parts)
    if not files:
        return "nothing to tear"
    path = draw.choice(files)
    at = draw.randrange(path.stat().st_size + 1)
    os.truncate(path, at)
    return f"{path.relative_to(out)} cut off at {at}"


@dataclass
class Trial:
    """What became of one run."""

    killed: bool  # False where it was over before
    said: str
    status: int  # with which the run that went on ended
    set_aside: list[str]  # checkpoints that were found damaged; each costs the interval before it


def trial(kind: str, photos: Path, out: Path, after: float, draw: random.Random, *, torn: bool) -> Trial:
    """Kill a run after some seconds of the processor, or lines; tear a file of it, and let it go on."""
    if kind in BY_LINE:
        killed = wait(start(kind, photos, out, last=int(after)))[0] == -signal.SIGKILL
    else:
        killed = kill_after(start(kind, photos, out), after)
    left = sorted(path.name for path in (out / "checkpoints").glob("stage*"))
    unit = "lines" if kind in BY_LINE else "s"
    said = f"{'killed' if killed else 'over'} at {after:.2f} {unit}, {left[-1:]}"
    if torn and killed:
        said += f", {tear(out, draw)}"
    status, _ = wait(start(kind, photos, out, again=True))
    set_aside = sorted(str(path.relative_to(out)) for path in out.glob("checkpoints/*.damaged"))
    return Trial(killed, said, status, set_aside)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--kills", type=int, default=60, help="runs to kill; those over before do not count"
    )
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--kinds", nargs="+", default=["learner", "learner", "learner", "cli"])
    arguments.add_argument("--tear", action="store_true", help="also cut a file off after each kill")
    arguments.add_argument("--moments", type=int, help="stop one run of the first kind so often instead")
    options = arguments.parse_args()
    import kclf.cli.main
    import kclf.cli.train  # noqa: F401 - so that the children need not

    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        photos = write_photos(base / "photos")
        if options.moments:
            sys.exit(not stop_one_run(options.kinds[0], photos, base, options.moments, draw))
        wanted, seconds = {}, {}
        for kind in sorted(set(options.kinds)):
            by_line = kind in BY_LINE
            status, seconds[kind] = wait(start(kind, photos, base / kind, last=0 if by_line else None))
            if by_line:
                seconds[kind] = float(Path(f"{base / kind}.lines").read_text())
            wanted[kind] = result(base / kind)
            if status:
                sys.exit(f"{kind} ended with {status}:\n{(base / f'{kind}.log').read_text()}")
            unit = "lines" if by_line else "s"
            print(f"{kind}: {seconds[kind]:.1f} {unit} uninterrupted, {len(wanted[kind])} files", flush=True)
        trials: list[Trial] = []
        same = kills = 0
        while kills < options.kills:
            number = len(trials)
            kind = options.kinds[number % len(options.kinds)]
            out = base / f"run{number}" / kind
            out.parent.mkdir()
            after = draw.uniform(0.01, 0.99 if kind in BY_LINE else 0.9) * seconds[kind]
            tried = trial(kind, photos, out, after, draw, torn=options.tear)
            found = result(out) if out.exists() else {}
            if options.tear:
                found = {name: value for name, value in found.items() if name not in tried.set_aside}
            equal = found == wanted[kind] and tried.status == 0
            same += equal
            trials.append(tried)
            if tried.killed:
                kills += 1
            else:
                seconds[kind] = after  # this long it does not take: the later ones are killed earlier
            word = "identical" if equal else "DIFFERENT"
            print(f"{number:3d} {kind:8} {tried.said}, {tried.set_aside} set aside: {word}", flush=True)
            if not equal:
                names = sorted({*found, *wanted[kind]})
                print("   ", [name for name in names if found.get(name) != wanted[kind].get(name)])
                print((out.parent / f"{kind}.log").read_text()[-3000:])
            shutil.rmtree(out.parent)
        counted = {
            "runs": len(trials),
            "kills": kills,
            "identical": same,
            "torn": options.tear,
            "most_intervals_lost": max((len(one.set_aside) for one in trials), default=0),
            "runs_that_lost_one": sum(len(one.set_aside) == 1 for one in trials),
        }
        print(json.dumps(counted))
    sys.exit(same != len(trials))


if __name__ == "__main__":
    main()
