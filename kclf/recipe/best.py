"""The whole recipe: plan, solve the last layer, tune from there, and keep the better of both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .._core.sizes import Size, num_pixels, size_text
from ..callbacks.run_state import Undo, remember_tensors
from ..data import ImageData, ImageDataset
from ..data.presized import bytes_of_cache, has_room
from ..data.sources import JoinedImages
from ..distributed import broadcast, run_on_main
from ..errors import DataError, NotFiniteError, RunStopped
from ..models import ImageClassifier
from ..models.clone import clone_with
from ..prediction.inference import predict
from ..prediction.predictions import Predictions
from .budget import LARGER_TUNED, Plan, larger_sizes, plan_best
from .deciding import at_temperature, cross_fitted, fit_decision
from .linear_probe import LinearProbe, fit_linear_probe, fit_linear_probes
from .reading_size import Reading, at_size, choose_reading
from .solving import make_folds
from .tuning import Comparison, Fit, describe_estimate, tune

Keep = Callable[[ImageClassifier], None]


@dataclass(frozen=True)
class BestFit:
    """What `fit_best` did.

    Args:
        plan: what it set out to do.
        probe: the solved last layer.
        comparison: of solved and tuned classifier on the validation photos; None where one was not made.
        predictions: of the validation photos by the classifier that was kept; None where there are none.
        estimate: what to expect on new photos: of validation photos, cross-fitted where they made a choice,
            or cross-validated training photos; None where there are too few.
        model: the classifier to use: the one that was given, or a copy that reads photos larger, or several
            levels of the backbone.
        refitted_on: photos that it was trained on again in the end, as was chosen; 0 where it was not. The
            figures are those from before.
    """

    plan: Plan
    probe: LinearProbe
    comparison: Comparison | None
    predictions: Predictions | None
    estimate: Predictions | None
    model: ImageClassifier
    refitted_on: int = 0

    @property
    def kept(self) -> str:
        """Which classifier `model` is: "probe" or "tuned"."""
        return "tuned" if self.comparison is not None and self.comparison.tuned_is_better else "probe"

    def __str__(self) -> str:
        lines = [str(self.probe)] if self.comparison is None else [str(self.comparison)]
        if self.estimate is not None:
            lines.append(f"On new photos: {describe_estimate(self.estimate)}")
        if self.refitted_on:
            lines.append(f"Trained again on all {self.refitted_on:,} photos; the figures are from before")
        return "\n".join(lines)


def fit_best(
    model: ImageClassifier,
    data: ImageData,
    *,
    effort: str = "standard",
    minutes: float | None = None,
    refit: bool = False,
    batch_size: int | None = None,
    decode_once: str = "auto",
    plan: Plan | None = None,
    folder: str | PathLike[str] | None = None,
    fit: Fit | None = None,
    say: Callable[[str], None] = print,
    keep: Keep | None = None,
    progress: bool = False,
    started: float | None = None,
) -> BestFit:
    """Train the best classifier that these photos and this time allow.

    The last layer is solved (`fit_linear_probe`), on the last map of the backbone and on several levels of it
    (`multi_level`), at the size of the model and at larger ones: folds of the training photos choose.
    Everything is tuned from the solution at the given size; what that gives is kept where its loss on the
    validation photos is lower by more than a standard error, also when something ends the tuning early.

    Args:
        model: an `ImageClassifier`, best with `hidden=()`.
        data: its photos; without validation photos a fifth of the training photos takes their place.
        effort: "quick" solves the last layer alone, at the given size; "standard" tries a larger one, and
            tunes where there are 500 photos; "best" tries two, and tunes three times as long.
        minutes: how long it may take; None leaves it to the effort.
        refit: when all is chosen, train again on training and validation photos together, with what was
            chosen; temperature, thresholds and estimate stay those from before.
        batch_size: photos a step of the tuning; None for what suits their number.
        decode_once: "auto" keeps the decoded photos in `folder` for the passes of the tuning where decoding
            is slower than the steps of a GPU; "never" decodes in each pass.
        plan: what to do, in place of these; from `plan_best`.
        folder: keep activations and decoded photos there; None computes them each time.
        fit: trains the model on data for some epochs under a schedule; None is `model.fit`.
        say: takes the lines that are printed.
        keep: called with the best classifier so far, each time that there is a better one.
        progress: show a progress bar while the backbone looks at the photos.
        started: when the minutes began, by `time.monotonic()`; None is now.

    Returns:
        What was done, and what to expect of the classifier.

    Example:
        >>> import numpy as np, kclf
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
        >>> data = kclf.ImageData.from_arrays((images, ["cat", "dog"] * 10))
        >>> model = ImageClassifier("MobileNetV2", data.class_names, size=32, weights=None, hidden=())
        >>> fit_best(model, data, effort="quick", say=lambda line: None).kept
        'probe'
    """
    started = time.monotonic() if started is None else started
    options: dict[str, Any] = {"effort": effort, "minutes": minutes, "refit": refit, "batch_size": batch_size}
    options["decode_once"] = decode_once
    plan = plan or plan_best(model, data, started=started, **options)
    until = None if plan.minutes is None else started + 60 * plan.minutes
    whole, held_apart = data, data.valid is None and plan.passes > 0
    data = _with_validation(data) if held_apart else data
    say(plan.describe(model.size))
    model.decision = None  # that of other weights
    begin_again = _remembered(model) if plan.refit else None
    run = _Run(model, data, plan, folder, fit, say, keep or (lambda model: None), until)
    reading, before = run.solve(progress)
    if not plan.passes or before is None:
        estimate = before or reading.probe.held_out
        found = _decided(BestFit(plan, reading.probe, None, before, estimate, reading.model), before)
        return run.refit(found, whole, begin_again)
    best, comparison = run.tune(reading, before)
    if held_apart and not comparison.tuned_is_better and not plan.refit:
        fit_linear_probe(best, at_size(model, whole, best.size)[1])
    predictions = None if held_apart else comparison.kept
    estimate = reading.probe.held_out if held_apart else comparison.cross_fitted
    found = BestFit(plan, reading.probe, comparison, predictions, estimate, best)
    return run.refit(_decided(found, comparison.kept), whole, begin_again)


@dataclass(frozen=True)
class _Run:
    """The parts of a run, and what they share: arguments of `fit_best`, and when everything must be over."""

    model: ImageClassifier
    data: ImageData
    plan: Plan
    folder: str | PathLike[str] | None
    fit: Fit | None
    say: Callable[[str], None]
    keep: Keep
    until: float | None

    def solve(self, progress: bool) -> tuple[Reading, Predictions | None]:
        """Solve the last layer at the sizes of the plan: the one chosen, and its validation predictions.

        Which levels of the backbone are read is chosen at the first size.
        """
        readings: list[Reading] = []
        began, form, data = time.monotonic(), self.model, self.data
        options: dict[str, Any] = {"views": self.plan.views, "folder": self.folder, "progress": progress}
        for size in self.plan.sizes or (form.size,):
            if readings and _too_late(readings[-1].model.size, size, began, self.until):
                break
            began = time.monotonic()
            if self.plan.multi_level and not readings:
                new = _by_levels(form, data, options)
            else:
                sized, photos = at_size(form, data, size)
                new = [Reading(sized, photos, fit_linear_probe(sized, photos, **options))]
            for reading in new:
                readings.append(reading)
                levels = ", several levels" if reading.model.multi_level else ""
                self.say(f"At {size_text(size)} px{levels}: {reading.probe}")
                if choose_reading(readings) is reading:
                    self.keep(reading.model)
                    form = reading.model
        chosen = choose_reading(readings)
        before = None if chosen.data.valid is None else predict(chosen.model, chosen.data.valid)
        where = f" at {size_text(chosen.model.size)} px" if len(readings) > 1 else ""
        if before is not None and before.task != "regression":
            self.say(f"Validation photos{where}: {before}")
        return chosen, before

    def tune(self, reading: Reading, before: Predictions) -> tuple[ImageClassifier, Comparison]:
        """Tune the model, and find the better of what was solved and tuned, even when stopped."""
        photos = _decoded_once(self.data, self.plan, self.folder, self.say)
        put_back = _remembered(reading.model)

        def better() -> tuple[ImageClassifier, Comparison]:
            best, comparison = self._compare(reading, before)
            if not comparison.tuned_is_better:
                put_back()
                best = reading.model
            self.keep(best)
            return best, comparison

        try:
            tune(self.model, photos, self.plan, fit=self.fit, until=self.until)
        except NotFiniteError:
            put_back()
            self.keep(reading.model)
            raise
        except (RunStopped, KeyboardInterrupt):
            better()
            raise
        return better()

    def _compare(self, reading: Reading, before: Predictions) -> tuple[ImageClassifier, Comparison]:
        """The tuned model at the size that suits it, and how it compares with the solved one."""
        model = self.model
        sizes = {model.size, *larger_sizes(model, [LARGER_TUNED]), reading.model.size}
        at_hand = {size: at_size(model, self.data, size) for size in sorted(sizes, key=num_pixels)}
        found = {size: predict(sized, photos.valid) for size, (sized, photos) in at_hand.items()}
        comparison = Comparison(before, found)
        return at_hand[comparison.choice or model.size][0], comparison

    def refit(self, found: BestFit, data: ImageData, begin_again: Undo | None) -> BestFit:
        """Train the kept classifier again on all photos, from the weights that the run began with."""
        best, plan, model = found.model, self.plan, self.model
        if begin_again is None or (data.valid is None and found.comparison is None):
            return found
        whole, decision, put_back = on_everything(data), best.decision, _remembered(best)
        solve = partial(fit_linear_probe, views=plan.views, strength=found.probe.strength, folder=self.folder)
        try:
            if found.kept == "probe":
                solve(best, at_size(model, whole, best.size)[1])
            else:
                begin_again()
                solve(model, whole)
                more = whole.train.num_images / data.train.num_images
                again = replace(plan, tuning_seconds=more * plan.tuning_seconds, end_seconds=0.0)
                tune(model, whole, again, fit=self.fit, until=self.until)
                best = at_size(model, whole, best.size)[0]
        except (RunStopped, KeyboardInterrupt, NotFiniteError):
            put_back()
            raise
        finally:
            best.decision = decision
        return replace(found, model=best, refitted_on=whole.train.num_images)


def _decoded_once(
    data: ImageData, plan: Plan, folder: str | PathLike[str] | None, say: Callable[[str], None]
) -> ImageData:
    """The photos for the passes: from a cache in the folder, where the plan has one and there is room."""
    if not plan.decode_seconds or folder is None:
        return data
    count = sum(split.num_images for split in data.splits.values())
    needed, place = bytes_of_cache(count, data.presize), Path(folder)
    if not run_on_main(lambda: has_room(place, needed)):
        say(f"Photos are decoded in each pass: a cache takes {needed / 1e9:.1f} GB of the little room there")
        return data
    return data.resize(data.presize, place)


def _by_levels(model: ImageClassifier, data: ImageData, options: dict[str, Any]) -> list[Reading]:
    """The last map alone, and several levels of the backbone, of the same weights on all ranks."""
    broadcast([variable.value for variable in model.backbone.variables])
    both = model, clone_with(model, multi_level=True)
    probes = fit_linear_probes(*both, data, **options)
    return [Reading(one, data, probe) for one, probe in zip(both, probes, strict=True)]


def _too_late(last: Size, size: Size, began: float, until: float | None) -> bool:
    """Whether solving at another size, as fast a pixel as the last, takes more than half of the time left.

    The processes of a run agree on it.
    """
    now, more = time.monotonic(), num_pixels(size) / num_pixels(last)
    return until is not None and run_on_main(lambda: 2 * (now - began) * more > until - now)


def _decided(found: BestFit, held_out: Predictions | None) -> BestFit:
    """Give the model its temperature, thresholds and scores, and the estimate what they do to it."""
    decision = found.model.decision = fit_decision(held_out or found.estimate)
    if decision is None or found.estimate is None:
        return found
    kept = found.predictions
    if kept is not None:
        kept = replace(at_temperature(kept, decision.temperature), decision=decision)
    return replace(found, predictions=kept, estimate=cross_fitted(found.estimate))


def _remembered(model: ImageClassifier) -> Undo:
    """What puts all weights back to what they are now."""
    return remember_tensors((variable.value for variable in model.variables), device=None)


def on_everything(data: ImageData) -> ImageData:
    """Training and validation photos together as training photos; there are no validation photos then."""
    train, valid = data.train, data.valid
    if valid is None or train.labels is None or valid.labels is None:
        return data
    chances = train.sampling_weights
    if chances is not None:
        chances = np.concatenate([chances, np.full(valid.num_images, chances.mean())])
    photos = JoinedImages([train.dataset, valid.dataset])
    labels = np.concatenate([train.labels, valid.labels])
    joined = train.replace(images=photos, labels=labels, sampling_weights=chances)
    return ImageData(joined, None, data.test, size=data.size)


def _with_validation(data: ImageData) -> ImageData:
    """The data with a fifth of the training photos as validation photos."""
    train = data.train
    if train.labels is None:
        raise DataError(f"Expected training photos with labels. Received: {train!r}")
    labels = train.labels
    held_out = make_folds(labels, train.task, 5, train.seed) == 0

    def part(rows: np.ndarray, **changes: Any) -> ImageDataset:
        source = train.dataset.take(np.flatnonzero(rows))
        return train.replace(images=source, labels=labels[rows], **changes)

    plain = {"shuffle": False, "random_crop": False, "drop_last": False, "class_weight": None}
    chances = train.sampling_weights
    rest = part(~held_out, sampling_weights=None if chances is None else chances[~held_out])
    return ImageData(rest, part(held_out, **plain, sampling_weights=None), data.test, size=data.size)
