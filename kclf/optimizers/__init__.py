"""Optimizers: discriminative learning rates for any Keras optimizer, and loss scaling in one pass."""

from .layer_groups import LayerGroupOptimizer, layer_group_optimizer
from .loss_scale import FusedLossScaleOptimizer
from .variables import group_rates, layer_decay

__all__ = [
    "FusedLossScaleOptimizer",
    "LayerGroupOptimizer",
    "group_rates",
    "layer_decay",
    "layer_group_optimizer",
]
