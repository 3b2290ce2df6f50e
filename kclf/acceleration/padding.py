"""Steps of a plan drawn together for training: activations that pad for what comes after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .convolutions import Convolution, FoldedConvolution
from .gradients import WRITTEN, PaddedActivation, Written, clamped
from .graph import Graph, Pair, Step, mark_last_use
from .pointwise import Activation, Padding


def joined_steps(steps: Sequence[Step], graph: Graph, *, views: bool) -> list[Step]:
    """The steps of a plan, with uneven zero paddings drawn into the activations before them.

    An even one is the convolution's own; an uneven one (Keras' "same" with a stride) costs a copy each way.

    Args:
        steps: of the plan; they stay as they are.
        graph: of the plan.
        views: whether rank 4 values are NHWC images held as NCHW views.
    """
    uses, result = graph.uses(), list[Step]()
    makers: dict[int, tuple[Step, Written]] = {}  # value that nothing else reads -> its activation
    for step in steps:
        new = Step(step.function, step.sources, step.targets)
        shape = graph.values[step.sources[0]].shape
        zeros = _zeros(step.function, shape[1:3] if views else shape[2:4])
        if zeros is not None and step.sources[0] in makers:
            maker, written = makers[step.sources[0]]
            rows, columns, new.function = zeros
            maker.function = PaddedActivation(maker.function, written, rows, columns)
            if new.function is None:
                maker.targets = step.targets
                continue
        result.append(new)
        if uses[new.targets[0]] == 1 and (form := _written(new.function)) is not None:
            makers[new.targets[0]] = new, form
    mark_last_use(result, graph.outputs)
    return result


def _zeros(function: Any, sides: Sequence[Any]) -> tuple[Pair, Pair, Any] | None:
    """The rows and columns that a step pads with before its own work, and that work, None for no other."""
    if isinstance(function, Padding):
        return *function.pads, None
    plain = function.convolution if isinstance(function, FoldedConvolution) else function
    if not isinstance(plain, Convolution) or not plain.same or None in sides:
        return None
    rows, columns = plain.same_pads(sides)
    if rows[0] == rows[1] and columns[0] == columns[1]:
        return None
    rest = plain.unpadded()
    return rows, columns, rest if plain is function else FoldedConvolution(rest, function.norm)


def _written(function: Any) -> Written | None:
    """The form of a step that writes its result into a tensor; None where it has none."""
    post = function.post if isinstance(function, Activation) else None
    if post is None:
        return None
    return clamped(*post.scalars) if post.name == "hardtanh" else WRITTEN.get(post.name)
