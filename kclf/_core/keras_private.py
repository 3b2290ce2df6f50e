"""Every private name of Keras that kclf uses, in one room: where Keras moves one, it is mended here.

`tests/test_keras_private.py` holds each of them to what kclf needs, and names the version that broke it.
"""

from __future__ import annotations

import sys
from typing import Any

from keras.src.applications.convnext import LayerScale
from keras.src.backend.common.global_state import get_global_attribute, set_global_attribute
from keras.src.backend.common.masking import get_keras_mask
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.torch.core import get_device, to_torch_dtype
from keras.src.losses.losses import LossFunctionWrapper
from keras.src.models.functional import Functional
from keras.src.ops import numpy as numpy_operations
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator
from keras.src.saving import saving_lib
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.trainers.trainer import Trainer

OPTIMIZERS_OF_TORCH = (
    "keras.src.backend.torch.optimizers"  # the package of the optimizers that have foreach kernels
)

__all__ = [
    "GLOBAL_SEED_GENERATOR",
    "OPTIMIZERS_OF_TORCH",
    "DataAdapter",
    "EpochIterator",
    "Functional",
    "LayerScale",
    "Trainer",
    "beside_adapter",
    "function_of_loss",
    "get_device",
    "get_global_attribute",
    "get_keras_mask",
    "global_seed_generator",
    "in_stateless_scope",
    "numpy_operations",
    "producer_of",
    "saving_lib",
    "set_global_attribute",
    "takes_training",
    "to_torch_dtype",
]


def takes_training(model: Any) -> bool:
    """Whether the `call` of a model has an argument `training`."""
    return bool(model._call_has_training_arg)


def producer_of(tensor: Any) -> Any:
    """The layer or operation that a symbolic tensor comes from; None for a tensor that is not symbolic."""
    history = getattr(tensor, "_keras_history", None)
    return None if history is None else history.operation


def function_of_loss(loss: Any) -> Any:
    """The function of a loss that `compile` was given by name; None for a loss object, or with settings."""
    return loss.fn if type(loss) is LossFunctionWrapper and not loss._fn_kwargs else None


def beside_adapter(names: tuple[str, ...]) -> dict[str, Any]:
    """Which arguments `fit` or `evaluate` got beside a data adapter that it asks for its length just now.

    Keras takes an adapter of one's own without a look at its other arguments, and shows them to nobody: they
    are found in the frame of the `EpochIterator` that is being made.

    Args:
        names: of the arguments to look for.

    Returns:
        Those that are not None; nothing where no `EpochIterator` is asking.
    """
    frame = sys._getframe(2)
    if not isinstance(frame.f_locals.get("self"), EpochIterator) or frame.f_code.co_name != "__init__":
        return {}
    return {name: frame.f_locals[name] for name in names if frame.f_locals.get(name) is not None}
