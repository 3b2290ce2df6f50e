"""The state of a training run: kept, put back, and turned into arrays."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import torch

from .._core.h5_store import JSON
from .._core.keras_private import (
    FIRST_EPOCH,
    GLOBAL_SEED_GENERATOR,
    all_layers,
    compiled_loss,
    compiled_metrics,
    get_global_attribute,
    global_seed_generator,
    own_statistics,
    own_weights,
    raw,
    set_global_attribute,
)
from ..errors import FileFormatError, TrainingError


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's, torch's and Keras' global generators.

    Returns:
        Nested dicts of arrays and plain values, which `set_random_states` takes back.
    """
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - others draw from it
    states = {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": {**numpy["state"], "has_gauss": numpy["has_gauss"], "gauss": numpy["gauss"]},
        "torch": torch.get_rng_state().numpy(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = {str(i): state.numpy() for i, state in enumerate(torch.cuda.get_rng_state_all())}
    seeds = get_global_attribute(GLOBAL_SEED_GENERATOR)
    if seeds is not None:
        states["keras"] = seeds.state.value.detach().cpu().numpy().copy()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put the generators back to where `random_states` found them."""
    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(int(word) for word in python["words"]), python["gauss"]))
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy["key"], "pos": int(numpy["pos"])},
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": numpy["gauss"],
        }
    )
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        for device, state in zip(range(torch.cuda.device_count()), states["cuda"].values(), strict=False):
            torch.cuda.set_rng_state(torch.from_numpy(state), device)
    if "keras" in states:
        global_seed_generator().state.assign(states["keras"])
    else:
        set_global_attribute(GLOBAL_SEED_GENERATOR, None)


class Undo:
    """Puts back what was remembered: when it is called, or when its `with` block ends, however it ends.

    Args:
        *parts: functions that put back a part each.
    """

    def __init__(self, *parts: Callable[[], Any]) -> None:
        self._parts = parts

    def __call__(self) -> None:
        """Put it back, part after part."""
        for part in self._parts:
            part()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *error: object) -> None:
        self()


def remember_model(model: keras.Model) -> Undo:
    """Remember what a fit changes in a model, and return what puts it back bit for bit.

    Weights, BatchNorm statistics, seeds, metrics, the optimizer with its counts, rate and loss scale, what
    layers draw at random, and the trainer's own flags.

    Args:
        model: a compiled and built model; its optimizer is built if it is not yet.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    tensors = (raw(variable) for variable in training_variables(model))
    return Undo(remember_tensors(tensors), *_layers(model), *_flags(model))


def remember_randomness(data: Any = None) -> Undo:
    """Remember the random state of Python, NumPy, torch and Keras, and the order of a data object.

    Args:
        data: what `fit` is given. Its `state_dict` and `load_state_dict` are used where it has them, and the
            `torch.Generator` of a `DataLoader`.
    """
    return Undo(*_generators(), *_data(data))


@contextmanager
def passing_draws(model: keras.Model, data: Any, epoch: int = 0) -> Iterator[None]:
    """Let data and layers meet an epoch, and put both back when the block ends, however it ends.

    Args:
        model: its layers with generators of their own are moved on.
        data: what `fit` is given; moved on where its `state_dict` tells an epoch.
        epoch: how many epochs on; 0 for the one at hand.
    """
    with Undo(*_layers(model), *_data(data)):
        if epoch:
            for layer in random_layers(model):
                layer.set_random_state(_other_state(layer.get_random_state(), epoch))
            if hasattr(data, "load_state_dict") and "epoch" in (state := data.state_dict()):
                data.load_state_dict({**state, "epoch": state["epoch"] + epoch, "batch": 0})
        yield


def _other_state(state: torch.Tensor, number: int) -> torch.Tensor:
    """The state of a generator that has nothing to do with the one in `state`, but follows from it."""
    now = torch.Generator()
    now.set_state(state)
    seed = int(torch.randint(2**62, (), generator=now))
    return torch.Generator().manual_seed(seed + number).get_state()


def training_variables(model: keras.Model) -> list[keras.Variable]:
    """All variables that a fit changes, each once: weights, seeds, metrics, and the optimizer's state."""
    optimizer = getattr(model, "optimizer", None)
    own = [*model.variables, *model.metrics_variables, *(optimizer.variables if optimizer else ())]
    return list({id(raw(variable)): variable for variable in own}.values())


def changed_by_a_step(model: keras.Model) -> list[keras.Variable]:
    """What a training step changes beside weights: statistics of norms that train, seeds, metrics."""
    layers = all_layers(model)
    norms = (one for one in layers if type(one) is keras.layers.BatchNormalization and not one.trainable)
    stays = {id(v) for layer in layers for v in own_weights(layer)}
    stays |= {id(v) for norm in norms for v in own_statistics(norm)}
    own = (v for v in model.non_trainable_variables if id(v) not in stays)
    return [*own, *model.metrics_variables]


def random_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers that draw from generators of their own, which they let others read and set."""
    return [layer for layer in all_layers(model) if hasattr(layer, "get_random_state")]


def remember_tensors(tensors: Iterable[torch.Tensor], device: str | None = "cpu") -> Undo:
    """Remember tensors, and return what puts their values back in place, bit for bit.

    Args:
        tensors: those that will change.
        device: where the copies wait; None for each tensor's own.
    """
    copies = [(tensor, tensor.detach().to(device or tensor.device, copy=True)) for tensor in tensors]

    def undo() -> None:
        with torch.no_grad():
            for tensor, copy in copies:
                tensor.copy_(copy)

    return Undo(undo)


def _layers(model: keras.Model) -> Iterator[Callable[[], Any]]:
    for layer in random_layers(model):
        yield partial(layer.set_random_state, layer.get_random_state())


def _flags(model: keras.Model) -> Iterator[Callable[[], Any]]:
    for name in ("history", "stop_training", FIRST_EPOCH):
        if hasattr(model, name):
            yield partial(setattr, model, name, getattr(model, name))
        else:
            yield partial(vars(model).pop, name, None)
    # fit looks at one batch to build these, which draws from the random state: it must do so again
    for part in (compiled_metrics(model), compiled_loss(model)):
        if part is not None and not part.built:
            yield partial(setattr, part, "built", False)
    training = model.training

    def undo() -> None:
        model.zero_grad()
        model.train(training)

    yield undo


def _generators() -> Iterator[Callable[[], Any]]:
    seeds = get_global_attribute(GLOBAL_SEED_GENERATOR)
    yield partial(set_global_attribute, GLOBAL_SEED_GENERATOR, seeds)
    yield partial(set_random_states, random_states())


def _data(data: Any) -> Iterator[Callable[[], Any]]:
    if isinstance(data, Iterator):
        raise TrainingError(
            "An iterator cannot be put back to where it was: give an array, a DataLoader or a PyDataset. "
            f"Received: {type(data).__name__}"
        )
    if hasattr(data, "state_dict") and hasattr(data, "load_state_dict"):
        yield partial(data.load_state_dict, data.state_dict())
    for owner in (data, getattr(data, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            yield partial(generator.set_state, generator.get_state())


ARRAY = "$array"
FLOAT = "$float"  # infinity and NaN, for which JSON has no words


def to_arrays(tree: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, JSON]]:
    """Take a tree apart.

    Args:
        tree: nested dicts with names as keys, lists and tuples, down to tensors, arrays and plain values.

    Returns:
        The arrays by name, and the same tree with the names in place of the arrays. Arrays on the CPU share
        the memory of what they were.

    Example:
        >>> arrays, rest = to_arrays({"rate": np.ones(2), "epoch": 3})
        >>> list(arrays), rest
        (['rate/0'], {'rate': {'$array': 'rate/0'}, 'epoch': 3})
    """
    arrays: dict[str, np.ndarray] = {}

    def walk(node: Any, top: str) -> JSON:
        if isinstance(node, Mapping):
            return {str(key): walk(value, top) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(value, top) for value in node]
        if isinstance(node, np.generic):
            node = node.item()
        if isinstance(node, float) and not math.isfinite(node):
            return {FLOAT: str(node)}
        if not isinstance(node, np.ndarray | torch.Tensor):
            return node
        name = f"{top}/{len(arrays)}"
        if isinstance(node, np.ndarray):
            arrays[name] = node
            return {ARRAY: name}
        tensor, form = _flat(node.detach())
        arrays[name] = tensor.cpu().numpy()
        return {ARRAY: name, **form}

    rest = {key: walk(value, key) for key, value in tree.items()}
    return arrays, rest


def from_arrays(arrays: Mapping[str, np.ndarray], rest: Mapping[str, JSON]) -> dict[str, Any]:
    """Put a tree together again.

    Raises:
        FileFormatError: an array is missing.
    """

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(value) for value in node]
        if not isinstance(node, Mapping):
            return node
        if ARRAY in node:
            return _shaped(arrays, node)
        if FLOAT in node:
            return float(node[FLOAT])
        return {key: walk(value) for key, value in node.items()}

    return {key: walk(value) for key, value in rest.items()}


def _flat(tensor: torch.Tensor) -> tuple[torch.Tensor, dict[str, JSON]]:
    """A tensor as the plain memory that it is, and how it lies there.

    Kernels are kept in the order that torch reads them in: to write them in Keras' order takes a hundred
    times as long.
    """
    form: dict[str, JSON] = {"dtype": str(tensor.dtype).removeprefix("torch.")}
    if not tensor.is_contiguous() and torch._debug_has_internal_overlap(tensor) == 0:
        form |= {"shape": list(tensor.shape), "strides": list(tensor.stride())}
        tensor = tensor.as_strided((tensor.numel(),), (1,))
    return tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor, form


def _shaped(arrays: Mapping[str, np.ndarray], node: Mapping[str, Any]) -> np.ndarray | torch.Tensor:
    """The array or tensor that `to_arrays` met."""
    if node[ARRAY] not in arrays:
        raise FileFormatError(f"refused: it has no array {node[ARRAY]!r}.")
    array = arrays[node[ARRAY]]
    if "dtype" not in node:
        return array
    tensor = torch.from_numpy(array)
    if node["dtype"] == "bfloat16":  # which NumPy lacks: its bits travel as int16
        tensor = tensor.view(torch.bfloat16)
    return tensor.as_strided(node["shape"], node["strides"]) if "strides" in node else tensor


def assign(tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Copy values into tensors of the same shapes and dtypes, bit for bit.

    Raises:
        ValueError: they do not fit.
    """
    ours = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
    theirs = [(tuple(tensor.shape), tensor.dtype) for tensor in values]
    if ours != theirs:
        different = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), "")
        raise ValueError(
            f"{len(ours)} tensors expected. Received: {len(theirs)}; the first that differ: {different}"
        )
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
