"""When memory runs out, a step is made of smaller parts, and stays the same step."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import torch

from .._core.devices import release_keepers
from .._core.fit_hooks import Step, emit_loss, overridden, unwrap_step, wrap_step
from .._core.keras_private import trained_variables
from ..errors import TrainingError
from .run_state import Undo, changed_by_a_step, random_layers, remember_model, remember_randomness

Logs = dict[str, Any]
TOO_SMALL = "Memory does not suffice for a single photo. Take a smaller size or backbone"
LARGEST = 1024  # photos that `largest_batch` tries


class MemoryGuard(keras.callbacks.Callback):
    """Halves what goes through the network at once when memory runs out, and repeats the same batch.

    The gradients of the parts are added up to one step of the optimizer, so that the batch, the schedule and
    the epochs stay as they were. (BatchNorm layers that train see the parts, as they do with gradient
    accumulation.) What the failed attempt changed is put back first: BatchNorm statistics, metrics, random
    states. Validation is cut in the same way. A warning says so, once it fits.

    Attributes:
        parts: of which a batch is made now; 1 as long as memory suffices.

    Example:
        >>> guard = MemoryGuard()
        >>> guard.parts
        1
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts = self._told = 1
        self._before: _Before | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Stand between `fit` and its step."""
        wrap_step(self.model, "train_function", self._train)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Look anew at what a step changes: layers may have been frozen."""
        self._before = None

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Step aside."""
        unwrap_step(self.model, "train_function", self._train)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """The same for validation."""
        wrap_step(self.model, "test_function", self._test)

    def on_test_end(self, logs: Logs | None = None) -> None:
        """Step aside."""
        unwrap_step(self.model, "test_function", self._test)

    def _train(self, step: Step, data: list[Any]) -> Any:
        return self._until_it_fits(data[0], lambda batch: accumulate(self.model, step, batch, self.parts))

    def _test(self, step: Step, data: list[Any]) -> Any:
        return self._until_it_fits(
            data[0], lambda batch: [step([part]) for part in split(batch, self.parts)][-1]
        )

    def state_dict(self) -> dict[str, int]:
        """The parts, for a checkpoint."""
        return {"parts": self.parts}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take back what `state_dict` gave."""
        self.parts = self._told = int(state["parts"])

    def _until_it_fits(self, batch: Any, step: Callable[[Any], Any]) -> Any:
        size = len(batch[0])
        if self._before is None or not self._before.is_complete:
            self._before = _Before(self.model)
        while True:
            self._before.keep()
            try:
                logs = step(batch)
            except RuntimeError as failed:
                if not is_out_of_memory(failed):
                    raise
            else:
                self._tell(size)
                return logs
            self._before.put_back()  # here, where the exception is gone, whose frames hold the memory
            self._halve(size)

    def _halve(self, size: int) -> None:
        now = -(-size // self.parts)
        free_memory(self.model)
        if now <= 1:
            raise TrainingError(TOO_SMALL)
        self.parts *= 2

    def _tell(self, size: int) -> None:
        if self.parts != self._told:
            self._told = self.parts
            warnings.warn(
                f"Memory does not suffice for {size} photos at once: they go through in {self.parts} parts. "
                "The batch of the optimizer stays as it is.",
                stacklevel=3,
            )


def accumulate(model: keras.Model, train: Callable[[list[Any]], Any], batch: Any, parts: int) -> Any:
    """One training step made of parts: their gradients, weighted by their sizes, become one update.

    Args:
        model: a compiled model.
        train: its `train_function`.
        batch: (x, y) or (x, y, weights), of tensors or arrays.
        parts: how many.

    Returns:
        The logs of the last part; Keras' metrics know all of them.
    """
    if parts == 1:
        with _unrepeatable(model.optimizer):
            return train([batch])
    size, loss_of_all = len(batch[0]), []
    sums: dict[int, torch.Tensor] = {}
    variables: list[Any] = []

    def scale_loss(loss: torch.Tensor) -> torch.Tensor:
        loss_of_all.append(loss.detach() * share)
        return type(model.optimizer).scale_loss(model.optimizer, loss * share)

    def add(grads: list[torch.Tensor | None], trainable_variables: list[Any] | None = None) -> None:
        variables[:] = trainable_variables or trained_variables(model.optimizer)
        for place, gradient in enumerate(grads):
            if gradient is not None and place in sums:
                sums[place].add_(gradient)
            elif gradient is not None:  # a copy: a CUDA graph may write those of the next part in its place
                sums[place] = gradient.clone()

    with overridden(model.optimizer, scale_loss=scale_loss, apply=add, step_of_parts=int):
        for part in split(batch, parts):
            share = len(part[0]) / size
            logs = train([part])
    emit_loss(model.optimizer, torch.stack(loss_of_all).sum())
    with _unrepeatable(model.optimizer), torch.no_grad():
        model.optimizer.apply([sums.get(place) for place in range(len(variables))], variables)
    return logs


def split(batch: Any, parts: int) -> Iterator[Any]:
    """A batch in parts of equal size, but for the last."""
    size = len(batch[0])
    step = -(-size // parts)
    for start in range(0, size, step):
        yield tuple(
            keras.tree.map_structure(lambda part, s=start: part[s : s + step], item) for item in batch
        )


# What a full device, or machine, says: torch's allocators, CUDA, and the libraries that find no workspace.
FULL = (
    "can't allocate memory",
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED.",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Unable to find a valid cuDNN algorithm",
    "GET was unable to find an engine",
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch raises when the device, or the machine, has no memory left.

    Example:
        >>> is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
        True
    """
    if isinstance(error, TrainingError):  # which says so itself, and is final
        return False
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in said for phrase in FULL)


def free_memory(model: keras.Model) -> None:
    """Let go of gradients, of photos on the GPU, and of what torch keeps for later."""
    for variable in model.trainable_variables:
        variable.value.grad = None
    release_keepers()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest_batch(model: keras.Model, photo: Any, label: Any, *, most: int = LARGEST, start: int = 8) -> int:
    """The largest batch, of powers of two, that a training step has memory for, with some room left.

    The model is left as it was.

    Args:
        model: compiled, with all layers trainable that ever will be.
        photo: one input as an array, without the batch's axis.
        label: its label.
        most: no more than this.
        start: the first that is tried; if it does not fit, smaller ones are.
    """
    fits, size = 0, start
    with Undo(lambda: free_memory(model)), remember_model(model), remember_randomness():
        model.make_train_function()
        while size <= most and _fits(model, photo, label, size):
            fits, size = size, 2 * size
        while not fits and size > 1:
            size //= 2
            fits = size if _fits(model, photo, label, size) else 0
    if not fits:
        raise TrainingError(TOO_SMALL)
    return fits


def _fits(model: keras.Model, photo: Any, label: Any, size: int) -> bool:
    batch = tuple(
        torch.from_numpy(np.broadcast_to(np.asarray(part), (size, *np.shape(part))).copy())
        for part in (photo, label)
    )
    try:
        model.train_function([batch])
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        free_memory(model)
    return True


class _Before:
    """What a step changes before its update, kept in buffers that are filled again for each step.

    Weights are no part of it: they change in the update alone, which is not repeated.
    """

    def __init__(self, model: keras.Model) -> None:
        self._metrics = len(model.metrics_variables)
        self._model = model
        self._values = list({id(v.value): v.value for v in changed_by_a_step(model)}.values())
        self._kept = [torch.empty_like(value) for value in self._values]
        self._layers = random_layers(model)
        self._cuda = torch.cuda.is_available() and torch.cuda.is_initialized()

    @property
    def is_complete(self) -> bool:
        """Whether these are all: Keras builds metrics in the first step."""
        return len(self._model.metrics_variables) == self._metrics

    @torch.no_grad()
    def keep(self) -> None:
        """Keep how things are now."""
        torch._foreach_copy_(self._kept, self._values)
        self._draws = [layer.get_random_state() for layer in self._layers]
        self._states = torch.get_rng_state(), torch.cuda.get_rng_state() if self._cuda else None

    @torch.no_grad()
    def put_back(self) -> None:
        """Let things be as they were."""
        torch._foreach_copy_(self._values, self._kept)
        for layer, state in zip(self._layers, self._draws, strict=True):
            layer.set_random_state(state)
        torch.set_rng_state(self._states[0])
        if self._states[1] is not None:
            torch.cuda.set_rng_state(self._states[1])


@contextmanager
def _unrepeatable(optimizer: Any) -> Iterator[None]:
    """Let a lack of memory within the update be an end: a part of the weights has moved already."""
    before = optimizer.apply

    def apply(*arguments: Any, **named: Any) -> Any:
        try:
            return before(*arguments, **named)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise TrainingError(
                    f"Memory does not suffice for the optimizer's update, however small the batch: {error}"
                ) from error
            raise

    with overridden(optimizer, apply=apply):
        yield
