"""`ImageData`: the training, validation and test images of a task, from wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from .._core.arguments import one_of
from .._core.csv_files import write_csv
from .._core.keywords import DATA, answering
from .._core.sizes import Size, as_size, covers, require_same_shape, size_and_presize
from ..errors import DataError
from . import show
from .archives import unpacked
from .files import require_folder
from .folders import Faults, read_folder
from .image_dataset import ImageDataset, OnError
from .images import ResizeMethod
from .labels import column_name, encode_array, encode_labels, one_column, plain_label, task_of, task_of_array
from .layouts import (
    Part,
    Path,
    as_files,
    automatic_split,
    divide,
    encoded_arrays,
    require_all_classes,
    require_apart,
    require_as_many,
    require_one_length,
    without_repeats,
)
from .presized import cached
from .sources import ArrayImages, FileImages
from .split_tables import COLUMN, tables_of_splits
from .splits import grouped_split, index_split
from .summary import Text, summary
from .table_files import Found, find_files, is_photo_in, one_spelling, require_no_second_label
from .tables import columns_of, read_csv_table, understand
from .tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Label = Callable[[str], Any]
MOST_MISSING = 0.05  # of the files of a table
_ONLY_TRAIN = ("class_weight", "sampling_weights")  # what validation and test are never loaded with


class Loading(TypedDict, total=False):
    """How images are loaded; every `ImageData.from_...` takes these."""

    size: Size
    presize: Size | None
    batch_size: int
    resize_method: ResizeMethod
    num_threads: int | None
    on_error: OnError
    max_unreadable: float | None
    class_weight: Any
    sampling_weights: Any
    channels: int | None


class ImageData:
    """Training, validation and test images of one task.

    Made by `from_folder`, `from_files`, `from_csv`, `from_table` or `from_arrays`. All of them take, after
    their source and as keywords:

    Args:
        valid_fraction: fraction of the images set aside for validation where the source does not say which.
        seed: fixes the split, the order of the epochs and the random windows.
        size: of the images the model sees, in pixels: the side of a square, or (height, width); default 224.
        presize: of the images the loader hands out, from which the augmentation cuts and turns to `size`:
            460 for 224 is the course's choice, (280, 420) goes with (224, 336). None for `size` itself.
        batch_size: images a batch, default 64.
        resize_method: how a photo is brought to its size: "crop" (default), "pad" (mirrored) or "squish".
        num_threads: threads that decode; None for one a core.
        on_error: "skip" (default) replaces a photo that cannot be read by another one and lists it in
            `skipped`; "raise" ends with an `ImageError`.
        max_unreadable: share of a split's images that may be skipped; 1 by default, so that only a class none
            of whose images can be read stops the work. Of the files of a table 5 % may be missing.
        class_weight: weight of each class in the training loss, by name, or "balanced".
        sampling_weights: "balanced" to draw all classes alike in training.
        channels: of photos in files: 3 (default) reads them in colour, 1 in grey, for a classifier of as
            many. Arrays say it by their last axis.

    Attributes:
        train: `ImageDataset`, shuffled, with random windows, full batches only.
        valid: `ImageDataset` in the order of its files with centred windows, or None.
        test: the same for the test images, or None; its `labels` are None where unknown.
        notes: what is worth knowing of the source: files that are not used, spellings that were mended.
    """

    def __init__(
        self,
        train: ImageDataset,
        valid: ImageDataset | None = None,
        test: ImageDataset | None = None,
        *,
        size: Size | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = list(notes)
        self.train = train
        self.valid = valid
        self.test = test
        self.size = train.presize if size is None else as_size("size", size)

    @property
    def class_names(self) -> list[str]:
        """The classes in order."""
        return self.train.class_names

    @property
    def task(self) -> Task:
        """Single label, multi-label or regression."""
        return self.train.task

    @property
    def presize(self) -> Size:
        """The size of the images the loader hands out, in pixels."""
        return self.train.presize

    @property
    def channels(self) -> int:
        """Channels of the images: 3 for colour."""
        return self.train.channels

    @property
    def batch_size(self) -> int:
        """Images a batch."""
        return self.train.batch_size

    @property
    def splits(self) -> dict[str, ImageDataset]:
        """The splits that exist, by name."""
        all_three = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: split for name, split in all_three.items() if split is not None}

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of each image of any split found unreadable so far."""
        return [item for split in self.splits.values() for item in split.skipped]

    def __repr__(self) -> str:
        return f"ImageData(size={self.size}, {', '.join(f'{k}={v!r}' for k, v in self.splits.items())})"

    def replace(self, *, size: Size | None = None, presize: Size | None = None, **changes: Any) -> ImageData:
        """The same images, loaded another way: at another size, in other batches.

        Args:
            size: the new size; the loader then crops directly to it unless `presize` is given too.
            presize: the new size of the loader's images.
            **changes: other arguments of `ImageDataset`, for all splits; `class_weight` and
                `sampling_weights` for training alone.

        Raises:
            ValueError: they would be larger than the photos of a cache (`resize`).

        Example:
            >>> data = ImageData.from_arrays((np.zeros((20, 32, 32, 3), np.uint8), [0, 1] * 10), size=32)
            >>> data.replace(batch_size=4).train
            ImageDataset(16 images, 2 classes, 4 x 4 squares of 32 px)
        """
        if size is not None or presize is not None:
            size, changes["presize"] = size_and_presize(size or self.size, presize)
        for_all = {key: value for key, value in changes.items() if key not in _ONLY_TRAIN}
        splits = {
            name: split.replace(**(changes if name == "train" else for_all))
            for name, split in self.splits.items()
        }
        return ImageData(**splits, size=size or self.size, notes=self.notes)

    def resize(self, size: Size, cache_folder: Path) -> ImageData:
        """The same images, decoded and scaled once and read from a cache from then on.

        Each photo is kept so that it just covers `size`: its short side has as many pixels, for a square.
        So windows still move in training.
        The cache is one file for all splits, keyed by the photos' paths, sizes and times of change, so that
        other folds of the same photos share it. A build that is interrupted resumes at the next call.

        Args:
            size: in pixels, at least the size the model sees, and of its shape: 460 for random resized crops
                to 224, 340 to train at 224 and then at 299. A photo takes about 4 * size**2 bytes.
            cache_folder: where caches are kept, made if need be.

        Returns:
            Data whose `presize` is at most `size`.

        Raises:
            DataError: the images are not in files, or the disk has not the room.
        """
        size = as_size("size", size)
        if not covers(size, self.size):
            raise ValueError(f"Expected size >= {self.size}, which the model sees. Received: size={size}")
        require_same_shape("size", size, self.size)
        for name, split in self.splits.items():
            if not isinstance(split.dataset, FileImages):
                raise DataError(f"The {name} images are not in files, so there is nothing to decode once")
        paths = np.unique(np.concatenate([split.paths for split in self.splits.values()]))
        source = self.train.dataset
        images = cached(paths, size, cache_folder, self.train.num_threads, source.depth, source.channels)
        splits = {
            name: split.replace(
                images=images.take(np.searchsorted(paths, split.paths)),
                presize=split.presize if covers(size, split.presize) else size,
            )
            for name, split in self.splits.items()
        }
        return ImageData(**splits, size=self.size, notes=self.notes)

    def summary(self, index: int | None = 0) -> Text:
        """What was found, and what becomes of one photo.

        Args:
            index: the training image whose way is shown: each step with shape, dtype and range of its
                result, or the step that fails and why; None shows none.

        Returns:
            Text: the splits, the images of each class, the sizes of the photos, the steps.

        Example:
            >>> images = np.zeros((6, 32, 32, 3), np.uint8)
            >>> data = ImageData.from_arrays((images, ["cat", "dog"] * 3), batch_size=2)
            >>> data.summary()
            Single label images, 2 classes, 32 px squares, the model sees 32 px
              train         4 images  2 batches of 2, shuffled, random windows
              valid         2 images  1 batch of 2
            Classes      train    valid
              cat            2        1
              dog            2        1
            The way of training image 0, [0]
              1. decode           uint8 (32, 32, 3) in [0, 0], mean 0.0
              2. square by crop   uint8 (32, 32, 3) in [0, 0], mean 0.0
              3. label            cat, class 0 of 2
              4. batch            uint8 (2, 32, 32, 3), int64 (2,)
        """
        return summary(self.splits, self.size, self.notes, index)

    def show_batch(self, count: int = 9, split: str = "train", *, columns: int | None = None) -> Figure:
        """The first images of the next batch with their labels; looking does not move the epoch.

        Args:
            count: number of images.
            split: "train", "valid" or "test".
            columns: of the grid; None for one near to a square.

        Returns:
            A matplotlib figure, not shown.
        """
        return show.show_batch(self._split(split), count, columns)

    def show_augmented(
        self, augmentation: show.Augment | None = None, count: int = 8, index: int = 0
    ) -> Figure:
        """One training image as it comes in `count` epochs.

        Args:
            augmentation: `model.augmentation` or any layer that takes a batch; None for the windows alone.
            count: number of views.
            index: which training image.

        Returns:
            A matplotlib figure, not shown.
        """
        return show.show_augmented(self.train, augmentation, index, count)

    def show_sizes(self, limit: int | None = None) -> Figure:
        """Histograms of the widths and heights of the training photos, read from their headers.

        Args:
            limit: look at so many photos only, spread evenly; None for all.
        """
        return show.show_sizes(self.train, limit)

    def show_classes(self) -> Figure:
        """Images of each class, split by split, as bars."""
        return show.show_classes(self.splits)

    def save_skipped(self, csv_file: Path) -> int:
        """Write path and reason of each image found unreadable so far to a CSV file; returns their number."""
        write_csv(csv_file, [("path", "reason"), *self.skipped])
        return len(self.skipped)

    def _split(self, name: str) -> ImageDataset:
        return self.splits[one_of("split", name, list(self.splits))]

    # Sources

    @classmethod
    @answering(DATA, also=Loading.__annotations__)
    def from_folder(
        cls,
        folder: Path,
        *,
        label_regex: str | None = None,
        lenient: bool = False,
        valid_fraction: float = 0.2,
        seed: int = 0,
        **loading: Unpack[Loading],
    ) -> ImageData:
        r"""Images in one folder a class.

        Where `folder` has a folder for training (`train`, `training_set`, `train_images`), that holds the
        class folders; validation comes from such a folder (`valid`, `val`, `dev`), or is set aside from
        training where there is none; so does the test set (`test`, `Testing`, `test1`), which has labels
        where it has the class folders. Otherwise `folder` itself holds the class folders, and a share of each
        class is set aside for validation. `summary()` says what lies there and is not used.

        A photo's class is the folder directly below that it lies in, however deep; Unicode spellings and
        blanks around a name make no difference. Folders of splits without class folders may each hold a CSV
        file of their photos instead, as Roboflow (`_classes.csv`) and Hugging Face (`metadata.csv`) write
        them; it is read as `from_table` does.

        Args:
            folder: the folder.
            label_regex: take the label from the file's name instead of its folder, by the first group of
                this pattern: r"(.+)_\d+" finds "great_pyrenees" in "great_pyrenees_173.jpg".
            lenient: warn in `notes` of what else is refused: an empty class folder, images outside the class
                folders, a class with one image or without validation images, an empty folder of a split,
                validation or test images of other classes, class folders that all hold the same folders.
            valid_fraction: see the class, as all that follow.
            seed: fixes the split, the order and the windows.
            **loading: see the class.

        Raises:
            DataError: no such folder, no images, fewer than 2 classes, names of classes that differ in case
                alone, a folder of validation or test images without one for training, and what `lenient`
                leaves at a warning.
        """
        folder = unpacked(folder)
        common: Any = {"lenient": lenient, "valid_fraction": valid_fraction, "seed": seed}
        if label_regex is None and (tables := tables_of_splits(folder)) is not None:
            words = {"folder": folder, "valid_column": COLUMN, "test": tables.test} | common
            data = cls.from_table(tables.columns, **words, **loading)
            data.notes[:0] = tables.notes
            return data
        names, train, valid, test, notes = read_folder(folder, label_regex, **common)
        return cls._of(names, "single_label", seed, loading, train, valid, test, notes)

    @classmethod
    @answering(DATA, also=Loading.__annotations__)
    def from_files(
        cls,
        paths: Sequence[Path] | Path,
        label: Label,
        *,
        task: Task | None = None,
        group: Callable[[str], Hashable] | None = None,
        valid_indices: Sequence[int] | np.ndarray | None = None,
        test: Sequence[Path] | Path | None = None,
        lenient: bool = False,
        valid_fraction: float = 0.2,
        seed: int = 0,
        **loading: Unpack[Loading],
    ) -> ImageData:
        r"""Images in any order and place, with a function that knows their labels.

        Args:
            paths: the files, or a folder of which all images are taken.
            label: function path -> label: text for single label, a list or set of texts for multi-label,
                a number for regression. `regex_label(pattern)` and `parent_label` are such functions.
            task: "single_label", "multi_label" or "regression"; None to see it from the labels, which takes
                text as classes and refuses numbers, since they could be either.
            group: function path -> what must stay on one side of the split (the animal, the patient).
            valid_indices: which of the paths are for validation; None to set aside `valid_fraction`.
            test: files without labels, or a folder of them.
            lenient: warn in `notes` of a class with one image, or without validation images.
            valid_fraction: see the class, as all that follow.
            seed: fixes the split, the order and the windows.
            **loading: see the class.

        Example:
            >>> import tempfile
            >>> from kclf.data.labels import regex_label
            >>> from PIL import Image
            >>> folder = tempfile.mkdtemp()
            >>> for name in ("cat_1.png", "cat_2.png", "cat_3.png", "dog_1.png", "dog_2.png"):
            ...     Image.new("RGB", (40, 30)).save(os.path.join(folder, name))
            >>> data = ImageData.from_files(folder, regex_label(r"(.+)_\d+"), size=32)
            >>> data.class_names, data.train.num_images, data.valid.num_images
            (['cat', 'dog'], 3, 2)
        """
        files = as_files(paths)
        given: Sequence[Any] = files if isinstance(paths, str | os.PathLike) else paths
        labels = [plain_label(label(path)) for path in given]
        groups = None if group is None else [group(path) for path in given]
        if not any(os.path.exists(file) for file in files):
            find_files("", files)
        return cls._from_labels(
            files, labels, task, groups, valid_indices, test, valid_fraction, seed, loading, Faults(lenient)
        )

    @classmethod
    @answering(DATA, also=Loading.__annotations__)
    def from_table(
        cls,
        table: Any,
        *,
        folder: Path = "",
        path_column: str | int | None = None,
        label_column: str | int | Sequence[str | int] | None = None,
        valid_column: str | int | None = None,
        group_column: str | int | None = None,
        suffix: str = "",
        label_delimiter: str | None = None,
        task: Task | None = None,
        valid_indices: Sequence[int] | np.ndarray | None = None,
        test: Sequence[Path] | Path | None = None,
        lenient: bool = False,
        valid_fraction: float = 0.2,
        seed: int = 0,
        **loading: Unpack[Loading],
    ) -> ImageData:
        """Images and labels in a table.

        What was understood without being said (a one-hot table, a column of splits, file names that were
        mended) stands in `notes`.

        Args:
            table: columns by name, all of one length; or a data frame of pandas or polars, a table of
                pyarrow, a list of mappings or of rows.
            folder: where the files of the path column lie.
            path_column: name or number of the column of file names; None for the first that holds some.
            label_column: name or number of the column of labels, or of several with 0 and 1, one a class;
                None for the one called so ("label", "class", ...), for all others where they hold 0 and 1
                alone, else for the one after the path column.
            valid_column: column that says what is for validation: 0 and 1, or the names of splits, or folds,
                of which the first validates; None for one called so ("is_valid", "split", "fold").
            group_column: column of what must stay on one side of the split, or None.
            suffix: added to each file name, such as ".jpg".
            label_delimiter: what stands between the labels of an image; None for one label an image. It is
                never guessed: a class name with a space in it is one class.
            task: "single_label", "multi_label" or "regression"; None for multi-label with a delimiter, with
                lists, or with several 1 in a row, else single label.
            valid_indices: rows for validation, such as `cv_indices(n)`; None to set aside `valid_fraction`.
            test: files without labels, or a folder of them.
            lenient: warn in `notes` of a class with one image, or without validation images.
            valid_fraction: see the class, as all that follow.
            seed: fixes the split, the order and the windows.
            **loading: see the class.

        Raises:
            DataError: columns that are not there or not of one length, rows without file or label, a file
                with two labels, classes whose names differ in case alone, no file that exists.
        """
        columns, faults = columns_of(table), Faults(lenient)
        groups = None if group_column is None else columns[column_name(columns, group_column)]
        require_one_length(columns, path_column, label_column, groups)
        meaning = understand(
            columns,
            path_column=path_column,
            label_column=label_column,
            valid_column=valid_column,
            label_delimiter=label_delimiter,
            task=task,
            is_split=valid_indices is not None or groups is not None,
        )
        found = find_files(folder, meaning.names, suffix)
        faults.notes += [*meaning.notes, *found.notes]
        if found.missing:
            _require_files(found, loading.get("max_unreadable", MOST_MISSING), faults)
        valid = meaning.valid if valid_indices is None else valid_indices
        return cls._from_labels(
            found.files, meaning.labels, meaning.task, groups, valid, test, valid_fraction, seed, loading,
            faults, meaning.test,
        )  # fmt: skip

    @classmethod
    @answering(DATA)
    def from_csv(
        cls, csv_file: Path, *, folder: Path | None = None, delimiter: str | None = None, **arguments: Any
    ) -> ImageData:
        """Images and labels in a CSV file, with a header row or without; takes the arguments of `from_table`.

        Args:
            csv_file: the file.
            folder: where the images lie; None for the folder of the CSV file.
            delimiter: between the fields of a row; None to see it from the first one.
            **arguments: as `from_table`.
        """
        folder = os.path.dirname(os.fspath(csv_file)) if folder is None else folder
        require_folder(folder or ".")
        suffix = arguments.get("suffix", "")
        columns, notes = read_csv_table(csv_file, delimiter, lambda cell: is_photo_in(folder, cell, suffix))
        data = cls.from_table(columns, folder=folder, **arguments)
        data.notes[:0] = notes
        return data

    @classmethod
    @answering(DATA, also=Loading.__annotations__)
    def from_arrays(
        cls,
        train: tuple[np.ndarray, Any],
        valid: tuple[np.ndarray, Any] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        task: Task | None = None,
        test: np.ndarray | tuple[np.ndarray, Any] | None = None,
        valid_fraction: float = 0.2,
        seed: int = 0,
        **loading: Unpack[Loading],
    ) -> ImageData:
        """Images in memory.

        Args:
            train: uint8 images (n, height, width, channels), or (n, height, width) for grey in three, and
                their labels: class numbers or class names, (n,) or (n, 1), (n, classes) n-hot rows, or n
                floats for regression.
            valid: the same for validation; None to set aside `valid_fraction`.
            class_names: the classes in order; None for the sorted names, or the numbers as text.
            task: None to see it from the labels.
            test: images, or images and labels.
            valid_fraction: see the class, as all that follow.
            seed: fixes the split, the order and the windows.
            **loading: see the class; `size` is by default the images' own height and width.

        Example:
            >>> images = np.zeros((20, 32, 32, 3), np.uint8)
            >>> data = ImageData.from_arrays((images, ["cat", "dog"] * 10))
            >>> data.class_names, data.size, data.train.num_images, data.valid.num_images
            (['cat', 'dog'], 32, 16, 4)
        """
        if not isinstance(train, tuple | list) or len(train) != 2:
            raise TypeError(
                "Expected images and their labels as one argument: ImageData.from_arrays((images, labels)). "
                f"Received: train of type {type(train).__name__}"
            )
        images, labels = ArrayImages(train[0]), one_column(np.asarray(train[1]), task)
        require_as_many(images, labels)
        loading.setdefault("size", as_size("size", images.images.shape[1:3]))
        task = task or task_of_array(labels)
        names, codes = encode_array(labels, task, class_names)
        if valid is None:
            parts = divide(images, codes, automatic_split(codes, names, task, valid_fraction, seed))
        else:
            parts = (images, codes), encoded_arrays(valid, task, names)
        tested = None if test is None else encoded_arrays(test, task, names)
        return cls._of(names, task, seed, loading, *parts, tested)

    @classmethod
    def _from_labels(
        cls,
        files: list[str],
        labels: Sequence[Any],
        task: Task | None,
        groups: Sequence[Hashable] | None,
        valid_indices: Sequence[int] | np.ndarray | None,
        test: Sequence[Path] | Path | None,
        valid_fraction: float,
        seed: int,
        loading: Loading,
        faults: Faults,
        test_rows: Sequence[int] = (),
    ) -> ImageData:
        task = task or task_of(labels, files)
        names, codes = encode_labels(labels, task, files, faults.report)
        spelled = one_spelling(files)
        if task == "single_label":
            require_no_second_label(spelled, labels)
        rows = np.setdiff1d(np.arange(len(files)), test_rows)
        if valid_indices is not None:
            split = index_split(len(files), valid_indices)
            split = np.setdiff1d(split[0], test_rows), split[1]
        elif groups is not None:
            split = grouped_split(groups, valid_fraction, seed)
        else:
            if task == "single_label" and len(once := without_repeats(spelled, rows)) < len(rows):
                faults.notes.append(f"{len(rows) - len(once):,} rows say what others do, and count once")
                rows = once
            report = faults.report if faults.lenient else None  # None: the split refuses in its own words
            split = automatic_split(codes[rows], names, task, valid_fraction, seed, report)
            split = rows[split[0]], rows[split[1]]
        if task == "single_label" and (valid_indices is not None or groups is not None):
            require_all_classes(codes, split, names, faults.report)
        require_apart(spelled, split)
        if len(test_rows):
            require_apart(spelled, (np.concatenate(split), np.asarray(test_rows)), ("training", "test"))
        train, valid = divide(FileImages(files), codes, split)
        tested: Part | None = None if test is None else (FileImages(as_files(test)), None)
        if tested is None and len(test_rows):
            tested = FileImages(files).take(np.asarray(test_rows)), codes[list(test_rows)]
        return cls._of(names, task, seed, loading, train, valid, tested, faults.notes)

    @classmethod
    def _of(
        cls,
        class_names: Sequence[str],
        task: Task,
        seed: int,
        loading: Loading,
        train: Part,
        valid: Part,
        test: Part | None,
        notes: Sequence[str] = (),
    ) -> ImageData:
        options: dict[str, Any] = dict(loading)
        size, presize = size_and_presize(options.pop("size", 224), options.pop("presize", None))
        only_train = {key: options.pop(key, None) for key in _ONLY_TRAIN}
        options.setdefault("max_unreadable", 1.0)
        options |= {"class_names": class_names, "task": task, "presize": presize, "seed": seed}
        return cls(
            ImageDataset(
                train[0], train[1], shuffle=True, random_crop=True, drop_last=True, **only_train, **options
            ),
            ImageDataset(valid[0], valid[1], **options),
            None if test is None else ImageDataset(test[0], test[1], **options),
            size=size,
            notes=notes,
        )


def _require_files(found: Found, most: float | None, faults: Faults) -> None:
    """Report files of a table that are not there, where they are many; else note them."""
    count = f"{found.missing:,} of {len(found.files):,}"
    message = f"{count} files of the table are not there, such as {found.first}"
    if most is not None and found.missing > max(1, most * len(found.files)):
        faults.report(f"{message}. Look at folder and names, or raise max_unreadable (--max-unreadable)")
    else:
        faults.notes.append(message)
