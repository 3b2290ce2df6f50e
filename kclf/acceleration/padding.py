"""Steps of a plan drawn together for training: activations that pad for what comes after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .convolutions import Convolution, FoldedConvolution
from .gradients import WRITTEN, PaddedActivation, Written, clamped
from .graph import Graph, Pair, Step, mark_last_use
from .pointwise import Activation, Padding


@dataclass(frozen=True)
class _Zeros:
    """What a step pads with before its own work, and that work without them."""

    rows: Pair
    columns: Pair
    rest: Any = None


def joined_steps(steps: Sequence[Step], graph: Graph, *, views: bool) -> list[Step]:
    """The steps of a plan, with uneven zero paddings drawn into the activations before them.

    An even one is the convolution's own; an uneven one (Keras' "same" with a stride) costs a copy each way.

    Args:
        steps: of the plan; they stay as they are.
        graph: of the plan.
        views: whether rank 4 values are NHWC images held as NCHW views.
    """
    uses, result = graph.uses(), list[Step]()
    makers: dict[int, tuple[int, Written]] = {}  # value that nothing else reads -> place of its activation
    for step in steps:
        source, target = step.sources[0], step.targets[0]
        zeros = _zeros(step.function, _sides(graph, source, views=views))
        if zeros is not None and source in makers:
            place, written = makers[source]
            maker = result[place]
            padded = PaddedActivation(maker.function, written, zeros.rows, zeros.columns)
            targets = step.targets if zeros.rest is None else maker.targets
            result[place] = Step(padded, maker.sources, targets)
            if zeros.rest is not None:
                result.append(Step(zeros.rest, step.sources, step.targets))
            continue
        result.append(Step(step.function, step.sources, step.targets))
        if uses[target] == 1 and (form := _written(step.function)) is not None:
            makers[target] = len(result) - 1, form
    mark_last_use(result, graph.outputs)
    return result


def _sides(graph: Graph, value: int, *, views: bool) -> tuple[int | None, ...]:
    """Height and width of an image."""
    shape = graph.values[value].shape
    return tuple(shape[1:3] if views else shape[2:4])


def _zeros(function: Any, sides: Sequence[int | None]) -> _Zeros | None:
    if isinstance(function, Padding):
        return _Zeros(*function.pads)
    plain = function.convolution if isinstance(function, FoldedConvolution) else function
    if not isinstance(plain, Convolution) or not plain.same or None in sides:
        return None
    rows, columns = plain.same_pads([side for side in sides if side is not None])
    if rows[0] == rows[1] and columns[0] == columns[1]:
        return None
    rest = plain.unpadded()
    return _Zeros(rows, columns, rest if plain is function else FoldedConvolution(rest, function.norm))


def _written(function: Any) -> Written | None:
    """The form of a step that writes its result into a tensor; None where it has none."""
    post = function.post if isinstance(function, Activation) else None
    if post is None:
        return None
    return clamped(*post.scalars) if post.name == "hardtanh" else WRITTEN.get(post.name)
