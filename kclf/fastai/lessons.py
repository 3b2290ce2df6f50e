"""The words of fastai 0.7: lessons 1 and 2 of 2018, and the walk through the dog breeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._core.plotting import new_grid, returned
from ..data import ImageData
from ..data.files import list_images
from ..data.labels import parent_label
from ..errors import DataError
from ..interpret import ConfusionMatrix
from ..layers import Augmentation
from ..metrics import accuracy
from .course_data import CourseData
from .course_learner import CourseLearner, cnn_learner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

resnet18, resnet34, resnet50, resnet101, resnet152 = (f"ResNet{n}" for n in (18, 34, 50, 101, 152))
vgg16, vgg19, dn121 = "VGG16", "VGG19", "DenseNet121"
resnext50 = "ResNeXt50_32x4d"
accuracy_np = accuracy


class Transforms(NamedTuple):
    """What `tfms_from_model` gives: the size, and the augmentation of training photos."""

    size: int
    augmentation: Augmentation | None


def tfms_from_model(
    arch: str,
    sz: int,
    aug_tfms: Callable[..., Augmentation] | Augmentation | None = None,
    max_zoom: float | None = None,
) -> Transforms:
    """The size and augmentation for a data object; the normalisation belongs to the backbone itself.

    Args:
        arch: name of the backbone; not needed here.
        sz: side of the photos in pixels.
        aug_tfms: `transforms_side_on`, `transforms_top_down`, `transforms_basic`, or an `Augmentation`.
        max_zoom: largest magnification.
    """
    if aug_tfms is None:
        return Transforms(sz, None)
    if isinstance(aug_tfms, Augmentation):
        return Transforms(sz, aug_tfms.resized(sz))
    return Transforms(sz, aug_tfms(**({} if max_zoom is None else {"max_zoom": max_zoom})))


class ImageClassifierData:
    """fastai 0.7's maker of data objects."""

    @staticmethod
    def from_paths(
        path: str | os.PathLike[str],
        bs: int = 64,
        tfms: Transforms | None = None,
        trn_name: str = "train",
        val_name: str = "valid",
        test_name: str | None = None,
        num_workers: int | None = None,
        **arguments: Any,
    ) -> CourseData:
        """Class folders in `train` and `valid`.

        Args:
            path: the folder that holds them.
            bs: photos a batch.
            tfms: from `tfms_from_model`.
            trn_name: the folder of the training photos.
            val_name: the folder of the validation photos.
            test_name: the folder of the test photos; None takes one whose name begins with "test".
            num_workers: threads that decode.
            **arguments: as for `ImageData.from_folder`.
        """
        options = _options(bs, tfms, num_workers) | arguments
        if (trn_name, val_name) == ("train", "valid"):
            data = ImageData.from_folder(path, **options)
        else:
            train, valid = (list_images(os.path.join(path, name)) for name in (trn_name, val_name))
            rows = range(len(train), len(train) + len(valid))
            data = ImageData.from_files([*train, *valid], parent_label, valid_indices=rows, **options)
        if test_name is not None:
            files = list_images(os.path.join(path, test_name))
            data.test = (data.valid or data.train).replace(images=files, labels=None, shuffle=False)
        return _made(data, tfms, path)

    @staticmethod
    def from_csv(
        path: str | os.PathLike[str],
        folder: str,
        csv_fname: str | os.PathLike[str],
        bs: int = 64,
        tfms: Transforms | None = None,
        val_idxs: Sequence[int] | np.ndarray | None = None,
        suffix: str = "",
        test_name: str | None = None,
        continuous: bool = False,
        skip_header: bool = True,
        num_workers: int | None = None,
        **arguments: Any,
    ) -> CourseData:
        """File names and labels in a CSV file.

        Args:
            path: the folder of the data.
            folder: below it, where the photos lie.
            csv_fname: the table.
            bs: photos a batch.
            tfms: from `tfms_from_model`.
            val_idxs: rows for validation.
            suffix: added to the file names.
            test_name: the folder of the test photos, below `path`.
            continuous: the labels are numbers to be predicted.
            skip_header: the table has a header row; it has to.
            num_workers: threads that decode.
            **arguments: as for `ImageData.from_csv`.
        """
        if not skip_header:
            raise DataError(f"{csv_fname}: expected a header row. Received: skip_header=False")
        options = _options(bs, tfms, num_workers) | arguments
        if continuous:
            options["task"] = "regression"
        data = ImageData.from_csv(
            csv_fname,
            folder=os.path.join(path, folder),
            valid_indices=val_idxs,
            lenient=True,
            suffix=suffix,
            test=None if test_name is None else os.path.join(path, test_name),
            **options,
        )
        return _made(data, tfms, path)

    @staticmethod
    def from_arrays(
        path: str | os.PathLike[str],
        trn: tuple[np.ndarray, Any],
        val: tuple[np.ndarray, Any],
        bs: int = 64,
        tfms: Transforms | None = None,
        classes: Sequence[str] | None = None,
        num_workers: int | None = None,
        test: Any = None,
        **arguments: Any,
    ) -> CourseData:
        """Images in memory: (images (n, height, width, 3), labels) for training and validation.

        Images are uint8, or floats in [0, 1] or [0, 255], which become uint8.

        Args:
            path: kept as the data's folder.
            trn: training images and labels.
            val: validation images and labels.
            bs: photos a batch.
            tfms: from `tfms_from_model`.
            classes: names in the order of the class numbers.
            num_workers: threads that decode.
            test: test images, with labels or without.
            **arguments: as for `ImageData.from_arrays`.
        """
        options = _options(bs, tfms, num_workers) | arguments
        trn, val = ((_pixels(images), labels) for images, labels in (trn, val))
        if test is not None:
            test = (_pixels(test[0]), *test[1:]) if isinstance(test, tuple) else _pixels(test)
        return _made(ImageData.from_arrays(trn, val, class_names=classes, test=test, **options), tfms, None)


def _pixels(images: Any) -> np.ndarray:
    """Images as uint8: floats in [0, 1] are shares of 255."""
    images = np.asarray(images)
    if images.dtype.kind != "f":
        return images
    low, high = float(images.min(initial=0)), float(images.max(initial=0))
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"Expected images in [0, 1] or [0, 255]. Received: values from {low:g} to {high:g}. Pass them as "
            "they are before normalisation, which belongs to the backbone"
        )
    return (images * (255 if high <= 1 else 1)).round().astype(np.uint8)


def _options(bs: int, tfms: Transforms | None, num_workers: int | None) -> dict[str, Any]:
    size = {} if tfms is None else {"size": tfms.size}
    return {"batch_size": bs, "num_threads": num_workers or None} | size


def _made(data: ImageData, tfms: Transforms | None, path: Any) -> CourseData:
    return CourseData.carrying(data, None if tfms is None else tfms.augmentation, path)


class ConvLearner:
    """fastai 0.7's maker of learners."""

    @staticmethod
    def pretrained(f: str, data: ImageData, **settings: Any) -> CourseLearner:
        """`CourseLearner(data, f)`, with the augmentation that the data carry."""
        return cnn_learner(data, f, **settings)


def plots(
    ims: Sequence[np.ndarray] | np.ndarray,
    figsize: tuple[float, float] = (12, 6),
    rows: int = 1,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Images side by side.

    Args:
        ims: each (height, width, 3) or (height, width), uint8, or float in [0, 1] or [0, 255].
        figsize: inches.
        rows: of images.
        titles: one above each image.

    Example:
        >>> len(plots(np.zeros((6, 4, 4, 3)), rows=2).axes)
        6
    """
    axes = new_grid(rows, -(-len(ims) // rows), figsize)
    for ax in axes:
        ax.axis("off")
    for number, (ax, image) in enumerate(zip(axes, ims, strict=False)):
        image = np.asarray(image)
        if image.dtype != np.uint8 and image.max(initial=0) > 1:
            image = image.clip(0, 255).astype(np.uint8)
        ax.imshow(image, cmap="gray" if image.ndim == 2 else None)
        if titles is not None:
            ax.set_title(titles[number], parse_math=False)
    return returned(axes[0].figure)


def plot_confusion_matrix(cm: np.ndarray, classes: Sequence[str], normalize: bool = False) -> Any:
    """Draw the counts of a confusion matrix, such as scikit-learn's: rows actual, columns predicted."""
    return ConfusionMatrix(np.asarray(cm), list(classes)).plot(normalize=normalize)
