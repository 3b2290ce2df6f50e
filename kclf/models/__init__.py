"""The classifier: what it is made of, how it freezes, and the one file it is kept in."""

from .classifier import ImageClassifier
from .compile_arguments import own_metric
from .heads import accuracy_metric, auto_loss, build_head
from .imagenet import imagenet_classifier
from .loading import load

__all__ = [
    "ImageClassifier",
    "accuracy_metric",
    "auto_loss",
    "build_head",
    "imagenet_classifier",
    "load",
    "own_metric",
]
