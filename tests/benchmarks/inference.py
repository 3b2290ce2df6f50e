"""Prediction: an accelerated Keras model, a stock one, and torch's eval loop, on the same batches.

.venv/bin/python tests/benchmarks/inference.py --peers VENV --set model=ResNet50 batch=8 size=128
"""

from __future__ import annotations

import harness
from train_step import DEFAULTS, fixed_batch, keras_model, torchvision_model

harness.CONTESTANTS.clear()  # the contestants of the training step are not in this race


def predicting(settings, model):
    """Rounds of the model's own predict step, as `predict` does it for each batch."""
    import torch

    x, _ = fixed_batch(settings)
    model.make_predict_function()

    def one_round():
        with torch.no_grad():
            for _ in range(settings.steps):
                model.predict_function([(x,)])
        return settings.steps * settings.batch

    return one_round


def accelerated(**options):
    """A contestant: the model under `accelerate` with some of its switches turned."""

    def prepare(settings):
        model = keras_model(settings)
        from kclf.acceleration import accelerate

        return predicting(settings, accelerate(model, **options))

    return prepare


harness.contestant("kclf")(accelerated())


@harness.contestant("stock Keras")
def stock(settings):
    return predicting(settings, keras_model(settings))


@harness.contestant("torch channels_last", peer=True, reference=True)
def torch_channels_last(settings):
    import torch

    model = torchvision_model(settings).to(memory_format=torch.channels_last).eval()
    x, _ = fixed_batch(settings, channels_last=True)
    dtype = {"mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}.get(settings.precision)

    def one_round():
        with torch.no_grad(), torch.autocast(settings.device, dtype=dtype, enabled=dtype is not None):
            for _ in range(settings.steps):
                model(x)
        return settings.steps * settings.batch

    return one_round


if __name__ == "__main__":
    harness.main("Inference", unit="image", settings=DEFAULTS)
