"""The photos that a classifier sees as most alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data import ImageDataset
from ..data.tasks import label_text
from ..prediction.activation_cache import activations, pooled_activations


class Neighbour(NamedTuple):
    """A photo near another one.

    Args:
        path: of the photo.
        label: its class, as text; empty where it has none.
        similarity: cosine of the angle between the pooled activations, in [-1, 1]; 1 is the same direction.
    """

    path: str
    label: str
    similarity: float


@dataclass(frozen=True, repr=False)
class SimilarPhotos:
    """Photos by what the backbone makes of them: which of them are nearest to another photo?

    Args:
        model: an `ImageClassifier`.
        features: float32 (n, channels), pooled activations of length 1.
        paths: of the photos, (n,).
        labels: their classes as texts, (n,).

    References:
        - Nearest neighbours in the features of a classifier: Papernot & McDaniel,
          [Deep k-Nearest Neighbors](https://arxiv.org/abs/1803.04765), 2018.
    """

    model: Any
    features: np.ndarray
    paths: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, model: Any, photos: ImageDataset, folder: Path, *, progress: bool = True) -> SimilarPhotos:
        """The photos of a split, from the cache of activations in a folder or computed into it.

        Args:
            model: an `ImageClassifier`.
            photos: such as `data.train`.
            folder: of the cache.
            progress: show a progress bar while computing.
        """
        cached = activations(model, photos, folder, progress=progress)
        rows = np.flatnonzero(cached.readable)
        names, labels = photos.class_names, photos.labels
        texts = ["" if labels is None else label_text(labels[row], names, photos.task) for row in rows]
        return cls(model, _directions(cached.features[0][rows]), photos.paths[rows], np.array(texts))

    def nearest(self, photo: Any, count: int = 6) -> list[Neighbour]:
        """The photos nearest to one, the nearest first.

        Args:
            photo: what `ImageClassifier.read` takes.
            count: how many.
        """
        batch = torch.from_numpy(self.model.read(photo)[None])
        wanted = _directions(pooled_activations(self.model, batch).float().cpu().numpy())[0]
        cosines = self.features @ wanted
        order = np.argsort(-cosines, kind="stable")[:count]
        return [Neighbour(str(self.paths[n]), str(self.labels[n]), float(cosines[n])) for n in order]


def _directions(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)
