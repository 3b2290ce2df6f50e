"""One training step: kclf's `fit`, stock Keras' `fit`, plain torch, fastai and timm, on the same batch.

    .venv/bin/python tests/benchmarks/train_step.py --peers VENV --set model=ResNet50 batch=8 size=128

Settings: `model` (a torchvision and Keras Applications name), `batch`, `size`, `steps` a round, `head_only`,
`precision` ("float32", "mixed_bfloat16", "mixed_float16"), `device` ("cpu", "cuda").
"""

from __future__ import annotations

import os

import harness

TORCHVISION = {
    "ResNet50": "resnet50",
    "MobileNetV2": "mobilenet_v2",
    "EfficientNetB0": "efficientnet_b0",
    "EfficientNetV2S": "efficientnet_v2_s",
}
TIMM = {
    "ResNet50": "resnet50",
    "MobileNetV2": "mobilenetv2_100",
    "EfficientNetB0": "efficientnet_b0",
    "EfficientNetV2S": "tf_efficientnetv2_s",
}
CLASSES = 37


def fixed_batch(settings, *, channels_last=False):
    """One batch of noise and labels, (batch, height, width, 3) or torch's order in channels_last memory."""
    import torch

    torch.manual_seed(0)
    x = torch.rand(settings.batch, settings.size, settings.size, 3, device=settings.device)
    y = torch.randint(0, CLASSES, (settings.batch,), device=settings.device)
    return (x.permute(0, 3, 1, 2) if channels_last else x), y


def keras_model(settings):
    """A Keras Applications backbone with a linear head, compiled as a user would."""
    if settings.device == "cpu":
        os.environ["KERAS_TORCH_DEVICE"] = "cpu"
    import keras

    keras.config.set_dtype_policy(settings.precision)
    shape = (settings.size, settings.size, 3)
    make = getattr(keras.applications, settings.model)
    backbone = make(weights=None, include_top=False, input_shape=shape, pooling="avg")
    backbone.trainable = not settings.head_only
    head = keras.layers.Dense(CLASSES, dtype="float32")
    model = keras.Model(backbone.input, head(backbone.output))
    model.compile(
        optimizer=keras.optimizers.SGD(1e-3, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fitting(settings, model):
    """Rounds of `fit` over the fixed batch."""
    return harness.rounds_of_fit(model, [fixed_batch(settings)] * settings.steps)


@harness.contestant("kclf")
def kclf(settings):
    model = keras_model(settings)
    from kclf.acceleration import accelerate

    return fitting(settings, accelerate(model))


@harness.contestant("kclf classifier")
def kclf_classifier(settings):
    """What `ImageClassifier` makes of it: batch norms by stored statistics, rates by layer group."""
    if settings.device == "cpu":
        os.environ["KERAS_TORCH_DEVICE"] = "cpu"
    import keras

    import kclf

    names = [str(number) for number in range(CLASSES)]
    some = {"size": settings.size, "weights": None, "dtype": settings.precision}
    model = kclf.ImageClassifier(settings.model, names, **some)
    if not settings.head_only:
        model.unfreeze()
    model.compile(kclf.LayerGroupOptimizer(keras.optimizers.SGD(1e-3, momentum=0.9), model, 1.0))
    return fitting(settings, model)


@harness.contestant("stock Keras")
def stock(settings):
    return fitting(settings, keras_model(settings))


def torch_loop(settings, model, optimizer, *, channels_last):
    """The loop of the torch tutorials: forward, backward, step, running loss and accuracy."""
    import torch

    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    x, y = fixed_batch(settings, channels_last=True)
    x = x if channels_last else x.contiguous()
    dtype = {"mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}.get(settings.precision)
    scaler = torch.amp.GradScaler(settings.device, enabled=dtype is torch.float16)
    model.train()

    def one_round():
        total = torch.zeros((), device=settings.device)
        right = torch.zeros((), device=settings.device)
        for _ in range(settings.steps):
            with torch.autocast(settings.device, dtype=dtype, enabled=dtype is not None):
                logits = model(x)
                loss = torch.nn.functional.cross_entropy(logits, y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += loss.detach()
            right += (logits.argmax(-1) == y).sum()
        return settings.steps

    return one_round


def freeze_body(model):
    """Head-only training as torch users do it: no gradients in the body, its batch norms in eval mode."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in ("fc", "classifier"))
    for module in model.modules():
        if isinstance(module, __import__("torch").nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module


def torchvision_model(settings):
    """torchvision's model; without torchvision, our own plain ResNet50."""
    try:
        import torchvision
    except ModuleNotFoundError:
        if settings.model != "ResNet50":
            raise
        from plain_torch import ResNet50

        model = ResNet50(CLASSES)
    else:
        model = getattr(torchvision.models, TORCHVISION[settings.model])(num_classes=CLASSES)
    if settings.head_only:
        freeze_body(model)
    return model.to(settings.device)


def sgd(model):
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, 1e-3, momentum=0.9)


@harness.contestant("torch channels_last", peer=True, reference=True)
def torch_channels_last(settings):
    model = torchvision_model(settings)
    return torch_loop(settings, model, sgd(model), channels_last=True)


@harness.contestant("torch compiled", peer=True)
def torch_compiled(settings):
    import torch

    if settings.device == "cpu":
        raise harness.NotHere("measured on a GPU alone")
    model = torchvision_model(settings)
    return torch_loop(settings, torch.compile(model), sgd(model), channels_last=True)


@harness.contestant("torch CUDA graphs", peer=True)
def torch_graphs(settings):
    import torch

    if settings.device == "cpu":
        raise harness.NotHere("needs CUDA")
    model = torchvision_model(settings)
    return torch_loop(settings, torch.compile(model, mode="reduce-overhead"), sgd(model), channels_last=True)


@harness.contestant("torch NCHW", peer=True)
def torch_nchw(settings):
    model = torchvision_model(settings)
    return torch_loop(settings, model, sgd(model), channels_last=False)


@harness.contestant("timm", peer=True)
def timm(settings):
    import timm

    model = timm.create_model(TIMM[settings.model], num_classes=CLASSES).to(settings.device)
    if settings.head_only:
        freeze_body(model)
    return torch_loop(settings, model, sgd(model), channels_last=True)


@harness.contestant("fastai", peer=True)
def fastai(settings):
    from fastai.vision.all import SGD as FastaiSGD
    from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, accuracy

    x, y = fixed_batch(settings, channels_last=True)
    batches = [(x.contiguous(), y)] * settings.steps
    model = torchvision_model(settings)
    learner = Learner(
        DataLoaders(batches, batches[:1], device=settings.device),
        model,
        loss_func=CrossEntropyLossFlat(),
        opt_func=lambda p, **options: FastaiSGD(p, mom=0.9, **options),
        metrics=accuracy,
    )
    if settings.precision != "float32":
        learner = learner.to_fp16() if settings.precision == "mixed_float16" else learner.to_bf16()

    def one_round():
        with learner.no_bar(), learner.no_logging():
            learner.fit(1, 1e-3)
        return settings.steps

    return one_round


DEFAULTS = {
    "model": "ResNet50",
    "batch": 8,
    "size": 128,
    "steps": 3,
    "head_only": False,
    "precision": "float32",
    "device": "cpu",
}

if __name__ == "__main__":
    harness.main("Training step", unit="step", settings=DEFAULTS)
