"""Images mixed with one another, labels alike, and images with a part wiped out.

All draws come from one seeded generator on the CPU and go to the device in one transfer.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.arguments import in_closed
from .._core.devices import send
from .base import Drawing, SameShape

_MEAN, _STD = 118.0, 58.0  # grey levels of ImageNet's photos, all channels together


@keras.saving.register_keras_serializable(package="kclf")
class RandomErasing(SameShape, Drawing):
    """A rectangle of random size and place in a part of the images takes one random colour.

    Args:
        p: share of the images.
        max_area: largest share of the area that is wiped out.
        min_aspect: smallest aspect of the rectangle; the largest is its inverse.
        seed: of the draws; None takes one from Python's generator.

    Shape:
        Input (batch, height, width, channels), uint8 or float in [0, 255]. Output the same, float32.

    Example:
        >>> layer = RandomErasing(p=1.0, seed=3)
        >>> images = torch.full((1, 32, 32, 3), 7.0)
        >>> bool((layer(images, training=True) != 7).any()), bool((layer(images) != 7).any())
        (True, False)

    References:
        - [Random Erasing Data Augmentation](https://arxiv.org/abs/1708.04896), Zhong et al. 2017.
    """

    _settings = ("p", "max_area", "min_aspect", "seed")

    def __init__(
        self,
        p: float = 0.5,
        *,
        max_area: float = 0.3,
        min_aspect: float = 0.3,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(seed=seed, options=options)
        self.p = in_closed("p", p, 0, 1)
        self.max_area = in_closed("max_area", max_area, 0, 1)
        self.min_aspect = in_closed("min_aspect", min_aspect, 0.01, 1)

    def call(self, images: Tensor, training: bool | None = None) -> Tensor:
        """Images, in training some with a rectangle of one colour."""
        images = images.to(torch.float32)
        return self._erase(images) if training and not images.is_meta else images

    @torch.compiler.disable
    def _erase(self, images: Tensor) -> Tensor:
        count, _, _, channels = images.shape
        chosen, area, aspect, x, y = torch.rand(count, 5, generator=self._generator).unbind(1)
        colour = _MEAN + _STD * torch.randn(count, channels, generator=self._generator)
        area, aspect = area * self.max_area, self.min_aspect ** (2 * aspect - 1)
        sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], 1).clamp(max=1)
        sides = torch.where((chosen < self.p).unsqueeze(1), sides, 0.0)  # (n, 2): height, width
        numbers = torch.cat([_box(sides, torch.stack([y, x], 1)), colour.clamp(0, 255)], 1)
        numbers = send(numbers, images.device)
        return torch.where(_inside(numbers[:, :4], images), numbers[:, None, None, 4:], images)


class _Mixing(Drawing):
    """Layers that mix each image with another one of its batch, and the labels by the same shares."""

    _settings = ("num_classes", "alpha", "seed")

    def __init__(
        self, num_classes: int | None = None, *, alpha: float = 1.0, seed: int | None = None, **options: Any
    ) -> None:
        super().__init__(seed=seed, options=options)
        self.num_classes = num_classes
        self.alpha = in_closed("alpha", alpha, 1e-3, 1e3)

    def call(self, images: Tensor, labels: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Mixed images and their labels, or both as they are where it is not training."""
        images, targets = images.to(torch.float32), self._as_shares(labels)
        return self._mix(images, targets) if training and not images.is_meta else (images, targets)

    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _beta(self, count: int) -> Tensor:
        """Draws of Beta(alpha, alpha), (count,)."""
        seed = int(torch.randint(2**62, (1,), generator=self._generator))
        drawn = np.random.default_rng(seed).beta(self.alpha, self.alpha, count)
        return torch.from_numpy(drawn).to(torch.float32)

    def _as_shares(self, labels: Tensor) -> Tensor:
        """Class numbers (n,) or (n, 1) as float (n, num_classes); rows of shares as they are."""
        if self._is_column(labels.shape):
            labels = labels[:, 0]
        if labels.ndim == 2:
            return labels.to(torch.float32)
        if self.num_classes is None:
            raise ValueError(
                "Class numbers can only be mixed as shares of classes: give the layer `num_classes`. "
                f"Received: labels of shape {tuple(labels.shape)}"
            )
        return F.one_hot(labels.long(), self.num_classes).to(torch.float32)

    def _is_column(self, shape: tuple[int | None, ...]) -> bool:
        """Whether labels of a shape are class numbers (n, 1), as `keras.datasets` has them."""
        return len(shape) == 2 and shape[1] == 1 and self.num_classes not in (None, 1)

    def compute_output_shape(
        self, images_shape: tuple[int | None, ...], labels_shape: tuple[int | None, ...]
    ) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Those of the images and of the shares."""
        are_shares = len(labels_shape) == 2 and not self._is_column(labels_shape)
        return images_shape, labels_shape if are_shares else (labels_shape[0], self.num_classes)


@keras.saving.register_keras_serializable(package="kclf")
class MixUp(_Mixing):
    """Each image is blended with another one of its batch, and its label by the same share.

    Args:
        num_classes: where the labels are class numbers; None where they are rows of shares already.
        alpha: the share is drawn from Beta(alpha, alpha) for each image, the larger part being its own.
        seed: of the draws; None takes one from Python's generator.

    Shape:
        Input (batch, height, width, channels) in [0, 255] and labels (batch,) or (batch, classes).
        Output of the same shape, float32, and labels (batch, classes), float32: train with
        `CategoricalCrossentropy(from_logits=True)`.

    Example:
        >>> layer = MixUp(num_classes=2, seed=0)
        >>> images, labels = layer(torch.zeros(2, 4, 4, 3), torch.tensor([0, 1]), training=True)
        >>> labels.sum(1).tolist()
        [1.0, 1.0]

    References:
        - [mixup](https://arxiv.org/abs/1710.09412), Zhang et al. 2017.
    """

    def __init__(
        self, num_classes: int | None = None, *, alpha: float = 0.4, seed: int | None = None, **options: Any
    ) -> None:
        super().__init__(num_classes, alpha=alpha, seed=seed, **options)

    @torch.compiler.disable
    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        share = self._beta(len(images))
        share = torch.maximum(share, 1 - share)  # an image stays mostly itself, so that no pair comes twice
        order = torch.randperm(len(images), generator=self._generator)
        share, order = send(share, images.device), send(order, images.device)
        mixed = torch.lerp(images[order], images, share.view(-1, 1, 1, 1))
        return mixed, torch.lerp(targets[order], targets, share.unsqueeze(1))


@keras.saving.register_keras_serializable(package="kclf")
class CutMix(_Mixing):
    """A rectangle of each image shows another one of its batch, which takes that share of the label.

    Args:
        num_classes: where the labels are class numbers; None where they are rows of shares already.
        alpha: the share is drawn from Beta(alpha, alpha) for each image.
        seed: of the draws; None takes one from Python's generator.

    Shape:
        As `MixUp`.

    References:
        - [CutMix](https://arxiv.org/abs/1905.04899), Yun et al. 2019.
    """

    @torch.compiler.disable
    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        side = (1 - self._beta(len(images))).sqrt().unsqueeze(1).expand(-1, 2)
        centres = torch.rand(len(images), 2, generator=self._generator)
        box = send(_box(side, centres), images.device)
        order = send(torch.randperm(len(images), generator=self._generator), images.device)
        other = _inside(box, images)  # (n, height, width, 1)
        share = 1 - other.to(torch.float32).mean((1, 2))  # of whole pixels, so that labels are exact
        return torch.where(other, images[order], images), torch.lerp(targets[order], targets, share)


def _box(sides: Tensor, centres: Tensor) -> Tensor:
    """Edges (n, 4) top, left, bottom, right in [0, 1] of boxes by sides and centres (n, 2), y first."""
    return torch.cat([centres - sides / 2, centres + sides / 2], 1).clamp(0, 1)


def _inside(box: Tensor, images: Tensor) -> Tensor:
    """Which pixel centres lie in the box: (n, height, width, 1) bool."""
    _, height, width, _ = images.shape
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    top, left, bottom, right = (edge.unsqueeze(1) for edge in box.unbind(1))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)  # (n, height), (n, width)
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(3)
