"""Prediction on a CPU: convolutions with packed kernels that add and activate as they write their result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F

from .convolutions import Convolution, FoldedConvolution
from .folding import state_of
from .graph import Graph, Pair, Run, Step, mark_last_use
from .pointwise import NOTHING, Activation, Padding, PostOperation, Sum
from .winograd import winograd, winograd_kernel

AFTER_A_SUM = ("none", "relu")  # the activations that oneDNN takes together with a summand
MANY_CHANNELS = 256  # from which on Winograd's products save more than his tiles cost


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

    Zero padding with more at the end than at the beginning, which oneDNN does not take, is made of equal ends
    and a kernel of a depthwise convolution that begins with as many zeros: no pass over the image for it.

    Args:
        convolution: with or without a batch norm in it.

    Attributes:
        pads: rows and columns, before and after, of a ZeroPadding2D before it; None where there is none.
    """

    def __init__(self, convolution: Convolution | FoldedConvolution) -> None:
        self.whole = convolution
        self.plain = convolution.convolution if isinstance(convolution, FoldedConvolution) else convolution
        self.post = self.plain.post or NOTHING
        self.pads_by_its_kernel = self.plain.depthwise and self.plain.dilation == (1, 1)
        self.adds = False
        self.pads: tuple[Pair, Pair] | None = None
        self._state: tuple[Any, ...] = ()
        self._weights: tuple[torch.Tensor, torch.Tensor | None]

    def __call__(self, run: Run, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """activation(convolution(x) + other) of float32 (batch, channels, height, width)."""
        plain, post = self.plain, self.post
        x, padding, lead = self._padded(x)
        by_tiles = padding == (1, 1) and self._gains_by_tiles()
        weight, bias = self._packed(x, padding, lead, by_tiles)
        if by_tiles:
            y = winograd(x, weight, bias)
            return y if post is NOTHING else y.relu_()
        convolve = torch.ops.mkldnn._convolution_pointwise
        geometry = padding, plain.strides, plain.dilation, plain.groups
        if other is None:
            return convolve(x, weight, bias, *geometry, post.name, list(post.scalars), post.algorithm)
        activation = None if post is NOTHING else post.name
        return convolve.binary(x, other, weight, bias, *geometry, "add", 1.0, activation, [], "")

    def takes(self, post: PostOperation) -> bool:
        """Whether an activation on the result can join."""
        return self.post is NOTHING and (not self.adds or post.name in AFTER_A_SUM)

    def forget(self) -> None:
        """Pack anew at the next call."""
        self._state = ()

    def _gains_by_tiles(self) -> bool:
        """Whether Winograd's products are faster than oneDNN's, apart from the padding."""
        plain = self.plain
        return (
            plain.size == (3, 3)
            and plain.strides == plain.dilation == (1, 1)
            and plain.groups == 1
            and min(plain.kernel.shape[2:]) >= MANY_CHANNELS
            and not self.adds
            and self.post.name in AFTER_A_SUM
        )

    def _padded(self, x: torch.Tensor) -> tuple[torch.Tensor, Pair, Pair]:
        """The input, the padding of each side, and the zeros that the kernel begins with."""
        if not (self.pads_by_its_kernel and (self.pads or self.plain.same)):
            return *self.plain.padded(x), (0, 0)
        rows, columns = self.pads or self.plain.same_pads(x.shape[2:])
        lead = rows[1] - rows[0], columns[1] - columns[0]
        return x, (rows[1], columns[1]), lead

    @torch.no_grad()
    def _packed(
        self, x: torch.Tensor, padding: Pair, lead: Pair, by_tiles: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        state = by_tiles, lead, *state_of(self.whole.tensors())
        if state != self._state:
            plain = self.plain
            with torch.inference_mode(False):
                weight, bias = self.whole.weights(torch.float32)
                if lead != (0, 0):
                    weight = F.pad(weight, (lead[1], 0, lead[0], 0))
                if by_tiles:
                    packed = winograd_kernel(weight)
                else:
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
    paddings: dict[int, Step] = {}  # the same of zero paddings
    for step in steps:
        joined = _joined(step, makers)
        if joined is not None:
            result.remove(joined)  # a summand may be made after the step that takes it in
        new = joined or _packed_step(step)
        padding = paddings.get(new.sources[0])
        if padding is not None and _takes_padding(new.function, padding.function):
            result.remove(padding)
            new.function.pads, new.sources = padding.function.pads, padding.sources
        result.append(new)
        if uses[new.targets[0]] == 1:
            if isinstance(new.function, PackedConvolution):
                makers[new.targets[0]] = new
            elif isinstance(new.function, Padding):
                paddings[new.targets[0]] = new
    mark_last_use(result, graph.outputs)
    return result


def _packed_step(step: Step) -> Step:
    function = step.function
    plain = function.convolution if isinstance(function, FoldedConvolution) else function
    if isinstance(plain, Convolution) and plain.dtype is torch.float32 and plain.post is not None:
        function = PackedConvolution(function)
    return Step(function, step.sources, step.targets)


def _takes_padding(function: Any, padding: Padding) -> bool:
    """Whether a packed convolution can do the padding before it."""
    if not isinstance(function, PackedConvolution) or not function.pads_by_its_kernel:
        return False
    plain = function.plain
    return (
        not plain.same and plain.border == (0, 0) and all(before <= after for before, after in padding.pads)
    )


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
