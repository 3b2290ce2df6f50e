"""The words of fastai 2, as chapter 5 of the book uses them: paths, labels, and the data block."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .._core.sizes import Size, as_size, presize_for, sides
from ..data import ImageData
from ..data.files import list_images
from ..data.images import image_size, read_image
from ..data.tasks import Task
from ..datasets import fetch
from ..errors import DataError
from ..layers import Augmentation
from .course_data import CourseData

SHOWN = 10  # items of a list that are printed
SIZE = 224  # pixels, where no transform says


class L(list[Any]):
    """A list that prints its length first.

    Example:
        >>> L(range(12))
        (#12) [0,1,2,3,4,5,6,7,8,9...]
    """

    def __repr__(self) -> str:
        more = "..." if len(self) > SHOWN else ""
        return f"(#{len(self)}) [{','.join(map(str, self[:SHOWN]))}{more}]"


class Path(type(pathlib.Path())):  # type: ignore[misc]
    """`pathlib.Path` with `ls`, which lists a folder."""

    def ls(self, n_max: int | None = None) -> L:
        """What lies in the folder, sorted.

        Args:
            n_max: at most so many.
        """
        return L(sorted(self.iterdir())[:n_max])


class URLs:
    """Names of data sets for `untar_data`."""

    PETS = "pets"
    DOGS = "dogs-vs-cats"
    IMAGENETTE = "imagenette"
    IMAGENETTE_160 = "imagenette-160"
    IMAGENETTE_320 = "imagenette-320"
    FLOWERS = "flowers"


def untar_data(url: str) -> Path:
    """The folder of a data set, downloaded at the first call; for `URLs.PETS` the one that holds `images`.

    Args:
        url: a name of `URLs`.
    """
    folder = fetch(url)
    return Path(folder.parent if folder.name == "images" else folder)


def get_image_files(path: str | os.PathLike[str], recurse: bool = True) -> L:
    """All photos below a folder.

    Args:
        path: the folder.
        recurse: False takes those right in it.
    """
    found = [Path(file) for file in list_images(path)]
    return L(file for file in found if recurse or file.parent == pathlib.Path(path))


def parent_label(o: str | os.PathLike[str]) -> str:
    """The name of the folder that a photo lies in."""
    return pathlib.Path(o).parent.name


class RegexLabeller:
    r"""The first group of a pattern, as the label of a name.

    Args:
        pat: the pattern.
        match: it has to match from the start.

    Example:
        >>> RegexLabeller(r"(.+)_\d+.jpg$")("great_pyrenees_173.jpg")
        'great_pyrenees'
    """

    def __init__(self, pat: str, match: bool = False) -> None:
        self.pat, self.match = re.compile(pat), match

    def __call__(self, o: Any) -> str:
        """The label of a name."""
        name = str(o)
        found = self.pat.match(name) if self.match else self.pat.search(name)
        if found is None:
            raise DataError(f"Failed to find {self.pat.pattern!r} in {name!r}")
        return found.group(1)


def using_attr(f: Callable[[Any], Any], attr: str) -> Callable[[Any], Any]:
    """A function of an attribute: `using_attr(f, "name")(path)` is `f(path.name)`."""
    return lambda o: f(getattr(o, attr))


def RandomSplitter(valid_pct: float = 0.2, seed: int | None = None) -> Callable[[Sequence[Any]], tuple[L, L]]:
    """A function that gives indices for training and validation; with a seed, those that fastai draws.

    Args:
        valid_pct: share of the items for validation.
        seed: of torch's generator.

    Example:
        >>> [len(part) for part in RandomSplitter(seed=42)(range(7390))]
        [5912, 1478]
    """

    def split(o: Sequence[Any]) -> tuple[L, L]:
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        order = torch.randperm(len(o), generator=generator).tolist()
        cut = int(valid_pct * len(o))
        return L(order[cut:]), L(order[:cut])

    return split


def GrandparentSplitter(
    train_name: str = "train", valid_name: str = "valid"
) -> Callable[[Sequence[Any]], tuple[L, L]]:
    """A function that takes the split from the folder above a photo's class folder."""

    def split(o: Sequence[Any]) -> tuple[L, L]:
        names = [pathlib.Path(one).parent.parent.name for one in o]
        return tuple(  # type: ignore[return-value]
            L(n for n, name in enumerate(names) if name == wanted) for wanted in (train_name, valid_name)
        )

    return split


@dataclass(frozen=True)
class Resize:
    """How photos are brought to one size before they form a batch.

    Args:
        size: in pixels, the side of a square or (height, width).
        method: "crop", "pad" or "squish".
    """

    size: Size
    method: str = "crop"


@dataclass(frozen=True)
class Block:
    """What an input or a target is.

    Args:
        name: for `summary`.
        task: of a target.
        delimiter: between the labels of a text, for several labels.
    """

    name: str
    task: Task | None = None
    delimiter: str | None = None


ImageBlock = Block("ImageBlock")
CategoryBlock = Block("CategoryBlock", "single_label")


def MultiCategoryBlock(delimiter: str | None = None) -> Block:
    """Targets of several classes: lists of names, or texts with a delimiter."""
    return Block("MultiCategoryBlock", "multi_label", delimiter)


def RegressionBlock(n_out: int = 1) -> Block:
    """Targets that are numbers."""
    if n_out != 1:
        raise ValueError(f"Expected one number a photo. Received: n_out={n_out}")
    return Block("RegressionBlock", "regression")


@dataclass
class DataBlock:
    """The recipe for data: which items, how they are split and labelled, and how photos are transformed.

    Args:
        blocks: `(ImageBlock, CategoryBlock)`, or another target.
        get_items: source -> items; None where the source is the list itself, such as the rows of a table.
        splitter: items -> (training indices, validation indices); None sets aside a fifth.
        get_y: item -> label.
        get_x: item -> file; None where items are files.
        item_tfms: `Resize(460)`: photos form batches of that size, in the shape of `batch_tfms`.
        batch_tfms: `aug_transforms(size=224)`, or None.
    """

    blocks: Sequence[Any] = (ImageBlock, CategoryBlock)
    get_items: Callable[[Any], Sequence[Any]] | None = None
    splitter: Callable[[Sequence[Any]], tuple[Sequence[int], Sequence[int]]] | None = None
    get_y: Callable[[Any], Any] | None = None
    get_x: Callable[[Any], Any] | None = None
    item_tfms: Resize | None = None
    batch_tfms: Augmentation | None = None
    target: Block = field(init=False)

    def __post_init__(self) -> None:
        made = [block() if callable(block) else block for block in self.blocks]
        if len(made) != 2 or made[0] is not ImageBlock or made[1].task is None:
            raise ValueError(
                "Expected blocks=(ImageBlock, CategoryBlock), or another target, such as MultiCategoryBlock. "
                f"Received: {self.blocks}"
            )
        if self.get_y is None:
            raise ValueError(
                "Expected get_y, a function that gives the label of an item. Received: get_y=None"
            )
        self.target = made[1]

    def dataloaders(
        self, source: Any, bs: int = 64, num_workers: int | None = None, **options: Any
    ) -> CourseData:
        """The data of a source.

        Args:
            source: what `get_items` takes.
            bs: photos a batch.
            num_workers: threads that decode.
            **options: as for `ImageData`.
        """
        items = self._items(source)
        files, labels = self._files(items), [self._label(item) for item in items]
        held = None if self.splitter is None else list(self.splitter(items)[1])
        first = self.item_tfms.size if self.item_tfms else None
        size = as_size("size", (self.batch_tfms and self.batch_tfms.size) or first or SIZE)
        by_file = dict(zip(files, labels, strict=True))
        data = ImageData.from_files(
            files,
            lambda file: by_file[str(file)],
            task=self.target.task,
            size=size,
            presize=presize_for(size, first or size),
            resize_method=self.item_tfms.method if self.item_tfms else "crop",  # type: ignore[arg-type]
            batch_size=bs,
            num_threads=num_workers or None,
            valid_indices=held,
            lenient=True,
            **options,
        )
        return CourseData.carrying(
            data, self.batch_tfms, source if isinstance(source, str | os.PathLike) else None
        )

    def summary(self, source: Any, bs: int = 4) -> None:
        """Walk through every step for one sample and one batch, and name the step that fails.

        Args:
            source: what `get_items` takes.
            bs: photos of the batch.
        """
        print(f"Collecting items from {source}")
        items = self._items(source)
        print(f"Found {len(items)} items")
        parts = (range(len(items)), ()) if self.splitter is None else self.splitter(items)
        print(f"2 datasets of sizes {','.join(str(len(part)) for part in parts)}")
        first = items[parts[0][0]]
        print(f"\nBuilding one sample\n  starting from\n    {first}")
        file = self._files([first])[0]
        self._step("reading the photo", lambda: "x".join(map(str, image_size(file))))
        self._step("labelling it (get_y)", lambda: repr(self._label(first)))
        if self.item_tfms is None:
            print("\nNo item_tfms to apply to the sample")
        else:
            print(f"\nApplying item_tfms: Resize({self.item_tfms.size}, {self.item_tfms.method!r})")
        print(f"\nCollating {bs} items in a batch")
        some = self._files([items[n] for n in list(parts[0])[:bs]])
        shapes = [(3, *read_image(file).shape[:2]) for file in some]
        if self.item_tfms is None and len(set(shapes)) > 1:
            print(
                "Error! It's not possible to collate your items in a batch\n"
                "Could not collate the 0-th members of your tuples because got the following shapes\n"
                + ",".join(f"torch.Size({list(shape)})" for shape in shapes)
                + "\nAdd a step that brings photos to one size: item_tfms=Resize(460)"
            )
            return
        size = sides(self.item_tfms.size) if self.item_tfms else shapes[0][1:]
        print(f"  a batch of shape {(len(some), *size, 3)}, uint8")
        if self.batch_tfms is None:
            print("\nNo batch_tfms to apply")
        else:
            print(f"\nApplying batch_tfms on the device: {self.batch_tfms.size or size} px, random views")

    def _items(self, source: Any) -> list[Any]:
        items = list(self.get_items(source) if self.get_items is not None else _rows(source))
        if not items:
            raise DataError(f"get_items found nothing in {source}")
        return items

    def _files(self, items: Sequence[Any]) -> list[str]:
        return [str(item if self.get_x is None else self.get_x(item)) for item in items]

    def _label(self, item: Any) -> Any:
        label = self.get_y(item) if self.get_y else None
        delimiter = self.target.delimiter
        return str(label).split(delimiter) if delimiter is not None else label

    @staticmethod
    def _step(name: str, do: Callable[[], str]) -> None:
        try:
            print(f"  {name} gives\n    {do()}")
        except Exception as error:
            print(f"  {name} FAILED: {error}")
            raise


def _rows(source: Any) -> Iterable[Any]:
    """The items of a source that is a list, or a table with rows."""
    return (row for _, row in source.iterrows()) if hasattr(source, "iterrows") else source


class ImageDataLoaders:
    """fastai 2's short ways to data. All take `item_tfms`, `batch_tfms`, `bs`, `valid_pct` and `seed`."""

    @classmethod
    def from_folder(
        cls,
        path: Any,
        train: str = "train",
        valid: str = "valid",
        valid_pct: float | None = None,
        **options: Any,
    ) -> CourseData:
        """A folder a class; split by the folders `train` and `valid`, or at random with `valid_pct`."""
        seed = options.pop("seed", None)
        splitter = GrandparentSplitter(train, valid) if valid_pct is None else RandomSplitter(valid_pct, seed)
        return cls._of(get_image_files, splitter, parent_label, path, options)

    @classmethod
    def from_name_re(cls, path: Any, fnames: Sequence[Any], pat: str, **options: Any) -> CourseData:
        """The label is the first group of a pattern in the file's name."""
        return cls.from_name_func(path, fnames, RegexLabeller(pat), **options)

    @classmethod
    def from_name_func(
        cls, path: Any, fnames: Sequence[Any], label_func: Callable[[str], Any], **options: Any
    ) -> CourseData:
        """The label is a function of the file's name."""
        return cls.from_path_func(path, fnames, lambda file: label_func(pathlib.Path(file).name), **options)

    @classmethod
    def from_path_re(cls, path: Any, fnames: Sequence[Any], pat: str, **options: Any) -> CourseData:
        """The label is the first group of a pattern in the file's path."""
        return cls.from_path_func(path, fnames, RegexLabeller(pat), **options)

    @classmethod
    def from_path_func(
        cls, path: Any, fnames: Sequence[Any], label_func: Callable[[Any], Any], **options: Any
    ) -> CourseData:
        """The label is a function of the file's path."""
        return cls._of(lambda _: list(fnames), _random(options), label_func, path, options)

    @classmethod
    def from_lists(
        cls, path: Any, fnames: Sequence[Any], labels: Sequence[Any], **options: Any
    ) -> CourseData:
        """A list of files and a list of their labels."""
        known = dict(zip(map(str, fnames), labels, strict=True))
        return cls.from_path_func(path, fnames, lambda file: known[str(file)], **options)

    @classmethod
    def from_csv(cls, path: Any, csv_fname: str = "labels.csv", **options: Any) -> CourseData:
        """A table of file names and labels; as `from_df`."""
        from ..data.tables import read_table

        return cls.from_df(read_table(os.path.join(path, csv_fname)), path, **options)

    @classmethod
    def from_df(
        cls,
        df: Any,
        path: Any = ".",
        folder: str = "",
        fn_col: int | str = 0,
        label_col: int | str = 1,
        label_delim: str | None = None,
        suff: str = "",
        valid_col: str | None = None,
        **options: Any,
    ) -> CourseData:
        """A table of file names and labels: pandas, or columns by name.

        Args:
            df: the table.
            path: the folder of the data.
            folder: below it, where the photos lie.
            fn_col: column of the file names.
            label_col: column of the labels.
            label_delim: between the labels of a photo that has several.
            suff: added to the file names.
            valid_col: column that is true for validation photos.
            **options: see the class.
        """
        columns = {str(name): list(df[name]) for name in (df.columns if hasattr(df, "columns") else df)}
        names, labels = (_column(columns, one) for one in (fn_col, label_col))
        files = [os.path.join(path, folder, f"{name}{suff}") for name in names]
        held = (
            None
            if valid_col is None
            else np.flatnonzero([str(v) in ("True", "1", "1.0") for v in columns[valid_col]])
        )
        if label_delim is not None:
            labels = [str(label).split(label_delim) for label in labels]
            options.setdefault("y_block", MultiCategoryBlock())
        known = dict(zip(files, labels, strict=True))
        splitter = _random(options) if held is None else lambda items: ((), held)
        options.pop("seed", None)
        return cls._of(lambda _: files, splitter, known.__getitem__, path, options)

    @staticmethod
    def _of(get_items: Any, splitter: Any, get_y: Any, path: Any, options: dict[str, Any]) -> CourseData:
        names = ("item_tfms", "batch_tfms")
        block = options.pop("y_block", CategoryBlock)
        tfms = {name: options.pop(name) for name in names if name in options}
        made = DataBlock((ImageBlock, block), get_items, splitter, get_y, **tfms)
        return made.dataloaders(path, **options)


def _random(options: dict[str, Any]) -> Callable[[Sequence[Any]], tuple[L, L]]:
    return RandomSplitter(options.pop("valid_pct", 0.2), options.pop("seed", None))


def _column(columns: Mapping[str, list[Any]], column: int | str) -> list[Any]:
    return columns[list(columns)[column]] if isinstance(column, int) else columns[column]
