"""What `fit` costs a step beside the computing: a model of two small Dense layers.

.venv/bin/python tests/benchmarks/overhead.py --peers VENV
"""

from __future__ import annotations

import harness


def batches(settings):
    import torch

    torch.manual_seed(0)
    return [(torch.rand(8, 16), torch.randint(0, 4, (8,)))] * settings.steps


def fitting(settings, wrap):
    if settings.optimizer == "kclf":
        import kclf.optimizers
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.Input((16,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    if settings.optimizer == "kclf":
        optimizer = kclf.optimizers.LayerGroupOptimizer(optimizer, [[model.layers[0]], [model.layers[1]]])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    wrap(model)
    return harness.rounds_of_fit(model, batches(settings))


@harness.contestant("kclf")
def kclf(settings):
    def wrap(model):
        from kclf.acceleration import accelerate

        accelerate(model)

    settings.optimizer = "kclf"
    return fitting(settings, wrap)


@harness.contestant("kclf, Keras' optimizer")
def kclf_stock_optimizer(settings):
    def wrap(model):
        from kclf.acceleration import accelerate

        accelerate(model)

    return fitting(settings, wrap)


@harness.contestant("stock Keras")
def stock(settings):
    return fitting(settings, lambda model: None)


@harness.contestant("torch", reference=True)
def torch_loop(settings):
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    fixed = batches(settings)

    def one_round():
        total, right = torch.zeros(()), torch.zeros(())
        for x, y in fixed:
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            right += (logits.argmax(-1) == y).sum()
        return settings.steps

    return one_round


if __name__ == "__main__":
    harness.main("Overhead of a step", unit="step", settings={"steps": 300, "optimizer": "keras"})
