"""Keras on torch at torch's speed: `accelerate(model)` keeps the model and changes how it runs."""

from .accelerated_model import accelerate, constant, deaccelerate, is_accelerated, run_by_keras
from .packing import unpacked

__all__ = ["accelerate", "constant", "deaccelerate", "is_accelerated", "run_by_keras", "unpacked"]
