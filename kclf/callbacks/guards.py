"""Guards of a run: numbers that are not finite, and batch norms that have collapsed."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import torch

from .._core.fit_hooks import Step, overridden, unwrap_step, wrap_step
from .._core.keras_private import all_layers, inner_layers
from ..acceleration import run_by_keras
from ..distributed import world_size
from ..errors import NotFiniteError
from ..optimizers import layer_group_optimizer
from .checkpoint import Checkpoint
from .delivered import live_batchnorms, remember_statistics
from .steps import LossHook, warn_of_silence

NEAR_CHANCE = 5.0  # training is this many times further above chance than validation
CLEARLY_LEARNT = 0.15  # training accuracy above chance that counts as having learnt
PROBE_BATCHES = 4


class CollapseDetector(keras.callbacks.Callback):
    """Warns when training goes well and validation sits at chance, and says why.

    The usual cause after unfreezing is BatchNorm: training normalises by the statistics of each batch,
    validation by moving averages that have not followed the new weights. That is how fast.ai's own Keras
    notebook fell from .9814 to .5055. With `data`, the loss of the same photos is measured in both ways,
    which settles it; without, the share of the averages that is still old is worked out.

    Args:
        data: some validation batches `(x, y)`, a loader or a list; None measures nothing.
        num_classes: number of classes; None takes the model's outputs.
        stop: True to end the fit when a collapse is found.

    Attributes:
        findings: one message for each epoch with a collapse.

    Example:
        >>> detector = CollapseDetector()
        >>> detector.findings
        []
    """

    def __init__(
        self, data: Iterable[Any] | None = None, *, num_classes: int | None = None, stop: bool = False
    ) -> None:
        super().__init__()
        self.data, self.num_classes, self.stop = data, num_classes, stop
        self.findings: list[str] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Count the batches from here."""
        self._steps = 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """One more batch has moved the averages."""
        self._steps += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compare training and validation of the epoch."""
        train, valid = accuracy_of(logs or {}), accuracy_of(logs or {}, "val_")
        if train is None or valid is None:
            return
        chance = 1.0 / max(self.num_classes or _num_outputs(self.model), 2)
        if not collapsed(train, valid, chance):
            return
        finding = (
            f"Epoch {epoch}: accuracy is {train:.4f} in training and {valid:.4f} in validation, where "
            f"guessing gives {chance:.4f}. {self._cause()}"
        )
        self.findings.append(finding)
        warnings.warn(finding, stacklevel=2)
        self.model.stop_training = self.model.stop_training or self.stop

    def _cause(self) -> str:
        norms = live_batchnorms(self.model)
        if not norms:
            return (
                "No BatchNorm follows the batches, so it is not that: look at overfitting and at the labels."
            )
        if self.data is not None:
            averages, batches = probe_losses(self.model, self.data)
            if batches > averages / 2:
                return (
                    f"It is not BatchNorm (loss {averages:.3f} by its averages, {batches:.3f} by batch): "
                    "look at overfitting, and whether both sets are prepared alike."
                )
            measured = (
                f"The same photos give loss {averages:.3f} by its averages and {batches:.3f} by batch. "
            )
        else:
            old = max(norm.momentum for norm in norms) ** self._steps
            measured = f"After {self._steps} batches {old:.0%} of its averages are still from before. "
        return (
            f"The cause is BatchNorm: {len(norms)} layers train by the statistics of each batch, and the "
            f"moving averages that validation uses have not followed. {measured}Keep these layers in "
            'inference mode (batchnorm="frozen" or "inference"), lower their momentum, or train longer.'
        )


def _num_outputs(model: keras.Model) -> int:
    """Number of classes of a classifier; a subclass has no `output_shape`, but may name its classes."""
    if names := getattr(model, "class_names", None):
        return len(names)
    shape = getattr(model, "output_shape", None) or [None]
    if not isinstance(shape[-1], int):
        raise ValueError(
            f"Expected num_classes, as the model {model.name!r} has no one output that tells the number of "
            "classes. Pass CollapseDetector(num_classes=...)"
        )
    return shape[-1]


def collapsed(train: float, valid: float, chance: float) -> bool:
    """True where training is well above chance and validation is hardly.

    Args:
        train: training accuracy, in [0, 1].
        valid: validation accuracy, in [0, 1].
        chance: accuracy of guessing.

    Example:
        >>> collapsed(0.98, 0.5055, 0.5), collapsed(1.0, 0.8, 0.5)
        (True, False)
    """
    learnt = train - chance
    return learnt > CLEARLY_LEARNT and learnt > NEAR_CHANCE * (valid - chance)


def accuracy_of(logs: dict[str, float], prefix: str = "") -> float | None:
    """The accuracy in Keras' logs, whatever it is called; None where there is none."""
    for name, value in logs.items():
        bare = name.removeprefix("val_")
        if name == prefix + bare and (bare == "acc" or bare.endswith("accuracy")):
            return float(value)
        if name == f"{prefix}error_rate":
            return 1.0 - float(value)
    return None


def probe_losses(model: keras.Model, data: Iterable[Any]) -> tuple[float, float]:
    """Mean loss of a few batches, normalised by the moving averages and by the batches themselves.

    Nothing else of training happens: no dropout, no update, and the averages are put back.

    Args:
        model: a compiled model.
        data: batches `(x, y)`.

    Returns:
        The two losses.
    """
    batches = [batch for batch, _ in zip(data, range(PROBE_BATCHES), strict=False)]
    by_averages = _mean_loss(model, batches)
    with run_by_keras(model), _by_batch(live_batchnorms(model)):
        return by_averages, _mean_loss(model, batches)


def _mean_loss(model: keras.Model, batches: list[Any]) -> float:
    with torch.no_grad():
        losses = [model.compute_loss(x, y, model(x, training=False), training=False) for x, y, *_ in batches]
    return float(torch.stack(losses).mean())


@contextmanager
def _by_batch(norms: list[keras.layers.BatchNormalization]) -> Iterator[None]:
    """Let BatchNorm layers use the statistics of each batch, without learning from them."""
    with ExitStack() as stack:
        stack.enter_context(remember_statistics(norms))
        for norm in norms:
            stack.enter_context(overridden(norm, call=partial(_call_in_training, norm)))
        yield


def _call_in_training(norm: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    return type(norm).call(norm, inputs, training=True, mask=mask)


LAG = 2  # steps after which the host reads what the device found, on CUDA; it is never further ahead
SKIPPED_IN_A_ROW = 25  # under loss scaling single steps are skipped, and 2 ** -25 of a scale mends nothing


class FiniteGuard(keras.callbacks.Callback):
    """Ends a run whose loss has become infinite or NaN, with the weights of the last good checkpoint.

    The device marks the first bad step and makes no update by it (under a `LayerGroupOptimizer` with SGD or
    Adam); the host reads the mark two steps later, and waits for no step before that. The error names the
    step, the photos or labels that are not finite, or the first layer that gives what is not. Under loss
    scaling, which skips single steps with an infinite loss or gradients by itself, only a long row of them
    ends the run.

    Args:
        checkpoint: whose last file the weights are taken back from; None leaves them as they are.
        data: the training data, to name the files; an `ImageDataset`.

    Example:
        >>> guard = FiniteGuard()
    """

    def __init__(self, checkpoint: Checkpoint | None = None, data: Any = None) -> None:
        super().__init__()
        self.checkpoint, self.data = checkpoint, data
        self._tap: LossHook | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start listening, to losses and to what the step is given."""
        self._stop_listening()
        scaled = isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer)
        self._limit = SKIPPED_IN_A_ROW if scaled else 1
        self._scale: float | torch.Tensor = 0.0
        self._marks: torch.Tensor | None = None
        self._sent: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._free: list[torch.Tensor] = []
        self._recent: deque[tuple[int, int, int, Any]] = deque(maxlen=LAG + 1)
        self._step = 0
        self._tap = LossHook(self.model, self._receive)
        wrap_step(self.model, "train_function", self._keep)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Know the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at what has come through from the device so far."""
        self._batch = batch
        self._look()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Wait for the last steps, as the epoch's figures do anyway."""
        self._look(behind=0)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stop listening."""
        self._stop_listening()
        self._recent.clear()

    def _stop_listening(self) -> None:
        unwrap_step(self.model, "train_function", self._keep)
        if self._tap is not None:
            self._tap.close()

    def _keep(self, step: Step, data: list[Any]) -> Any:
        """Keep the last few batches, to look at what the loss comes from."""
        self._step += 1
        self._recent.append((self._step, self._epoch, self._batch, data[0]))
        logs = step(data)
        if self._step == 1 and self._marks is None:
            warn_of_silence(self)
        return logs

    def _receive(self, loss: torch.Tensor) -> None:
        """On the device: how many steps in a row were not finite, the longest row, and where it began."""
        if self._marks is None:
            self._marks = torch.zeros(3, dtype=torch.int32, device=loss.device)
        bad = ~torch.isfinite(loss)
        row, longest, begun = self._marks.unbind()
        row.add_(1).mul_(bad | self._was_skipped())
        begun.add_((row == 1) * (longest < self._limit) * (self._step - begun))
        torch.maximum(row, longest, out=longest)
        if self._marks.device.type == "cuda":
            self._send(bad)
        else:
            self._check(self._marks)  # nothing is waited for, and the weights are still those of the loss

    def _send(self, bad: torch.Tensor) -> None:
        """Let the marks travel to the host, and the device make no update by a loss that is not finite."""
        optimizer = layer_group_optimizer(self.model.optimizer)
        if optimizer is not None and self._limit == 1:
            optimizer.veto_next(bad.to(torch.float32))
        on_host = self._free.pop() if self._free else torch.empty(3, dtype=torch.int32, pin_memory=True)
        on_host.copy_(self._marks, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._sent.append((arrived, on_host))

    def _look(self, behind: int = LAG) -> None:
        """Read the marks of all steps but the last few, waiting for them: so far ahead the host may be."""
        while len(self._sent) > behind:
            arrived, on_host = self._sent.popleft()
            arrived.synchronize()
            self._check(on_host)
            self._free.append(on_host)

    def _was_skipped(self) -> torch.Tensor | bool:
        """On the device: whether the last step was skipped, which lowers the loss scale."""
        if self._limit == 1 or not self.model.optimizer.built:
            return False
        before, self._scale = self._scale, self.model.optimizer.dynamic_scale.value.clone()
        return self._scale < before

    def _check(self, marks: torch.Tensor) -> None:
        if int(marks[1]) < self._limit:
            return
        self._stop_listening()
        epoch, batch, data = self._first_bad(int(marks[2]))
        names = self._bad_items(data, epoch, batch)
        raise NotFiniteError(self._explain(epoch, batch, data, names), names)

    def _explain(self, epoch: int, batch: int, data: Any, names: list[str]) -> str:
        """What happened, and, once the good weights are back, why."""
        loss = "loss" if self._limit == 1 else "loss or its gradients"
        said = f"The {loss} became infinite or NaN at epoch {epoch}, batch {batch}. "
        layer = first_non_finite_layer(self.model, data[0])
        mended = self.checkpoint is not None and self.checkpoint.restore_last_good(
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
        said += "Lower the learning rate, or clip gradients"
        if self.model.compute_dtype == "float16":
            said += ", or compute in bfloat16 or float32: float16 ends at 65504"
        return said

    def _first_bad(self, first: int) -> tuple[int, int, Any]:
        """Epoch, batch and data of the step that came first; of the last step where that is long gone."""
        steps = {step: (epoch, batch, data) for step, epoch, batch, data in self._recent}
        return steps.get(first, steps[self._step])

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


def first_non_finite_layer(model: keras.Model, x: torch.Tensor) -> str | None:
    """Where a forward pass first gives infinity or NaN: what to look at when the loss scale keeps falling.

    Args:
        model: a built Keras model, accelerated or not.
        x: (batch, ...) inputs as `model` takes them.

    Returns:
        The path of the layer; None where every layer's output is finite.

    Example:
        >>> layer = keras.layers.Rescaling(float("inf"), name="broken")
        >>> model = keras.Sequential([keras.Input((2,)), layer], name="example")
        >>> first_non_finite_layer(model, torch.ones(1, 2))
        'example/broken'
    """
    found: list[str] = []

    def look(layer: keras.Layer, inputs: object, outputs: object) -> None:
        tensors = [leaf for leaf in keras.tree.flatten(outputs) if isinstance(leaf, torch.Tensor)]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            found.append(layer.path or layer.name)

    with torch.no_grad(), ExitStack() as stack:
        for layer in all_layers(model):
            if not inner_layers(layer):
                stack.enter_context(layer.register_forward_hook(look))
        model(x, training=False)
    return found[0] if found else None
