"""Every private name of Keras that kclf uses, in one room: where Keras moves one, it is mended here.

`tests/test_keras_private.py` holds each of them to what kclf needs, and names the version that broke it.
"""

# ruff: noqa: F401 - names of Keras that stand here for other rooms to import

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter
from typing import Any

import torch
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

from .fit_hooks import overridden
from .nadam import product_of

# The package of the optimizers that have foreach kernels.
OPTIMIZERS_OF_TORCH = "keras.src.backend.torch.optimizers"
CURRENT_RATE = "_get_current_learning_rate"  # the method of an optimizer that gives the rate of a step
APPLY_FINITE = "_backend_apply_gradients"  # the method of an optimizer that accumulates, updates and averages
SUMS = "_accumulated_gradients"  # where an optimizer that accumulates keeps the sums, among its slots
BESIDE_UPDATES = (SUMS, "_model_variables_moving_average")  # what an update itself does not change
UPDATE = "_backend_update_step"  # the method of an optimizer with its formula
SCALED_APPLY = "_common_apply"  # the method of a `LossScaleOptimizer` that makes a step or leaves it out
EPOCH_LOGS = "_get_metrics_result_or_logs"  # the method of `epoch_logs`
FIRST_EPOCH = "_initial_epoch"  # the attribute of a model that `start_epochs_at` sets
# What the optimizers of one step keep for each variable.
SLOTS = {
    "SGD": ("momentums",),
    "Adam": ("_momentums", "_velocities", "_velocity_hats"),
    "AdamW": ("_momentums", "_velocities", "_velocity_hats"),
    "RMSprop": ("_velocities", "_average_gradients", "_momentums"),
    "Nadam": ("_momentums", "_velocities"),
}


# ---- attributes ------------------------------------------------------------------

raw = attrgetter("_value")  # of a variable: the tensor itself, whatever scope is open; read in each step

inner_layers = attrgetter("_layers")  # of a layer: those directly in it
own_weights = attrgetter("_trainable_variables")  # variables of it alone, for gradients to update or frozen
own_statistics = attrgetter("_non_trainable_variables")  # the other ones of it alone, such as moving averages
added_losses = attrgetter("_losses")  # what its last call added to the loss
# The dicts in which torch keeps its hooks; they fill and empty as hooks come and go.
hooks_of = attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
is_channels_first = attrgetter("_channels_first")  # of a Flatten: whether it takes its images so
kernel_of = attrgetter("_kernel")  # the variable, where `kernel` may be a sum with low-rank parts

graph_of = attrgetter("_functional")  # of a `Sequential`: the functional model behind it; None until built
output_structure = attrgetter("_outputs_struct")  # of a functional model: its outputs, in their nest
takes_training = attrgetter("_call_has_training_arg")  # of a model: whether its `call` has that argument
compiled_loss = attrgetter("_compile_loss")  # what `compile` made of its losses; None without
compiled_metrics = attrgetter("_compile_metrics")  # the same of its metrics
own_metrics = attrgetter("_metrics")  # the metrics that are its attributes
loss_tracker = attrgetter("_loss_tracker")  # the mean over an epoch's batches that `fit` shows as the loss

rate_source = attrgetter("_learning_rate")  # of an optimizer: the variable, schedule or function of its rate
step_count = attrgetter("_iterations")  # the variable that counts its steps
trained_variables = attrgetter("_trainable_variables")  # those that it was built on
state_variables = attrgetter("_variables")  # its own, without those of an optimizer inside
# With `use_ema`, the moving average of each variable that it was built on, or None.
average_of_weights = attrgetter("_model_variables_moving_average")
gradient_sums = attrgetter(SUMS)  # where it accumulates, a variable for each that it was built on


# ---- layers and models -------------------------------------------------------


def all_layers(layer: Any, *, include_self: bool = True) -> list[Any]:
    """A layer or model and all layers in it, at any depth."""
    return list(layer._flatten_layers(include_self=include_self))


def own_variables(layer: Any) -> list[Any]:
    """Variables of this layer alone, in the order Keras saves them, the same frozen and unfrozen."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def is_recomputed(layer: Any) -> bool:
    """Whether a layer was made in a `keras.RematScope`."""
    return bool(getattr(layer, "_remat_mode", None))


def takes_argument(layer: Any, name: str) -> bool:
    """Whether a layer or operation takes an argument, such as training, from the call around it."""
    return name in getattr(layer, "_call_context_args", {})


def producer_of(tensor: Any) -> Any:
    """The layer or operation that a symbolic tensor comes from; None for a tensor that is not symbolic."""
    history = getattr(tensor, "_keras_history", None)
    return None if history is None else history.operation


def nodes_of(model: Any) -> list[Any]:
    """The calls of a functional model from the input side to the output side, without its inputs."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth] if not node.is_input]


def save_state(model: Any, store: Any) -> None:
    """Let Keras write a model's variables into a store, under the paths of its own files."""
    saving_lib._save_state(model, store, None, "", set())


def set_path(variable: Any, path: str) -> None:
    """Give a variable the path of another."""
    variable._path = path


# ---- fits ------------------------------------------------------------------------


def start_epochs_at(model: Any, epoch: int | None) -> None:
    """Let `fit`, which asks after `on_train_begin`, begin at an epoch; None for the one it was told."""
    setattr(model, FIRST_EPOCH, epoch)


def only_loss(compiled: Any) -> Any:
    """The loss of a built `compiled_loss` for one output without a name or a weight; else None."""
    if compiled is None or not compiled.built or compiled.metrics or len(compiled._flat_losses) != 1:
        return None
    path, loss, weight, _ = compiled._flat_losses[0]
    return None if path or weight is not None else loss


def only_metrics(compiled: Any) -> list[Any] | None:
    """The metrics of a built `compiled_metrics` for one output without a name, none weighted; else None."""
    if not compiled.built or any(compiled._flat_weighted_metrics) or len(compiled._flat_metrics) != 1:
        return None
    group = compiled._flat_metrics[0]
    if group is None:
        return []
    return None if group.output_name else list(group.metrics)


def epoch_logs(model: Any, logs: Any) -> Any:
    """What Keras' `fit` and `evaluate` show of the metrics: the method of the model's class."""
    return type(model)._get_metrics_result_or_logs(model, logs)


def metric_direction(metric: Any) -> str | None:
    """Which way a metric gets better, "up" or "down"; None where it does not say."""
    return getattr(metric, "_direction", None)


def function_of_loss(loss: Any) -> Any:
    """The function of a loss that `compile` was given by name; None for a loss object, or with settings."""
    return loss.fn if type(loss) is LossFunctionWrapper and not loss._fn_kwargs else None


# ---- optimizers ------------------------------------------------------------------


def applies_alone(optimizer: Any) -> bool:
    """Whether an optimizer updates variables itself, and is not a container of others."""
    return hasattr(optimizer, "_backend_update_step")


def kernel_name(optimizer: Any) -> str:
    """Class name of an optimizer that Keras ships, with its own formula; "" for subclasses and others."""
    kind = type(optimizer)
    return kind.__name__ if kind.__module__.startswith(OPTIMIZERS_OF_TORCH) else ""


def slots(optimizer: Any, name: str, variables: Sequence[Any]) -> list[Any]:
    """What an optimizer keeps for variables by one of its `SLOTS`; empty where it keeps none."""
    kept = getattr(optimizer, name, None)
    return [kept[optimizer._get_variable_index(variable)] for variable in variables] if kept else []


def share_counts(wrapper: Any, optimizer: Any) -> None:
    """Leave a wrapper no rate and no count of steps but those of the optimizer inside."""
    for variable in (wrapper._learning_rate, wrapper._iterations):
        wrapper._untrack_variable(variable)
    object.__setattr__(wrapper, "_learning_rate", None)
    object.__setattr__(wrapper, "_iterations", optimizer._iterations)


def share_variables(wrapper: Any, optimizer: Any, variables: list[Any]) -> None:
    """Let a wrapper be built on the variables that the optimizer inside was built on."""
    object.__setattr__(wrapper, "_trainable_variables", variables)
    object.__setattr__(wrapper, "_trainable_variables_indices", optimizer._trainable_variables_indices)


def move_into_place(optimizer: Any, place: int, variable: Any) -> None:
    """Let a variable take the place of the one that an optimizer was built on."""
    places, before = optimizer._trainable_variables_indices, optimizer._trainable_variables[place]
    optimizer._trainable_variables[place] = variable
    places.pop(optimizer._var_key(before), None)
    places[optimizer._var_key(variable)] = place


def without_empty(optimizer: Any, gradients: list[Any], variables: list[Any]) -> tuple[list[Any], list[Any]]:
    """The gradients that are there and their variables, with Keras' warning and error about the others."""
    return optimizer._filter_empty_gradients(gradients, variables)


def is_overwritten(optimizer: Any, variable: Any) -> bool:
    """Whether the "gradient" of a variable is its next value, as with the scales of float8."""
    return bool(optimizer._overwrite_variable_with_gradient(variable))


def decays(optimizer: Any, variable: Any) -> float:
    """The weight decay of a variable: Muon has a second one; 0 for what is left out."""
    if not optimizer._use_weight_decay(variable):
        return 0.0
    by_adam = getattr(optimizer, "_should_use_adamw", None)
    decay = optimizer.adam_weight_decay if by_adam and by_adam(variable) else optimizer.weight_decay
    return float(decay or 0.0)


def update(optimizer: Any, gradients: list[Any], variables: list[Any], rate: torch.Tensor) -> None:
    """One update by the formulas of an optimizer, without clipping, decay or counting."""
    optimizer._backend_update_step(gradients, variables, rate)


def whole_update(optimizer: Any, gradients: list[Any], variables: list[Any]) -> None:
    """One update of an optimizer with clipping and decay, without accumulation, averages or counting."""
    gradients = optimizer._clip_gradients(gradients)
    optimizer._apply_weight_decay(variables)
    optimizer._backend_update_step(gradients, variables, optimizer.learning_rate)


def move_averages(optimizer: Any) -> None:
    """Let the averages of an optimizer with `use_ema` follow its weights by one step."""
    optimizer._update_model_variables_moving_average(optimizer._trainable_variables)


def product_variable(optimizer: Any) -> Any:
    """The variable in which Nadam keeps a product over its updates; None for other optimizers."""
    return getattr(optimizer, "_u_product", None)


@contextmanager
def counted_as(optimizer: Any, count: torch.Tensor) -> Iterator[None]:
    """Let the formulas of an optimizer see a count of updates, scalar on the device, within the block."""
    if (product := product_variable(optimizer)) is not None:
        raw(product).copy_(product_of(optimizer.beta_1, count))
    steps = (count * (optimizer.gradient_accumulation_steps or 1)).to(torch.int32)
    with count_in_place_of(optimizer, steps):
        yield


def count_in_place_of(optimizer: Any, count: Any) -> AbstractContextManager[None]:
    """Let an optimizer have something else in the place of the variable that counts its steps."""
    return overridden(optimizer, _iterations=count)


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
