"""What stands between `fit` and its steps, in layers that come and go on their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

Step = Callable[[list[Any]], Any]
Around = Callable[[Step, list[Any]], Any]


class _Steps:
    """A step of a model with functions around it; it ends with the fit that it was made for.

    A fit that is cut off tells no callback. The next one has another `History`, and so is recognised.
    """

    def __init__(self, model: keras.Model, name: str, step: Step) -> None:
        self.model, self.name, self.step = model, name, step
        self.history = getattr(model, "history", None)
        self.around: list[Around] = []

    @property
    def is_over(self) -> bool:
        return getattr(self.model, "history", None) is not self.history

    def __call__(self, data: list[Any]) -> Any:
        if self.is_over:
            setattr(self.model, self.name, self.step)
            return self.step(data)
        step = self.step
        for function in self.around:
            step = functools.partial(function, step)
        return step(data)


def stand_around(model: keras.Model, name: str, function: Around) -> None:
    """Let a function be called with each step and its data, in place of the step.

    Args:
        model: in a fit or an evaluation.
        name: "train_function" or "test_function".
        function: called with the step, or the next function inside, and the list of batches that it gets.
            What is added last stands outermost.
    """
    steps = getattr(model, name)
    if not isinstance(steps, _Steps) or steps.is_over:
        steps = _Steps(model, name, steps.step if isinstance(steps, _Steps) else steps)
        setattr(model, name, steps)
    steps.around.append(function)


def step_aside(model: keras.Model, name: str, function: Around) -> None:
    """Take a function away again; nothing happens where it is not there."""
    steps = getattr(model, name)
    if isinstance(steps, _Steps) and function in steps.around:
        steps.around.remove(function)
        if not steps.around:
            setattr(model, name, steps.step)
