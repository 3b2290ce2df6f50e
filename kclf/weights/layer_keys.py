"""One stable key for each layer that holds variables, and one name for each variable in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import torch

from .._core.keras_private import inner_layers, own_variables, save_state, saving_lib


def class_word(layer: keras.layers.Layer) -> str:
    """The word Keras makes of a layer's class for automatic names: Conv2D -> conv2d."""
    word = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", word).lower()


def layers_with_variables(model: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Every layer that owns variables itself, depth first, in the order of the model, each once.

    Args:
        model: a built model or layer, nested as deep as it likes.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> [layer.name for layer in layers_with_variables(model)]
        ['head']
    """
    waiting, seen = [model], set()
    while waiting:
        layer = waiting.pop()
        if id(layer) not in seen:
            seen.add(id(layer))
            waiting += reversed(inner_layers(layer))
            if own_variables(layer):
                yield layer


def named_variables(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """The variables of one layer (not of layers inside it) by name: kernel, bias, gamma, moving_mean, ...

    A name that Keras made up ("variable_18" counts those of the process, as in the layer scales of its
    ConvNeXt) is replaced by the place in the layer, "variable#0".
    """
    variables = own_variables(layer)
    return dict(zip(stable_keys([(one.name, "variable") for one in variables]), variables, strict=True))


def array_of(variable: keras.Variable) -> np.ndarray:
    """The value of a variable on the CPU; shares memory with it where it lives there."""
    return numpy_of(variable.value)


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    """A tensor on the CPU; bfloat16, which numpy lacks, as float32, to which it goes without loss."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def layer_keys(model: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """Every layer with variables under a key that is the same each time the model is built.

    A layer's name is its key, unless Keras made the name up ("conv2d_94" counts all convolutions of the
    process): then the key is its class and its place among such layers, "conv2d#0", "conv2d#1", ... A name
    that comes twice gets its place as well.

    Args:
        model: a built model or layer.

    Example:
        >>> import keras
        >>> layers = [keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(2, name="head")]
        >>> list(layer_keys(keras.Sequential(layers)))
        ['dense#0', 'head']
    """
    layers = list(layers_with_variables(model))
    return dict(zip(stable_keys([(layer.name, class_word(layer)) for layer in layers]), layers, strict=True))


def saved_paths(model: keras.layers.Layer) -> dict[str, str]:
    """Where Keras saves each layer that holds variables: path in a `.weights.h5` -> key of the layer."""
    key_of = {id(v): key for key, layer in layer_keys(model).items() for v in own_variables(layer)}
    store = _PathStore()
    save_state(model, store)
    return {
        path: key_of[id(variables["0"])]
        for path, variables in store.saved.items()
        if id(variables.get("0")) in key_of
    }


class _PathStore(saving_lib.H5IOStore):
    """In the place of a file: keeps what Keras' saver would write, under its path."""

    def __init__(self) -> None:
        self.saved: dict[str, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> dict[str, Any]:
        return self.saved.setdefault(path, {})


def stable_keys(names_and_classes: list[tuple[str, str]]) -> list[str]:
    """Keys for (layer name, class word) pairs in the order of the model, as `layer_keys` describes them."""
    places: Counter[str] = Counter()
    keys = []
    for name, word in names_and_classes:
        stem = word if re.fullmatch(rf"{re.escape(word)}(_\d+)?", name) else name
        made_up = stem == word
        keys.append(f"{stem}#{places[stem]}" if made_up or places[stem] else stem)
        places[stem] += 1
    return keys
