"""Labelled photos as `model.fit` takes them: `ImageData` (train, valid, test) of `ImageDataset` loaders.

`TarShards` streams training photos out of tar files.
"""

from .image_data import ImageData
from .image_dataset import ImageDataset
from .shards import TarShards

__all__ = ["ImageData", "ImageDataset", "TarShards"]
