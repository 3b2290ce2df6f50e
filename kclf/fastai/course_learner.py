"""The learner under the arguments and shapes of both generations of fastai."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .._core.progress import in_notebook
from ..callbacks import OneCycle, Schedule
from ..data import ImageData
from ..interpret import AnyInterpretation
from ..learner.adapt import adapt_to_data, head_for, log_probabilities
from ..learner.learner import Learner
from ..learner.plots import SuggestedRates
from ..learner.trainer import AnyPath, Rates, checked
from ..models import load
from ..prediction import precompute, predict, predict_tta
from ..prediction.inference import predict_views
from ..prediction.tta import views_of
from .chapter5_callbacks import SaveModelCallback, Setting
from .course_data import Deployed
from .course_interpretation import ClassificationInterpretation
from .course_recorder import CourseRecorder

PICKLES = (".pkl", ".pth")  # of fastai's exports
SPLITS = ("train", "valid", "test")  # get_preds(0), get_preds(1), as fastai 2 counts them


class CourseLearner(Learner):
    """`Learner` that also takes the arguments of fastai's own signatures; see there for the rest."""

    recorder_type = CourseRecorder
    lr: Rates = 1e-3  # of fits that are given none

    def _fit(
        self, epochs: int, schedule: Schedule, *, callbacks: Sequence[Any] = (), **options: Any
    ) -> keras.callbacks.History:
        """As every learner, with fastai's callbacks among those of the fit."""
        before = self.training
        settings, others = self._sorted(callbacks)
        self.training = replace(before, **settings)
        try:
            return super()._fit(epochs, schedule, callbacks=others, **options)
        finally:
            self.training = before

    def _sorted(self, cbs: Any) -> tuple[dict[str, Any], list[keras.callbacks.Callback]]:
        """Settings that fastai has as callbacks, and the callbacks, those made that know their learner."""
        made = [one.of(self) if isinstance(one, SaveModelCallback) else one for one in _listed(cbs)]
        settings = {one.name: one.value for one in made if isinstance(one, Setting)}
        return settings, checked([one for one in made if not isinstance(one, Setting)])

    # ---- fastai 0.7 ------------------------------------------------------------

    def fit(
        self, lrs: Any = None, n_cycle: float | None = None, wds: Any = None, **options: Any
    ) -> keras.callbacks.History:
        """Fastai 0.7's `fit(lrs, n_cycle)`, and fastai 2's `fit(n_epoch, lr)`, which has whole epochs first.

        Args:
            lrs: learning rates; or epochs, where `n_cycle` is a rate or None (which is a rate of 1e-3).
            n_cycle: epochs or cycles; or a rate.
            wds: weight decay.
            **options: as for `Learner.fit`; `lr`, `wd` and `cbs` as in fastai 2.
        """
        if "lr" in options or "n_epoch" in options or not _is_count(n_cycle):
            lrs, n_cycle = options.pop("lr", n_cycle), options.pop("n_epoch", lrs)
            lrs = self.lr if lrs is None else lrs
        if not _is_count(n_cycle):
            raise TypeError(f"Expected fit(rates, epochs), or fit(epochs, rates). Received: epochs={n_cycle}")
        decay, options = options.pop("wd", wds), _with(options.pop("cbs", None), options)
        return super().fit(lrs, int(n_cycle), decay, **options)  # type: ignore[arg-type]

    def TTA(
        self, n_aug: int = 4, is_test: bool = False, *, average: str | None = "arithmetic"
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-probabilities averaged over augmented views and the plain one, and labels.

        Args:
            n_aug: augmented views.
            is_test: the test photos in place of the validation photos.
            average: "arithmetic", as fastai 0.7 in its last form, or "geometric", the mean of the
                log-probabilities, as in the course's notes; None gives the views themselves,
                (n_aug + 1, n, classes) with the plain one first, for `np.mean(np.exp(log_preds), 0)`.
        """
        split = self._split("test" if is_test else "valid")
        if average is None:
            seen, _ = predict_views(self.model, split, views_of(self.model, n_aug), progress=self.verbose)
            return np.stack([log_probabilities(view) for view in seen]), seen[0].labels
        averaged = predict_tta(
            self.model, split, n_aug, weight=1 / (n_aug + 1), average=average, progress=self.verbose
        )
        return log_probabilities(averaged), averaged.labels

    def predict_array(self, arr: np.ndarray) -> np.ndarray:
        """Log-probabilities of images uint8 (n, height, width, 3), float32 (n, classes)."""
        return log_probabilities(predict(self.model, arr))

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
        stages: dict[str, Any] = {"lr_mult": lr_mult, "pct_start": pct_start, "div": div}
        super().fine_tune(epochs, rate, freeze_epochs, **stages, **_with(options.pop("cbs", None), options))

    def fit_one_cycle(
        self,
        n_epoch: int,
        lr_max: Rates | None = None,
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
        rates = self.lr if lr_max is None else lr_max
        return super().fit_one_cycle(n_epoch, rates, **cycle, wd=wd, **_with(cbs, options))

    def fit_flat_cos(
        self,
        n_epoch: int,
        lr: Rates | None = None,
        div_final: float = 1e5,
        pct_start: float = 0.75,
        wd: float | Sequence[float] | None = None,
        cbs: Any = None,
        reset_opt: bool = False,
        **options: Any,
    ) -> keras.callbacks.History:
        """A flat rate that falls along a cosine in the end."""
        flat: dict[str, Any] = {"div_final": div_final, "pct_start": pct_start, "wd": wd}
        return super().fit_flat_cos(n_epoch, self.lr if lr is None else lr, **flat, **_with(cbs, options))

    def lr_find(
        self, *arguments: Any, suggest_funcs: Any = None, show_plot: bool | None = None, **options: Any
    ) -> SuggestedRates:
        """The range test; prints what it suggests, as fastai 2 does.

        Args:
            *arguments: as for `Learner.lr_find`.
            suggest_funcs: rules, or their names.
            show_plot: draw the curve; None draws it in a notebook.
            **options: as for `Learner.lr_find`.
        """
        if suggest_funcs is not None:
            options["suggest"] = [getattr(rule, "__name__", rule) for rule in _listed(suggest_funcs)]
        found = super().lr_find(*arguments, **options)
        print(_said(found))
        if in_notebook() if show_plot is None else show_plot:
            found.plot()
        return found

    def get_preds(  # type: ignore[override]
        self,
        ds_idx: int | str = 1,
        *,
        dl: Any = None,
        is_test: bool = False,
        with_decoded: bool = False,
        with_loss: bool = False,
    ) -> tuple[np.ndarray | None, ...]:
        """Probabilities (n, classes) and labels of training (0) or validation photos (1), or of batches.

        Args:
            ds_idx: 0, 1 or 2, or "train", "valid" or "test".
            dl: batches instead.
            is_test: the test photos.
            with_decoded: also the numbers of the predicted classes, (n,).
            with_loss: also the loss of each photo, (n,).
        """
        split = "test" if is_test else _split_name(ds_idx)
        found = self.predictions(split) if dl is None else predict(self.model, dl, progress=self.verbose)
        more = [found.predicted] * with_decoded + ([found.losses()] if with_loss else [])
        return (found.probabilities, found.labels, *more)

    def validate(self, ds_idx: int | str = 1, dl: Any = None) -> list[float]:
        """Loss and metrics of the validation photos (1), the training photos (0), or of batches."""
        split = _split_name(ds_idx)
        model = self.model
        self.training.compile(model, model.layer_groups, model.task)
        found = model.evaluate(self._split(split) if dl is None else dl, verbose=0)
        return [float(value) for value in np.atleast_1d(found)]

    @property
    def dls(self) -> Any:
        """The data; of a learner that only predicts, what the classifier knows of them."""
        return Deployed(self.model) if self.data is None else self.data

    loss_func = crit

    @property
    def opt(self) -> Any:
        """The optimizer of the last fit, None before the first."""
        return self.model.optimizer if self.model.compiled else None

    @contextmanager
    def no_bar(self) -> Iterator[CourseLearner]:
        """No bars and tables within a `with` block."""
        before, self.verbose = self.verbose, False
        try:
            yield self
        finally:
            self.verbose = before

    def remove_cb(self, cb: Any) -> CourseLearner:
        """Take away a callback, or all of a class."""
        self.callbacks = [one for one in self.callbacks if one is not cb and type(one) is not cb]
        return self

    def export(self, fname: AnyPath = "export.pkl") -> Path:
        """Save the classifier for `load_learner`, which takes the same name.

        Nothing is pickled: in place of `export.pkl` there is `export.h5`, which holds no code, or
        `export.keras` of a backbone of one's own.
        """
        name = Path(fname)
        return super().export(name.with_suffix(".h5") if name.suffix in PICKLES else name)

    @property
    def metrics(self) -> Any:
        """What is measured beside the loss; may be set, for the fits from there on."""
        return self.training.metrics

    @metrics.setter
    def metrics(self, wanted: Any) -> None:
        self.training = replace(self.training, metrics=wanted)

    @property
    def fc_model(self) -> keras.Model:
        """What trains under `precompute`: the head alone. `model` is always the whole classifier."""
        return head_for(self.model)

    @property
    def fc_data(self) -> Any:
        """What it trains on: `.train` and `.valid` of activations. `data` are always the photos."""
        return precompute(self.model, self._require_data(), **self._cache)

    def interpret(self) -> AnyInterpretation:
        """As `Learner.interpret`; of one label a photo also under fastai's names."""
        found = super().interpret()
        return ClassificationInterpretation(found.predictions) if found.task == "single_label" else found


def _said(found: SuggestedRates) -> str:
    """The rates of a range test in one line, as fastai 2 prints them; below it, why one is missing."""
    both = found.rules == ("minimum", "steep")
    names = {"minimum": "Minimum/10", "steep": "steepest point"} if both else {}
    suggested = [found.suggestions[rule] for rule in found.rules]
    rates = ["none" if one.learning_rate is None else f"{one.learning_rate:.2e}" for one in suggested]
    shown = (f"{names.get(one.rule, one.rule)}: {rate}" for one, rate in zip(suggested, rates, strict=True))
    reasons = dict.fromkeys(one.reason for one in suggested if one.learning_rate is None)
    return "\n".join([", ".join(shown), *reasons])


def _is_count(value: Any) -> bool:
    """Whether a number says how many epochs or cycles: a rate does not, nor several rates."""
    return isinstance(value, int | float | np.number) and float(value).is_integer() and bool(value > 0)


def _split_name(ds_idx: int | str) -> str:
    """The name of a split that fastai 2 counts."""
    if isinstance(ds_idx, str):
        return ds_idx
    if not 0 <= ds_idx < len(SPLITS):
        raise ValueError(f"Expected 0 (train), 1 (valid) or 2 (test). Received: ds_idx={ds_idx}")
    return SPLITS[ds_idx]


def _with(cbs: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a fit, with the course's callbacks after those that are among them."""
    return {**options, "callbacks": [*(options.get("callbacks") or ()), *_listed(cbs)]}


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
        lr: rate of fits that are given none.
        cbs: callbacks of every fit.
        wd: weight decay.
        normalize: always done as the backbone wants it.
        pretrained: ImageNet weights; False starts from random ones.
        ps: dropout of the head.
        xtra_fc: widths of the head's hidden layers.
        **settings: as for `Learner`.
    """
    if settings.pop("xtra_cut", 0):
        raise ValueError(
            "kclf takes no layers off a backbone by their number. Pass a Keras model that ends earlier: "
            "b = build_backbone(name); keras.Model(b.inputs, b.get_layer(...).output), with normalization="
        )
    carried: dict[str, Any] = {"augmentation": getattr(dls, "augmentation", None)}
    carried |= {"loss": loss_func, "ps": ps, "xtra_fc": xtra_fc}
    carried |= {} if opt_func is None else {"optimizer": opt_func}
    carried |= {} if wd is None else {"weight_decay": wd}
    carried |= {} if pretrained else {"weights": None}
    learner = CourseLearner(dls, arch, metrics=metrics, **(carried | settings))
    shaping, callbacks = learner._sorted(cbs)
    learner.training, learner.lr = replace(learner.training, **shaping), lr
    learner.callbacks += callbacks
    return learner


vision_learner = cnn_learner


def load_learner(
    path: AnyPath, data: ImageData | None = None, cpu: bool = True, **options: Any
) -> CourseLearner:
    """A learner from a file that `export` (or `save`) wrote; no code from the file runs.

    Args:
        path: the file.
        data: to train on or predict, of the file's classes.
        cpu: changes nothing: Keras says where it computes.
        **options: as for `Learner`.
    """
    path = Path(path)
    if path.suffix in PICKLES and not path.exists():
        path = next((one for one in map(path.with_suffix, (".h5", ".keras")) if one.exists()), path)
    model = load(path)
    return CourseLearner(data, model if data is None else adapt_to_data(model, data), **options)
