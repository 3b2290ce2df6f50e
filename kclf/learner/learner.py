"""`Learner`: data and a classifier, and the course's commands over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import keras
import numpy as np

from .. import schedules
from .._core.devices import keras_device
from .._core.keywords import FINE_TUNE, FIT, ONE_CYCLE, answering
from .._core.settings import TrainSettings
from .._core.warning import warn_caller
from ..callbacks import (
    CosineRestarts,
    FlatCosine,
    OneCycle,
    ProgressBar,
    Schedule,
    SnapshotSaver,
    find_learning_rate,
    load_snapshot,
)
from ..callbacks.checkpoint import REFIT
from ..callbacks.lr_schedules import TriangularCycles
from ..callbacks.snapshots import BestModel, CycleSnapshots
from ..data import ImageData
from ..distributed import print_on_main
from ..interpret import AnyInterpretation, interpretation_of
from ..interpret.gallery import show_results
from ..models import ImageClassifier, load
from ..models.clone import clone_with
from ..prediction.activation_cache import activations
from ..prediction.ensembles import SnapshotEnsemble
from ..prediction.inference import predict
from ..prediction.predictions import Predictions, write_submission
from ..prediction.tta import predict_tta
from ..recipe import BestFit, LinearProbe, Plan, fit_best, fit_linear_probe, plan_best
from ..recipe.reading_size import at_size
from ..report import write_report
from .adapt import adapt_to_data, decode_prediction, head_for, log_probabilities, take_weights
from .plots import SuggestedRates, report_inputs
from .trainer import AnyPath, Callbacks, FitOptions, Rates, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Learner(Trainer):
    """Data, a classifier for it, and the commands of the course to train, look at and use it.

    Nothing is hidden: `learner.model` is an `ImageClassifier` (a Keras model), `learner.data` an `ImageData`,
    and each method is a few lines over them that you can write yourself. docs/migration.md has the words of
    fastai beside these.

    Args:
        data: the photos.
        backbone: a name of `backbone_names()`, a Keras model of feature maps, or a whole `ImageClassifier`.
        precompute: train the head on activations that are computed once; see `precompute`.
        precompute_views: augmented views of each training photo to compute; 1 takes the plain one.
        precompute_dtype: "float32", or "float16" for half the room.
        path: folder in which `models/` and `activations/` are made.
        ps: the course's name for the classifier's `dropout`.
        xtra_fc: the course's name for the classifier's `hidden`.
        callbacks: Keras callbacks for every fit.
        verbose: print a table of the epochs, and progress bars.
        **settings: those of `Training` (`optimizer`, `loss`, `metrics`, `weight_decay`, `clip`,
            `gradient_accumulation`, `ema`, `label_smoothing`, `focal_gamma`, `mixup`, `cutmix`,
            ...), and those of `ImageClassifier` (`augmentation`, `weights`, `batchnorm`, ...).

    Attributes:
        model: the `ImageClassifier`.
        data: the `ImageData`, or None for a learner that only predicts.
        recorder: rate, momentum and loss of every batch so far.
        checkpoint: the `Checkpoint` of every fit, or None; set one, or pass `resume=True` to the fits.
        sched: plots of the last fit and the last range test, under the names of fastai 0.7.
        table: the `EpochTable` of the fits, of which a verbose learner prints each row.
        memory: the `MemoryGuard` of the fits: its `parts` are above 1 where batches had to be split.

    A loss that is infinite or NaN ends a fit with the batch and the photos at fault; a batch that the memory
    cannot hold goes through in parts. A fit that is cut off so, or by Ctrl-C, leaves the weights of its best
    epoch.

    Example:
        >>> import tempfile
        >>> photos = np.zeros((20, 32, 32, 3), np.uint8)
        >>> photos[::2, ..., 0] = 255
        >>> data = ImageData.from_arrays((photos, ["cat", "dog"] * 10), batch_size=8)
        >>> learner = Learner(data, "MobileNetV2", weights=None, path=tempfile.mkdtemp(), verbose=False)
        >>> history = learner.fit_one_cycle(1, 1e-3)
        >>> probabilities, labels = learner.get_preds()
        >>> probabilities.shape
        (4, 2)
    """

    # ---- training in the words of fastai 0.7 ------------------------------------------------------------

    def fit(
        self,
        lrs: Rates,
        n_cycle: int,
        wds: float | Sequence[float] | None = None,
        *,
        cycle_len: int | None = None,
        cycle_mult: int = 1,
        cycle_save_name: str | None = None,
        best_save_name: str | None = None,
        use_clr: tuple[float, ...] | None = None,
        callbacks: Callbacks = (),
        resume: bool = False,
    ) -> keras.callbacks.History:
        """Train at constant rates, or in cosine cycles with restarts (SGDR).

        Args:
            lrs: learning rates: one for all layer groups, a list with one for each, or a slice.
            n_cycle: epochs; with `cycle_len` cycles, of 1 + 2 + 4 epochs for 3, cycle_len=1, cycle_mult=2.
            wds: weight decay: one for all layer groups, or a list; None for the learner's.
            cycle_len: epochs of the first cycle; None keeps the rates constant.
            cycle_mult: how many times longer each next cycle is.
            cycle_save_name: save the weights after each cycle as `models/{cycle_save_name}_cyc_{k}`.
            best_save_name: save the best weights as `models/{best_save_name}` and load them in the end.
            use_clr: (div, cut_div[, highest momentum, lowest momentum]): cycles with a straight rise over
                1/cut_div of their length from 1/div of the rate, and a straight fall back.
            callbacks: more callbacks for this fit.
            resume: keep checkpoints in `path/checkpoints` and continue from those that are there: the same
                commands, run again after a crash, pass over the fits that were over and end bit for bit so.

        Returns:
            Keras' history.
        """
        if cycle_save_name is not None and cycle_len is None:
            raise ValueError(
                "Snapshots are taken at the end of cycles: pass cycle_len. "
                f"Received: cycle_save_name={cycle_save_name!r}, cycle_len=None"
            )
        rates = self._check_rates(lrs)
        ends = schedules.cycle_ends(cycle_len or 1, cycle_mult if cycle_len else 1, n_cycle)
        more = list(callbacks)
        if cycle_save_name is not None:
            more.append(CycleSnapshots(self.model, self._file(cycle_save_name), ends))
        if best_save_name is not None:
            more.append(self.best_model(best_save_name))
        if use_clr is not None:
            schedule: Schedule = TriangularCycles(rates, ends, *use_clr)
        elif cycle_len is not None:
            schedule = CosineRestarts(rates, cycle_len=cycle_len, cycle_mult=cycle_mult, num_cycles=n_cycle)
        else:
            schedule = FlatCosine(rates, pct_start=1.0)
        return self._fit(ends[-1], schedule, wd=wds, callbacks=more, resume=resume, auto="sgd")

    def load_cycle(self, name: str, cycle: int) -> None:
        """Load the weights saved at the end of a cycle, counted from 0."""
        load_snapshot(self.model, SnapshotSaver(self._file(name)).path(cycle))

    def snapshots(self, name: str, *, last: int | None = None) -> SnapshotEnsemble:
        """The snapshots of a fit as an ensemble.

        Args:
            name: the `cycle_save_name` of the fit.
            last: only so many of the last cycles.
        """
        saver = SnapshotSaver(self._file(name))
        files: list[str] = []
        while Path(saver.path(len(files))).is_file():
            files.append(saver.path(len(files)))
        return SnapshotEnsemble(self.model, files[-last if last else None :])

    # ---- training in the words of fastai 2 ------------------------------------------------------------

    @answering(ONE_CYCLE, also=FitOptions.__annotations__)
    def fit_one_cycle(
        self,
        n_epoch: int,
        lr_max: Rates = 1e-3,
        *,
        div: float = 25.0,
        div_final: float = 1e5,
        pct_start: float = 0.25,
        moms: Sequence[float] | None = None,
        **options: Unpack[FitOptions],
    ) -> keras.callbacks.History:
        """Train with one rise and fall of the rate over `n_epoch` epochs; see `OneCycle`.

        Args:
            n_epoch: epochs.
            lr_max: rate at the peak: one for all layer groups, a list with one for each, or a slice.
            div: the first rate is that of the peak by `div`.
            div_final: the last one is that of the peak by `div_final`.
            pct_start: share of the epochs that the rate rises.
            moms: momentum before, at and after the peak; None for those of `OneCycle`.
            **options: `wd`, `callbacks` and `resume`, as for `fit` (there `wds`).
        """
        momentum = {} if moms is None else {"momentum": _momenta(moms)}
        rates = self._check_rates(lr_max)
        cycle = OneCycle(rates, pct_start=pct_start, div=div, div_final=div_final, **momentum)
        return self._fit(n_epoch, cycle, **options)

    @answering(FIT | {"lr_max": "lr=RATE"}, also=FitOptions.__annotations__)
    def fit_flat_cos(
        self,
        n_epoch: int,
        lr: Rates = 1e-3,
        *,
        div_final: float = 1e5,
        pct_start: float = 0.75,
        **options: Unpack[FitOptions],
    ) -> keras.callbacks.History:
        """Train at a flat rate that falls along a cosine in the end; see `FlatCosine`."""
        flat = FlatCosine(self._check_rates(lr), pct_start=pct_start, div_final=div_final)
        return self._fit(n_epoch, flat, **options)

    @answering(ONE_CYCLE, also=FitOptions.__annotations__)
    def fit_sgdr(
        self,
        n_cycles: int,
        cycle_len: int,
        lr_max: Rates = 1e-3,
        *,
        cycle_mult: int = 2,
        **options: Unpack[FitOptions],
    ) -> keras.callbacks.History:
        """Train in cosine cycles with restarts; see `CosineRestarts`."""
        rates = self._check_rates(lr_max)
        cycles = CosineRestarts(rates, cycle_len=cycle_len, cycle_mult=cycle_mult, num_cycles=n_cycles)
        return self._fit(cycles.num_epochs, cycles, **options)

    @answering(FINE_TUNE)
    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        freeze_epochs: int = 1,
        *,
        lr_mult: float = 100.0,
        unfrozen_lr: float | None = None,
        pct_start: float = 0.3,
        div: float = 5.0,
        **options: Any,
    ) -> None:
        """Train the head for `freeze_epochs`, then everything for `epochs`, the input side at lower rates.

        Args:
            epochs: epochs with everything trainable.
            base_lr: highest rate of the head while it trains alone.
            freeze_epochs: epochs of the head alone.
            unfrozen_lr: highest rate of the head afterwards; None for half of `base_lr`, as fastai has it.
            lr_mult: ratio of that to the first layer group's.
            pct_start: share of the epochs with everything trainable that the rate rises.
            div: their first rate is the highest by `div`.
            **options: of both parts, as for `fit_one_cycle`: callbacks, resume, wd, moms, div_final.
        """
        if freeze_epochs:
            self.freeze()
            self.fit_one_cycle(freeze_epochs, slice(base_lr), pct_start=0.99, **options)
        if epochs:
            self.unfreeze()
            highest = base_lr / 2 if unfrozen_lr is None else unfrozen_lr
            rates = slice(highest / lr_mult, highest)
            self.fit_one_cycle(epochs, rates, pct_start=pct_start, div=div, **options)

    def train(
        self,
        settings: TrainSettings,
        *,
        keep: Callable[[ImageClassifier], None] | None = None,
        say: Callable[[str], None] | None = None,
        callbacks: Callbacks = (),
        resume: bool = False,
        started: float | None = None,
    ) -> BestFit | None:
        """Train as `kclf train` does: by `fit_best`, or by `fine_tune` with the recipe "course".

        Args:
            settings: how.
            keep: as for `fit_best`.
            say: as for `fit_best`.
            callbacks: more callbacks for all fits.
            resume: as for `fit`.
            started: as for `fit_best`.

        Returns:
            What `fit_best` found; None with the recipe "course".
        """
        fits: dict[str, Any] = {"callbacks": callbacks, "resume": resume}
        if settings.recipe == "course":
            rate = settings.learning_rate
            unfrozen = settings.unfrozen_learning_rate or rate / 10
            self.fine_tune(settings.epochs, rate, settings.freeze_epochs, unfrozen_lr=unfrozen, **fits)
            return None
        how: dict[str, Any] = {"effort": settings.effort, "batch_size": settings.batch_size or None}
        how |= {"refit": settings.refit, "decode_once": settings.decode_once, "started": started}
        return self.fit_best(settings.minutes, **how, keep=keep, say=say, **fits)

    def fit_best(
        self,
        minutes: float | None = None,
        *,
        effort: str = "standard",
        refit: bool = False,
        batch_size: int | None = None,
        decode_once: str = "auto",
        plan: Plan | None = None,
        keep: Callable[[ImageClassifier], None] | None = None,
        say: Callable[[str], None] | None = None,
        callbacks: Callbacks = (),
        resume: bool = False,
        started: float | None = None,
    ) -> BestFit:
        """Train the best classifier that these photos and this time allow; see `kclf.fit_best`.

        Args:
            minutes: how long it may take; None leaves it to the effort.
            effort: "quick" solves the last layer alone; "standard" and "best" tune everything from there.
            refit: when all is chosen, train again on training and validation photos together.
            batch_size: photos a step; None for what suits their number.
            decode_once: "auto" or "never", as for `kclf.fit_best`.
            plan: what to do, in place of these.
            keep: called with the best classifier so far, each time that there is a better one.
            say: takes the lines that are printed; None prints them where the learner is verbose.
            callbacks: more callbacks for the tuning.
            resume: as for `fit`.
            started: when a run that writes a report began, by `time.monotonic()`; None is now, without one.
        """
        data, self._precompute = self._require_data(), False
        if plan is None:
            file = self.path / "checkpoints" / "plan.json" if resume else None
            options: dict[str, Any] = {"effort": effort, "minutes": minutes, "refit": refit}
            options |= {"batch_size": batch_size, "decode_once": decode_once}
            options |= {"file": file, "started": started}
            plan = plan_best(self.model, data, **options)
        fits = count()

        def fit(photos: ImageData, passes: int, schedule: Schedule) -> None:
            self.data, first = photos, self.checkpoint
            if next(fits) and first is not None:  # resumed, it chooses again by the weights of the first
                self.checkpoint = first.below(REFIT)
            try:
                self._fit(passes, schedule, callbacks=callbacks, resume=resume, validate=False)
            finally:
                self.checkpoint = first or self.checkpoint

        try:
            found = fit_best(
                self.model,
                data,
                plan=plan,
                folder=self.path / "activations",
                fit=fit,
                say=say or (print_on_main if self.verbose else lambda line: None),
                keep=keep,
                progress=self.verbose,
                started=started,
            )
        finally:
            self.data = data
        self.model, self.data = found.model, at_size(self.model, data, found.model.size)[1]
        return found

    def linear_probe(self, *, views: int = 0) -> LinearProbe:
        """Solve the last layer on the training photos by logistic or ridge regression: `fit_linear_probe`.

        Args:
            views: augmented views of each photo to learn from beside the plain one: 0, or 2 and more.

        Returns:
            The solution, with cross-validated predictions of the training photos.
        """
        return fit_linear_probe(self.model, self._require_data(), views=views, **self._cache)

    def best_model(
        self, name: str = "best", *, monitor: str = "val_loss", patience: int | None = None
    ) -> BestModel:
        """A callback that saves the best model of a fit, loads it in the end, and can stop early.

        Args:
            name: the weights go to `models/{name}.weights.h5`.
            monitor: the figure; "val_accuracy" is better when larger, "val_loss" when smaller.
            patience: stop after as many epochs without a better one.
        """
        return BestModel(self._file(name, ".weights.h5"), self.model, monitor=monitor, patience=patience)

    # ---- the range test ------------------------------------------------------------

    def lr_find(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_it: int = 100,
        *,
        suggest: Sequence[str] = ("minimum", "steep"),
        **options: Any,
    ) -> SuggestedRates:
        """Smith's learning rate range test; it leaves everything as it was, bit for bit.

        The optimizer "auto" is that of the last fit, AdamW before the first; MixUp and CutMix mix as in fits.

        Args:
            start_lr: first rate of the last layer group.
            end_lr: last rate.
            num_it: batches.
            suggest: rules whose rates the result unpacks to, of "minimum", "steep", "valley" and "slide".
            **options: as for `find_learning_rate`.

        Returns:
            All suggestions and the curve, which `.plot()` draws (as does `sched.plot()`);
            `lr_min, lr_steep = learner.lr_find()` unpacks it.
        """
        model, train, _ = self._trained()
        self._compile(model)
        bar = ProgressBar(self._require_data().batch_size, total=num_it, name="range test")
        options["callbacks"] = [*options.get("callbacks", []), *([bar] if self.verbose else []), self.memory]
        with closing(bar):
            test = find_learning_rate(model, train, start=start_lr, end=end_lr, num_steps=num_it, **options)
        self.sched.finder = SuggestedRates(test.runs, rules=tuple(suggest))
        self.sched.tested_last = True
        return self.sched.finder

    # ---- data and number formats ------------------------------------------------------------

    def set_data(self, data: ImageData) -> None:
        """Continue with other data: larger photos (progressive resizing), more of them, or a test set.

        Args:
            data: with the same classes. Where its size differs, the model changes to that size; photos that
                it reads from files are presized as those of the data.

        Raises:
            DataError: the data are of other classes, or of another task.
        """
        self.model = adapt_to_data(self.model, data)
        self.data = data

    def to_fp16(self) -> Learner:
        """Compute in float16 where it is safe, with loss scaling; on a CPU, slow in it, nothing changes."""
        if keras_device().type == "cpu":
            warn_caller(
                "A CPU is many times slower in float16 than in float32: to_fp16() changes nothing here"
            )
            return self
        return self._to("mixed_float16")

    def to_bf16(self) -> Learner:
        """Compute in bfloat16 where it is safe; for recent GPUs and CPUs."""
        return self._to("mixed_bfloat16")

    def to_fp32(self) -> Learner:
        """Compute in float32."""
        return self._to("float32")

    def summary(self) -> None:
        """Print the layers, as Keras does."""
        self.model.summary(expand_nested=True, show_trainable=True)

    # ---- predictions ------------------------------------------------------------

    def predictions(self, split: str = "valid", *, together: bool = False) -> Predictions:
        """Probabilities, labels and paths of "train", "valid" or "test", in the order of the data.

        With `together` the processes of `torchrun`, all of which must call it, divide the photos among them.
        """
        photos = self._split(split)
        if self.precompute:
            return predict(head_for(self.model), activations(self.model, photos, **self._cache))
        return predict(self.model, photos, together=together, progress=self.verbose)

    def predict(self, photo: Any = None, *, is_test: bool = False) -> Any:
        """With a photo: its class, class number and probabilities. Without: log-probabilities of a split.

        For a regression, the numbers themselves take the place of log-probabilities.

        Args:
            photo: a path, a PIL image, or pixels uint8 (height, width, channels) or (height, width).
            is_test: the test photos in place of the validation photos.

        Returns:
            (class name, class number, probabilities (classes,)) for a photo; float32 (n, classes) otherwise.
        """
        if photo is None:
            return log_probabilities(self.predictions("test" if is_test else "valid"))
        return decode_prediction(predict(self.model, self.model.read(photo)[None]))

    def TTA(self, n_aug: int = 4, *, is_test: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-probabilities averaged over augmented views and the plain one, which counts as one of them.

        For a regression, the numbers themselves, averaged so.

        Args:
            n_aug: augmented views.
            is_test: the test photos in place of the validation photos.

        Returns:
            Float32 (n, classes), and the labels (n,), None where unknown.
        """
        split = self._split("test" if is_test else "valid")
        averaged = predict_tta(self.model, split, n_aug, weight=1 / (n_aug + 1), progress=self.verbose)
        return log_probabilities(averaged), averaged.labels

    def tta(
        self, split: str = "valid", *, n: int = 4, beta: float = 0.25, use_max: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Probabilities averaged over `n` augmented views and the plain one (share `beta`), and labels."""
        average = "max" if use_max else "arithmetic"
        averaged = predict_tta(
            self.model, self._split(split), n, weight=beta, average=average, progress=self.verbose
        )
        return averaged.probabilities, averaged.labels

    def get_preds(self, split: str = "valid", *, dl: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Probabilities (n, classes) and labels of a split, or of any iterable of batches."""
        found = self.predictions(split) if dl is None else predict(self.model, dl, progress=self.verbose)
        return found.probabilities, found.labels

    def submission(self, path: AnyPath, *, n_aug: int = 4, id_column: str = "id") -> None:
        """Write the test photos' probabilities, averaged over augmented views, as a Kaggle submission."""
        averaged = predict_tta(self.model, self._split("test"), n_aug, progress=self.verbose)
        write_submission(averaged, self._place(path), id_column=id_column)

    def interpret(self) -> AnyInterpretation:
        """Where the model errs on the validation photos: for one label, several labels, or numbers."""
        return interpretation_of(self.predictions("valid"))

    def report(self, path: AnyPath = "report.html") -> Path:
        """Write one self-contained HTML page: curves, confusion, top losses, calibration; gives its path."""
        return write_report(report_inputs(self), self._place(path))

    def show_results(self, max_n: int = 9, *, seed: int | None = None) -> Figure:
        """A figure of some validation photos, each under "predicted / actual"; in red where that is wrong."""
        found = self.predictions("valid")
        some = np.random.default_rng(seed).permutation(len(found))[:max_n]
        return show_results(self._split("valid"), found, some)

    # ---- files ------------------------------------------------------------

    def save(self, name: str) -> Path:
        """Save the classifier as `models/{name}.h5`, which `kclf.load` reads too; gives the path.

        With a backbone of one's own it is `models/{name}.keras`.
        """
        return self.export(Path("models") / f"{name}.h5")

    def load(self, name: str) -> Learner:
        """Load the weights of `models/{name}.h5` into the model; what is frozen stays frozen."""
        take_weights(self._ours(self._file(name, ".h5")), self.model)
        return self

    def export(self, path: AnyPath = "export.h5") -> Path:
        """Save the classifier in one file that `load_learner` and `kclf.load` read; it holds no code.

        Args:
            path: where to. A backbone of one's own, which an ".h5" cannot name, goes into a ".keras" file in
                its place, which Keras reads in its safe mode.

        Returns:
            The path written.
        """
        target = self._ours(self._place(path))
        self.model.save(target)
        return target

    def _ours(self, path: Path) -> Path:
        """The file that this classifier goes to where `path` is asked for."""
        own = self.model.backbone_name is None and path.suffix in (".h5", ".hdf5")
        return path.with_suffix(".keras") if own else path

    def _to(self, policy: str) -> Learner:
        self.model = clone_with(self.model, dtype=policy)
        return self


def _momenta(moms: Sequence[float]) -> tuple[float, float, float]:
    """Momentum before, at and after the peak of a cycle, of the course's `moms`."""
    if not 2 <= len(moms) <= 3:
        raise ValueError(f"Expected moms=(high, low, high). Received: moms={moms}")
    return float(moms[0]), float(moms[1]), float(moms[-1])


def load_learner(path: AnyPath, data: ImageData | None = None, **options: Any) -> Learner:
    """A learner from a file that `Learner.export` (or `save`) wrote; no code from the file runs.

    Args:
        path: the file.
        data: to train on or predict, of the file's classes; the classifier takes their size. None is enough
            for `predict(photo)`.
        **options: as for `Learner`.

    Raises:
        DataError: the data are of other classes, or of another task.
    """
    model = load(path)
    return Learner(data, model if data is None else adapt_to_data(model, data), **options)
