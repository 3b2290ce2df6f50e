"""Where in the photo the model looked: Grad-CAM (Selvaraju et al. 2017)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch

from .._core.arguments import listed
from .._core.fit_hooks import overridden
from .._core.keras_private import all_layers, producer_of
from .._core.keywords import GRAD_CAM, answering
from .._core.plotting import new_grid
from ..acceleration import run_by_keras
from ..backbones.levels import LEVELS
from ..data.images import as_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = ("augmentation", "normalization", "backbone", "head")  # of a classifier


@dataclass(repr=False)
class GradCam:
    """Heat maps over the photos as the model saw them.

    Args:
        images: what went into the backbone before normalisation, uint8 (n, size, size, channels).
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

    def __repr__(self) -> str:
        return f"Heat maps of {len(self.images):,} photos"

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
            ax.imshow(as_colours(image))
            ax.imshow(heat, cmap="jet", alpha=0.4, extent=side, interpolation="bilinear", vmin=0, vmax=1)
        self.figure_ = self.axes_[0].figure
        return self


@answering(GRAD_CAM)
def grad_cam(
    model: keras.Model,
    images: np.ndarray | torch.Tensor,
    classes: np.ndarray | None = None,
    *,
    layer: str | None = None,
) -> GradCam:
    """Heat maps of the regions that spoke for a class, from the backbone's last feature map.

    With A_k the k-th channel of the feature map and y the logit of the class, the map is
    relu(sum_k mean(dy/dA_k) A_k), scaled to a maximum of 1. Only the head is differentiated, so it costs
    little more than a prediction, works with every backbone, and leaves all weights as they are. Vision
    transformers give no map: there A are the tokens of the patches before the last block, which is the last
    to mix them, and that block is differentiated too.

    Args:
        model: an `ImageClassifier`, or any other Keras model.
        images: as the model takes them, (n, height, width, channels); for a classifier uint8 or float in
            [0, 255].
        classes: which class to explain, int (n,); the predicted one, if None.
        layer: name of the layer whose map is explained; None takes the backbone, of another model the last
            layer that gives a map. A softmax or sigmoid at its end is left out.

    Raises:
        TypeError: these are no images.
        ValueError: the model has no such layer, or none that gives a map.
    """
    if not hasattr(images, "shape"):
        raise TypeError(
            "Expected images (n, height, width, channels): data.valid.peek()[0] has those of a batch, "
            f"model.read(file)[None] that of a file. Received: images={type(images).__name__}"
        )
    batch = torch.as_tensor(np.asarray(images) if not isinstance(images, torch.Tensor) else images)
    batch = batch.to(next(iter(model.parameters())).device)
    if layer is None and all(hasattr(model, part) for part in PARTS):
        seen, features, logits = _of_classifier(model, batch)
    else:
        seen, features, logits = _of_model(model, batch, layer)
    explained = (
        logits.argmax(dim=1)
        if classes is None
        else torch.as_tensor(np.asarray(classes), device=logits.device).long()
    )
    with torch.enable_grad():
        score = logits.gather(1, explained[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, features)
    return GradCam(
        images=_shown(seen),
        maps=_heat(*(_as_map(x.float(), model) for x in (features.detach(), gradient))),
        classes=explained.cpu().numpy(),
    )


Halves = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _of_classifier(model: Any, batch: torch.Tensor) -> Halves:
    """What the backbone sees, the values that are explained, and the logits that come of them."""
    with torch.no_grad():
        seen = model.augmentation(batch, training=False)
        front, back = _halves(model.backbone)
        features, *levels = keras.tree.flatten(front(model.normalization(seen), training=False))
    features = features.detach().float().requires_grad_()
    with torch.enable_grad():
        return seen, features, model.head(back(features, *levels), training=False)


def _of_model(model: Any, batch: torch.Tensor, name: str | None) -> Halves:
    """The same for another Keras model, in one pass that starts anew at each map."""
    found: list[torch.Tensor] = []
    layers = [one for one in all_layers(model, include_self=False) if name in (None, one.name)]

    def opened(call: Callable[..., Any]) -> Callable[..., Any]:
        def call_and_open(*arguments: Any, **named: Any) -> Any:
            values = call(*arguments, **named)
            if getattr(values, "ndim", 0) == 4:
                values = values.detach().requires_grad_()
                found.append(values)
            return values

        return call_and_open

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(run_by_keras(model))
        stack.enter_context(_without_last_activation(model))
        for one in layers:
            stack.enter_context(overridden(one, call=opened(one.call)))
        logits = model(batch.float(), training=False)
    if not found:
        names = [one.name for one in all_layers(model, include_self=False)]
        raise ValueError(
            "Expected layer to name one that gives a map (n, rows, columns, channels), of "
            f"{listed(names)}. Received: layer={name!r}"
        )
    return batch, found[-1], logits


def _without_last_activation(model: Any) -> AbstractContextManager[None]:
    """The model gives logits within the block, should it end in a softmax or sigmoid."""
    last = model.layers[-1]
    changes: dict[str, Any] = {}
    if isinstance(last, keras.layers.Softmax):
        changes = {"call": lambda inputs, mask=None: inputs}
    elif getattr(getattr(last, "activation", None), "__name__", "") in ("softmax", "sigmoid"):
        changes = {"activation": keras.activations.linear}
    return overridden(last, **changes)


def _shown(seen: torch.Tensor) -> np.ndarray:
    """The photos as uint8, whatever range a model takes them in."""
    seen = seen.float()
    low, high = seen.aminmax()
    if high <= 1.0 and low < high:
        seen = seen * 255 if low >= 0 else (seen + 1) * 127.5
    return seen.clamp(0, 255).round().to(torch.uint8).cpu().numpy()


def _halves(backbone: keras.Model) -> tuple[Any, Any]:
    """The backbone up to the values that are explained, and what it does with them."""
    layers = getattr(backbone, "layers", [])
    if layers and layers[-1].name == LEVELS:
        return _halves_of_levels(backbone)
    starts = [layer for layer in layers if re.fullmatch(r"block\d+_norm1", layer.name)]
    if not starts:
        return backbone, lambda features: features
    tokens = starts[-1].input
    return keras.Model(backbone.inputs, tokens), keras.Model(tokens, backbone.output)


def _halves_of_levels(backbone: keras.Model) -> tuple[Any, Any]:
    """The last map is explained, beside what the earlier ones say."""
    *earlier, last = backbone.layers[-1].input
    pooling = producer_of(last)

    def back(features: torch.Tensor, *levels: torch.Tensor) -> torch.Tensor:
        return torch.cat([*levels, pooling(features)], dim=-1)

    return keras.Model(backbone.inputs, [pooling.input, *earlier]), back


def _as_map(values: torch.Tensor, model: Any) -> torch.Tensor:
    """Tokens as the map of their patches, (n, rows, columns, channels); a map as it is."""
    if values.ndim == 4:
        return values
    tokens = model.backbone.get_layer("tokens")
    _, rows, columns, _ = tokens.input.shape
    return values[:, tokens.prefix :].unflatten(1, (rows, columns))


def _heat(features: torch.Tensor, gradient: torch.Tensor) -> np.ndarray:
    """Channels weighted by their mean gradient, rectified and scaled to [0, 1]; (n, rows, columns)."""
    weights = gradient.mean(dim=(1, 2), keepdim=True)
    heat = (weights * features).sum(dim=-1).relu()
    peak = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / peak.clamp_min(torch.finfo(heat.dtype).tiny)).cpu().numpy()
