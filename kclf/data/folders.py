"""Which photos a folder holds for training, validation and test, and of which classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .._core.arguments import listed
from ..errors import DataError
from .files import has_images, image_suffixes, list_folders, no_images, scan, split_folders, suffix_hint
from .labels import class_folders, encode, loose_images, normal_label, regex_label, require_no_twins
from .layouts import Part, Path, divide
from .sources import FileImages
from .splits import require_classes, stratified_split

# Files beside photos that say something of them, such as YOLO's `labels`: their folders are no classes.
DESCRIPTIONS = frozenset(
    {
        *(".csv", ".tsv", ".xlsx", ".parquet", ".json", ".jsonl", ".xml", ".yaml", ".yml"),
        *(".txt", ".md", ".rst", ".html", ".pdf", ".log", ".py", ".ipynb"),
        *(".npy", ".npz", ".h5", ".keras", ".pkl", ".pt", ".pth", ".zip"),
    }
)


@dataclass
class Layout:
    """Where the splits of a folder lie, and what is left aside.

    Args:
        folder: the folder.
        splits: the folder of each split, by name; all is "train" where there are none.
        is_split: whether there are folders of splits.
        unused: what lies beside the folders that are used, in a few words each.
    """

    folder: str
    splits: dict[str, str]
    is_split: bool
    unused: list[str]


@dataclass
class Labelled:
    """The images of a split with the labels that folders or names give them.

    Args:
        paths: the n files.
        labels: n names of classes; "" for a file outside the class folders.
        others: files that are no images, by suffix.
        empty: class folders without an image.
    """

    paths: list[str]
    labels: list[str]
    others: Counter[str]
    empty: list[str]

    def without(self, *labels: str) -> Labelled:
        """Without the images of some labels."""
        kept = [i for i, label in enumerate(self.labels) if label not in labels]
        paths, names = [self.paths[i] for i in kept], [self.labels[i] for i in kept]
        return Labelled(paths, names, self.others, self.empty)

    def only(self, class_names: Sequence[str], split: str, faults: Faults) -> Labelled:
        """With the images of these classes alone; another class is a fault."""
        foreign = sorted(set(self.labels) - set(class_names))
        if not foreign:
            return self
        first = self.paths[self.labels.index(foreign[0])]
        faults.report(
            f"{first}: its label {foreign[0]!r} is not among the {len(class_names)} classes: "
            f"{listed(class_names)}; {split} photos of other classes cannot be used: {listed(foreign)}"
        )
        return self.without(*foreign)


def find_layout(folder: Path) -> Layout:
    """The folders of the splits, where there are any; else all is for training.

    Folders are splits by their names where one at least has class folders in it or a table beside its photos,
    or where there is no other folder with images: `train`, `bus` and `car` with photos in each are classes.
    """
    root = os.fspath(folder)
    names = list_folders(root)
    found = split_folders(names)
    used = {split: same[0] for split, same in found.items()}
    others = set(names) - {name for same in found.values() for name in same}
    has_others = (has_images(os.path.join(root, name)) for name in others)
    if not found or (any(has_others) and not _has_classes(root, used)):
        return Layout(root, {"train": root}, False, [])
    splits = {split: _inner(os.path.join(root, name)) for split, name in used.items()}
    return Layout(root, splits, True, list(_left_aside(root, set(names) - set(used.values()))))


def _has_classes(root: str, used: dict[str, str]) -> bool:
    folders = [os.path.join(root, name) for name in used.values()]
    return any(list_folders(folder) or only_table(folder) for folder in folders)


def only_table(folder: str) -> str:
    """The CSV file of a folder that has one, and no folders in it; else ""."""
    found = [name for name in os.listdir(folder) if name.lower().endswith(".csv") and name[0] != "."]
    return os.path.join(folder, found[0]) if len(found) == 1 and not list_folders(folder) else ""


def _inner(folder: str) -> str:
    """The folder of the same name that alone lies in a folder, as archives have it; else the folder."""
    inside = os.path.join(folder, os.path.basename(folder))
    return inside if list_folders(folder) == [os.path.basename(folder)] else folder


def _left_aside(root: str, names: set[str]) -> Iterator[str]:
    """What lies beside the folders of the splits: folders with images, and images."""
    for name in sorted(names):
        count = len(scan(os.path.join(root, name)).images)
        if count:
            yield f"{name}/ ({count:,} images)"
    with os.scandir(root) as entries:
        suffixes = image_suffixes()
        loose = sum(e.is_file() and os.path.splitext(e.name)[1].lower() in suffixes for e in entries)
    if loose:
        yield f"{loose:,} images in {root} itself"


def _describes(root: Path, name: str) -> bool:
    """Whether a folder holds descriptions alone."""
    found = scan(os.path.join(root, name))
    return not found.images and bool(found.others) and set(found.others) <= DESCRIPTIONS


def read_split(root: Path, label_regex: str | None = None, missing: str | None = None) -> Labelled:
    """The images below the folder of a split, and the label of each.

    The label is the folder directly below `root` that the file lies in, however deep, or what the pattern
    finds in its name (`missing` where it finds nothing; None refuses that); this is the one rule for training
    and for checks.
    """
    found = scan(root, dotted=label_regex is None)
    if label_regex is not None:
        label = regex_label(label_regex, missing=missing)
        return Labelled(found.images, [label(path) for path in found.images], found.others, [])
    labels = class_folders(found.images, root)
    empty = sorted({normal_label(n) for n in list_folders(root) if not _describes(root, n)} - set(labels))
    return Labelled(found.images, labels, found.others, empty)


# A data set


@dataclass
class Faults:
    """What is wrong with a layout: it stops the work, or is noted where that was asked for.

    Args:
        lenient: note it.
        notes: what was noted.
    """

    lenient: bool = False
    notes: list[str] = field(default_factory=list)

    def report(self, message: str) -> None:
        """Raise `DataError`, or note the message."""
        if not self.lenient:
            raise DataError(f"{message}. To leave it at a warning: lenient=True (--lenient)")
        self.notes.append(message)


def read_folder(
    folder: Path, label_regex: str | None, valid_fraction: float, seed: int, lenient: bool
) -> tuple[list[str], Part, Part, Part | None, list[str]]:
    """The images of a folder by splits and classes; see `ImageData.from_folder`.

    Returns:
        The class names; the files of training, validation and test with class numbers; notes.
    """
    layout, faults = find_layout(folder), Faults(lenient)
    found = {split: _read(split, root, label_regex, faults) for split, root in _roots(layout, faults).items()}
    train = found["train"]
    if not layout.is_split and label_regex is None:
        _require_classes_above(layout.folder, train, faults)
    names = sorted(set(train.labels))
    require_no_twins(names, faults.report)
    images, codes = FileImages(train.paths), encode(train.labels, names)
    where = layout.splits["train"]
    if "valid" in found:
        valid = found["valid"].only(names, "validation", faults)
        require_classes(train.labels, valid.labels, layout.splits["valid"], faults.report)
        parts: tuple[Part, Part] = (images, codes), _coded(valid, names)
    else:
        _require_depth(train.labels, where)
        require_classes(train.labels, train.labels, where, faults.report)
        split = stratified_split(train.labels, valid_fraction, seed, faults.report)
        parts = divide(images, codes, split)
    test = None if "test" not in found else _tested(found["test"], names, faults)
    return names, *parts, test, [*faults.notes, *_unused(layout, found.values())]


def _roots(layout: Layout, faults: Faults) -> dict[str, str]:
    """The folder of each split that holds images."""
    if "train" not in layout.splits:
        names = ", ".join(os.path.basename(path) for path in layout.splits.values())
        raise DataError(
            f"{layout.folder} has folders of other splits ({names}) and none for training. Expected the "
            "class folders in a folder `train`, or no such folders beside them"
        )
    roots = {}
    for split, root in layout.splits.items():
        others: Counter[str] = Counter()
        if has_images(root, others):
            roots[split] = root
        elif split == "train":
            raise DataError(no_images(root, others))
        else:
            faults.report(no_images(root, others))
    return roots


def _read(split: str, root: str, label_regex: str | None, faults: Faults) -> Labelled:
    """The images of a split; those outside the class folders and classes without images are faults."""
    if split == "test":
        return read_split(root, label_regex, missing="")
    found = read_split(root, label_regex)
    loose = [path for path, label in zip(found.paths, found.labels, strict=True) if not label]
    if loose:
        if len(loose) == len(found.paths):
            raise DataError(loose_images(loose, len(found.paths), root))
        faults.report(loose_images(loose, len(found.paths), root))
        found = found.without("")
    if split == "train" and label_regex is None:
        _require_different(root, faults)
    if split == "train" and found.empty:
        faults.report(
            f"{len(found.empty)} folders in {root} hold no image, so they are no class: "
            f"{listed(found.empty)}. {suffix_hint(found.others) or 'Remove them, or fill them'}"
        )
    return found


def _require_different(root: str, faults: Faults) -> None:
    """Report class folders that are one folder, by links: its photos would be of two classes."""
    names: dict[str, list[str]] = {}
    for name in list_folders(root):
        names.setdefault(os.path.realpath(os.path.join(root, name)), []).append(name)
    for same in (same for same in names.values() if len(same) > 1):
        faults.report(f"The folders {listed(same)} in {root} are one folder, by links; remove all but one")


def _tested(found: Labelled, names: Sequence[str], faults: Faults) -> Part:
    """The test images, with class numbers where their folders or names say the class."""
    if not set(found.labels) & set(names):
        return FileImages(found.paths), None
    return _coded(found.only(names, "test", faults), names)


def _coded(found: Labelled, names: Sequence[str]) -> Part:
    return FileImages(found.paths), encode(found.labels, names, found.paths)


def _require_depth(labels: Sequence[str], root: str) -> None:
    """Where all photos lie in one folder that has class folders of its own, name them."""
    if len(set(labels)) != 1:
        return
    inside = [name for name in list_folders(root) if normal_label(name) == labels[0]][:1]
    path = root
    while len(inside) == 1:
        path = os.path.join(path, inside[0])
        inside = list_folders(path)
    if len(inside) > 1:
        raise DataError(
            f"Expected at least 2 classes in {root}. Found one folder, {os.path.relpath(path, root)!r}, "
            f"which holds folders: {listed(inside)}. Give that folder: {path}"
        )


def _require_classes_above(root: str, found: Labelled, faults: Faults) -> None:
    """Refuse folders that all hold the same folders: they are rather the splits of those, or hold splits."""
    inside = {name: frozenset(list_folders(os.path.join(root, name))) for name in list_folders(root)}
    inside = {name: sub for name, sub in inside.items() if normal_label(name) in set(found.labels)}
    same = set(inside.values())
    if len(inside) < 2 or len(same) > 1 or not (sub := next(iter(same))):
        return
    of_splits = bool(split_folders(sorted(sub)))
    if len(sub) > 1 or of_splits:
        holders = listed(sorted(inside))
        faults.report(
            f"The folders {holders} all hold the same folders: {listed(sorted(sub))}. "
            + (
                "The splits lie in the classes; expected train/CLASS, valid/CLASS"
                if of_splits
                else f"If {holders} are splits, name them train, valid and test; if they are the classes"
                " (and these are not), this is no fault"
            )
        )


def _unused(layout: Layout, found: Iterable[Labelled]) -> list[str]:
    """One line that counts what is not used, by folder and by suffix."""
    others = sum((part.others for part in found), Counter[str]())
    files = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in sorted(others.items())]
    unused = [*layout.unused, *files]
    if not unused:
        return []
    return ["; ".join(filter(None, [f"Not used: {listed(unused)}", suffix_hint(others)]))]
