"""One update of ResNet50's variables in three layer groups: the time an optimizer keeps the host.

`scale=overhead` shrinks every variable to two numbers: what is left is the cost of the calls, which is what
keeps a fast GPU waiting. `scale=real` has the true sizes. All set the learning rate before each update, as a
schedule does.

    .venv/bin/python tests/benchmarks/optimizer.py --threads 2 --set kind=adamw scale=overhead
"""

from __future__ import annotations

import os

import harness

os.environ.setdefault("KERAS_BACKEND", "torch")
UPDATES = 20
MULTIPLIERS = (0.1, 0.3, 1.0)
DECAY = 0.01


def shapes(settings) -> list[tuple[int, ...]]:
    """ResNet50's trainable shapes, kernels and vectors in the order of its layers."""
    found = [(7, 7, 3, 64), (64,), (64,)]
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            for kernel in (
                (1, 1, width if block == 0 else 4 * inner, inner),
                (3, 3, inner, inner),
                (1, 1, inner, 4 * inner),
                *([(1, 1, width, 4 * inner)] if block == 0 else []),
            ):
                found += [kernel, (kernel[-1],), (kernel[-1],), (kernel[-1],)]
        width = 4 * inner
    found += [(width, 2), (2,)]
    return [shape if settings.scale == "real" else (1, 2)[: len(shape)] or (2,) for shape in found]


def thirds(items: list) -> list[list]:
    """Three groups, as a split of the model gives."""
    cut = len(items) // 3
    return [items[:cut], items[cut : 2 * cut], items[2 * cut :]]


def keras_optimizer(settings):
    import keras

    return {
        "sgd": lambda: keras.optimizers.SGD(1e-3, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(1e-3),
        "adamw": lambda: keras.optimizers.AdamW(1e-3, weight_decay=DECAY),
        "rmsprop": lambda: keras.optimizers.RMSprop(1e-3),
    }[settings.kind]()


def keras_updates(settings, make):
    """Updates of Keras variables; `make(layers)` gives the optimizer."""
    import keras
    import torch

    class Holder(keras.layers.Layer):
        def __init__(self, shapes):
            super().__init__()
            for index, shape in enumerate(shapes):
                self.add_weight(shape=shape, name=f"w{index}")
            self.built = True

    layers = [Holder(group) for group in thirds(shapes(settings))]
    variables = [variable for layer in layers for variable in layer.trainable_variables]
    gradients = [torch.randn_like(variable.value) for variable in variables]
    optimizer = make(layers)
    optimizer.build(variables)

    def one_round():
        for step in range(UPDATES):
            optimizer.learning_rate = 1e-3 / (step + 1)
            with torch.no_grad():
                optimizer.apply(gradients, variables)
        return UPDATES

    return one_round


def torch_updates(settings, **options):
    """Updates of torch parameters in three groups, split further by weight decay as recipes do."""
    import torch

    groups = []
    for part, multiplier in zip(thirds(shapes(settings)), MULTIPLIERS, strict=True):
        tensors = [torch.nn.Parameter(torch.randn(shape)) for shape in part]
        for tensor in tensors:
            tensor.grad = torch.randn_like(tensor)
        if settings.kind == "adamw":
            decayed = [tensor for tensor in tensors if tensor.ndim > 1]
            rest = [tensor for tensor in tensors if tensor.ndim <= 1]
            groups += [
                {"params": decayed, "multiplier": multiplier},
                {"params": rest, "multiplier": multiplier, "weight_decay": 0.0},
            ]
        else:
            groups.append({"params": tensors, "multiplier": multiplier})
    optimizer = {
        "sgd": lambda: torch.optim.SGD(groups, lr=1e-3, momentum=0.9, **options),
        "adam": lambda: torch.optim.Adam(groups, lr=1e-3, **options),
        "adamw": lambda: torch.optim.AdamW(groups, lr=1e-3, weight_decay=DECAY, **options),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr=1e-3, **options),
    }[settings.kind]()

    def one_round():
        for step in range(UPDATES):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 / (step + 1) * group["multiplier"]
            optimizer.step()
        return UPDATES

    return one_round


@harness.contestant("torch foreach", reference=True)
def torch_foreach(settings):
    return torch_updates(settings, foreach=True)


@harness.contestant("torch fused")
def torch_fused(settings):
    return torch_updates(settings, fused=True)


@harness.contestant("kclf LayerGroupOptimizer")
def kclf_groups(settings):
    from kclf.optimizers import LayerGroupOptimizer

    return keras_updates(
        settings,
        lambda layers: LayerGroupOptimizer(
            keras_optimizer(settings), [[layer] for layer in layers], MULTIPLIERS
        ),
    )


@harness.contestant("Keras, one rate for all")
def keras_plain(settings):
    return keras_updates(settings, lambda layers: keras_optimizer(settings))


@harness.contestant("kclf under loss scaling")
def kclf_scaled(settings):
    from kclf.optimizers import FusedLossScaleOptimizer, LayerGroupOptimizer

    return keras_updates(
        settings,
        lambda layers: FusedLossScaleOptimizer(
            LayerGroupOptimizer(keras_optimizer(settings), [[layer] for layer in layers], MULTIPLIERS),
            initial_scale=1.0,
            dynamic_growth_steps=10**9,
        ),
    )


@harness.contestant("Keras under loss scaling, one rate")
def keras_scaled(settings):
    import keras

    return keras_updates(
        settings,
        lambda layers: keras.optimizers.LossScaleOptimizer(
            keras_optimizer(settings), initial_scale=1.0, dynamic_growth_steps=10**9
        ),
    )


if __name__ == "__main__":
    harness.main(
        "One update of ResNet50's variables in three groups",
        unit="update",
        settings={"kind": "adamw", "scale": "overhead"},
    )
