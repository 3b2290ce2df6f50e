"""CUDA graphs of the end of a plan: its forward and backward pass launched as one, after the host's part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .convolutions import Statistics
from .graph import Function, Run, Step, run_steps

Begin = Callable[[Run], None]


class _Module(torch.nn.Module):
    """What torch captures: a function of tensors and the parameters that it reads."""

    def __init__(self, function: Callable[..., Any], parameters: Sequence[torch.nn.Parameter]) -> None:
        super().__init__()
        self.function, self.read = function, torch.nn.ParameterList(parameters)

    def forward(self, *entering: torch.Tensor) -> Any:
        return self.function(*entering)


class CapturedEnd:
    """The steps of a plan behind the last one that Keras runs: captured where a shape comes a second time.

    What draws on the host or sends numbers from there, such as an augmentation, is run by Keras, and so stays
    before it. Batch norms that train give their statistics back, which are followed outside of the graph.

    Args:
        steps: all of the plan.
        host: the functions of those that Keras runs.
        outputs: the values that the plan gives.
        begin: prepares a run, such as the folding of norms.
        parameters: of the layers.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        host: Sequence[Function],
        outputs: Sequence[int],
        begin: Begin,
        parameters: Sequence[torch.nn.Parameter],
    ) -> None:
        first = 1 + max((number for number, step in enumerate(steps) if step.function in host), default=-1)
        self.before, self.steps = list(steps[:first]), list(steps[first:])
        self._begin, self._outputs = begin, tuple(outputs)
        self._parameters = list(parameters)
        made = {number for step in self.steps for number in step.targets}
        read = {number for step in self.steps for number in step.sources} | set(outputs)
        self._entering = tuple(sorted(read - made))
        self._count = 1 + max((*made, *read))
        self._norms: list[Any] = []  # the layers whose statistics the last run gave
        self._captured: dict[Any, Callable[..., Any]] = {}
        self._seen: set[Any] = set()

    def __call__(self, run: Run, values: list[Any]) -> None:
        """Do the steps on the values of a plan's run, in training."""
        entering = [values[number] for number in self._entering]
        learning = [parameter for parameter in self._parameters if parameter.requires_grad]
        key = (*((x.shape, x.stride(), x.dtype, x.requires_grad) for x in entering), *map(id, learning))
        learns = bool(learning) or any(x.requires_grad for x in entering)
        if not learns or key not in self._seen:
            self._seen.add(key)  # perhaps a last batch that is not full: it is run as it is
            self._begin(run)
            run_steps(self.steps, run, values)
            return
        if key not in self._captured:
            self._captured[key] = self._capture(entering, learning)
        results = self._captured[key](*entering)
        count = len(self._outputs)
        for number, value in zip(self._outputs, results[:count], strict=True):
            values[number] = value
        pairs = zip(self._norms, results[count::2], results[count + 1 :: 2], strict=True)
        run.statistics += [Statistics(*one) for one in pairs]

    def _capture(self, entering: list[torch.Tensor], learning: list[Any]) -> Callable[..., Any]:
        """The steps as graphs, for tensors of these shapes; what dropout draws meanwhile is drawn again."""
        samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in entering)
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            module = _Module(self._pure, learning)
            return torch.cuda.make_graphed_callables(module, samples, allow_unused_input=True)

    def _pure(self, *entering: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, and mean and 1/standard deviation of each norm that trains."""
        run = Run(training=True, gradients=True)
        self._begin(run)
        values: list[Any] = [None] * self._count
        for number, tensor in zip(self._entering, entering, strict=True):
            values[number] = tensor
        run_steps(self.steps, run, values)
        self._norms = [one.layer for one in run.statistics]
        found = [tensor for one in run.statistics for tensor in (one.mean, one.inverse)]
        return (*[values[number] for number in self._outputs], *found)
