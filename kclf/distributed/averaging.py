"""Gradients that travel between the ranks while the backward pass still computes those of earlier layers.

torch's DistributedDataParallel does so for modules that it calls itself, with one backward pass a step, in
which each rank counts alike. Here a step may be made of parts where memory is short on one rank alone, may be
begun again, and ranks count by their photos; torch's hooks on parameters serve for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from .group import Tensors, buckets, run_on_main, send_weighted, start, together, unpack

FIRST_BUCKET = 2**20  # bytes: smaller than the others, so that sending begins early, as torch's DDP has it


@dataclass
class _Bucket:
    """Parameters whose gradients are sent as one: places in the list of all, from the output side."""

    places: list[int] = field(default_factory=list)
    awaited: int = 0  # gradients that are still to come in this step
    flat: torch.Tensor | None = None  # what was sent
    sent: list[int] = field(default_factory=list)  # of which places
    work: Any = None

    def receive(self, gradients: Sequence[torch.Tensor | None], total: torch.Tensor) -> None:
        """Put the means in place of what this rank had."""
        if self.work is not None and self.flat is not None:
            self.work.wait()
            unpack(self.flat.div_(total), [one for p in self.sent if (one := gradients[p]) is not None])
        self.flat = self.work = None
        self.sent = []


class GradientExchange:
    """Averages the gradients of parameters over the ranks, the same bits on all of them.

    Buckets are sent in one order on all ranks, each as soon as its gradients and all buckets before it are
    there; what the backward pass has not sent goes with `finish`. They are filled from the output side, and
    after the first step in the order in which rank 0 got its gradients, as torch's DDP does: what the folding
    of norms gives comes last of all.

    Args:
        parameters: leaves that are due a gradient, the same on all ranks, input side first.
    """

    def __init__(self, parameters: Tensors) -> None:
        self.parameters = list(parameters)
        self._fill(range(len(self.parameters))[::-1])
        self._order: list[int] | None = []  # places as their gradients come; None after the first step
        self._absent: set[int] = set()  # places that had no gradient in the last step
        self._weight: float | None = None  # None outside of a backward pass whose gradients are the step's
        self._next = 0  # the first bucket that is not sent
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, place))
            for place, parameter in enumerate(self.parameters)
        ]

    def _fill(self, order: Sequence[int]) -> None:
        places = {id(self.parameters[place]): place for place in order}
        self._buckets = [
            _Bucket([places[id(parameter)] for parameter in alike])
            for alike in buckets([self.parameters[place] for place in order], FIRST_BUCKET)
        ]
        self._where = {place: bucket for bucket in self._buckets for place in bucket.places}

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def begin(self, weight: float | None) -> None:
        """Before a backward pass.

        Args:
            weight: how much this rank counts, such as the number of its photos; None where the gradients are
                those of a part, and wait for `finish`.
        """
        start()
        self._weight = weight
        for bucket in self._buckets:
            bucket.awaited = sum(place not in self._absent for place in bucket.places)

    def end(self) -> None:
        """After it: gradients of other passes are nobody's business."""
        self._weight = None

    def finish(self, gradients: Sequence[torch.Tensor | None], others: Tensors, weight: float) -> None:
        """Give gradients, and some other tensors, their means over the ranks, in place.

        Args:
            gradients: of this step, one a parameter; None where there is none, on all ranks.
            others: such as the loss, of the same shapes on all ranks; at least one.
            weight: how much this rank counts; above 0.
        """
        start()
        with together(), torch.no_grad():
            for bucket in self._buckets[self._next :]:
                self._send(bucket, gradients, weight)
            late = self._left_out(gradients)
            for bucket in late:
                self._send(bucket, gradients, weight)
            flat, work = send_weighted([*others, others[0].new_ones(1)], weight)
            work.wait()
            total = flat[-1:].clone()
            unpack(flat.div_(total)[:-1], others)
            for bucket in (*self._buckets, *late):
                bucket.receive(gradients, total)
        self._absent = {place for place, gradient in enumerate(gradients) if gradient is None}
        self._next = 0
        if self._order is not None:
            first = run_on_main(lambda: list(dict.fromkeys(self._order or [])))
            rest = set(range(len(self.parameters))) - set(first)
            self._fill([*first, *sorted(rest, reverse=True)])
            self._order = None

    def _left_out(self, gradients: Sequence[torch.Tensor | None]) -> list[_Bucket]:
        """Gradients whose bucket went without them: a layer that got none in the last step has one now."""
        return [
            _Bucket([place])
            for place, gradient in enumerate(gradients)
            if gradient is not None and place not in self._where[place].sent
        ]

    def _arrived(self, place: int, parameter: torch.Tensor) -> None:
        """The gradient of a parameter is whole; torch calls this in the backward pass."""
        if self._weight is None or place in self._absent:
            return
        if self._order is not None:
            self._order.append(place)
        self._where[place].awaited -= 1
        with together(), torch.no_grad():
            while self._next < len(self._buckets) and self._buckets[self._next].awaited == 0:
                bucket = self._buckets[self._next]
                gradients = {number: self.parameters[number].grad for number in bucket.places}
                self._send(bucket, gradients, self._weight)
                self._next += 1

    def _send(self, bucket: _Bucket, gradients: Sequence[Any] | Mapping[int, Any], weight: float) -> None:
        bucket.sent = [place for place in bucket.places if gradients[place] is not None]
        if bucket.sent:
            bucket.flat, bucket.work = send_weighted([gradients[place] for place in bucket.sent], weight)
