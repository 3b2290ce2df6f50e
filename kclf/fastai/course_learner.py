"""The learner under the arguments and shapes of both generations of fastai."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ..callbacks import OneCycle
from ..data import ImageData
from ..learner.learner import Learner
from ..learner.learner import load_learner as load_plain
from ..learner.plots import SuggestedRates
from ..learner.trainer import AnyPath, Rates
from ..models import load
from ..prediction import Predictions, predict, predict_tta

SPLITS = ("train", "valid", "test")  # get_preds(0), get_preds(1), as fastai 2 counts them


class CourseLearner(Learner):
    """`Learner` that also takes the arguments of fastai's own signatures; see there for the rest."""

    # ---- fastai 0.7 ------------------------------------------------------------

    def TTA(
        self, n_aug: int = 4, is_test: bool = False, *, average: str = "arithmetic"
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-probabilities averaged over augmented views and the plain one, and labels.

        Args:
            n_aug: augmented views.
            is_test: the test photos in place of the validation photos.
            average: "arithmetic", as fastai 0.7 in its last form, or "geometric", the mean of the
                log-probabilities, as in the course's notes.
        """
        split = self._split("test" if is_test else "valid")
        averaged = predict_tta(self.model, split, n_aug, weight=1 / (n_aug + 1), average=average)
        return self._logs(averaged), averaged.labels

    def predict_array(self, arr: np.ndarray) -> np.ndarray:
        """Log-probabilities of images uint8 (n, height, width, 3), float32 (n, classes)."""
        return self._logs(predict(self.model, arr))

    def bn_freeze(self, do_freeze: bool) -> None:
        """Let the backbone's BatchNorm keep its statistics (True), or follow the batches where it trains."""
        self.model.batchnorm = "inference" if do_freeze else "frozen"

    @property
    def crit(self) -> Any:
        """The loss function."""
        return self.training.build_loss(self.model.task)

    def warm_up(self, lr: Rates, n_epoch: int = 1) -> keras.callbacks.History:
        """Train with a rate that rises from a hundredth to `lr`."""
        cycle = OneCycle(self._check_rates(lr), pct_start=1.0, div=100.0)
        return self._fit(n_epoch, cycle, auto="sgd")

    # ---- fastai 2 ------------------------------------------------------------

    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        freeze_epochs: int = 1,
        lr_mult: float = 100.0,
        pct_start: float = 0.3,
        div: float = 5.0,
        *,
        lr_max: float | None = None,
        **options: Any,
    ) -> None:
        """Train the head, then everything; `lr_max` takes the place of `base_lr`."""
        rate = base_lr if lr_max is None else lr_max
        stages: dict[str, Any] = {"lr_mult": lr_mult, "pct_start": pct_start, "div": div, **options}
        super().fine_tune(epochs, rate, freeze_epochs, **stages)

    def fit_one_cycle(
        self,
        n_epoch: int,
        lr_max: Rates = 1e-3,
        div: float = 25.0,
        div_final: float = 1e5,
        pct_start: float = 0.25,
        wd: float | Sequence[float] | None = None,
        moms: Sequence[float] | None = None,
        cbs: Any = None,
        reset_opt: bool = False,
        **options: Any,
    ) -> keras.callbacks.History:
        """One rise and fall of the rate.

        A fit always begins with a fresh optimizer, so that `reset_opt` changes nothing.
        """
        cycle: dict[str, Any] = {"div": div, "div_final": div_final, "pct_start": pct_start, "moms": moms}
        return super().fit_one_cycle(n_epoch, lr_max, **cycle, wd=wd, **_with(cbs, options))

    def fit_flat_cos(
        self,
        n_epoch: int,
        lr: Rates = 1e-3,
        div_final: float = 1e5,
        pct_start: float = 0.75,
        wd: float | Sequence[float] | None = None,
        cbs: Any = None,
        **options: Any,
    ) -> keras.callbacks.History:
        """A flat rate that falls along a cosine in the end."""
        flat: dict[str, Any] = {"div_final": div_final, "pct_start": pct_start, "wd": wd}
        return super().fit_flat_cos(n_epoch, lr, **flat, **_with(cbs, options))

    def lr_find(self, *arguments: Any, suggest_funcs: Any = None, **options: Any) -> SuggestedRates:
        """The range test; prints what it suggests, as fastai 2 does. `suggest_funcs` are names of rules."""
        if suggest_funcs is not None:
            options["suggest"] = [getattr(rule, "__name__", rule) for rule in _listed(suggest_funcs)]
        found = super().lr_find(*arguments, **options)
        print(
            f"Minimum/10: {found.lr_min:.2e}, steepest point: {found.lr_steep:.2e}"
            if found.rules == ("minimum", "steep")
            else ", ".join(f"{rule}: {rate:.2e}" for rule, rate in zip(found.rules, found, strict=True))
        )
        return found

    def get_preds(
        self, ds_idx: int | str = 1, *, dl: Any = None, is_test: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Probabilities (n, classes) and labels of training (0) or validation photos (1), or of batches.

        Args:
            ds_idx: 0, 1 or 2, or "train", "valid" or "test".
            dl: batches instead.
            is_test: the test photos.
        """
        split = "test" if is_test else SPLITS[ds_idx] if isinstance(ds_idx, int) else ds_idx
        return super().get_preds(split, dl=dl)

    def validate(self, ds_idx: int | str = 1, dl: Any = None) -> list[float]:
        """Loss and metrics of the validation photos (1), the training photos (0), or of batches."""
        split = SPLITS[ds_idx] if isinstance(ds_idx, int) else ds_idx
        model = self.model
        self.training.compile(model, model.layer_groups, model.task)
        found = model.evaluate(self._split(split) if dl is None else dl, verbose=0)
        return [float(value) for value in np.atleast_1d(found)]

    @property
    def dls(self) -> ImageData | None:
        """The data."""
        return self.data

    @property
    def loss_func(self) -> Any:
        """The loss function."""
        return self.crit

    @property
    def opt(self) -> Any:
        """The optimizer of the last fit, None before the first."""
        return self.model.optimizer

    def no_bar(self) -> CourseLearner:
        """Train without a progress bar and table from here on."""
        self.verbose = False
        return self

    def remove_cb(self, cb: Any) -> CourseLearner:
        """Take away a callback, or all of a class."""
        self.callbacks = [one for one in self.callbacks if one is not cb and type(one) is not cb]
        return self

    def _logs(self, found: Predictions) -> np.ndarray:
        from ..learner.adapt import log_probabilities

        return log_probabilities(found)


def _with(cbs: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a fit, with the course's callbacks after those that are among them."""
    return {**options, "callbacks": [*options.get("callbacks", ()), *_listed(cbs)]}


def _listed(one_or_many: Any) -> list[Any]:
    if one_or_many is None:
        return []
    return list(one_or_many) if isinstance(one_or_many, list | tuple) else [one_or_many]


def cnn_learner(
    dls: ImageData,
    arch: str,
    metrics: Any = "auto",
    loss_func: Any = "auto",
    opt_func: Any = None,
    lr: float = 1e-3,
    cbs: Any = None,
    wd: float | None = None,
    normalize: bool = True,
    pretrained: bool = True,
    ps: Any = None,
    xtra_fc: Sequence[int] | None = None,
    **settings: Any,
) -> CourseLearner:
    """`CourseLearner(dls, arch)`, with the augmentation that the data carry.

    Args:
        dls: the data.
        arch: name of the backbone.
        metrics: one, or a list.
        loss_func: on logits; "auto" takes it from the labels.
        opt_func: makes the optimizer.
        lr: not needed: fits say their rate.
        cbs: callbacks of every fit.
        wd: weight decay.
        normalize: always done as the backbone wants it.
        pretrained: ImageNet weights; False starts from random ones.
        ps: dropout of the head.
        xtra_fc: widths of the head's hidden layers.
        **settings: as for `Learner`.
    """
    carried: dict[str, Any] = {"augmentation": getattr(dls, "augmentation", None), "callbacks": _listed(cbs)}
    carried |= {"loss": loss_func, "ps": ps, "xtra_fc": xtra_fc}
    carried |= {} if opt_func is None else {"optimizer": opt_func}
    carried |= {} if wd is None else {"weight_decay": wd}
    carried |= {} if pretrained else {"weights": None}
    return CourseLearner(dls, arch, metrics=metrics, **(carried | settings))


vision_learner = cnn_learner


def load_learner(path: AnyPath, data: ImageData | None = None, **options: Any) -> Learner:
    """A learner from a file that `export` (or `save`) wrote; no code from the file runs."""
    if data is None:
        return CourseLearner(None, load(path), **options)
    return load_plain(path, data, **options)
