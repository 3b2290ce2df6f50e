"""What a network computes beyond its weights, and no weights file says: padding and epsilon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import keras

from .._core.keras_private import producer_of
from ..errors import WeightsError

WINDOWS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.MaxPooling2D)


@dataclass(frozen=True)
class Conventions:
    """How a network pads and normalises.

    Attributes:
        padding: of windows with a stride: "symmetric" as torch does, or "end" as TensorFlow does, where the
            odd pixel of padding goes to the end.
        epsilon: of BatchNorm.
    """

    padding: Literal["symmetric", "end"]
    epsilon: float


TORCH = Conventions("symmetric", 1e-5)
TENSORFLOW = Conventions("end", 1e-3)


def check_conventions(model: keras.Model, expected: Conventions | None, source: str) -> None:
    """Refuse weights that a model would use otherwise than they were trained.

    Args:
        model: a functional model.
        expected: the conventions of the weights; None where nobody said.
        source: what to call the weights in a message.

    Raises:
        WeightsError: the model pads or normalises otherwise, or the conventions are not known.
    """
    if expected is None:
        raise WeightsError(
            f"{source}: networks with these names come with two conventions. Say which: conventions=TORCH "
            "(timm's own training) or conventions=TENSORFLOW (timm's models named tf_...)."
        )
    wrong = [name for name, padding in paddings(model).items() if padding != expected.padding]
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    # Keras writes 1.001e-5 for torch's 1e-5 in places; that moves outputs by less than rounding does.
    wrong += [norm.name for norm in norms if abs(norm.epsilon / expected.epsilon - 1) > 0.01]
    if wrong:
        raise WeightsError(
            f"{source} comes from a network with {expected.padding} padding and BatchNorm epsilon "
            f"{expected.epsilon}, and {model.name!r} computes otherwise in: {', '.join(wrong)}. "
            "with_conventions(model, ...) gives a model that computes as the weights expect."
        )


def paddings(model: keras.Model) -> dict[str, str]:
    """How each window that can tell pads, by the name of its layer: "symmetric" or "end"."""
    found = {layer.name: _padding(layer) for layer in model.layers if isinstance(layer, WINDOWS)}
    return {name: padding for name, padding in found.items() if padding}


def with_conventions(model: keras.Model, conventions: Conventions) -> keras.Model:
    """A copy of a functional model that pads and normalises by other conventions, with new random weights.

    Args:
        model: a functional model.
        conventions: how the copy shall compute.

    Raises:
        WeightsError: some window cannot be changed (pooling that pads by itself).

    Example:
        >>> import keras
        >>> model = keras.applications.MobileNetV2(weights=None, include_top=False)
        >>> set(paddings(with_conventions(model, TORCH)).values())
        {'symmetric'}
    """
    windows = [layer for layer in model.layers if isinstance(layer, WINDOWS)]
    padding_for = {id(_padding_before(window)): window for window in windows}
    to_symmetric = conventions.padding == "symmetric"
    own = [w for w in windows if to_symmetric and _padding(w) == "end" and w.padding == "same"]
    margins = {window.name: _margins(window, conventions) for window in own if hasattr(window, "kernel_size")}

    def adapted(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config["epsilon"] = conventions.epsilon
        if layer.name in margins:
            config["padding"] = "valid"
        if isinstance(layer, keras.layers.ZeroPadding2D) and id(layer) in padding_for:
            config["padding"] = _margins(padding_for[id(layer)], conventions)
        return type(layer).from_config(config)

    def padded(layer: keras.layers.Layer, *inputs: Any, **options: Any) -> Any:
        if layer.name in margins:
            inputs = (keras.layers.ZeroPadding2D(margins[layer.name], name=f"{layer.name}_pad")(inputs[0]),)
        return layer(*inputs, **options)

    copy = keras.models.clone_model(model, clone_function=adapted, call_function=padded)
    check_conventions(copy, conventions, f"the copy of {model.name!r}")
    return copy


def _margins(window: Any, conventions: Conventions) -> tuple[tuple[int, int], tuple[int, int]]:
    """(before, after) for rows and columns, for a window on a side of even length."""
    symmetric = conventions.padding == "symmetric"
    rows, columns = ((k // 2 if symmetric else (k - 1) // 2, k // 2) for k in _kernel(window))
    return rows, columns


def _kernel(window: Any) -> tuple[int, int]:
    return getattr(window, "kernel_size", None) or window.pool_size


def _padding(window: Any) -> str | None:
    """None where both conventions agree: no stride, or windows that do not overlap."""
    if max(window.strides) == 1 or max(_kernel(window)) <= max(window.strides):
        return None
    if window.padding == "same":
        return "end"
    before = _padding_before(window)
    if before is None:  # no padding at all, as in Inception
        return None
    even = all(first == last for first, last in before.padding)
    return "symmetric" if even else "end"


def _padding_before(window: Any) -> keras.layers.ZeroPadding2D | None:
    """The padding layer that feeds a window, if one does."""
    source = producer_of(window.input)
    return source if isinstance(source, keras.layers.ZeroPadding2D) else None
