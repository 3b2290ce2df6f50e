"""`accelerate(model)` keeps the model and changes how it runs; `deaccelerate` restores it."""

from __future__ import annotations

import logging
import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras
import torch

from .._core.cpu import keep_freed_memory
from .._core.fit_hooks import override
from .._core.keras_private import (
    all_layers,
    compiled_loss,
    compiled_metrics,
    get_device,
    own_metrics,
    own_variables,
    raw,
    to_torch_dtype,
)
from .convolutions import StandaloneBatchNorm, can_stand_alone, store_for_keras, store_for_torch
from .graph import functional_of
from .plan import MASKING, Plan
from .step import LeanStep, unsupported_reason

logger = logging.getLogger(__name__)
_STATE = "_kclf_acceleration"


@dataclass
class _Acceleration:
    """What was hung on a model, so that it can be taken off again."""

    model: keras.Model
    replaced: list[tuple[Any, str]] = field(default_factory=list)
    plans: list[_PlannedCall] = field(default_factory=list)
    options: dict[str, bool] = field(default_factory=dict)  # of the plans
    step: LeanStep | None = None
    seen: list[Any] = field(default_factory=list)  # what the model looked like when it was planned
    constant: bool = False  # nothing changes the model: see `constant`

    def replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        """Override a method, and remember it for `remove`."""
        override(owner, **{name: function})
        self.replaced.append((owner, name))

    def refresh(self) -> None:
        """Forget what was worked out from weights, and plan anew at the next call if layers have changed."""
        seen = _appearance(self.model)
        if len(seen) == len(self.seen) and all(map(operator.is_, seen, self.seen)):
            for plan in self.plans:
                plan.forget_weights()
            return
        self.seen = seen
        store_for_torch(self.model)
        if [plan.model for plan in self.plans] != _planned_graphs(self.model):
            self.plan_calls()  # layers were added or taken away, or the model has been built since
        for plan in self.plans:
            plan.forget()
        if self.step is not None:
            self.step.refresh()

    def plan_calls(self) -> None:
        """Hang a plan on every functional model that is this model or lies in it; none stays from before."""
        for owner, name in self.replaced:
            if name == "call":
                owner.__dict__.pop(name, None)
        self.replaced, self.plans = [pair for pair in self.replaced if pair[1] != "call"], []
        for graph in _graphs(self.model):
            if masking := _masking(graph):
                logger.info("%s is run by Keras: %s make masks", graph.name, ", ".join(masking))
                continue
            self.plans.append(_PlannedCall(graph, self.options))
            self.replace(graph, "call", self.plans[-1])
        _lone_batchnorms(self.model, self)
        if self.step is not None:
            self.step.forward = _fast_call(self.model)

    def remove(self) -> None:
        for owner, name in self.replaced:
            owner.__dict__.pop(name, None)


class _PlannedCall:
    """Stands in for `call` of a functional model; hands to Keras what the plan does not take."""

    def __init__(self, model: Any, options: dict[str, bool]) -> None:
        self.model, self.stock = model, type(model).call
        self.options = options

    @cached_property
    def plan(self) -> Plan:
        plan = Plan(self.model, **self.options)
        if plan.fallback:
            kinds = sorted({type(layer).__name__ for layer in plan.fallback})
            logger.debug("%s: run by Keras as they are: %s", self.model.name, ", ".join(kinds))
        return plan

    def forget(self) -> None:
        """Look at the layers again at the next call."""
        vars(self).pop("plan", None)

    def forget_weights(self) -> None:
        """Look at the weights again, which may have changed without a trace, and keep the plan."""
        if "plan" in vars(self):
            self.plan.forget_weights()

    def __call__(self, inputs: Any, training: bool | None = None, mask: Any = None, **context: Any) -> Any:
        if mask is None and not context:
            symbolic = isinstance(inputs, torch.Tensor) and inputs.is_meta
            outputs = self._symbolic(inputs) if symbolic else self.fast(inputs, bool(training))
            if outputs is not None:
                return outputs
        return self.stock(self.model, inputs, training=training, mask=mask, **context)

    def _symbolic(self, inputs: torch.Tensor) -> Any:
        """What `fit` asks for before its first step: outputs without values, of the shapes that are known."""
        (expected, *more), outputs = self.model.inputs, self.model.outputs
        if more or inputs.shape[1:] != expected.shape[1:] or any(None in one.shape[1:] for one in outputs):
            return None
        batch = len(inputs)
        return self.plan.pack(
            [inputs.new_empty((batch, *one.shape[1:]), dtype=to_torch_dtype(one.dtype)) for one in outputs]
        )

    def fast(self, inputs: Any, training: bool) -> Any:
        """The result of the plan; None where Keras has to run the model."""
        plan = self.plan
        tensors = plan.accept(inputs)
        return None if tensors is None else plan.pack(plan(tensors, training=training))


def accelerate(model: keras.Model, *, checkpointing: bool = False, graphs: bool = False) -> keras.Model:
    """Let a Keras model run at the speed of plain torch; its results, files and layers stay as they are.

    Functional models run as a flat list of torch calls on the Keras variables' own tensors, with batch norms
    that do not learn folded into the convolutions before them, convolution kernels stored in torch's order,
    and a train and test step that reads nothing back from the device, with Keras' own optimizers too. On a
    CPU (Linux) the memory that a step frees stays with the process for the next one.

    Takes functional models, Sequential, and subclasses of `keras.Model` that hold such models. Layers,
    weights, `summary`, saving and loading are untouched, and `trainable` flags count from the next step on.
    A model or a part of it that this cannot run (a `train_step` of its own, masks, layers with LoRA) is left
    to Keras, and the log says why.

    Args:
        model: a Keras model on the torch backend, compiled or not.
        checkpointing: keep only what passes between residual blocks for the way back, and compute the blocks
            again there: less memory in training, for a third more time.
        graphs: on CUDA, launch the forward and the backward pass of training as CUDA graphs: for small models
            and batches, where the host is the limit. What comes before the last layer that Keras runs (an
            augmentation) stays outside. A batch of another size is run without; not with `checkpointing`.

    Returns:
        The model itself.

    Raises:
        ValueError: on another backend than torch, or `graphs` together with `checkpointing`.

    Example:
        >>> import keras, kclf.acceleration
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
        >>> kclf.acceleration.accelerate(model) is model
        True
    """
    if keras.backend.backend() != "torch":
        raise ValueError(
            f"accelerate() needs Keras' torch backend: set KERAS_BACKEND=torch before importing keras. "
            f"Received: backend={keras.backend.backend()!r}"
        )
    if graphs and checkpointing:
        raise ValueError(
            "Blocks that are computed again cannot be part of a CUDA graph: choose graphs or checkpointing. "
            "Received: graphs=True, checkpointing=True"
        )
    deaccelerate(model)
    state = _Acceleration(model, options={"checkpointing": checkpointing, "graphs": graphs})
    state.plan_calls()
    store_for_torch(model)
    _lean_step(model, state)
    state.replace(model, "get_compile_config", _with_loss_scale(model))
    for name in ("make_train_function", "make_test_function", "make_predict_function"):
        state.replace(model, name, _refreshing(model, state, name))
    model.__dict__[_STATE] = state
    return model


def deaccelerate(model: keras.Model) -> keras.Model:
    """Let a model run as Keras runs it again.

    Args:
        model: a Keras model, accelerated or not.

    Returns:
        The model itself.
    """
    state = model.__dict__.pop(_STATE, None)
    if state is not None:
        state.remove()
        store_for_keras(model)
        model.train_function = model.test_function = model.predict_function = None
    return model


def is_accelerated(model: keras.Model) -> bool:
    """Whether `accelerate` is at work on a model."""
    return _STATE in model.__dict__


@contextmanager
def run_by_keras(model: keras.Model) -> Iterator[None]:
    """Let Keras call each layer of an accelerated model within the block, as where layers are looked into."""
    state = model.__dict__.get(_STATE)
    planned = [] if state is None else [plan.model for plan in state.plans]
    taken = [(graph, graph.__dict__.pop("call")) for graph in planned if "call" in graph.__dict__]
    try:
        yield
    finally:
        for graph, call in taken:
            override(graph, call=call)


@contextmanager
def constant(model: keras.Model) -> Iterator[None]:
    """Let predictions within the block keep what the first one has compiled and packed: .1 s less for each.

    Nothing may change the model there, neither layers nor weights.
    """
    state = model.__dict__.get(_STATE)
    if state is None:
        yield
        return
    state.refresh()
    state.constant = True
    try:
        yield
    finally:
        state.constant = False


def _appearance(model: keras.Model) -> list[Any]:
    """What plans and steps are made from, each object as it is: all that layers hold, `compile` and `fit`."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = None if optimizer is None else weakref.ref(optimizer)  # one object as long as it lives
    found = [compiled_loss(model), compiled_metrics(model), getattr(model, "history", None), optimizer]
    found += own_metrics(model)
    for layer in all_layers(model):
        if layer is not model:
            found += vars(layer).values()
        for variable in own_variables(layer):
            found += raw(variable), variable.regularizer
    return found


def _graphs(model: keras.Model) -> list[Any]:
    """Every functional graph that is this model or lies in it, each once."""
    graphs = [functional_of(layer) for layer in all_layers(model)]
    return list(dict.fromkeys(graph for graph in graphs if graph is not None))


def _masking(graph: Any) -> list[str]:
    return [layer.name for layer in all_layers(graph) if isinstance(layer, MASKING)]


def _planned_graphs(model: keras.Model) -> list[Any]:
    """The graphs that are run by plans."""
    return [graph for graph in _graphs(model) if not _masking(graph)]


def _fast_call(model: keras.Model) -> Any:
    """The planned forward pass of a model that is one graph; None where its own call has to run."""
    graph = functional_of(model)
    call = None if graph is None else graph.__dict__.get("call")
    return call.fast if isinstance(call, _PlannedCall) else None


def _lone_batchnorms(model: keras.Model, state: _Acceleration) -> None:
    """Fuse the batch norms that no plan runs."""
    planned = {id(layer) for call in state.plans for layer in all_layers(call.model)}
    for layer in all_layers(model):
        is_norm = type(layer) is keras.layers.BatchNormalization
        if is_norm and id(layer) not in planned and can_stand_alone(layer):
            state.replace(layer, "call", StandaloneBatchNorm(layer))


def _lean_step(model: keras.Model, state: _Acceleration) -> None:
    reason = unsupported_reason(model)
    if reason is not None:
        logger.info("%s keeps Keras' step: %s", model.name, reason)
        return
    state.step = LeanStep(model, _fast_call(model))
    state.replace(model, "train_step", state.step.train_step)
    state.replace(model, "test_step", state.step.test_step)
    if get_device() == "cpu":
        keep_freed_memory()  # for the activations and gradients of the next step


def _with_loss_scale(model: keras.Model) -> Callable[[], dict[str, Any]]:
    """What a saved model says of `compile`, with the loss scaling that Keras put around the optimizer."""

    def get_compile_config() -> dict[str, Any]:
        config = type(model).get_compile_config(model)
        optimizer = getattr(model, "optimizer", None)
        if config and isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            config["optimizer"] = keras.saving.serialize_keras_object(optimizer)
        return config

    return get_compile_config


def _refreshing(model: keras.Model, state: _Acceleration, name: str) -> Callable[..., Any]:
    """The start of each `fit`, `evaluate` and `predict`, with a fresh look at the model."""
    make = getattr(type(model), name)

    def refresh_and_make(*args: Any, **kwargs: Any) -> Any:
        if not (state.constant and name == "make_predict_function"):
            state.refresh()
        return make(model, *args, **kwargs)

    return refresh_and_make
