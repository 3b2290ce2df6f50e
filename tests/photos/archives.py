"""Layouts as public archives have them, and the one command that trains on each.

    python tests/photos/archives.py [--dogscats FOLDER] [--pets FOLDER] [OPTION_OF_KCLF_TRAIN ...]

makes each layout from photos, runs its command, and prints both with the lines of the output that matter. The
photos of cats and dogs are named `cat.0.jpg`, those of breeds lie in a folder each; they are painted where no
folder is given. What follows, such as `--weights FILE`, is added to each command. Status 1 where one of them
does not do what it should.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kclf.cli.main import main as command

Photos = dict[str, list[Path]]  # the photos of each class
CHEAP = ("--effort", "quick", "--size", "96", "--backbone", "MobileNetV2_035")
SAID = re.compile(
    r"kclf:|Single|(train|valid|test) +\d|Not used|.*file names|Column|Labels|Skipped|/|On new photos|Saved"
)


@dataclass
class Archive:
    """A layout and what has to come of it.

    Args:
        name: what people know it as.
        make: puts photos of two classes or more into an empty folder as the archive has them.
        words: of the command after `kclf train`, where that folder is the current one.
        labels: the classes that are found, of the names of the photos' classes.
        test: share of the photos that are a test set of the archive's own.
        breeds: takes photos of breeds in place of those of cats and dogs.
    """

    name: str
    make: Callable[[Path, Photos], None]
    words: tuple[str, ...]
    labels: Callable[[str], str] = str
    test: float = 0
    breeds: bool = False


def put(source: Path, target: Path) -> None:
    """Copy a photo; one in another format where the suffix says so."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix.lower() == source.suffix.lower():
        shutil.copyfile(source, target)
    else:
        Image.open(source).convert("RGB").save(target)


def write(path: Path, text: str) -> None:
    """A file beside the photos, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def parts(photos: Photos, **shares: float) -> Iterator[tuple[str, str, int, Path]]:
    """(split, class, number in the class, photo), each class divided by the shares."""
    for label, files in photos.items():
        ends = np.cumsum([round(share * len(files)) for share in shares.values()])
        for number, file in enumerate(files):
            yield list(shares)[int(np.searchsorted(ends, number, side="right"))], label, number, file


def code(label: str, number: int) -> str:
    """A name that says nothing, as 32 letters of a digest."""
    return hashlib.md5(f"{label}{number}".encode()).hexdigest()


def dogs_vs_cats(root: Path, photos: Photos) -> None:
    """Kaggle's Dogs vs. Cats: classes in the names, test photos without any."""
    for split, label, number, file in parts(photos, train=0.8, test1=0.2):
        name = f"{label}.{number}" if split == "train" else f"{2 * number + (label == 'dog')}"
        put(file, root / f"dogs-vs-cats/{split}/{name}.jpg")
    write(root / "dogs-vs-cats/sampleSubmission.csv", "id,label\n1,0\n2,0\n")


def roboflow_folders(root: Path, photos: Photos) -> None:
    """Roboflow's folder format for classification."""
    for split, label, number, file in parts(photos, train=0.6, valid=0.2, test=0.2):
        put(file, root / f"pets.v1i.folder/{split}/{label}/{label}-{number}_jpg.rf.{code(label, number)}.jpg")
    for name in ("README.dataset.txt", "README.roboflow.txt"):
        write(root / f"pets.v1i.folder/{name}", "pets - v1\n")


def roboflow_classes(root: Path, photos: Photos) -> None:
    """Roboflow's multi-class format: in each split the photos, and a table with a column for each class."""
    rows: dict[str, list[str]] = {}
    for split, label, number, file in parts(photos, train=0.6, valid=0.2, test=0.2):
        name = f"{number}-{label[0]}_jpg.rf.{code(label, number)}.jpg"
        put(file, root / f"pets.v1i.multiclass/{split}/{name}")
        rows.setdefault(split, []).append(", ".join([name, *(str(int(label == one)) for one in photos)]))
    for split, lines in rows.items():
        head = ", ".join(["filename", *photos])
        write(root / f"pets.v1i.multiclass/{split}/_classes.csv", "\n".join([head, *lines, ""]))
    write(root / "pets.v1i.multiclass/README.roboflow.txt", "pets - v1\n")


def chest_xray(root: Path, photos: Photos) -> None:
    """Kaggle's chest X-rays: gray photos in splits, all once more in a folder inside, traces of macOS."""
    for split, label, number, file in parts(photos, train=0.6, val=0.2, test=0.2):
        kind = {"cat": "NORMAL", "dog": "PNEUMONIA"}[label]
        for place in ("chest_xray", "chest_xray/chest_xray"):
            target = root / place / split / kind / f"IM-{number:04}-0001.jpeg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).convert("L").save(target)
        write(root / f"chest_xray/__MACOSX/chest_xray/{split}/{kind}/._IM-{number:04}-0001.jpeg", "x")
        write(root / f"chest_xray/{split}/.DS_Store", "x")


def one_hot(root: Path, photos: Photos) -> None:
    """ISIC's challenge: a column of 1.0 and 0.0 for each class, names without suffix, texts beside photos."""
    folder, rows = root / "ISIC2018_Task3_Training_Input", []
    for _, label, number, file in parts(photos, train=1):
        name = f"ISIC_{24306 + 2 * number + (label == 'dog'):07}"
        put(file, folder / f"{name}.jpg")
        rows.append(",".join([name, *(str(float(label == one)) for one in photos)]))
    for name in ("ATTRIBUTION.txt", "LICENSE.txt"):
        write(folder / name, "CC-BY-NC\n")
    head = ",".join(["image", *photos])
    write(root / "ISIC2018_Task3_Training_GroundTruth.csv", "\n".join([head, *sorted(rows), ""]))


def dog_breed(root: Path, photos: Photos) -> None:
    """Kaggle's Dog Breed Identification: `id,breed` of names without suffix, test photos without labels."""
    rows = []
    for split, label, number, file in parts(photos, train=0.8, test=0.2):
        put(file, root / f"dog-breed/{split}/{code(label, number)}.jpg")
        rows += [f"{code(label, number)},{label}"] if split == "train" else []
    write(root / "dog-breed/labels.csv", "\n".join(["id,breed", *sorted(rows), ""]))


def training_set(root: Path, photos: Photos) -> None:
    """The course "Machine Learning A-Z": `training_set`, `test_set`, and photos to try it with."""
    for split, label, number, file in parts(photos, training_set=0.8, test_set=0.2):
        put(file, root / f"dataset/{split}/{label}s/{label}.{number + 1}.jpg")
    for place, label in enumerate(photos, start=1):
        put(photos[label][0], root / f"dataset/single_prediction/cat_or_dog_{place}.jpg")


def flat_and_csv(root: Path, photos: Photos) -> None:
    """All photos in one folder, and their table with them."""
    rows = []
    for place, (_, label, _, file) in enumerate(parts(photos, train=1)):
        put(file, root / f"images/{place:04}.jpg")
        rows.append(f"{place:04}.jpg,{label}")
    write(root / "images/labels.csv", "\n".join(["image,label", *rows, ""]))


def image_folder(root: Path, photos: Photos) -> None:
    """A folder for each class, as torchvision's ImageFolder reads them."""
    for _, label, number, file in parts(photos, train=1):
        put(file, root / f"images/{label}/{label}_{number + 1}.jpg")


def zipped(root: Path, photos: Photos) -> None:
    """Microsoft's cats and dogs: a zip file, texts beside the photos, a photo of 0 bytes in each class."""
    with zipfile.ZipFile(root / "kagglecatsanddogs_5340.zip", "w") as archive:
        for _, label, number, file in parts(photos, train=1):
            archive.write(file, f"PetImages/{label.title()}/{number}.jpg")
        for label in photos:
            archive.writestr(f"PetImages/{label.title()}/Thumbs.db", "x")
            archive.writestr(f"PetImages/{label.title()}/66666.jpg", "")
        archive.writestr("readme[1].txt", "x")
        archive.writestr("MSR-LA - 3467.docx", "x")


def heic(root: Path, photos: Photos) -> None:
    """Photos of a phone, sorted into folders."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    for _, label, number, file in parts(photos, train=1):
        put(file, root / f"phone/{label}/IMG_{number:04}.HEIC")


ARCHIVES = [
    Archive("dogs-vs-cats", dogs_vs_cats, ("dogs-vs-cats", "--label-regex", "(cat|dog)"), test=0.2),
    Archive("Roboflow folders", roboflow_folders, ("pets.v1i.folder",), test=0.2),
    Archive("Roboflow _classes.csv", roboflow_classes, ("pets.v1i.multiclass",), test=0.2),
    Archive(
        "chest_xray", chest_xray, ("chest_xray",), {"cat": "NORMAL", "dog": "PNEUMONIA"}.__getitem__, test=0.2
    ),
    Archive(
        "one-hot table",
        one_hot,
        ("ISIC2018_Task3_Training_Input", "--csv", "ISIC2018_Task3_Training_GroundTruth.csv"),
    ),
    Archive(
        "id,breed without suffix",
        dog_breed,
        ("dog-breed/train", "--csv", "dog-breed/labels.csv"),
        breeds=True,
    ),
    Archive("training_set, test_set", training_set, ("dataset",), "{}s".format, test=0.2),
    Archive("flat folder and csv", flat_and_csv, ("images", "--csv", "images/labels.csv")),
    Archive("ImageFolder", image_folder, ("images",), breeds=True),
    Archive("zip", zipped, ("kagglecatsanddogs_5340.zip",), str.title),
    Archive("HEIC photos", heic, ("phone",)),
]


# From photos to what was printed


def painted(folder: Path, classes: list[str], count: int) -> Photos:
    """Photos of classes that differ in colour."""
    found: Photos = {}
    for place, label in enumerate(classes):
        noise = np.random.default_rng(place)
        for number in range(count):
            file = folder / label / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            colour = np.array([40 + 160 * (place >> bit & 1) for bit in range(3)])
            Image.fromarray(np.uint8(np.clip(noise.normal(colour, 25, (36, 48, 3)), 0, 255))).save(file)
            found.setdefault(label, []).append(file)
    return found


def cats_and_dogs(folder: Path | None, count: int, room: Path) -> Photos:
    """Photos of two classes: the first of a folder, or painted."""
    if folder is None:
        return painted(room, ["cat", "dog"], count)
    return {label: sorted(folder.glob(f"{label}.*.jpg"))[:count] for label in ("cat", "dog")}


def breeds(folder: Path | None, count: int, room: Path) -> Photos:
    """Photos of six breeds: the first of a folder, or painted."""
    if folder is None:
        return painted(room, [f"breed{number}" for number in range(6)], count)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())[:6]
    return {name: sorted((folder / name).glob("*.jpg"))[:count] for name in names}


def faults(archive: Archive, photos: Photos, described: dict) -> list[str]:
    """What a run's `settings.json` says that is not as it should be."""
    number = sum(map(len, photos.values()))
    counts = described["data"]
    labels = sorted(map(archive.labels, photos))
    found = [] if counts["class_names"] == labels else [f"classes {counts['class_names']}, not {labels}"]
    tested = round(archive.test * number)
    if counts.get("test", 0) != tested:
        found.append(f"{counts.get('test', 0)} test photos, not {tested}")
    return found


def run(archive: Archive, photos: Photos, room: Path, options: list[str]) -> bool:
    """Make a layout, train on it, and print command and output; whether all was as it should be."""
    room.mkdir()
    archive.make(room, photos)
    words = ["train", *archive.words, *CHEAP, *options, "--out", "run"]
    print(f"## {archive.name}\n$ kclf {shlex.join(words)}", flush=True)
    output = io.StringIO()
    with contextlib.chdir(room), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            command(words)
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
    lines = output.getvalue().splitlines()
    print("\n".join(lines if status else [line for line in lines if SAID.match(line.strip())]))
    wrong = [f"status {status}"] if status else []
    wrong = wrong or faults(archive, photos, json.loads((room / "run/settings.json").read_text()))
    print(f"{'AS IT SHOULD BE' if not wrong else 'WRONG: ' + '; '.join(wrong)}\n", flush=True)
    return not wrong


def main() -> int:
    """Run all; 0 where each did what it should."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dogscats", type=Path, help="folder with cat.0.jpg, dog.0.jpg, ...")
    parser.add_argument("--pets", type=Path, help="folder with a folder for each breed")
    parser.add_argument("--count", type=int, default=60, help="photos of each of two classes")
    parser.add_argument("--only", default="", help="a part of the names of those to run")
    given, options = parser.parse_known_args()
    done = []
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        two = cats_and_dogs(given.dogscats, given.count, room / "two")
        six = breeds(given.pets, 10, room / "six")
        for place, archive in enumerate(one for one in ARCHIVES if given.only in one.name):
            if archive.make is heic and importlib.util.find_spec("pillow_heif") is None:
                print(f"## {archive.name}\nleft out: pillow-heif is not installed\n")
                continue
            photos = six if archive.breeds else two
            done.append(run(archive, photos, room / str(place), options))
    print(f"{sum(done)} of {len(done)} as they should be")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
