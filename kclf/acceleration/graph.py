"""A functional Keras model as a flat list of operations over numbered values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
from keras.src.models.functional import Functional

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

    def uses(self) -> list[int]:
        """How often each value is read; being an output of the model counts as one reading."""
        count = [0] * len(self.values)
        for node in self.nodes:
            for value in node.inputs:
                count[value] += 1
        for value in self.outputs:
            count[value] += 1
        return count


def functional_of(layer: Any) -> Any | None:
    """The functional graph behind a layer, if running it is all that the layer does; else None."""
    if not isinstance(layer, keras.Model) or type(layer).call not in FUNCTIONAL_CALLS:
        return None
    graph = layer._functional if isinstance(layer, keras.Sequential) else layer
    return graph if isinstance(graph, Functional) else None


def flatten(model: Any) -> Graph:
    """Write out a functional model, and the functional models inside it, as one flat graph.

    Args:
        model: a functional `keras.Model` (of a Sequential: its `_functional`).

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
    for record in _records(model):
        sources = tuple(numbers[id(tensor)] for tensor in record.input_tensors)
        inner = functional_of(record.operation)
        if inner is not None and _same_input(inner, record):
            targets = _append(graph, inner, sources)
        else:
            targets = tuple(graph.new_value(tensor) for tensor in record.outputs)
            graph.nodes.append(Node(record.operation, sources, targets, record))
        numbers |= {id(tensor): number for tensor, number in zip(record.outputs, targets, strict=True)}
    return tuple(numbers[id(tensor)] for tensor in model.outputs)


def _records(model: Any) -> list[Any]:
    """Keras' nodes of a model from the input side to the output side."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth] if not node.is_input]


def _same_input(inner: Any, record: Any) -> bool:
    """Whether a model inside takes its one input as it comes, without a cast or another rank."""
    if len(inner.inputs) != 1 or len(record.input_tensors) != 1:
        return False
    wanted, given = inner.inputs[0], record.input_tensors[0]
    return wanted.dtype == given.dtype and len(wanted.shape) == len(given.shape)
