"""Which layers of a classifier hold whole numbers for weights, and the same in one built again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from .._core.keras_private import all_layers

PLAIN = ("int8", "int4", "float8")  # the others need data to quantize by


def quantized_layers(model: keras.Model) -> dict[str, str]:
    """The mode of each quantized layer by its path, such as {"head/logits": "int8"}."""
    return {
        path: mode
        for path, layer in _layers(model).items()
        if (mode := getattr(layer, "quantization_mode", None))
    }


def quantize_layers(model: keras.Model, modes: Mapping[str, str]) -> None:
    """Quantize the layers of a new model as those that `quantized_layers` told of, before weights are read.

    Raises:
        ValueError: a layer is not there, or its mode needs data.
    """
    layers = _layers(model)
    for path, mode in modes.items():
        if path not in layers or mode not in PLAIN:
            raise ValueError(
                f"Expected layers quantized by one of {', '.join(PLAIN)}. Received: {path!r} by {mode!r}"
            )
        layers[path].quantize(mode)


def _layers(model: Any) -> dict[str, Any]:
    return {
        f"{part}/{layer.name}": layer
        for part in ("backbone", "head")
        for layer in all_layers(getattr(model, part), include_self=False)
    }
