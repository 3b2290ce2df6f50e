"""Notice a model that learns in training and guesses in validation, and name the cause."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import torch

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


def live_batchnorms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorm layers that use, and follow, the statistics of each training batch."""
    layers = model._flatten_layers()
    return [one for one in layers if isinstance(one, keras.layers.BatchNormalization) and one.trainable]


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
    with _by_batch(live_batchnorms(model)):
        return by_averages, _mean_loss(model, batches)


def _mean_loss(model: keras.Model, batches: list[Any]) -> float:
    with torch.no_grad():
        losses = [model.compute_loss(x, y, model(x, training=False), training=False) for x, y, *_ in batches]
    return float(torch.stack(losses).mean())


@contextmanager
def _by_batch(norms: list[keras.layers.BatchNormalization]) -> Iterator[None]:
    """Let BatchNorm layers use the statistics of each batch, without learning from them."""
    kept = [(norm, norm.moving_mean.value.clone(), norm.moving_variance.value.clone()) for norm in norms]
    for norm in norms:
        object.__setattr__(norm, "call", _training_call(norm))
    try:
        yield
    finally:
        for norm, mean, variance in kept:
            object.__delattr__(norm, "call")
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(variance)


def _training_call(norm: keras.layers.BatchNormalization) -> Any:
    original = norm.call

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return original(inputs, training=True, mask=mask)

    return call
