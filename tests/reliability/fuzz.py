"""Feed damaged files to everything that reads files, and see that only kclf's own errors come out.

    python tests/reliability/fuzz.py images --count 10000
    python tests/reliability/fuzz.py settings --seconds 600

Each parser gets valid files with a few mutations: bits flipped, bytes replaced, cut out, doubled, numbers
made huge, the file cut off. What fails is written to `--keep`, and belongs into tests/reliability/seeds.
A file that keeps a parser busy for too long ends the process with a traceback, and stays where it says.
The last line is a JSON object. Seconds are of the processor, so that other work on the machine counts not.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))


import keras
import numpy as np
import torch
from PIL import Image

import kclf
from kclf._core import h5_store
from kclf.callbacks import checkpoint
from kclf.callbacks.run_state import to_arrays
from kclf.checks import Finding, Findings, apply_ledger, read_ledger, undo_ledger
from kclf.cli.train import RunSettings, read_settings, write_settings
from kclf.data import ImageDataset
from kclf.data.archives import unpacked
from kclf.data.presized import cached
from kclf.data.tables import read_table
from kclf.errors import KclfError
from kclf.report.inputs import read_columns, read_predictions
from kclf.weights import load_weights

FORMATS = ("jpg", "png", "gif", "webp", "bmp")
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, ord(","), ord('"'), ord("\n"), ord("{"), ord("-"), ord("9"))
MOST_MEMORY = 10**9  # bytes more than ever before, for one file
PATIENCE = 20.0  # seconds of the processor for one file; a hang is a failure


def mutate(content: bytes, draw: random.Random) -> bytes:
    """A few changes of random kinds at random places."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = draw.choice(INTERESTING)
        elif kind == 2:
            del data[place : place + draw.choice((1, 4, 50))]
        elif kind == 3:
            data[place:place] = data[place : place + draw.choice((1, 4, 50))]
        elif kind == 4:
            data[place : place + 4] = draw.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"1e99"))
        elif draw.random() < 0.3:
            del data[place:]
    return bytes(data)


def a_photo(kind: str, draw: random.Random) -> bytes:
    """A small picture with what photos have: EXIF, palettes, transparency, several frames."""
    size = draw.choice(((24, 18), (40, 40), (7, 61)))
    mode = {"jpg": ("RGB", "L", "CMYK"), "gif": ("P", "L"), "bmp": ("RGB", "L", "P")}.get(
        kind, ("RGB", "RGBA", "L")
    )
    pixels = np.random.default_rng(draw.randrange(99)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels).convert(draw.choice(mode))
    exif = Image.Exif()
    exif[0x0112] = draw.randrange(1, 9)
    options = {"exif": exif} if kind in ("jpg", "webp", "png") else {}
    with tempfile.SpooledTemporaryFile() as file:
        image.save(file, {"jpg": "jpeg"}.get(kind, kind), **options)
        file.seek(0)
        return file.read()


def fuzz_images(count: int, draw: random.Random, folder: Path) -> dict:
    """Through the loader, 200 files at a time: no error, no hang, and memory that stays."""
    memory, slowest, unreadable = [], 0.0, 0
    originals = {kind: [a_photo(kind, draw) for _ in range(8)] for kind in FORMATS}
    whole = folder / "whole.jpg"  # one that can be read stands in for those that cannot
    whole.write_bytes(originals["jpg"][0])
    for start in range(0, count, 200):
        paths = [whole]
        for number in range(start, min(start + 200, count)):
            kind = FORMATS[number % len(FORMATS)]
            paths.append(folder / f"{number}.{kind}")
            paths[-1].write_bytes(mutate(draw.choice(originals[kind]), draw))
        dataset = ImageDataset([str(path) for path in paths], presize=32, batch_size=20, num_threads=2)
        begun = time.process_time()
        for (images,) in dataset:
            took, begun = time.process_time() - begun, time.process_time()
            slowest = max(slowest, took)
            if images.shape[1:] != (32, 32, 3) or images.dtype != torch.uint8 or took > PATIENCE:
                raise AssertionError(f"{tuple(images.shape)}, {images.dtype}, {took:.1f} s after {start}")
        unreadable += len(dataset.skipped)
        for path in paths[1:]:
            path.unlink()
        memory.append(resident())
    middle = memory[len(memory) // 2]
    return {
        "files": count,
        "unreadable": unreadable,
        "slowest_batch_s": round(slowest, 2),
        "memory_mb_half_way": round(middle / 1e6),
        "memory_mb_at_the_end": round(memory[-1] / 1e6),
    }


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most memory that this process has ever held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_memory() -> None:
    """Refuse this process more memory than it has now and `MOST_MEMORY`."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY, resource.RLIM_INFINITY))


# ---- parsers: a valid file, and what reads it ------------------------------------------------------------


def settings(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    plain = RunSettings(folder=Path("photos"), out=Path("out"))
    fields = {name: str(v) if isinstance(v, Path) else v for name, v in vars(plain).items()}
    write_settings(folder, {"settings": fields, "data": {}})
    return (folder / "settings.json").read_bytes(), read_settings


def table(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    return b'file,label\n"a,b.jpg",cat\nb.jpg,"dog ""x"""\nc.jpg,\xc3\xa4\n', read_table


def labels(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    for name in ("a.png", "b.png", "c.png", "d.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    content = b"name,breed\na.png,cat\nb.png,dog\nc.png,cat\nd.png,dog\n"
    return content, lambda path: kclf.ImageData.from_csv(path, folder=folder, size=32)


def ledger(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    content = b"kind,path,other,label,suggested,score,action,note\ncopy,a.jpg,b.jpg,cat,dog,0.5,keep,x\n"
    return content, read_ledger


def columns(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    return b"step,loss\n0,1.5\n1,nan\n2,\n", read_columns


def predictions(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    header = b"path,label,predicted,confidence,cat,dog\n"
    return header + b"a.jpg,cat,cat,0.9,0.9,0.1\nb.jpg,dog,cat,0.6,0.6,0.4\n", read_predictions


def parts_of(path: Path) -> tuple[int, bytes, dict]:
    """Where the HDF5 part of a file of ours ends, the part itself, and the index behind it."""
    content = path.read_bytes()
    end = h5_store.USER_BLOCK + int(content.split()[5])
    return end, content[h5_store.USER_BLOCK : end], json.loads(content[end:])


def sealed(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    """Our own format with changes in its index, under a checksum that is right."""
    path = folder / "valid.h5"
    h5_store.write_arrays(
        path, {"a": np.ones((3, 4), np.float32), "b/c": np.arange(5)}, {"x": [1, {"y": "z"}]}
    )

    _, hdf5, index = parts_of(path)

    def read(file: Path) -> None:
        h5_store.write_sealed(file, hdf5, file.read_bytes())
        h5_store.read_arrays(file)

    return json.dumps(index).encode(), read


def checkpoints(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    """A checkpoint's JSON with changes under a checksum that is right."""
    parts = dict.fromkeys(checkpoint.PARTS, None) | {
        "position": [0, 1, 2],
        "weights": [torch.ones(4, 3).t(), torch.ones(2, dtype=torch.bfloat16)],
        "histories": [{"epoch": [0], "history": {"loss": [float("nan")]}}],
    }
    arrays, rest = to_arrays(parts)
    path = folder / "changed.h5"
    h5_store.write_arrays(path, arrays)
    end, hdf5, index = parts_of(path)

    def read(file: Path) -> None:
        text = file.read_bytes()
        index["attributes"] = [end, len(text)]
        h5_store.write_sealed(path, hdf5 + text, json.dumps(index).encode())
        checkpoint.read_checkpoint(path)

    return json.dumps(rest).encode(), read


def network() -> keras.Model:
    layers = [keras.layers.Conv2D(2, 3, name="c"), keras.layers.BatchNormalization(name="n")]
    return keras.Sequential([keras.Input((4, 4, 3)), *layers])


def loaded(path: Path) -> tuple[bytes, Callable[[Path], object]]:
    """The content of a file of the network's weights, and what loads another one of its ending."""
    ending, model = "".join(path.suffixes), network()
    return path.read_bytes(), lambda file: load_weights(model, file.rename(file.with_suffix(ending)))


def keras_weights(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    path = folder / "valid.weights.h5"
    network().save_weights(path)
    return loaded(path)


def keras_archive(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    path = folder / "valid.keras"
    network().save(path)
    return loaded(path)


def torch_weights(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    path = folder / "valid.pth"
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    torch.save(module.state_dict(), path)
    return loaded(path)


def photo_zip(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    path = folder / "valid.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{'cat' if number else 'dog'}/{number}.png", bytes(range(200)))

    def read(file: Path) -> None:
        unpacked(file, folder / "cache")
        shutil.rmtree(folder / "cache", ignore_errors=True)

    return path.read_bytes(), read


def undo_log(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    """The log of two moves; what it may move lies in the folder."""
    rows = []
    for name in ("cat/a.png", "dog/b.png"):
        (folder / "data" / name).parent.mkdir(parents=True)
        (folder / "data" / name).write_text(name)
        rows.append(Finding(name, "odd", 0.5, "", action="delete", folder=str(folder / "data")))
    Findings(rows).to_csv(folder / "ledger.csv")
    done = apply_ledger(folder / "ledger.csv", apply=True)
    return done.log.read_bytes(), undo_ledger


def cache(folder: Path) -> tuple[bytes, Callable[[Path], object]]:
    """One of the files of a presized cache; the photos that come out must be right all the same."""
    paths = np.array([str(folder / f"{number}.png") for number in range(4)])
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 30), (number, 9, 9)).save(path)
    place = next(iter(Path(cached(paths, 20, folder / "cache", 1).paths[0]).parent.glob("cache/*")))
    whole = {path.name: path.read_bytes() for path in place.iterdir()}
    turn = iter(range(10**9))

    def read(file: Path) -> None:
        names = sorted(set(whole) - {".lock"})
        for name, content in whole.items():
            (place / name).write_bytes(content)
        name = names[next(turn) % len(names)]
        (place / name).write_bytes(mutate(whole[name], random.Random(file.read_bytes())))
        images = cached(paths, 20, folder / "cache", 1)
        for number in range(4):
            images[number]

    return b"any", read


TEXTS = (settings, table, labels, ledger, undo_log, columns, predictions)
BINARIES = (sealed, checkpoints, keras_weights, keras_archive, torch_weights, photo_zip, cache)
PARSERS = {function.__name__: function for function in (*TEXTS, *BINARIES)}


def attempt(read: Callable[[Path], object], path: Path) -> str | None:
    """What went wrong beyond kclf's own errors; None where nothing did."""
    begun, most = time.process_time(), peak()
    signal.setitimer(signal.ITIMER_PROF, 3 * PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except KclfError:
        pass
    except Exception:
        lines = traceback.format_exc().splitlines()
        place = [line for line in lines if "/kclf/" in line and line.lstrip().startswith("File")][-1:]
        return "\n".join([*lines, f"{lines[-1].split(':')[0]} at {' '.join(place).strip()}"])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    took = time.process_time() - begun
    if peak() > most + MOST_MEMORY:
        return f"took {(peak() - most) / 1e9:.1f} GB"
    return f"took {took:.1f} s" if took > PATIENCE else None


def fuzz_parser(
    name: str, count: int | None, seconds: float, draw: random.Random, folder: Path, keep: Path
) -> dict:
    """One parser, for so many files or so long."""
    valid, read = PARSERS[name](folder)
    found: dict[str, str] = {}
    done, end = 0, time.process_time() + seconds
    while done < count if count else time.process_time() < end:
        path = folder / "mutated"
        content = mutate(valid, draw)
        path.write_bytes(content)
        wrong = attempt(read, path)
        done += 1
        if wrong is not None and wrong.splitlines()[-1] not in found:
            found[wrong.splitlines()[-1]] = wrong
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name}-{len(found)}").write_bytes(content)
    return {"files": done, "failures": found}


def main() -> None:
    logging.disable()  # of each photo that cannot be read
    warnings.simplefilter("ignore")
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("what", choices=["images", *PARSERS])
    arguments.add_argument("--count", type=int)
    arguments.add_argument("--seconds", type=float, default=600.0)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options = arguments.parse_args()
    draw = random.Random(options.seed)
    faulthandler.register(signal.SIGPROF, chain=True)
    if sys.platform == "linux":
        limit_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "images":
            print(json.dumps(fuzz_images(options.count or 10_000, draw, folder)))
            return
        found = fuzz_parser(options.what, options.count, options.seconds, draw, folder, options.keep)
    for wrong in found["failures"].values():
        print(wrong)
    print(json.dumps({"parser": options.what, "files": found["files"], "failures": list(found["failures"])}))
    sys.exit(bool(found["failures"]))


if __name__ == "__main__":
    main()
