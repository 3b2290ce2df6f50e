"""The names of the course that stand outside of a learner, so that its notebooks run but for imports.

    from kclf.fastai import *

The first lessons of 2017-2018 (fastai 0.7) and chapter 5 of the book (fastai 2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .data import ImageData
from .data.splits import cv_indices as get_cv_idxs
from .interpret import Interpretation as ClassificationInterpretation
from .layers import Augmentation, aug_transforms
from .layers import basic as transforms_basic
from .layers import side_on as transforms_side_on
from .layers import top_down as transforms_top_down
from .learner.learner import Learner, load_learner
from .metrics import accuracy, accuracy_multi, error_rate, log_loss

__all__ = [
    "ClassificationInterpretation",
    "ConvLearner",
    "ImageClassifierData",
    "accuracy",
    "accuracy_multi",
    "aug_transforms",
    "cnn_learner",
    "error_rate",
    "get_cv_idxs",
    "load_learner",
    "log_loss",
    "np",
    "resnet50",
    "resnet101",
    "resnet152",
    "tfms_from_model",
    "transforms_basic",
    "transforms_side_on",
    "transforms_top_down",
    "vgg16",
    "vgg19",
    "vision_learner",
]

resnet50, resnet101, resnet152, vgg16, vgg19 = "ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19"


class Transforms(NamedTuple):
    """What `tfms_from_model` gives: the size, and the augmentation of training photos."""

    size: int
    augmentation: Augmentation | None


def tfms_from_model(
    arch: str,
    sz: int,
    aug_tfms: Callable[..., Augmentation] | None = None,
    max_zoom: float | None = None,
) -> Transforms:
    """The size and augmentation for a data object; the normalisation belongs to the backbone itself.

    Args:
        arch: name of the backbone; not needed here.
        sz: side of the photos in pixels.
        aug_tfms: `transforms_side_on`, `transforms_top_down` or `transforms_basic`.
        max_zoom: largest magnification.
    """
    if aug_tfms is None:
        return Transforms(sz, None)
    return Transforms(sz, aug_tfms(**({} if max_zoom is None else {"max_zoom": max_zoom})))


class CourseData(ImageData):
    """`ImageData` that carries the augmentation for the learner, as fastai 0.7 had it."""

    augmentation: Augmentation | None = None

    def carrying(self, tfms: Transforms | None) -> CourseData:
        """This data, with the augmentation of `tfms`."""
        self.augmentation = None if tfms is None else tfms.augmentation
        return self


class ImageClassifierData:
    """fastai 0.7's maker of data objects."""

    @staticmethod
    def from_paths(
        path: str | os.PathLike[str], bs: int = 64, tfms: Transforms | None = None, **arguments: Any
    ) -> CourseData:
        """Class folders in `train` and `valid`; see `ImageData.from_folder`, whose arguments it takes."""
        data = CourseData.from_folder(path, batch_size=bs, **_size(tfms), **arguments)
        return CourseData(**data.splits, size=data.size).carrying(tfms)

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
        **arguments: Any,
    ) -> CourseData:
        """File names and labels in a CSV file; see `ImageData.from_csv`, whose arguments it takes."""
        data = CourseData.from_csv(
            csv_fname,
            folder=os.path.join(path, folder),
            batch_size=bs,
            valid_indices=val_idxs,
            suffix=suffix,
            test=None if test_name is None else os.path.join(path, test_name),
            **_size(tfms),
            **arguments,
        )
        return CourseData(**data.splits, size=data.size).carrying(tfms)


class ConvLearner:
    """fastai 0.7's maker of learners."""

    @staticmethod
    def pretrained(f: str, data: ImageData, **settings: Any) -> Learner:
        """`Learner(data, f)`, with the augmentation that the data carry."""
        return cnn_learner(data, f, **settings)


def cnn_learner(dls: ImageData, arch: str, metrics: Any = "auto", **settings: Any) -> Learner:
    """`Learner(dls, arch)`, with the augmentation that the data carry.

    Args:
        dls: the data.
        arch: name of the backbone.
        metrics: one, or a list.
        **settings: as for `Learner`.
    """
    carried: dict[str, Any] = {"augmentation": getattr(dls, "augmentation", None)}
    return Learner(dls, arch, metrics=metrics, **(carried | settings))


vision_learner = cnn_learner


def _size(tfms: Transforms | None) -> dict[str, Any]:
    return {} if tfms is None else {"size": tfms.size}
