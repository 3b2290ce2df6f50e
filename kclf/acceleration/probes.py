"""Whether this Keras already does by itself what a part of `accelerate` is there for.

Each probe runs something tiny, once in a process, and looks at what Keras does rather than at its version; a
part whose probe is true stays off. Probes draw no random numbers, and take no automatic names of models and
layers.

The plan has no probe. Flat execution, folding, packing, in-place results and freed activations come
together in it, and so does the absence of copies around convolutions, which it holds as views: no single
thing that Keras could mend makes it needless, and whether Keras is as fast can only be timed, which is no
matter for a probe. The batch norms inside a plan belong to it for the same reason (they are folded, and
their statistics move together).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .convolutions import order_of
from .step import LeanStep

WAITS = ("aten::_local_scalar_dense", "aten::lift_fresh")  # a read from the device, a number sent to it


class _Operations(TorchDispatchMode):
    """Counts the torch operations in a block by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def operations_of(function: Callable[[], Any]) -> Counter[str]:
    """How often a call dispatches each torch operation, gradients included."""
    with torch.inference_mode(False), torch.enable_grad(), _Operations() as operations:
        function()
    return operations.counts


@cache
def keras_fuses_batchnorm() -> bool:
    """Whether a BatchNormalization in training comes to one of torch's own batch norms."""
    layer = keras.layers.BatchNormalization(name="probe", dtype="float32")
    layer.build((None, 2, 2, 3))
    x = torch.ones(2, 2, 2, 3, device=layer.gamma.value.device)
    return any("batch_norm" in name for name in operations_of(lambda: layer(x, training=True)))


@cache
def keras_stores_kernels_for_torch() -> bool:
    """Whether the kernels of fresh convolutions lie in memory as torch reads them."""
    options = {"kernel_size": 3, "dtype": "float32", "name": "probe"}
    dense = keras.layers.Conv2D(4, kernel_initializer="ones", **options)
    depthwise = keras.layers.DepthwiseConv2D(depthwise_initializer="ones", **options)
    for layer in (dense, depthwise):
        layer.build((None, 5, 5, 2))
    return all(
        layer.kernel.value.permute(order_of(layer, layer.kernel)).is_contiguous()
        for layer in (dense, depthwise)
    )


@cache
def keras_step_is_lean() -> bool:
    """Whether Keras' training step does no more operations, and waits no more often, than the lean one."""
    layer = keras.layers.Dense(3, kernel_initializer="ones", dtype="float32", name="probe_dense")
    inputs = keras.Input((2,), name="probe_input")
    model = keras.Model(inputs, layer(inputs), name="probe")
    optimizer = keras.optimizers.SGD(0.0, name="probe_optimizer")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="probe_loss")
    model.compile(optimizer, loss, metrics=["accuracy"], auto_scale_loss=False)
    device = layer.kernel.value.device
    data = torch.ones(2, 2, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    operations_of(lambda: model.train_step(data))  # builds the optimizer and the metrics
    theirs = operations_of(lambda: model.train_step(data))
    ours = operations_of(lambda: LeanStep(model).train_step(data))
    return theirs.total() <= ours.total() and _waits(theirs) <= _waits(ours)


def _waits(counts: Counter[str]) -> int:
    return sum(counts[name] for name in WAITS)
