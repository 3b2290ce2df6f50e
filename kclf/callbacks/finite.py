"""Notice infinity and NaN without waiting for the device, and say where they come from."""

from __future__ import annotations

from collections import deque
from typing import Any

import keras
import numpy as np
import torch

from ..distributed import world_size
from ..errors import NotFiniteError
from ..precision import first_non_finite_layer
from .around import Step, stand_around, step_aside
from .checkpoint import Checkpoint
from .steps import LossTap

LAG = 2  # steps after which the host reads what the device found, on CUDA
SKIPPED_IN_A_ROW = 25  # under loss scaling single steps are skipped, and 2 ** -25 of a scale mends nothing


class FiniteGuard(keras.callbacks.Callback):
    """Ends a run whose loss has become infinite or NaN, with the weights of the last good checkpoint.

    The device marks the first bad step, and the host reads the mark a few steps later from memory of its
    own: no step waits. The error names the step, the photos or labels that are not finite, or the first
    layer that gives what is not. Under loss scaling, which skips single steps with an infinite loss or
    gradients by itself, only a long row of them ends the run.

    Args:
        checkpoint: whose last file the weights are taken back from; None leaves them as they are.
        data: the training data, to name the files; an `ImageDataset`.

    Example:
        >>> guard = FiniteGuard()
    """

    def __init__(self, checkpoint: Checkpoint | None = None, data: Any = None) -> None:
        super().__init__()
        self.checkpoint, self.data = checkpoint, data
        self._tap: LossTap | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start listening, to losses and to what the step is given."""
        self._stop_listening()
        scaled = isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer)
        self._limit = SKIPPED_IN_A_ROW if scaled else 1
        self._scale: float | torch.Tensor = 0.0
        self._marks: torch.Tensor | None = None
        self._recent: deque[tuple[int, int, int, Any]] = deque(maxlen=LAG + 1)
        self._step = 0
        self._tap = LossTap(self.model, self._receive)
        stand_around(self.model, "train_function", self._keep)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Know the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at what has come through from the device so far."""
        self._batch = batch
        self._look()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Wait for the last steps, as the epoch's figures do anyway."""
        if self._marks is not None and self._marks.device.type != "cpu":
            self._on_host.copy_(self._marks)
        self._look()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stop listening."""
        self._stop_listening()
        self._recent.clear()

    def _stop_listening(self) -> None:
        step_aside(self.model, "train_function", self._keep)
        if self._tap is not None:
            self._tap.close()
            self._tap = None

    def _keep(self, step: Step, data: list[Any]) -> Any:
        """Keep the last few batches, to look at what the loss comes from."""
        self._step += 1
        self._recent.append((self._step, self._epoch, self._batch, data[0]))
        return step(data)

    def _receive(self, loss: torch.Tensor) -> None:
        """On the device: how many steps in a row were not finite, the longest row, and where it began."""
        if self._marks is None:
            self._marks = torch.zeros(3, dtype=torch.int32, device=loss.device)
            cuda = loss.device.type == "cuda"
            self._on_host = torch.zeros(3, dtype=torch.int32, pin_memory=True) if cuda else self._marks
        row, longest, begun = self._marks.unbind()
        row.add_(1).mul_(~torch.isfinite(loss) | self._was_skipped())
        begun.add_((row == 1) * (longest < self._limit) * (self._step - begun))
        torch.maximum(row, longest, out=longest)
        if self._on_host is self._marks:
            self._look()  # on a CPU nothing is waited for, and the weights are still those that it was due to
        else:
            self._on_host.copy_(self._marks, non_blocking=True)

    def _was_skipped(self) -> torch.Tensor | bool:
        """On the device: whether the last step was skipped, which lowers the loss scale."""
        if self._limit == 1 or not self.model.optimizer.built:
            return False
        before, self._scale = self._scale, self.model.optimizer.dynamic_scale.value.clone()
        return self._scale < before

    def _look(self) -> None:
        if self._marks is None or int(self._on_host[1]) < self._limit:
            return
        self._stop_listening()
        epoch, batch, data = self._first_bad()
        names = self._bad_items(data, epoch, batch)
        raise NotFiniteError(self._explain(epoch, batch, data, names), names)

    def _explain(self, epoch: int, batch: int, data: Any, names: list[str]) -> str:
        """What happened, and, once the good weights are back, why."""
        loss = "loss" if self._limit == 1 else "loss or its gradients"
        said = f"The {loss} became infinite or NaN at epoch {epoch}, batch {batch}. "
        layer = first_non_finite_layer(self.model, data[0])
        mended = self.checkpoint is not None and self.checkpoint.take_back_weights(
            lambda: bool(names) or first_non_finite_layer(self.model, data[0]) is None
        )
        if mended and self.checkpoint is not None:
            said += f"The weights are back at {self.checkpoint.position}, the last that were good. "
        if names:
            return f"{said}These inputs or labels are not finite: {', '.join(names)}"
        if layer is None and world_size() > 1:
            return f"{said}It was not on this rank: another one says more"
        if layer is None and self._limit == 1:
            return f"{said}All layers gave finite values, so look at the loss"
        if layer is not None:
            said += f"The first layer whose output was not finite: {layer}. "
        if mended and layer is not None:
            said += "With the good weights all are finite on that batch, so steps were too large. "
        return said + _advice(self.model)

    def _first_bad(self) -> tuple[int, int, Any]:
        """Epoch, batch and data of the step that came first; of the last step where that is long gone."""
        steps = {step: (epoch, batch, data) for step, epoch, batch, data in self._recent}
        return steps.get(int(self._on_host[2]), steps[self._step])

    def _bad_items(self, data: Any, epoch: int, batch: int) -> list[str]:
        """The photos whose pixels or labels are not finite: their paths where these are known."""
        rows: set[int] = set()
        for part in data:
            values = torch.as_tensor(part)
            if values.is_floating_point():
                finite = torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None]).all(1)
                rows |= set(torch.nonzero(~finite).flatten().tolist())
        if not rows or not hasattr(self.data, "order"):
            return [f"number {row} of the batch" for row in sorted(rows)]
        begun = self.data.state_dict()["epoch"] - (batch == len(self.data) - 1)
        indices = np.asarray(self.data.order(begun))[self.data.rows(batch)]
        return [str(self.data.paths[indices[row]]) for row in sorted(rows)]


def _advice(model: keras.Model) -> str:
    advice = "Lower the learning rate, or clip gradients"
    if model.compute_dtype != "float16":
        return advice
    return f"{advice}, or compute in bfloat16 or float32: float16 ends at 65504"
