"""The course's photos by name: fetched once from their official place, checked and unpacked."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from ._core.locks import make_folder
from .errors import DataError


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        url: of the archive.
        checksum: MD5 or SHA-256 of the archive, as published or as torchvision and others check it.
        folder: the folder inside the archive that `fetch` gives.
    """

    url: str
    checksum: str
    folder: str

    @property
    def file(self) -> str:
        """Name of the archive."""
        return os.path.basename(self.url)


_MICROSOFT = "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F"
_FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2"
SOURCES = {
    "dogs-vs-cats": Source(
        f"{_MICROSOFT}/kagglecatsanddogs_5340.zip",
        "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9",
        "PetImages",
    ),
    "flowers": Source(
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
        "flower_photos",
    ),
    "imagenette": Source(f"{_FASTAI}.tgz", "fe2fc210e6bb7c5664d602c3cd71e612", "imagenette2"),
    "imagenette-160": Source(f"{_FASTAI}-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412", "imagenette2-160"),
    "imagenette-320": Source(f"{_FASTAI}-320.tgz", "3df6f0d01a2c9592104656642f5e78a3", "imagenette2-320"),
    "pets": Source(
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
        "5c4f3ee8e5d25df40f4fd59a7f44e54c",
        "images",
    ),
}


def dataset_names() -> list[str]:
    """The names that `fetch` knows.

    Example:
        >>> dataset_names()
        ['dogs-vs-cats', 'flowers', 'imagenette', 'imagenette-160', 'imagenette-320', 'pets']
    """
    return sorted(SOURCES)


def fetch(name: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    r"""The folder of a data set, downloaded at the first call.

    The archive is checked against its checksum and unpacked beside its place, which it takes only when it is
    complete; members that would land outside are refused. A second process that asks for it waits.

    Args:
        name: one of `dataset_names()`.
        cache_dir: where data sets are kept, in `datasets/`; None for Keras' own (`~/.keras`).

    Returns:
        The folder of the photos. `ImageData.from_folder` reads all of them; "pets" with
        `label_regex=r"(.+)_\d+\.jpg$"`.

    Raises:
        DataError: the name is not known, the archive cannot be fetched, or it is not the expected one.
    """
    if name not in SOURCES:
        raise DataError(f"Expected one of {', '.join(dataset_names())}. Received: name={name!r}")
    source = SOURCES[name]
    home = cache_dir or os.environ.get("KERAS_HOME") or "~/.keras"  # as keras.utils.get_file has it
    root = Path(home).expanduser() / "datasets"
    target, place = root / f"kclf-{name}", root / ".kclf-fetching" / name
    if not target.exists() or (place / source.file).exists():
        make_folder(target, lambda inside: _unpack(_archive(name, source, root, place), inside), place=place)
        (place / source.file).unlink(missing_ok=True)
    return target / source.folder


def _archive(name: str, source: Source, root: Path, place: Path) -> Path:
    """The archive: where somebody brought it, or downloaded to a place of its own."""
    brought = root / source.file
    if brought.is_file() and _has_checksum(brought, source.checksum):
        return brought
    try:
        keras.utils.get_file(
            source.file, source.url, file_hash=source.checksum, cache_dir=place.parent, cache_subdir=name
        )
    except Exception as error:  # Keras raises a bare Exception for what urllib says
        raise DataError(
            f"Could not fetch {name!r}: {error}. Where there is no network, bring {source.url} to {brought} "
            "by other means and call this again"
        ) from error
    return place / source.file


def _has_checksum(file: Path, checksum: str) -> bool:
    with open(file, "rb") as content:
        found = hashlib.file_digest(content, "md5" if len(checksum) == 32 else "sha256")
    return found.hexdigest() == checksum


def _unpack(archive: Path, folder: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}. Remove it and fetch again") from error


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise zipfile.BadZipFile(f"member {name!r} would land outside")
        file.extractall(folder)


def write_digits(folder: str | os.PathLike[str], *, size: int = 32) -> Path:
    """Write the 1,797 digits of scikit-learn as PNG files, one class folder a digit.

    Args:
        folder: where to; made where it is missing.
        size: side of the images, pixels (the digits themselves are 8 x 8).

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> folder = write_digits(tempfile.mkdtemp())
        >>> len(list(folder.glob("*/*.png")))
        1797
    """
    from sklearn.datasets import load_digits

    folder = Path(folder)
    digits = load_digits()
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        grey = Image.fromarray(np.uint8(np.round(image * (255 / 16))))  # 17 levels of grey, 0 to 16
        grey.resize((size, size), Image.Resampling.BICUBIC).save(folder / str(label) / f"{number:04d}.png")
    return folder
