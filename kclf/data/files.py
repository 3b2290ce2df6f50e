"""Image files, the folders they lie in, and what the names of files and folders say."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image

from .._core.arguments import listed
from ..errors import DataError

# The formats that files of these suffixes hold; nothing else is ever decoded, whatever a file's name says.
FORMATS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "pjpeg", "pjp", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif", "avifs"),
    "JPEG2000": ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "DIB": ("dib",),
    "TGA": ("tga",),  # the last: it has no mark of its own, and is tried on everything
}
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffixes in FORMATS.values() for suffix in suffixes)
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".heics", ".heifs", ".hif"))
# Folders of systems and tools: thumbnails, what was thrown away, metadata; never photos to learn from.
SYSTEM_NAMES = re.compile(
    r"@eadir|@tmp|@recycle.*|@recently.*|#recycle|#snapshot|\$recycle\.bin|recycler|system volume information"
    r"|__macosx|_macosx|lost\+found|network trash folder|temporary items|__pycache__|synofile_thumb.*"
    r"|thumbs\.db|ehthumbs.*|desktop\.ini|_ds_store|icon\r"
    r"|\._.*|\.ds_store|\.git.*|\.hg|\.svn|\.ipynb.*|\.trash.*|\.thumb.*|\.@.*|\.apple.*|\.spotlight.*"
    r"|\.fseventsd|\.documentrevisions.*|\.temporaryitems|\.volumeicon.*|\.cache.*|\..*cache|\.venv|\.env"
    r"|\.idea|\.vscode|\.pytest.*|\.mypy.*|\.ruff.*|\.tox|\.dvc.*|\.sync.*|\.st(folder|versions|ignore)"
    r"|\.dropbox.*|\.picasa.*|\.comments|\.xvpics|\.directory|\.nomedia|\.snapshot.*|\.zfs|\..*\.partial.*",
    re.IGNORECASE,
)
# Words that say which split a folder holds; of several folders for one split the first word counts.
SPLIT_WORDS = {
    "train": ("train", "training", "trn", "trainval", "trainvalid"),
    "valid": ("valid", "val", "validation", "validate", "dev", "eval", "evaluation", "holdout"),
    "test": ("test", "testing", "tst"),
}
# Words beside them that say nothing: training_set, train_images, test1, imgs_val.
NEUTRAL_WORDS = frozenset(
    {
        *("image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures"),
        *("file", "files", "folder", "folders", "dir", "data", "dataset", "datasets", "set", "sets"),
        *("input", "inputs", "out", "sample", "samples", "split", "splits"),
        *("all", "full", "labeled", "labelled", "private", "public"),
    }
)


# What is an image, by its suffix


def image_suffixes() -> frozenset[str]:
    """The suffixes of images: those above, and those that a plugin of Pillow's was registered for."""
    plugins = _plugin_formats()  # registers them, so that it comes before a look at what is registered
    return IMAGE_SUFFIXES | {suffix for suffix, name in Image.EXTENSION.items() if name in plugins}


def image_formats() -> list[str]:
    """The formats, as Pillow names them, that a file is opened with."""
    return _formats(len(Image.OPEN))


@lru_cache(4)
def _formats(_: int) -> list[str]:
    """Those for a number of formats that Pillow knows: it grows with every plugin."""
    Image.init()
    plugins = _plugin_formats()
    return [name for name in (*FORMATS, *plugins) if name in Image.OPEN]


def _plugin_formats() -> list[str]:
    """Formats that others registered with Pillow: its own that are not above can run other programs."""
    _register_heif()
    modules = {name: str(getattr(factory, "__module__", "")) for name, (factory, _) in Image.OPEN.items()}
    return [name for name, module in modules.items() if not module.startswith("PIL.")]


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC photos where pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()


# Files


@dataclass
class Listing:
    """What lies below a folder.

    Args:
        images: the image files, sorted part by part.
        others: how many other files there are, by suffix in small letters; "" for files without one.
    """

    images: list[str]
    others: Counter[str]


def list_images(folder: str | os.PathLike[str], *, dotted: bool = False) -> list[str]:
    """All image files below a folder, by suffix, sorted.

    Links are followed; names that start with a dot (`.git`, the `._photo.jpg` of macOS) and the folders of
    systems (`@eaDir`, `__MACOSX`, `$RECYCLE.BIN`) are left out.

    Args:
        folder: the folder to search, at any depth.
        dotted: take the folders directly in it whose names start with a dot, too, such as a class `.net`.

    Returns:
        The paths, each beginning with `folder`, sorted part by part so that a folder stays together.

    Raises:
        DataError: there is no such folder, or no image in it.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png"):
        ...     (folder / name).touch()
        >>> [os.path.basename(path) for path in list_images(folder)]
        ['a.png', 'b.JPG']
    """
    found = scan(folder, dotted=dotted)
    if not found.images:
        raise DataError(no_images(folder, found.others))
    return found.images


def no_images(folder: str | os.PathLike[str], others: Counter[str]) -> str:
    """What to say of a folder without an image: what it holds."""
    expected = f"Expected files that end in {listed(sorted(image_suffixes()), limit=40)}"
    return f"No image file in {os.fspath(folder)}. Found: {_found(folder)}. {suffix_hint(others) or expected}"


def scan(folder: str | os.PathLike[str], *, dotted: bool = False) -> Listing:
    """The images below a folder, and how many other files.

    Args:
        folder: the folder.
        dotted: enter folders directly in it whose names begin with a dot, such as a class called ".net".

    Raises:
        DataError: there is no such folder.
    """
    require_folder(folder)
    others: Counter[str] = Counter()
    return Listing([*_walk(os.fspath(folder), frozenset(), image_suffixes(), others, dotted)], others)


def has_images(folder: str | os.PathLike[str], others: Counter[str] | None = None) -> bool:
    """Whether there is an image below a folder; counts the other files it came by."""
    others = Counter() if others is None else others
    require_folder(folder)
    return any(_walk(os.fspath(folder), frozenset(), image_suffixes(), others, True))


def suffix_hint(others: Counter[str]) -> str:
    """What to install for photos that are not read; "" where there are none."""
    if HEIF_SUFFIXES & set(others):
        return "HEIC photos need pillow-heif: pip install 'kclf[heif]'"
    return ""


def image_files(path: str | os.PathLike[str]) -> list[str]:
    """The file itself, or all images of a folder as `list_images` gives them.

    Raises:
        DataError: there is no such file or folder, or the folder holds no images.
    """
    if os.path.isfile(path):
        return [os.fspath(path)]
    if not os.path.isdir(path):
        is_address = str(path).startswith(("http:", "https:"))
        hint = ". Addresses are not read: download first" if is_address else ""
        raise DataError(f"No such file or folder: {os.fspath(path)}{hint}")
    return list_images(path)


def list_folders(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the folders directly in a folder, sorted; those of systems are left out."""
    require_folder(folder)
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if _is_folder(e) and not is_system(e.name))


def is_system(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system or a tool.

    Example:
        >>> is_system("@eaDir"), is_system(".net"), is_system("lost+found")
        (True, False, True)
    """
    return SYSTEM_NAMES.fullmatch(name) is not None


# Splits


def split_named(name: str) -> str:
    """The split that a folder of this name holds, "train", "valid" or "test"; "" for another folder.

    Example:
        >>> split_named("Validation"), split_named("test_images"), split_named("cats"), split_named("train 1")
        ('valid', 'test', '', 'train')
    """
    split, rest = _split_and_rest(name)
    return split if rest <= NEUTRAL_WORDS else ""


def split_folders(names: list[str]) -> dict[str, list[str]]:
    """Which of the folders hold which split, the folder that counts first.

    A name is a split's where its other words say nothing (`training_set`), or where another split's folder
    has the same (`cats_train` beside `cats_test`; but not `steam_train` beside `tram`).

    Example:
        >>> split_folders(["seg_pred", "seg_test", "seg_train"])
        {'train': ['seg_train'], 'test': ['seg_test']}
        >>> split_folders(["car", "steam_train"])
        {}
    """
    words = {name: _split_and_rest(name) for name in names}
    found: dict[str, list[str]] = {}
    for split in SPLIT_WORDS:
        there = [
            name
            for name, (own, rest) in words.items()
            if own == split
            and (rest <= NEUTRAL_WORDS or any(rest == r and o not in ("", own) for o, r in words.values()))
        ]
        if there:
            found[split] = sorted(there, key=lambda name: (_rank(name, split), name))
    return found


def _rank(name: str, split: str) -> tuple[int, int]:
    """First the names with the plainest word, and of those the shortest."""
    words = _words(name)
    return next(i for i, word in enumerate(SPLIT_WORDS[split]) if word in words), len(name)


def _split_and_rest(name: str) -> tuple[str, frozenset[str]]:
    words = _words(name)
    for split, known in SPLIT_WORDS.items():
        if hit := words & set(known):
            both = set(SPLIT_WORDS["valid"]) if split == "train" else set()  # train_val: of both
            return split, words - hit - both
    return "", words


def _words(name: str) -> frozenset[str]:
    """The words of a name in small letters, glued ones apart: trainset, TrainImages, hold_out."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower().replace("hold_out", "holdout")
    words = re.findall(r"[^\W\d_]+", spaced)
    return frozenset(part for word in words for part in _unglued(word))


def _unglued(word: str) -> tuple[str, ...]:
    for known in (known for group in SPLIT_WORDS.values() for known in group):
        if word.startswith(known) and word[len(known) :] in NEUTRAL_WORDS:
            return known, word[len(known) :]
    return (word,)


# Folders


def require_folder(folder: str | os.PathLike[str]) -> None:
    """Raise `DataError` where there is no such folder, naming the nearest parent that exists."""
    path = Path(folder)
    if os.fspath(folder) and path.is_dir():
        return
    if os.fspath(folder) and path.exists():
        raise DataError(f"Expected a folder, but this is a file. Received: folder={os.fspath(folder)!r}")
    parent = next(p for p in path.absolute().parents if p.is_dir())
    raise DataError(
        f"No such folder. Received: folder={os.fspath(folder)!r}. In {parent} there is: {_found(parent)}"
    )


def _walk(
    folder: str,
    above: frozenset[tuple[int, int]],
    suffixes: frozenset[str],
    others: Counter[str],
    dotted: bool,
) -> Iterator[str]:
    """Image files below a folder in sorted order; a link back to a folder above is not entered again."""
    status = os.stat(folder)
    seen = above | {(status.st_dev, status.st_ino)}
    if len(seen) == len(above):
        return
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if _is_visible(e, dotted)), key=lambda e: e.name)
    for entry in visible:
        if not entry.name.isascii():
            _require_text(entry)
        suffix = os.path.splitext(entry.name)[1].lower()
        if _is_folder(entry):
            yield from _walk(entry.path, seen, suffixes, others, False)
        elif suffix in suffixes:
            yield entry.path
        else:
            others[suffix] += 1


def _is_visible(entry: os.DirEntry[str], dotted: bool) -> bool:
    if entry.name.startswith("."):
        return dotted and _is_folder(entry) and not is_system(entry.name)
    return not is_system(entry.name)


def _require_text(entry: os.DirEntry[str]) -> None:
    """Refuse a name that is no text, as old archives and other systems leave: no table could hold it."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"Expected names in UTF-8. Received: {os.fsencode(entry.path)!r}. Rename it, "
            "such as by convmv for all at once"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _found(folder: str | os.PathLike[str]) -> str:
    with os.scandir(folder or ".") as entries:
        names = sorted(e.name + "/" * _is_folder(e) for e in entries)
    return listed(names) or "nothing, it is empty"
