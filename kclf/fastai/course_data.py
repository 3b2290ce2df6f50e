"""Data under the course's names: `trn_ds.fnames`, `val_y`, `aug_dl` (0.7); `vocab`, `one_batch` (2)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.sizes import Size
from ..data import ImageData, ImageDataset, show
from ..models import ImageClassifier
from ..prediction.inference import photos_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..layers import Augmentation


class CourseSplit:
    """The photos of one split as fastai's data sets have them: a length, pairs, file names, labels.

    Args:
        split: the photos.
        folder: to which file names are relative.
    """

    def __init__(self, split: ImageDataset, folder: str | os.PathLike[str] | None) -> None:
        self.split, self.folder = split, folder

    def __len__(self) -> int:
        """Number of photos."""
        return self.split.num_images

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        """Photo uint8 (height, width, 3) and label."""
        return self.split.dataset[index], None if self.y is None else self.y[index]

    def __iter__(self) -> Iterator[tuple[np.ndarray, Any]]:
        return (self[index] for index in range(len(self)))

    @property
    def fnames(self) -> list[str]:
        """File names, below the folder of the data where they lie in one."""
        if self.folder is None:
            return list(map(str, self.split.paths))
        return [os.path.relpath(path, self.folder) for path in self.split.paths]

    @property
    def y(self) -> np.ndarray | None:
        """Labels as numbers, (n,); None where they are unknown."""
        return self.split.labels

    @staticmethod
    def denorm(images: Any) -> np.ndarray:
        """Images in [0, 1], for `plt.imshow`: kclf's batches are whole numbers up to 255."""
        pixels = images.numpy(force=True) if hasattr(images, "numpy") else np.asarray(images)
        return pixels.astype(np.float32) / 255


def batches_of(files: Sequence[Any], like: ImageDataset) -> ImageDataset:
    """Batches of photos without labels, read as others are.

    Args:
        files: paths.
        like: how.
    """
    names, depth = [os.fspath(file) for file in files], like.dataset.depth
    return photos_for(like, names, batch_size=like.batch_size, size=like.presize, depth=depth)


@dataclass(frozen=True)
class Deployed:
    """What a classifier without data answers to `learn.dls`.

    Args:
        model: the classifier.
    """

    model: ImageClassifier

    @property
    def vocab(self) -> list[str]:
        """The classes in order."""
        return list(self.model.class_names)

    def test_dl(self, files: Sequence[Any]) -> ImageDataset:
        """Batches of photos, read as the classifier reads them."""
        return photos_for(self.model, [os.fspath(file) for file in files])


class CourseData(ImageData):
    """`ImageData` that carries the augmentation for the learner, and answers to the course's names.

    Attributes:
        augmentation: of training photos, or None.
        path: the folder of the data, or None.
    """

    augmentation: Augmentation | None = None
    path: Any = None

    @classmethod
    def carrying(cls, data: ImageData, augmentation: Augmentation | None, path: Any = None) -> CourseData:
        """The same photos with an augmentation."""
        made = cls(**data.splits, size=data.size, notes=data.notes)
        made.augmentation = augmentation if augmentation is None else augmentation.resized(data.size)
        made.path = path
        return made

    def replace(self, **changes: Any) -> CourseData:
        """As `ImageData.replace`; the augmentation stays."""
        return self.carrying(super().replace(**changes), self.augmentation, self.path)

    def resize(self, size: Size, cache_folder: str | os.PathLike[str] = "tmp") -> CourseData:
        """As `ImageData.resize`; the augmentation stays."""
        return self.carrying(super().resize(size, Path(cache_folder)), self.augmentation, self.path)

    # ---- fastai 0.7 ------------------------------------------------------------

    @property
    def classes(self) -> list[str]:
        """The classes in order."""
        return self.class_names

    @property
    def sz(self) -> Size:
        """The size of the photos in pixels."""
        return self.size

    @property
    def bs(self) -> int:
        """Photos a batch."""
        return self.batch_size

    @property
    def c(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def is_multi(self) -> bool:
        """Whether a photo has several labels."""
        return self.task == "multi_label"

    @property
    def is_reg(self) -> bool:
        """Whether the labels are numbers to predict."""
        return self.task == "regression"

    def class_counts(self) -> dict[str, int]:
        """Training photos of each class, most first: the notes' pivot table."""
        counts = dict(zip(self.class_names, self.train.class_counts().tolist(), strict=True))
        return dict(sorted(counts.items(), key=lambda pair: -pair[1]))

    @property
    def trn_ds(self) -> CourseSplit:
        """The training photos."""
        return CourseSplit(self.train, self.path)

    @property
    def val_ds(self) -> CourseSplit:
        """The validation photos."""
        return CourseSplit(self._split("valid"), self.path)

    @property
    def test_ds(self) -> CourseSplit:
        """The test photos."""
        return CourseSplit(self._split("test"), self.path)

    train_ds, valid_ds = trn_ds, val_ds

    @property
    def trn_y(self) -> np.ndarray | None:
        """Labels of the training photos."""
        return self.train.labels

    @property
    def val_y(self) -> np.ndarray | None:
        """Labels of the validation photos."""
        return self._split("valid").labels

    @property
    def trn_dl(self) -> ImageDataset:
        """Batches of training photos."""
        return self.train

    @property
    def val_dl(self) -> ImageDataset:
        """Batches of validation photos."""
        return self._split("valid")

    @property
    def test_dl(self) -> Any:
        """Batches of test photos; where there are none, fastai 2's function: files -> batches of them."""
        test = self.splits.get("test")
        return partial(batches_of, like=self.train) if test is None else test

    @property
    def aug_dl(self) -> Iterator[tuple[Any, ...]]:
        """Batches of training photos, augmented: float32 in [0, 255], (batch, size, size, 3), and labels."""
        for images, *rest in self.train:
            yield (images if self.augmentation is None else self.augmentation(images, training=True), *rest)

    # ---- fastai 2 ------------------------------------------------------------

    vocab = classes

    def one_batch(self) -> tuple[Any, ...]:
        """The next batch: images uint8 (batch, presize, presize, 3), and labels."""
        return self.train.peek()

    def show_batch(
        self,
        count: int | None = None,
        split: str = "train",
        *,
        columns: int | None = None,
        nrows: int | None = None,
        ncols: int | None = None,
        max_n: int = 9,
        unique: bool = False,
    ) -> Figure:
        """The first images of the next batch with their labels, those of training augmented.

        Args:
            count: how many; None for `nrows * ncols`, or `max_n`.
            split: "train", "valid" or "test".
            columns: the same as `ncols`.
            nrows: rows of images.
            ncols: columns of images.
            max_n: how many, where nothing else says.
            unique: one photo in as many views.
        """
        columns = columns or ncols or (nrows and -(-max_n // nrows))
        if count is None:
            count = (nrows or 1) * (ncols or -(-max_n // (nrows or 1))) if nrows or ncols else max_n
        if unique:
            return self.show_augmented(count=count)
        seen = self.augmentation if split == "train" else None
        return show.show_batch(self._split(split), count, columns, seen)

    def show_augmented(self, augmentation: Any = ..., count: int = 8, index: int = 0) -> Figure:
        """One photo as training meets it, under the data's own augmentation unless another is given."""
        return super().show_augmented(
            self.augmentation if augmentation is ... else augmentation, count, index
        )
