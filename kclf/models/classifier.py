"""`ImageClassifier`: augmentation -> normalisation -> backbone -> head, in layer groups that freeze."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import torch

from .._core.arguments import at_least, one_of
from .._core.devices import send, under_policy
from .._core.h5_store import whole_file
from .._core.keras_private import all_layers, own_weights
from .._core.keywords import COMPILE, MODEL, answering
from .._core.sizes import Size, as_size, require_same_shape, sides
from ..acceleration import accelerate as accelerate_model
from ..acceleration import unpacked
from ..backbones import backbone_spec, build_backbone, built_name, levels, split_backbone, split_blocks
from ..callbacks.delivered import delivered_first
from ..data.decision import Decision
from ..data.decoding import check_depth
from ..data.images import (
    CENTRE,
    RESIZE_METHODS,
    ResizeMethod,
    as_pixels,
    check_file_channels,
    read_image,
    to_frame,
)
from ..data.tasks import TASKS
from ..distributed import distribute, take_device
from ..errors import WeightsError
from ..layers import InputNormalization, as_augmentation
from ..optimizers import LayerGroupOptimizer
from ..optimizers.loss_scale import loss_scaled
from ..weights import layers_with_variables
from .compile_arguments import loss_on_logits, metrics_on_logits
from .heads import build_head
from .input_checks import check_backbone, check_given, check_labels, check_shape, warn_of_range
from .quantized import quantize_layers, quantized_layers
from .saved_file import check_readable, refuse_legacy_file, write_single_file

BATCHNORM_POLICIES = ("inference", "frozen", "train", "sync")
BATCHNORM_MOMENTUM = 0.9
SMALL_BATCH = 4  # times smaller than the one before: a remainder
UNSAID = {"checkpointing": False, "depth": None, "channels": 3, "multi_level": False}  # left out of configs
WITHOUT_BIAS = {"bias": False}  # what configurations and files mean that do not say: there was none


@keras.saving.register_keras_serializable(package="kclf")
class ImageClassifier(keras.Model):
    """An image classifier by transfer learning: a pretrained backbone under a new head.

    A new classifier starts with only its head trainable, as the course has it. Photos go in as the loader
    gives them, shape (batch, height, width, channels), uint8 or float in [0, 255], of any height and width;
    out come float32 logits, shape (batch, number of classes), under any dtype policy.

    Args:
        backbone: a name of `backbone_names()`, or a Keras model that maps (batch, height, width, channels)
            to features (batch, rows, columns, channels) or (batch, channels).
        class_names: one name per output, in the order of the labels.
        size: of the images that the backbone sees, in pixels: the side of a square, or (height, width).
        weights: "imagenet", None (random), or the path of a weights file of this backbone without top.
        augmentation: what happens to training photos; see `aug_transforms`, `side_on`, `top_down`. None
            only brings photos to `size`.
        normalization: how [0, 255] becomes what the backbone expects; only for a backbone given as a
            model (a named one knows its own).
        hidden: widths of the head's hidden layers.
        dropout: rate before the last layer; half of it before each hidden layer.
        bias: the last layer has a bias; for numbers it then also computes standardised targets, which
            come out in their own units (`fit_linear_probe` and `Learner` set them). None: where there are
            no hidden layers, and for numbers.
        task: "single_label", "multi_label" or "regression".
        batchnorm: what BatchNormalization does in the backbone. "inference": it normalises by its stored
            statistics always, also after `unfreeze`; its scales and shifts learn with their groups. "frozen":
            so in frozen groups, but by the batch in trainable ones (Keras' rule and fastai 0.7's): the
            features change all at once when a group unfreezes. "train": statistics and scales live on in
            frozen groups too (fastai 2's `train_bn`), at the price of a backward pass through the backbone.
            "sync": so, by the statistics of the whole batch where several processes have a share of it.
        presize: the size, of the same shape, that photos are brought to when they are read from files for a
            prediction; None reads them at `size`.
        resize_method: "crop", "pad" or "squish": how they are brought to it.
        depth: bits of the values of their deep images, as `kclf.data.decoding.set_decoding` has it.
        channels: of the photos: 3 for colour; 1 for grey, as which files are then read; other numbers come as
            arrays alone. Published weights are for three: one channel gets the sum of the first
            convolution's weights over the colours, more get the colours' in turn, scaled by 3 / channels.
        multi_level: the head reads the pooled maps of all resolutions of the backbone, not the last map alone
            (`kclf.backbones.multi_level`): for drawings, scans, textures.
        accelerate: run on plain torch calls (`kclf.accelerate`); False leaves Keras as it is.
        checkpointing: train with less memory and a third more time: blocks of the backbone are computed again
            on the way back. Needs `accelerate`.
        dtype: a dtype policy, such as "mixed_float16"; None takes Keras' global one.

    Raises:
        BackboneError: the backbone is unknown here.
        WeightsUnavailableError: the weights are not on this machine and cannot be fetched.
        WeightsError: the weights file is another architecture's.

    Example:
        >>> model = ImageClassifier("MobileNetV2", ["cat", "dog"], size=64, weights=None)
        >>> [len(group) > 0 for group in model.layer_groups]
        [True, True, True]
        >>> model.compile()
    """

    @answering(MODEL)
    def __init__(
        self,
        backbone: str | keras.Model,
        class_names: Sequence[str],
        *,
        size: Size = 224,
        weights: str | PathLike[str] | None = "imagenet",
        augmentation: keras.layers.Layer | None = None,
        normalization: str | InputNormalization | None = None,
        hidden: Sequence[int] = (512,),
        dropout: float = 0.5,
        bias: bool | None = None,
        task: str = "single_label",
        batchnorm: str = "inference",
        presize: Size | None = None,
        resize_method: str = "crop",
        depth: int | None = None,
        channels: int = 3,
        multi_level: bool = False,
        accelerate: bool = True,
        checkpointing: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        one_of("task", task, TASKS)
        one_of("resize_method", resize_method, RESIZE_METHODS)
        _check_class_names(class_names, task)
        take_device()
        super().__init__(name=name, dtype=dtype, autocast=False)
        self.class_names = [str(class_name) for class_name in class_names]
        self.size = as_size("size", size)
        self.presize = None if presize is None else as_size("presize", presize)
        if self.presize is not None:
            require_same_shape("presize", self.presize, self.size)
        self.resize_method = resize_method
        self.depth = check_depth(depth)
        self.channels = at_least("channels", channels, 1)
        self.task = task
        self.batchnorm = batchnorm
        self.hidden = tuple(int(width) for width in hidden)
        self.dropout = float(dropout)
        self.bias = not self.hidden or task == "regression" if bias is None else bool(bias)
        self.checkpointing = bool(checkpointing)
        self.multi_level = bool(multi_level)
        self.backbone_name = backbone if isinstance(backbone, str) else built_name(backbone)
        if not isinstance(backbone, str):
            check_backbone(backbone, self.size, self.channels)
            if self.multi_level:
                raise ValueError(
                    "Expected a backbone by its name: of a model, pass kclf.backbones.multi_level(backbone). "
                    "Received: multi_level=True"
                )
        with under_policy(self.dtype_policy):
            self.augmentation = as_augmentation(augmentation, self.size)
            self.normalization = _normalization(self.backbone_name, normalization, self.channels)
            if isinstance(backbone, str):
                backbone = build_backbone(backbone, weights=weights, input_shape=self.input_shape[1:])
                _settle_faster(backbone)
            self.backbone = levels.multi_level(backbone) if self.multi_level else backbone
            self.head = build_head(
                self.backbone.output_shape[-1],
                len(self.class_names),
                hidden=self.hidden,
                dropout=self.dropout,
                bias=self.bias,
                units=self.bias and task == "regression",
                pooled=len(self.backbone.output_shape) == 2,
            )
        self.decision: Decision | None = None
        for layer, shape in (
            (self.augmentation, (None, None, None, self.channels)),
            (self.normalization, self.input_shape),
        ):
            if not layer.built:
                layer.build(shape)
        self.built = True
        self.__dict__.update(_range_checked=False, _size_before=0)  # out of sight of Keras' tracking
        self.freeze()
        if accelerate:
            accelerate_model(self, checkpointing=checkpointing)

    def call(self, images: Any, training: bool = False) -> Any:
        """Logits, float32, shape (batch, number of classes), of images (batch, height, width, channels)."""
        check_shape(images, self.channels)
        if not self._range_checked and isinstance(images, torch.Tensor):
            warn_of_range(images)
            self.__dict__["_range_checked"] = True
        features = self.features(images, training=training)
        return self.head(features, training=training and not self._is_remainder(images.shape[0]))

    def _is_remainder(self, size: int) -> bool:
        """Whether a training batch is much smaller than the one before, as the last of an epoch can be.

        BatchNormalization by a handful of images would undo what the epoch has learnt: the head then takes
        its moving statistics.
        """
        before, attributes = self._size_before, self.__dict__
        if size != before:
            attributes["_size_before"] = size
        return SMALL_BATCH * size < before

    def features(self, images: Any, *, training: bool = False, augment: bool | None = None) -> Any:
        """The backbone's features: (batch, rows, columns, channels), or a transformer's (batch, channels).

        Args:
            images: (batch, height, width, channels) in [0, 255], of any height and width.
            training: run the backbone as in training.
            augment: see the images augmented; None does in training alone.
        """
        images = send(images) if isinstance(images, torch.Tensor) and not images.is_meta else images
        seen = self.augmentation(images, training=training if augment is None else augment)
        return self.backbone(self.normalization(seen), training=training)

    def read(self, photo: Any) -> np.ndarray:
        """A photo as the classifier takes it, uint8 (height, width, channels).

        Args:
            photo: a path, the bytes of a file, a PIL image, or pixels uint8 (height, width, channels) or
                (height, width).

        Raises:
            ImageError: the file cannot be read.
            ValueError: it is a file, and the classifier takes other channels than 3 or 1.
        """
        size, method = self.presize or self.size, cast(ResizeMethod, self.resize_method)
        if not isinstance(photo, bytes | str | PathLike):
            return np.array(to_frame(as_pixels(photo, self.channels), size, method, CENTRE))
        path, content = ("photo", photo) if isinstance(photo, bytes) else (photo, None)
        channels = check_file_channels(self.channels)
        pixels = read_image(path, at_least=size, content=content, depth=self.depth, channels=channels)
        return np.array(to_frame(pixels, size, method, CENTRE))

    # ---- shapes, as of a functional model ------------------------------------------------------------

    @property
    def inputs(self) -> list[Any]:
        """The symbolic input, for `keras.Model(model.inputs, ...)`: images of `size`."""
        return self._symbols[0]

    @property
    def outputs(self) -> list[Any]:
        """The symbolic logits of `inputs`."""
        return self._symbols[1]

    @cached_property  # which writes out of sight of Keras' tracking
    def _symbols(self) -> tuple[list[Any], list[Any]]:
        images = keras.Input(self.input_shape[1:], name="images")
        return [images], [self(images)]

    @property
    def input_shape(self) -> tuple[int | None, int, int, int]:
        """(None, height, width, channels) of `size`; images of other sizes are brought to it."""
        return (None, *sides(self.size), self.channels)

    @property
    def output_shape(self) -> tuple[int | None, int]:
        """(None, number of outputs)."""
        return (None, len(self.class_names))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, int]:
        """(batch, number of outputs)."""
        return (input_shape[0], len(self.class_names))

    # ---- layer groups ------------------------------------------------------------

    @property
    def layer_groups(self) -> list[list[keras.layers.Layer]]:
        """The layers that hold weights, in ordered groups, input side first; the last group is the head."""
        body = (
            split_backbone(self.backbone, self.backbone_name)
            if self.backbone_name
            else [list(layers_with_variables(self.backbone))]
        )
        return [*body, list(layers_with_variables(self.head))]

    @property
    def block_groups(self) -> list[list[keras.layers.Layer]]:
        """The layers that hold weights by the block, input side first; the last group is the head.

        For rates that decay by the block:
        `LayerGroupOptimizer(optimizer, model.block_groups, layer_decay(0.75, len(model.block_groups)))`.
        """
        if self.backbone_name is None:
            return self.layer_groups
        return [*split_blocks(self.backbone, self.backbone_name), list(layers_with_variables(self.head))]

    def freeze_to(self, n: int) -> None:
        """Freeze the layer groups before group `n` and unfreeze the rest; negative `n` counts from the head.

        Takes effect on the next step, without compiling again.

        Args:
            n: index of the first trainable group, as in `layer_groups[n:]`.

        Raises:
            ValueError: there is no such group.
        """
        groups = self.layer_groups
        if not -len(groups) <= n < len(groups):
            raise ValueError(
                f"Expected the index of one of the {len(groups)} layer groups, from {-len(groups)} to "
                f"{len(groups) - 1}. Received: n={n}"
            )
        first = n % len(groups)
        for number, group in enumerate(groups):
            for layer in group:
                self._set_trainable(layer, number >= first, in_head=number == len(groups) - 1)

    @property
    def batchnorm(self) -> str:
        """What BatchNormalization does in the backbone; settable. What is frozen stays frozen."""
        return self._batchnorm

    @batchnorm.setter
    def batchnorm(self, policy: str) -> None:
        one_of("batchnorm", policy, BATCHNORM_POLICIES)
        self._batchnorm = policy
        if self.built:
            self.freeze_to(self.first_trainable_group)

    def freeze(self) -> None:
        """Train the head alone: `freeze_to(-1)`."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Train every group: `freeze_to(0)`."""
        self.freeze_to(0)

    def _set_trainable(self, layer: keras.layers.Layer, trainable: bool, *, in_head: bool) -> None:
        is_backbone_norm = _is_batchnorm(layer) and not in_head
        if is_backbone_norm and self.batchnorm in ("train", "sync"):
            trainable = True
        layer.trainable = trainable
        if is_backbone_norm and self.batchnorm == "inference":
            # A layer that is not trainable normalises by its stored statistics; its own scale and shift
            # learn all the same where they themselves are trainable.
            layer.trainable = False
            for variable in (layer.gamma, layer.beta):
                if variable is not None:
                    variable.trainable = trainable

    # ---- compile ------------------------------------------------------------

    @answering(COMPILE)
    def compile(
        self, optimizer: Any = "auto", loss: Any = "auto", metrics: Any = "auto", **arguments: Any
    ) -> None:
        """As `keras.Model.compile`, with a loss and metrics that fit the task and its logits.

        Args:
            optimizer: a Keras optimizer, `LayerGroupOptimizer`, or a name. "auto" is AdamW at 1e-3 for the
                head and at .003 to .03 of it for the backbone, should that train;
                under the policy mixed_float16 it gets `FusedLossScaleOptimizer` around it, unless
                `auto_scale_loss=False`.
            loss: "auto" is cross-entropy from logits for one label, binary cross-entropy from logits for
                many, and mean absolute error for numbers. Keras' names of cross-entropies mean the same;
                one label may be whole or one-hot.
            metrics: "auto" is accuracy (for many labels: per label, threshold .5); for numbers none.
                A name, a metric, or a list of them. "accuracy" goes by the labels, and Keras' metrics of
                probabilities (AUC, Precision, top-k, ...) are fed with those.
            **arguments: go to `keras.Model.compile`.

        Raises:
            ValueError: the loss takes probabilities, or is for another task.
        """
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = LayerGroupOptimizer(keras.optimizers.AdamW(1e-3), self)
        optimizer = keras.optimizers.get(optimizer)
        if optimizer.use_ema and type(optimizer).__module__.startswith("keras."):
            # which at the end of a fit averages what trains alone, or raises where layers are frozen
            optimizer = LayerGroupOptimizer(optimizer, self, 1.0)
        if arguments.get("auto_scale_loss", True):
            optimizer = loss_scaled(self, optimizer)
        super().compile(
            optimizer=optimizer,
            loss=loss_on_logits(loss, self.task, len(self.class_names)),
            metrics=metrics_on_logits(metrics, self.task, len(self.class_names)),
            **arguments,
        )
        if not self.optimizer.built:  # on all weights at once, so that unfreezing later keeps what was learnt
            self.optimizer.build([v for g in self.layer_groups for layer in g for v in own_weights(layer)])
        distribute(self, sync_batchnorm=self.batchnorm == "sync")

    def fit(self, *arguments: Any, **named: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`; validation, and what is saved, see the model as it will be delivered.

        The moving statistics of batch norms are taken anew from some training images before each validation
        and in the end, and under `use_ema` validation runs on the averaged weights: see
        `kclf.callbacks.DeliveredModel`. A temperature that was found before belongs to the weights of before.
        """
        self.decision = None
        given = self._given(keras.Model.fit, arguments, named)
        given["callbacks"] = delivered_first(given.get("callbacks"), self, given)
        self.__dict__["_size_before"] = 0
        return super().fit(**given)

    def evaluate(self, *arguments: Any, **named: Any) -> Any:
        """As `keras.Model.evaluate`.

        Raises:
            ValueError: `compile` was not called, or the labels are of no class.
        """
        self._given(keras.Model.evaluate, arguments, named)
        if not self.compiled:
            raise ValueError(
                "Expected a compiled classifier: call compile() first; or kclf.predict(model, data), which "
                "needs none, and has accuracy() and log_loss(). Received: compiled=False"
            )
        return super().evaluate(*arguments, **named)

    def _given(
        self, method: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a method of Keras' is given, by name, once its data have been looked at."""
        given = inspect.signature(method).bind(self, *arguments, **named).arguments
        given.pop("self")
        check_given(given)
        check_labels(given.get("y"), self.task, len(self.class_names))
        return given

    def make_train_function(self, force: bool = False) -> Any:
        """Keras' step of `fit`; the first batch is looked at.

        Where Keras' own `model.backbone.trainable = True` was written, the policy for its batch norms holds.
        """
        self.__dict__["_range_checked"] = False
        if self.batchnorm == "inference":
            for layer in all_layers(self.backbone):
                if _is_batchnorm(layer) and layer.trainable:
                    self._set_trainable(layer, True, in_head=False)
        return super().make_train_function(force=force)

    def make_test_function(self, force: bool = False) -> Any:
        """Keras' step of `evaluate`; the first batch is looked at."""
        self.__dict__["_range_checked"] = False
        return super().make_test_function(force=force)

    def make_predict_function(self, force: bool = False) -> Any:
        """Keras' step of `predict`; the first batch is looked at."""
        self.__dict__["_range_checked"] = False
        return super().make_predict_function(force=force)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as a saved model was; Keras calls it when it loads a `.keras` file."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    # ---- files ------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """What `from_config` needs to build the same architecture; weights are not part of it."""
        refuse_legacy_file()
        backbone = self.backbone_name or keras.saving.serialize_keras_object(self.backbone)
        return {
            "backbone": backbone,
            "class_names": list(self.class_names),
            "size": self.size,
            "augmentation": keras.saving.serialize_keras_object(self.augmentation),
            "normalization": self.normalization.get_config(),
            "hidden": list(self.hidden),
            "dropout": self.dropout,
            "bias": self.bias,
            "task": self.task,
            "batchnorm": self.batchnorm,
            "presize": self.presize,
            "resize_method": self.resize_method,
            "name": self.name,
            "dtype": self.dtype_policy.name,
            **{name: value for name, usual in UNSAID.items() if (value := getattr(self, name)) != usual},
            "trainable_from_group": self.first_trainable_group,
            "decision": None if self.decision is None else self.decision.get_config(),
            **({"quantized": quantized} if (quantized := quantized_layers(self)) else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ImageClassifier:
        """Build the architecture of a config, with random weights and the same groups frozen."""
        config = WITHOUT_BIAS | dict(config)
        first_trainable_group = config.pop("trainable_from_group", -1)
        decision = Decision.from_config(config.pop("decision", None))
        quantized = config.pop("quantized", {})
        config["augmentation"] = keras.saving.deserialize_keras_object(config["augmentation"])
        config["normalization"] = InputNormalization.from_config(config["normalization"])
        if isinstance(config["backbone"], dict):
            config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"], custom_objects)
        model = cls(**config, weights=None)
        model.freeze_to(first_trainable_group)
        model.decision = decision
        quantize_layers(model, quantized)
        return model

    def save(self, filepath: str | PathLike[str], overwrite: bool = True, **arguments: Any) -> None:
        """Write the whole classifier: a path that ends in `.h5` gives kclf's single file, others Keras' own.

        The single file holds weights, class names, preprocessing and the backbone's name, and a small
        probe batch with its logits. `kclf.load` reads it without running code from it; docs/file-format.md
        describes it. It and Keras' archive are written whole or not at all.

        Args:
            filepath: where to; `.h5` or `.hdf5` for the single file, `.keras` for Keras' archive.
            overwrite: False refuses to replace a file.
            **arguments: go to `keras.Model.save`.

        Raises:
            WeightsError: the single file cannot describe a backbone that is not in the registry, or Keras'
                safe mode could not read it back from an archive.
        """
        path = Path(filepath)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists. Pass overwrite=True to replace it.")
        if path.suffix == ".keras" and "://" not in str(filepath):
            if self.backbone_name is None:
                check_readable(self.backbone)
            with whole_file(path) as file:
                super().save(file, **arguments)
            return
        if path.name.endswith(".weights.h5"):
            raise ValueError(
                "Expected a name that ends in .h5 or .keras for the whole classifier. Weights alone are "
                f"written by model.save_weights(path). Received: filepath={str(filepath)!r}"
            )
        if path.suffix not in (".h5", ".hdf5"):
            super().save(filepath, overwrite=overwrite, **arguments)
            return
        if self.backbone_name is None or quantized_layers(self):
            reason = "was given as a model" if self.backbone_name is None else "has quantized layers"
            raise WeightsError(
                f"A single file names its backbone, and this one {reason}. Save it as a "
                f'".keras" file, which kclf.load, load_learner and the command read too: '
                f'save("{path.with_suffix(".keras")}"). Received: filepath="{path}"'
            )
        write_single_file(self, path)

    def export(self, filepath: str | PathLike[str], *arguments: Any, **named: Any) -> Any:
        """As `keras.Model.export`: from images of `size` in [0, 255], float32, to logits.

        `to_onnx` and `kclf.models.export.to_torch_export` write what takes photos of any size as bytes, and
        gives probabilities.
        """
        images = keras.Input(self.input_shape[1:], name="images")
        model = keras.Model(images, self.head(self.backbone(self.normalization(images))), name=self.name)
        with torch.no_grad(), unpacked():
            model(torch.zeros(1, *self.input_shape[1:]))  # folds batch norms into kernels
            return model.export(filepath, *arguments, **named)

    @property
    def first_trainable_group(self) -> int:
        """Index of the first layer group that trains (the n of `freeze_to`); the head's when none does."""
        groups = self.layer_groups
        for number, group in enumerate(groups):
            if any(v.trainable for layer in group for v in layer.weights if not _is_batchnorm(layer)):
                return number
        return len(groups) - 1


def _is_batchnorm(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def _settle_faster(backbone: keras.Model) -> None:
    """Let stored statistics follow within a short run, at torch's momentum of .9.

    Keras' backbones have .99 and MobileNetV2 .999: made for runs of 100,000 steps, they lag hopelessly behind
    the weights in a fine-tuning of a hundred, and validation collapses while training goes well.
    """
    for layer in all_layers(backbone):
        if _is_batchnorm(layer):
            layer.momentum = min(layer.momentum, BATCHNORM_MOMENTUM)


def _check_class_names(class_names: Sequence[str], task: str) -> None:
    if isinstance(class_names, (str, int)):
        raise TypeError(f"Expected a sequence of class names. Received: class_names={class_names!r}")
    least = 2 if task == "single_label" else 1
    if len(class_names) < least or len(set(class_names)) != len(class_names):
        raise ValueError(
            f"Expected at least {least} class names, no two alike. Received: class_names={list(class_names)}"
        )


def _normalization(
    name: str | None, given: str | InputNormalization | None, channels: int
) -> InputNormalization:
    if isinstance(given, InputNormalization):
        if given.mean and {len(given.mean), len(given.std or ())} - {1, channels}:
            raise ValueError(
                f"Expected a normalization with one mean and std, or one for each of {channels} channels. "
                f"Received: mean={given.mean}, std={given.std}"
            )
        return given
    if given is None and name is None:
        raise ValueError(
            "A backbone given as a model needs its normalization: "
            '"tf" ([-1, 1]), "torch", "caffe" or "none" ([0, 255]). Received: normalization=None'
        )
    return InputNormalization(given or backbone_spec(str(name)).normalization, name="normalization")
