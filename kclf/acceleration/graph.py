"""A functional model as a list of steps, and the run through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import keras
import torch

from .._core.keras_private import Functional, graph_of, nodes_of

Pair = tuple[int, int]


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> Pair:
    """Padding before and after one axis that makes its length ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


FUNCTIONAL_CALLS = (Functional.call, keras.Sequential.call)


@dataclass(frozen=True)
class Node:
    """One operation: which values it reads and writes, and Keras' own record of its arguments."""

    operation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    record: Any


@dataclass
class Graph:
    """The operations in the order in which they run; `values[k]` is the KerasTensor of value k."""

    values: list[Any] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def new_value(self, tensor: Any) -> int:
        """The number of a value that was not there before."""
        self.values.append(tensor)
        return len(self.values) - 1

    def uses(self) -> Counter[int]:
        """How often each value is read; being an output of the model counts as one reading."""
        return Counter(chain(self.outputs, *(node.inputs for node in self.nodes)))


def functional_of(layer: Any) -> Any | None:
    """The functional graph behind a layer, if running it is all that the layer does; else None."""
    if not isinstance(layer, keras.Model) or type(layer).call not in FUNCTIONAL_CALLS:
        return None
    graph = graph_of(layer) if isinstance(layer, keras.Sequential) else layer
    return graph if isinstance(graph, Functional) else None


def flatten(model: Any) -> Graph:
    """Write out a functional model, and the functional models inside it, as one flat graph.

    Args:
        model: a functional `keras.Model` (of a Sequential: its graph).

    Returns:
        The graph; its inputs and outputs are in Keras' flat order.
    """
    graph = Graph()
    graph.inputs = tuple(graph.new_value(tensor) for tensor in model.inputs)
    graph.outputs = _append(graph, model, graph.inputs)
    return graph


def _append(graph: Graph, model: Any, inputs: tuple[int, ...]) -> tuple[int, ...]:
    """Add a model's operations to the graph; returns the values of its outputs."""
    numbers = {id(tensor): number for tensor, number in zip(model.inputs, inputs, strict=True)}
    for record in nodes_of(model):
        sources = tuple(numbers[id(tensor)] for tensor in record.input_tensors)
        inner = functional_of(record.operation)
        if inner is not None and _same_input(inner, record):
            targets = _append(graph, inner, sources)
        else:
            targets = tuple(graph.new_value(tensor) for tensor in record.outputs)
            graph.nodes.append(Node(record.operation, sources, targets, record))
        numbers |= {id(tensor): number for tensor, number in zip(record.outputs, targets, strict=True)}
    return tuple(numbers[id(tensor)] for tensor in model.outputs)


def _same_input(inner: Any, record: Any) -> bool:
    """Whether a model inside takes its one input as it comes, without a cast or another rank."""
    if len(inner.inputs) != 1 or len(record.input_tensors) != 1:
        return False
    wanted, given = inner.inputs[0], record.input_tensors[0]
    return wanted.dtype == given.dtype and len(wanted.shape) == len(given.shape)


@dataclass
class Run:
    """One pass through a model; the moving statistics of its batch norms are written at its end."""

    training: bool
    gradients: bool
    statistics: list[Any] = field(default_factory=list)
    folded: dict[int, Any] = field(default_factory=dict)  # scale and shift of the folded norms that learn
    idle: list[torch.Tensor] = field(default_factory=list)  # biases that the norm after them takes out again


Function = Callable[..., torch.Tensor]


@dataclass(eq=False)
class Step:
    """One call: what it reads, what it writes, and whether its result is new and needed by no gradient."""

    function: Any
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    fresh: bool = False
    dead: tuple[int, ...] = ()


def run_steps(steps: Iterable[Step], run: Run, values: list[Any]) -> None:
    """Do steps in order on the values of a graph, each freed after the last step that reads it."""
    for step in steps:
        sources = step.sources
        if len(sources) == 1:
            result = step.function(run, values[sources[0]])
        else:
            result = step.function(run, *[values[number] for number in sources])
        for number in step.dead:
            values[number] = None
        if len(step.targets) == 1:
            values[step.targets[0]] = result
        else:
            for number, tensor in zip(step.targets, result, strict=True):
                values[number] = tensor


def pooled_early(steps: Sequence[Step], graph: Graph) -> list[Step]:
    """The steps in another order: what makes a vector of a map comes right behind the map, which may then go.

    Keras runs a model by the depth of its layers, and so pools the maps of early levels last of all.
    """
    ranks = [len(value.shape) for value in graph.values]
    waiting: dict[int, list[Step]] = {}
    for step in steps:
        if len(step.sources) == 1 and ranks[step.sources[0]] == 4 and ranks[step.targets[0]] == 2:
            waiting.setdefault(step.sources[0], []).append(step)
    moved = {id(step) for group in waiting.values() for step in group}
    found = [step for value in graph.inputs for step in waiting.get(value, [])]
    for step in steps:
        if id(step) not in moved:
            found.append(step)
            found += [early for value in step.targets for early in waiting.get(value, [])]
    return found


def mark_last_use(steps: list[Step], outputs: tuple[int, ...]) -> None:
    """Note with each step the values that nothing reads after it."""
    needed = set(outputs)
    for step in reversed(steps):
        step.dead = tuple(set(step.sources) - needed)
        needed |= set(step.sources)


@dataclass(frozen=True)
class LayerContext:
    """Where a layer stands in a graph: what a compile function needs to know of its surroundings.

    Args:
        layer: the Keras layer or operation.
        record: Keras' node, with the arguments of the symbolic call.
        inputs: the KerasTensors that come in.
        output: the KerasTensor that goes out (the first, where there are several).
        views: whether rank 4 values are NHWC images held as NCHW views, in channels_last memory.
        disposable: places of the inputs that are nobody else's, so that they may be overwritten.
    """

    layer: Any
    record: Any
    inputs: tuple[Any, ...]
    output: Any
    views: bool
    disposable: tuple[int, ...]

    def is_image(self, tensor: Any) -> bool:
        """Whether a value is an NHWC image held as an NCHW view."""
        return self.views and len(tensor.shape) == 4

    @property
    def image(self) -> bool:
        """Whether the first input is an NHWC image held as an NCHW view."""
        return self.is_image(self.inputs[0])

    @property
    def rank(self) -> int:
        """The number of axes of the first input."""
        return len(self.inputs[0].shape)

    @property
    def channels_first(self) -> bool:
        """Whether axis 1 of the first input's tensor holds what the layer calls channels."""
        wanted = "channels_last" if self.views else "channels_first"
        return self.rank == 4 and self.layer.data_format == wanted


def to_nchw(x: torch.Tensor) -> torch.Tensor:
    """(batch, height, width, channels) as a (batch, channels, height, width) view."""
    return x.permute(0, 3, 1, 2)


def to_nhwc(x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) as a (batch, height, width, channels) view."""
    return x.permute(0, 2, 3, 1)
