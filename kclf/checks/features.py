"""What a classifier's backbone makes of photos: one vector each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..images import read_square

BATCH_SIZE = 32


def backbone_features(model: Any, paths: Sequence[str]) -> np.ndarray:
    """Mean over the cells of the backbone's last feature map, float32 (n, channels).

    Args:
        model: an `ImageClassifier`: brings the photos to squares as its loader does.
        paths: readable photos.
    """
    device, size = next(iter(model.parameters())).device, model.presize or model.size
    batches = []
    with torch.no_grad():
        for start in range(0, len(paths), BATCH_SIZE):
            some = paths[start : start + BATCH_SIZE]
            squares = [read_square(path, size, model.resize_method) for path in some]
            batch = torch.from_numpy(np.stack(squares)).to(device)
            seen = model.normalization(model.augmentation(batch, training=False))
            batches.append(model.backbone(seen, training=False).float().mean(dim=(1, 2)).cpu().numpy())
    return np.concatenate(batches)
