"""Remember everything a training run changes, and put it all back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import torch
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from ..errors import TrainingError
from .random_states import random_states, set_random_states

Undo = Callable[[], None]


def remember_model(model: keras.Model) -> Undo:
    """Remember what a fit changes in a model, and return the function that puts it back bit for bit.

    Weights, BatchNorm statistics, seeds, metrics, the optimizer with its counts, rate and loss scale, what
    layers draw at random, and the trainer's own flags.

    Args:
        model: a compiled and built model; its optimizer is built if it is not yet.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return _all([*_variables(model), *_layers(model), *_flags(model)])


def remember_randomness(data: Any = None) -> Undo:
    """Remember the random state of Python, NumPy, torch and Keras, and the order of a data object.

    Args:
        data: what `fit` is given. Its `state_dict` and `load_state_dict` are used where it has them, and the
            `torch.Generator` of a `DataLoader`.
    """
    return _all([*_generators(), *_data(data)])


@contextmanager
def passing_draws(model: keras.Model, data: Any, epoch: int = 0) -> Iterator[None]:
    """Let data and layers meet an epoch, and put both back when the block ends, however it ends.

    Args:
        model: its layers with generators of their own are moved on.
        data: what `fit` is given; moved on where its `state_dict` tells an epoch.
        epoch: how many epochs on; 0 for the one at hand.
    """
    undo = _all([*_layers(model), *_data(data)])
    try:
        if epoch:
            for layer in random_layers(model):
                layer.set_random_state(_other_state(layer.get_random_state(), epoch))
            if hasattr(data, "load_state_dict") and "epoch" in (state := data.state_dict()):
                data.load_state_dict({**state, "epoch": state["epoch"] + epoch, "batch": 0})
        yield
    finally:
        undo()


def _other_state(state: torch.Tensor, number: int) -> torch.Tensor:
    """The state of a generator that has nothing to do with the one in `state`, but follows from it."""
    now = torch.Generator()
    now.set_state(state)
    seed = int(torch.randint(2**62, (), generator=now))
    return torch.Generator().manual_seed(seed + number).get_state()


def _all(undos: Iterable[Undo]) -> Undo:
    kept = list(undos)

    def undo() -> None:
        for one in kept:
            one()

    return undo


def training_variables(*models: keras.Model) -> list[keras.Variable]:
    """All variables that a fit changes, each once: weights, seeds, metrics, and the optimizer's state."""
    found: dict[int, keras.Variable] = {}
    for model in models:
        optimizer = getattr(model, "optimizer", None)
        own = [*model.variables, *model.metrics_variables, *(optimizer.variables if optimizer else ())]
        for variable in own:
            found.setdefault(id(variable._value), variable)
    return list(found.values())


def random_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers that draw from generators of their own, which they let others read and set."""
    return [layer for layer in model._flatten_layers() if hasattr(layer, "get_random_state")]


def _variables(model: keras.Model) -> Iterator[Undo]:
    tensors = (variable._value for variable in training_variables(model))
    copies = [(tensor, tensor.detach().to("cpu", copy=True)) for tensor in tensors]

    def undo() -> None:
        with torch.no_grad():
            for tensor, copy in copies:
                tensor.copy_(copy)

    yield undo


def _layers(model: keras.Model) -> Iterator[Undo]:
    for layer in random_layers(model):
        yield _setter(layer.set_random_state, layer.get_random_state())


def _flags(model: keras.Model) -> Iterator[Undo]:
    for name in ("history", "stop_training", "_initial_epoch"):
        if hasattr(model, name):
            yield _setter(_attribute(model, name), getattr(model, name))
        else:
            yield functools.partial(vars(model).pop, name, None)
    # fit looks at one batch to build these, which draws from the random state: it must do so again
    for part in (model._compile_metrics, model._compile_loss):
        if part is not None and not part.built:
            yield _setter(_attribute(part, "built"), False)
    training = model.training

    def undo() -> None:
        model.zero_grad()
        model.train(training)

    yield undo


def _generators() -> Iterator[Undo]:
    seeds = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    yield lambda: global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, seeds)
    yield _setter(set_random_states, random_states())


def _data(data: Any) -> Iterator[Undo]:
    if isinstance(data, Iterator):
        raise TrainingError(
            "An iterator cannot be put back to where it was: give an array, a DataLoader or a PyDataset. "
            f"Received: {type(data).__name__}"
        )
    if hasattr(data, "state_dict") and hasattr(data, "load_state_dict"):
        yield _setter(data.load_state_dict, data.state_dict())
    for owner in (data, getattr(data, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            yield _setter(generator.set_state, generator.get_state())


def _attribute(owner: Any, name: str) -> Callable[[Any], None]:
    return lambda value: setattr(owner, name, value)


def _setter(put: Callable[[Any], Any], value: Any) -> Undo:
    return lambda: put(value)
