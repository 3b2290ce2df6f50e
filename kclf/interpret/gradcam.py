"""Where in the photo the model looked: Grad-CAM (Selvaraju et al. 2017)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch

from .._core.plotting import new_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass
class GradCam:
    """Heat maps over the photos as the model saw them.

    Args:
        images: what went into the backbone before normalisation, uint8 (n, size, size, 3).
        maps: where the class was seen, float32 (n, rows, columns) in [0, 1]; one value a cell of the
            backbone's last feature map.
        classes: which class each map is of, int (n,).

    Attributes:
        axes_, figure_: where `plot` drew last.
    """

    images: np.ndarray
    maps: np.ndarray
    classes: np.ndarray
    axes_: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)
    figure_: Figure | None = field(default=None, init=False, repr=False, compare=False)

    def plot(self, axes: Sequence[Axes] | np.ndarray | None = None, *, columns: int = 4) -> GradCam:
        """Draw the photos with the heat laid over them.

        Args:
            axes: one for each photo; a new figure, if None.
            columns: of a new figure.

        Returns:
            This object, with `axes_` and `figure_`.
        """
        if axes is None:
            rows = math.ceil(len(self.images) / columns)
            axes = new_grid(rows, columns, (2.4 * columns, 2.4 * rows))
        self.axes_ = np.asarray(axes).ravel()
        for ax in self.axes_:
            ax.axis("off")
        for ax, image, heat in zip(self.axes_, self.images, self.maps, strict=False):
            side = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
            ax.imshow(image)
            ax.imshow(heat, cmap="jet", alpha=0.4, extent=side, interpolation="bilinear", vmin=0, vmax=1)
        self.figure_ = self.axes_[0].figure
        return self


def grad_cam(
    model: keras.Model, images: np.ndarray | torch.Tensor, classes: np.ndarray | None = None
) -> GradCam:
    """Heat maps of the regions that spoke for a class, from the backbone's last feature map.

    With A_k the k-th channel of the feature map and y the logit of the class, the map is
    relu(sum_k mean(dy/dA_k) A_k), scaled to a maximum of 1. Only the head is differentiated, so it costs
    little more than a prediction, works with every backbone, and leaves all weights as they are. Vision
    transformers give no map: there A are the tokens of the patches before the last block, which is the last
    to mix them, and that block is differentiated too.

    Args:
        model: an `ImageClassifier`: has `augmentation`, `normalization`, `backbone` and `head`.
        images: as a dataset gives them, uint8 or float in [0, 255], (n, height, width, 3).
        classes: which class to explain, int (n,); the predicted one, if None.
    """
    batch = torch.as_tensor(np.asarray(images) if not isinstance(images, torch.Tensor) else images)
    batch = batch.to(_device(model))
    with torch.no_grad():
        seen = model.augmentation(batch, training=False)
        front, back = _halves(model.backbone)
        features = front(model.normalization(seen), training=False)
    features = features.detach().float().requires_grad_()
    with torch.enable_grad():
        logits = model.head(back(features), training=False)
        explained = (
            logits.argmax(dim=1)
            if classes is None
            else torch.as_tensor(np.asarray(classes), device=logits.device).long()
        )
        score = logits.gather(1, explained[:, None]).sum()
        gradient = torch.autograd.grad(score, features)[0]
    return GradCam(
        images=seen.clamp(0, 255).round().to(torch.uint8).cpu().numpy(),
        maps=_heat(*(_as_map(x, model.backbone) for x in (features.detach(), gradient))),
        classes=explained.cpu().numpy(),
    )


def _halves(backbone: keras.Model) -> tuple[Any, Any]:
    """The backbone up to the values that are explained, and what it does with them."""
    layers = getattr(backbone, "layers", [])
    starts = [layer for layer in layers if re.fullmatch(r"block\d+_norm1", layer.name)]
    if not starts:
        return backbone, lambda features: features
    tokens = starts[-1].input
    return keras.Model(backbone.inputs, tokens), keras.Model(tokens, backbone.output)


def _as_map(values: torch.Tensor, backbone: keras.Model) -> torch.Tensor:
    """Tokens as the map of their patches, (n, rows, columns, channels); a map as it is."""
    if values.ndim == 4:
        return values
    tokens = backbone.get_layer("tokens")
    _, rows, columns, _ = tokens.input.shape
    return values[:, tokens.prefix :].unflatten(1, (rows, columns))


def _heat(features: torch.Tensor, gradient: torch.Tensor) -> np.ndarray:
    """Channels weighted by their mean gradient, rectified and scaled to [0, 1]; (n, rows, columns)."""
    weights = gradient.mean(dim=(1, 2), keepdim=True)
    heat = (weights * features).sum(dim=-1).relu()
    peak = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / peak.clamp_min(torch.finfo(heat.dtype).tiny)).cpu().numpy()


def _device(model: Any) -> torch.device:
    return next(iter(model.parameters())).device
