"""Loss scaling for float16 in one pass over the gradients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import torch

from .._core.keras_private import state_variables
from .._core.quiet_steps import apply_scaled


class SavedApart:
    """An optimizer around another, which is saved without it: the one inside writes its own part once."""

    name: str

    def save_own_variables(self, store: Any) -> None:
        """Write this optimizer's own variables as arrays "0", "1", ..."""
        for index, variable in enumerate(state_variables(self)):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Read what `save_own_variables` wrote.

        A file of weights alone leaves the optimizer as it is; so does another optimizer's state, with a
        warning, as in Keras: the weights of the model load all the same.
        """
        variables = state_variables(self)
        if not store.keys():
            return
        if len(store.keys()) != len(variables):
            warnings.warn(
                f"The optimizer {self.name} begins anew: the saved one has {len(store.keys())} arrays and "
                f"this one {len(variables)}. To keep its state, build the optimizer on the same model first: "
                "optimizer.build(model.trainable_variables). A model that Keras saved with loss scaling is "
                "read by kclf.weights.load_model",
                stacklevel=2,
            )
            return
        for index, variable in enumerate(variables):
            variable.assign(store[str(index)])


@keras.saving.register_keras_serializable(package="kclf")
class FusedLossScaleOptimizer(SavedApart, keras.optimizers.LossScaleOptimizer):
    """`keras.optimizers.LossScaleOptimizer` with one pass over the gradients, and none that waits.

    Keras checks, divides and counts in three passes and waits for the device twice. The arithmetic is the
    same: an infinite or NaN gradient skips the step and halves the scale; `dynamic_growth_steps` finite steps
    double it. The gradients are unscaled in place. It belongs outermost. On CUDA the device itself skips the
    step.

    Args:
        inner_optimizer: the optimizer that makes the step.
        initial_scale: first loss scale.
        dynamic_growth_steps: finite steps in a row before the scale doubles.

    Example:
        >>> optimizer = FusedLossScaleOptimizer(keras.optimizers.SGD(0.1))
        >>> optimizer.build([keras.Variable([1.0])])
        >>> float(optimizer.scale_loss(1.0))
        32768.0
    """

    def _common_apply(
        self,
        grads: Sequence[torch.Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        apply_scaled(self, grads, trainable_variables)


def loss_scaled(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """An optimizer as a model needs it: with loss scaling under the policy mixed_float16."""
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    needed = model.dtype_policy.name == "mixed_float16" and not scaled
    return FusedLossScaleOptimizer(optimizer) if needed else optimizer
