"""Training with less memory: blocks whose activations are computed again on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from .graph import Graph, Run, Step, run_steps

FEWEST_STEPS = 8  # in a segment: a block of a transformer or ResNet has as many


@dataclass(frozen=True)
class Segment:
    """Steps that read one value and write one.

    Args:
        steps: of the plan, up to its step number `end`.
        source: number of the value that goes in.
        target: number of the value that comes out.
        size: how many values the graph has.
        end: number of the first step after it.
    """

    steps: tuple[Step, ...]
    source: int
    target: int
    size: int
    end: int

    def __call__(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        """The value that comes out, with `x` alone kept for the way back (Chen et al. 2016)."""
        return checkpoint(self._forward, run, x, use_reentrant=False)

    def _forward(self, run: Run, x: torch.Tensor) -> torch.Tensor:
        values: list[Any] = [None] * self.size
        values[self.source] = x
        run_steps(self.steps, run, values)
        return values[self.target]


def segments(steps: Sequence[Step], graph: Graph) -> list[Segment]:
    """Cut a plan where one value alone passes and is read more than once, as between residual blocks.

    A value that is read once may be overwritten by its reader, and could not be kept. What comes after the
    last cut is no segment: it is computed back at once.

    Args:
        steps: of the plan, in order.
        graph: of the plan.
    """
    uses, last_use = graph.uses(), dict.fromkeys(graph.outputs, len(steps))
    for number, step in enumerate(steps):
        last_use |= dict.fromkeys((v for v in step.sources if v not in graph.outputs), number)
    found: list[Segment] = []
    start, source, alive = 0, graph.inputs[0], set(graph.inputs)
    for number, step in enumerate(steps):
        alive = {value for value in alive | set(step.targets) if last_use.get(value, -1) > number}
        enough = number + 1 - start >= FEWEST_STEPS
        if len(alive) == 1 and enough and not alive & set(graph.outputs):
            (value,) = alive
            if uses[value] > 1:
                inside = tuple(steps[start : number + 1])
                found.append(Segment(inside, source, value, len(graph.values), number + 1))
                start, source = number + 1, value
    return found if len(graph.inputs) == 1 else []
