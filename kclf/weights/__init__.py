"""Weights in and out of models: Keras h5 files of every age and torch state dicts, always checked."""

from .conventions import TENSORFLOW, TORCH, Conventions, with_conventions
from .keras_files import load_model
from .layer_keys import array_of, layer_keys, layers_with_variables, named_variables
from .matching import LoadReport
from .reading import Overview, load_weights, overview
from .saving import save_weights
from .torch_exchange import from_torch, is_torch_file, read_state_dict, to_torch

__all__ = [
    "TENSORFLOW",
    "TORCH",
    "Conventions",
    "LoadReport",
    "Overview",
    "array_of",
    "from_torch",
    "is_torch_file",
    "layer_keys",
    "layers_with_variables",
    "load_model",
    "load_weights",
    "named_variables",
    "overview",
    "read_state_dict",
    "save_weights",
    "to_torch",
    "with_conventions",
]
