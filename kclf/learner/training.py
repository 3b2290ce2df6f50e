"""What a `Learner` compiles a model with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from ..losses import BinaryCrossEntropy, CrossEntropy
from ..models import auto_loss, own_metric
from ..optimizers import LayerGroupOptimizer
from ..optimizers.loss_scale import loss_scaled

LayerGroups = Sequence[Sequence[keras.layers.Layer]]

OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    # fastai 2's Adam: betas (.9, .99), epsilon 1e-5
    "adamw": lambda **settings: keras.optimizers.AdamW(beta_2=0.99, epsilon=1e-5, **settings),
    # fastai 0.7's default, for which the rates of its notebooks were found
    "sgd": lambda **settings: keras.optimizers.SGD(momentum=0.9, **settings),
}
# Largest norm of the gradient that goes with them: SGD at 1e-2 tears a unfrozen network apart without.
CLIPS: dict[str, float | None] = {"adamw": None, "sgd": 1.0}


@dataclass(frozen=True)
class Training:
    """Optimizer, loss and metrics of a `Learner`.

    Args:
        optimizer: "adamw", "sgd", or a function (such as a Keras class) that makes an optimizer from
            `learning_rate` and whichever of the settings below are in use. "auto" is what the course's rates
            were found for: SGD with momentum in `fit`, as in fastai 0.7, AdamW in all else, as in fastai 2.
        loss: "auto" takes it from the labels; otherwise as for Keras' `compile`, on logits. `label_smoothing`
            and `focal_gamma` are for "auto".
        metrics: "auto" is accuracy (none for numbers); otherwise Keras metrics, names, or `accuracy`,
            `error_rate` and `accuracy_multi` of `kclf.metrics`; one or a list.
        weight_decay: decoupled; biases and norm parameters are left alone.
        clip: largest norm of the gradient of all weights together; None leaves it. "auto" is 1 for "sgd", by
            which the course's rates suit unfrozen layers of any backbone, and None for all else.
        gradient_accumulation: batches to one step; the last step of a fit takes what is left.
        ema: decay of an average of the weights, which takes their place when a fit ends.
        label_smoothing: share of each label spread over all classes, in [0, 1).
        focal_gamma: how much less the photos count that are already right; 2 in the paper.
        mixup: alpha of MixUp, which blends photos; .4 in fastai.
        cutmix: alpha of CutMix, which cuts parts of photos into others; 1 in the paper. By turns with MixUp.

    Raises:
        ValueError: settings that do not go together.
    """

    optimizer: str | Callable[..., keras.optimizers.Optimizer] = "auto"
    loss: Any = "auto"
    metrics: Any = "auto"
    weight_decay: float | Sequence[float] = 0.01
    clip: float | str | None = "auto"
    gradient_accumulation: int | None = None
    ema: float | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    mixup: float | None = None
    cutmix: float | None = None

    def __post_init__(self) -> None:
        if self.loss != "auto":
            self._refuse_shaping(f"loss={self.loss!r}")

    def compile(
        self,
        model: keras.Model,
        groups: LayerGroups,
        task: str,
        weight_decay: Any = None,
        auto: str = "adamw",
    ) -> None:
        """Compile a model that gives logits, with a fresh optimizer.

        Args:
            model: the model.
            groups: its layer groups.
            task: "single_label", "multi_label" or "regression".
            weight_decay: instead of the one set; a list has one value for each layer group.
            auto: what the optimizer "auto" is here.
        """
        decay = self.weight_decay if weight_decay is None else weight_decay
        optimizer = loss_scaled(model, self.build_optimizer(groups, decay, auto))
        model.compile(optimizer=optimizer, loss=self.build_loss(task), metrics=self.build_metrics(task))

    def build_optimizer(
        self, groups: LayerGroups, weight_decay: float | Sequence[float], auto: str = "adamw"
    ) -> LayerGroupOptimizer:
        """The optimizer; its rate is set by whatever schedule comes."""
        decays = list(weight_decay) if isinstance(weight_decay, Sequence) else [weight_decay] * len(groups)
        if len(decays) != len(groups):
            raise ValueError(
                f"Expected one weight decay, or one for each of the {len(groups)} layer groups. "
                f"Received: {len(decays)} values, {weight_decay}"
            )
        largest = max(decays)
        settings: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": largest}
        if (clip := self._clip(auto)) is not None:
            settings["global_clipnorm"] = clip
        if self.gradient_accumulation is not None and self.gradient_accumulation > 1:
            settings["gradient_accumulation_steps"] = self.gradient_accumulation
        if self.ema is not None:
            settings |= {"use_ema": True, "ema_momentum": self.ema}
        multipliers = [decay / largest for decay in decays] if largest else 1.0
        return LayerGroupOptimizer(
            self._make(auto, settings),
            groups,
            weight_decay_multipliers=multipliers,
            warm_up_average=True,
            torch_epsilon=self.optimizer in ("auto", "adamw"),
        )

    def _clip(self, auto: str) -> float | None:
        if not isinstance(self.clip, str):
            return self.clip
        if self.clip != "auto":
            raise ValueError(f'Expected "auto", a norm, or None. Received: clip={self.clip!r}')
        return CLIPS.get(self._name(auto)) if isinstance(self.optimizer, str) else None

    def _name(self, auto: str) -> str:
        return auto if self.optimizer == "auto" else str(self.optimizer)

    def _make(self, auto: str, settings: dict[str, Any]) -> keras.optimizers.Optimizer:
        if not isinstance(self.optimizer, str):
            return self.optimizer(**settings)
        name = self._name(auto)
        if name not in OPTIMIZERS:
            raise ValueError(
                'Expected "auto", "adamw", "sgd", or a function that makes a Keras optimizer. '
                f"Received: optimizer={name!r}"
            )
        return OPTIMIZERS[name](**settings)

    def build_loss(self, task: str) -> Any:
        """The loss, on logits."""
        if self.loss != "auto":
            return self.loss
        if task == "regression":
            self._refuse_shaping("numbers for labels")
            return auto_loss(task)
        made = CrossEntropy if task == "single_label" else BinaryCrossEntropy
        return made(self.label_smoothing, self.focal_gamma)

    def _refuse_shaping(self, beside: str) -> None:
        if self.label_smoothing or self.focal_gamma:
            raise ValueError(
                "label_smoothing and focal_gamma shape the loss that is taken from the labels of classes. "
                f"Received: label_smoothing={self.label_smoothing}, focal_gamma={self.focal_gamma} beside "
                f"{beside}. Leave them out, or build the loss with them"
            )

    @property
    def mixes(self) -> bool:
        """Whether photos are mixed, so that labels come as shares."""
        return self.mixup is not None or self.cutmix is not None

    def build_metrics(self, task: str) -> list[Any]:
        """Fresh metrics."""
        wanted = self.metrics
        if isinstance(wanted, str) and wanted == "auto":
            wanted = [] if task == "regression" else ["accuracy"]
        wanted = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        return [own_metric(metric, task) or metric for metric in wanted]
