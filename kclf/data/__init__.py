"""Labelled photos as `model.fit` takes them: `ImageData` (train, valid, test) of `ImageDataset` loaders."""

from .image_data import ImageData
from .image_dataset import ImageDataset

__all__ = ["ImageData", "ImageDataset"]
