"""Prediction on a CPU: convolutions with packed kernels that add and activate as they write their result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from .convolutions import Convolution, FoldedConvolution, state_of
from .graph import Graph, Pair, Run, Step, mark_last_use
from .pointwise import NOTHING, Activation, PostOperation, Sum

AFTER_A_SUM = ("none", "relu")  # the activations that oneDNN takes together with a summand


_switch = ContextVar("packing", default=True)


@contextmanager
def unpacked() -> Iterator[None]:
    """Let predictions in the block go through torch's own convolutions, which can be traced."""
    token = _switch.set(False)
    try:
        yield
    finally:
        _switch.reset(token)


def can_pack(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether packed convolutions can take these inputs: plain tensors, on a CPU, with oneDNN in torch."""
    return (
        not torch.compiler.is_compiling()
        and _switch.get()
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        and not torch.is_autocast_enabled("cpu")
        and all(type(x) is torch.Tensor and x.device.type == "cpu" for x in tensors)
    )


class PackedConvolution:
    """A convolution, the batch norm after it, a summand and an activation in one call; without gradients.

    The kernel is kept in the blocks in which oneDNN reads it, for the first shape that comes; other shapes
    give the same results. It is packed anew when one of the variables has changed.

    Args:
        convolution: with or without a batch norm in it.
    """

    def __init__(self, convolution: Convolution | FoldedConvolution) -> None:
        self.whole = convolution
        self.plain = convolution.convolution if isinstance(convolution, FoldedConvolution) else convolution
        self.post = self.plain.post or NOTHING
        self.adds = False
        self._state: tuple[Any, ...] = ()
        self._weights: tuple[torch.Tensor, torch.Tensor | None]

    def __call__(self, run: Run, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """activation(convolution(x) + other) of float32 (batch, channels, height, width)."""
        plain, post = self.plain, self.post
        x, padding = plain.padded(x)
        weight, bias = self._packed(x, padding)
        convolve = torch.ops.mkldnn._convolution_pointwise
        geometry = padding, plain.strides, plain.dilation, plain.groups
        if other is None:
            return convolve(x, weight, bias, *geometry, post.name, list(post.scalars), post.algorithm)
        activation = None if post is NOTHING else post.name
        return convolve.binary(x, other, weight, bias, *geometry, "add", 1.0, activation, [], "")

    def takes(self, post: PostOperation) -> bool:
        """Whether an activation on the result can join."""
        return self.post is NOTHING and (not self.adds or post.name in AFTER_A_SUM)

    @torch.no_grad()
    def _packed(self, x: torch.Tensor, padding: Pair) -> tuple[torch.Tensor, torch.Tensor | None]:
        state = state_of(self.whole.tensors())
        if state != self._state:
            plain = self.plain
            with torch.inference_mode(False):
                weight, bias = self.whole.weights(torch.float32)
                packed = torch.ops.mkldnn._reorder_convolution_weight(
                    weight, padding, plain.strides, plain.dilation, plain.groups, list(x.shape)
                )
            self._weights, self._state = (packed, bias), state
        return self._weights


def packed_steps(steps: Sequence[Step], graph: Graph) -> list[Step]:
    """The steps of a plan for prediction on a CPU, with sums and activations drawn into convolutions.

    Args:
        steps: of the plan; they stay as they are.
        graph: of the plan.
    """
    uses, result = graph.uses(), list[Step]()
    makers: dict[int, Step] = {}  # value that nothing else reads -> the packed step that makes it
    for step in steps:
        joined = _joined(step, makers)
        if joined is not None:
            result.remove(joined)  # a summand may be made after the step that takes it in
        new = joined or _packed_step(step)
        result.append(new)
        if isinstance(new.function, PackedConvolution) and uses[new.targets[0]] == 1:
            makers[new.targets[0]] = new
    mark_last_use(result, graph.outputs)
    return result


def _packed_step(step: Step) -> Step:
    function = step.function
    plain = function.convolution if isinstance(function, FoldedConvolution) else function
    if isinstance(plain, Convolution) and plain.in_float32 and plain.post is not None:
        function = PackedConvolution(function)
    return Step(function, step.sources, step.targets)


def _joined(step: Step, makers: dict[int, Step]) -> Step | None:
    """The packed step that can do this step's work too, now with its result; None where none can."""
    function = step.function
    if isinstance(function, Activation):
        maker = makers.get(step.sources[0])
        if maker is None or function.post is None or not maker.function.takes(function.post):
            return None
        maker.function.post = function.post
    elif isinstance(function, Sum) and function.alike:
        sources = [value for value in reversed(step.sources) if _takes_a_summand(makers.get(value))]
        if not sources or step.sources[0] == step.sources[1]:
            return None
        maker = makers[sources[0]]
        other = next(value for value in step.sources if value != sources[0])
        maker.sources = (*maker.sources, other)
        maker.function.adds = True
    else:
        return None
    maker.targets = step.targets
    return maker


def _takes_a_summand(maker: Step | None) -> bool:
    return maker is not None and maker.function.post is NOTHING and not maker.function.adds
