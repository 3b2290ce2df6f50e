"""What the steps of one run of a model share, and the shapes of the functions that do them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Run:
    """One pass through a model; the moving statistics of its batch norms are written at its end."""

    training: bool
    gradients: bool
    statistics: list[Any] = field(default_factory=list)


Function = Callable[..., torch.Tensor]


@dataclass(eq=False)
class Step:
    """One call: what it reads, what it writes, and whether its result is new and needed by no gradient."""

    function: Any
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    fresh: bool = False
    dead: tuple[int, ...] = ()


def note_deaths(steps: list[Step], outputs: tuple[int, ...]) -> None:
    """Note with each step the values that nothing reads after it."""
    needed = set(outputs)
    for step in reversed(steps):
        step.dead = tuple(set(step.sources) - needed)
        needed |= set(step.sources)


@dataclass(frozen=True)
class Site:
    """Where a layer stands in a graph: what a compile function needs to know of its surroundings.

    Args:
        layer: the Keras layer or operation.
        record: Keras' node, with the arguments of the symbolic call.
        inputs: the KerasTensors that come in.
        output: the KerasTensor that goes out (the first, where there are several).
        views: whether rank 4 values are NHWC images held as NCHW views, in channels_last memory.
        overwrite: whether the first input is nobody else's, so that it may be overwritten.
    """

    layer: Any
    record: Any
    inputs: tuple[Any, ...]
    output: Any
    views: bool
    overwrite: bool

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
