"""Weights in and out of models: Keras h5 files of every age and torch state dicts, always checked."""

from .keys import array_of, layer_keys, layers_with_variables, named_variables
from .loading import load_weights
from .matching import LoadReport
from .torch_exchange import from_torch, read_state_dict

__all__ = [
    "LoadReport",
    "array_of",
    "from_torch",
    "layer_keys",
    "layers_with_variables",
    "load_weights",
    "named_variables",
    "read_state_dict",
]
