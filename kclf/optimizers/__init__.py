"""Optimizers: discriminative learning rates for any Keras optimizer, and loss scaling in one pass."""

from .groups import group_rates, layer_decay
from .layer_groups import LayerGroupOptimizer, layer_group_optimizer
from .loss_scale import FusedLossScaleOptimizer

__all__ = [
    "FusedLossScaleOptimizer",
    "LayerGroupOptimizer",
    "group_rates",
    "layer_decay",
    "layer_group_optimizer",
]
