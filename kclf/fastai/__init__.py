"""The words of the course, so that its notebooks run but for the import line.

    from kclf.fastai import *

`lessons` has those of fastai 0.7 (lessons 1 and 2 of 2018), `chapter5` those of fastai 2 (chapter 5 of the
book), `course_learner` the learner that both make. Everything is thin over kclf's own parts.
"""

import numpy as np

from .. import metrics
from ..data.splits import cv_indices as get_cv_idxs
from ..layers import aug_transforms
from ..layers import basic as transforms_basic
from ..layers import side_on as transforms_side_on
from ..layers import top_down as transforms_top_down
from ..metrics import accuracy, accuracy_multi, error_rate, log_loss
from .chapter5 import (
    CategoryBlock,
    DataBlock,
    GrandparentSplitter,
    ImageBlock,
    ImageDataLoaders,
    L,
    MultiCategoryBlock,
    Path,
    RandomSplitter,
    RegexLabeller,
    RegressionBlock,
    Resize,
    URLs,
    get_image_files,
    parent_label,
    untar_data,
    using_attr,
)
from .chapter5_callbacks import (
    CrossEntropyLossFlat,
    CSVLogger,
    CutMix,
    EarlyStoppingCallback,
    FocalLossFlat,
    GradientClip,
    LabelSmoothingCrossEntropy,
    MixUp,
    PILImage,
    SaveModelCallback,
    minimum,
    slide,
    steep,
    valley,
)
from .course_interpretation import ClassificationInterpretation
from .course_learner import CourseLearner, cnn_learner, load_learner, vision_learner
from .lessons import (
    ConvLearner,
    ImageClassifierData,
    accuracy_np,
    dn121,
    plot_confusion_matrix,
    plots,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50,
    tfms_from_model,
    vgg16,
    vgg19,
)

__all__ = [
    "CSVLogger",
    "CategoryBlock",
    "ClassificationInterpretation",
    "ConvLearner",
    "CourseLearner",
    "CrossEntropyLossFlat",
    "CutMix",
    "DataBlock",
    "EarlyStoppingCallback",
    "FocalLossFlat",
    "GradientClip",
    "GrandparentSplitter",
    "ImageBlock",
    "ImageClassifierData",
    "ImageDataLoaders",
    "L",
    "LabelSmoothingCrossEntropy",
    "MixUp",
    "MultiCategoryBlock",
    "PILImage",
    "Path",
    "RandomSplitter",
    "RegexLabeller",
    "RegressionBlock",
    "Resize",
    "SaveModelCallback",
    "URLs",
    "accuracy",
    "accuracy_multi",
    "accuracy_np",
    "aug_transforms",
    "cnn_learner",
    "dn121",
    "error_rate",
    "get_cv_idxs",
    "get_image_files",
    "load_learner",
    "log_loss",
    "metrics",
    "minimum",
    "np",
    "parent_label",
    "plot_confusion_matrix",
    "plots",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50",
    "slide",
    "steep",
    "tfms_from_model",
    "transforms_basic",
    "transforms_side_on",
    "transforms_top_down",
    "untar_data",
    "using_attr",
    "valley",
    "vgg16",
    "vgg19",
    "vision_learner",
]
