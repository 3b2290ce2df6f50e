"""Batches whose photos and labels are mixed with one another on their way to the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..layers import CutMix, MixUp
from ..layers.base import generator_state
from .image_dataset import ImageDataset


class MixedDataset(DataLoader):
    """An `ImageDataset` for training with MixUp or CutMix, by turns where there are both.

    Photos are mixed as they come from the loader, before the model augments them. What is mixed with what
    depends on the photos' seed, the epoch and the number of the batch alone.

    Args:
        images: the photos.
        mixers: the layers that mix.
    """

    def __init__(self, images: ImageDataset, mixers: Sequence[MixUp | CutMix]) -> None:
        super().__init__(images.dataset, batch_size=images.batch_size)
        self.images = images
        self.mixers = list(mixers)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Batches of mixed photos, float32, the shares of classes as labels, and weights if there are any."""
        state = self.images.state_dict()
        here = self.images.shard[:1] if self.images.shard[1] > 1 else ()  # each process mixes in its own way
        for number, (photos, labels, *weights) in enumerate(self.images, start=state["batch"]):
            mixer = self.mixers[number % len(self.mixers)]
            mixer.set_random_state(generator_state(state["seed"], state["epoch"], number, *here))
            with torch.no_grad():
                mixed, shares = mixer(photos, labels, training=True)
            yield (mixed, *weighted_shares(shares, self.images.class_weights if weights else None))

    def blank_batches(self, batches: int) -> None:
        """Hand out the first batches of the next epoch without their photos."""
        self.images.blank_batches(batches)

    def state_dict(self) -> dict[str, int]:
        """Where the photos stand."""
        return self.images.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where another run stood."""
        self.images.load_state_dict(state)


def weighted_shares(shares: torch.Tensor, class_weights: Any = None) -> tuple[torch.Tensor, ...]:
    """Mixed labels, and the weights that make each class count in the loss by its share times its weight.

    sum_c w_c q_c (-log p_c) is W times the cross-entropy of the labels w_c q_c / W, with W = sum_c w_c q_c.

    Args:
        shares: (batch, classes) shares q that sum to 1.
        class_weights: w, (classes,); None for none.

    Returns:
        (labels,), or (labels, weights (batch,)).

    Example:
        >>> labels, weights = weighted_shares(torch.tensor([[0.5, 0.5]]), [3.0, 1.0])
        >>> labels.tolist(), weights.tolist()
        ([[0.75, 0.25]], [2.0])
    """
    if class_weights is None:
        return (shares,)
    weighted = shares * torch.as_tensor(class_weights, dtype=shares.dtype, device=shares.device)
    total = weighted.sum(-1)
    return weighted / total.clamp_min(torch.finfo(shares.dtype).tiny)[:, None], total


def mixed(images: Any, mixup: float | None, cutmix: float | None) -> Any:
    """The photos, mixed if an alpha is given.

    Args:
        images: an `ImageDataset` with one class a photo, or several.
        mixup: alpha of `MixUp`, .4 in fastai; None for none.
        cutmix: alpha of `CutMix`, 1 in the paper; None for none.
    """
    alphas = [(MixUp, mixup), (CutMix, cutmix)]
    if mixup is None and cutmix is None:
        return images
    if not isinstance(images, ImageDataset) or images.task == "regression":
        raise ValueError(
            "MixUp and CutMix mix photos that have classes: set precompute=False, and take no numbers as "
            f"labels. Received: {images!r}"
        )
    classes = len(images.class_names) if images.task == "single_label" else None
    return MixedDataset(images, [kind(classes, alpha=a) for kind, a in alphas if a is not None])
