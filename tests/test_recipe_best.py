"""The whole recipe: what it plans, that it never ends below the solved layer, and how it is stopped."""

from __future__ import annotations

import dataclasses
import time
from itertools import count

import keras
import numpy as np
import pytest
import torch
from test_recipe_linear_probe import NAMES, SIZE, classifier, photos

import kclf
from kclf.cli.run_folder import ACTIVATIONS, finish
from kclf.data import ImageData
from kclf.data.presized import CachedImages
from kclf.data.sources import ArrayImages, JoinedImages
from kclf.errors import NotFiniteError, RunStopped
from kclf.prediction.activation_cache import activation_key
from kclf.prediction.predictions import Predictions
from kclf.recipe import Comparison, LinearProbe, Plan, fit_best, fit_linear_probe, plan_best
from kclf.recipe.best import _decoded_once as decoded_once
from kclf.recipe.best import _too_late as too_late
from kclf.recipe.best import on_everything
from kclf.recipe.budget import Speed, batch_for, make_plan, measure_speed, seconds_to_decode_once
from kclf.recipe.reading_size import Reading, choose_reading
from kclf.recipe.tuning import OneCycleInTime

SILENT = {"say": lambda line: None}


def data(task="single_label", num_photos=48):
    """Training photos, and as many others to try a classifier on."""
    return ImageData(photos(task, num_photos, shuffle=True), photos(task, num_photos), size=SIZE)


def plan(passes=2, **changes):
    return Plan("standard", passes, 8, **changes)


def weights(model):
    return [variable.value.detach().clone() for variable in model.variables]


def equal(ours, theirs):
    return all(bool((a == b).all()) for a, b in zip(ours, theirs, strict=True))


# ---- the plan ------------------------------------------------------------


@pytest.mark.parametrize(("num_photos", "batch"), [(3, 4), (20, 4), (74, 8), (100, 8), (259, 32), (3000, 32)])
def test_batches_are_an_eighth_of_few_photos(num_photos, batch):
    assert batch_for(num_photos) == batch


def test_effort_and_minutes_decide_how_long():
    speed, photos_at_hand = Speed(read=0.01, step=0.05), data()

    quick, standard, best = (
        make_plan(photos_at_hand, speed, effort=e) for e in ("quick", "standard", "best")
    )
    minute = make_plan(photos_at_hand, speed, effort="best", minutes=1, sizes=(32, 64))
    hurried = make_plan(photos_at_hand, speed, effort="best", minutes=0.04, sizes=(32, 64))

    assert quick.passes == standard.passes == 0
    assert make_plan(data(num_photos=600), speed).passes >= 4
    assert best.passes * (48 // best.batch_size) >= 100
    assert 0.8 * 60 < minute.seconds <= 60
    assert minute.sizes == (32, 64)
    assert hurried.passes == 0
    assert hurried.sizes == (32,)
    assert quick.seconds == pytest.approx(2 * 48 * 0.01, rel=0.1)
    with pytest.raises(ValueError, match="Received: minutes=0"):
        make_plan(photos_at_hand, speed, minutes=0)


def test_a_plan_says_what_is_done_and_how_long():
    said = plan(6, probe_seconds=9, tuning_seconds=231).describe(160)

    assert said.startswith(
        "Plan: linear probe at 160 px (9 s), then 6 passes at 160 px in batches of 8: 4 min 0 s in all"
    )
    assert "passes" not in plan(0, probe_seconds=9).describe(160)


def test_measuring_leaves_everything_as_it_was():
    model, photos_at_hand = classifier(), data()
    before, draws, place = weights(model), torch.get_rng_state(), photos_at_hand.train.state_dict()

    speed = measure_speed(model, photos_at_hand)

    assert speed.read > 0
    assert speed.step > 0
    assert equal(weights(model), before)
    assert (torch.get_rng_state() == draws).all()
    assert photos_at_hand.train.state_dict() == place
    assert model.first_trainable_group == len(model.layer_groups) - 1


def test_what_is_not_trained_is_not_measured():
    model = classifier()

    found = plan_best(model, data(), effort="quick")

    assert found.tuning_seconds == 0
    assert not model.compiled


def test_a_plan_counts_from_the_start_to_the_report():
    speed = Speed(read=0.01, step=0.05)

    bare = make_plan(data(), speed, effort="best")
    whole = make_plan(data(), speed, effort="best", around=(20.0, 5.0))
    minute = make_plan(data(), speed, effort="best", minutes=1, around=(20.0, 5.0))

    assert whole.seconds == pytest.approx(bare.seconds + 25)
    assert 0.8 * 60 < minute.seconds <= 60
    assert "1 min 0 s in all" in dataclasses.replace(
        whole, start_seconds=whole.start_seconds + 60 - whole.seconds
    ).describe(160)


# ---- decoding once ------------------------------------------------------------


@pytest.fixture
def in_files(tmp_path):
    """Twelve smooth photos of uneven sizes, a folder a class, a third for validation."""
    for number in range(12):
        folder = tmp_path / "photos" / NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        height, width = 41 + 7 * number, 97 - 3 * number
        pixels = np.indices((height, width)).sum(axis=0)[..., None] + [0, 30, 60]
        keras.utils.save_img(folder / f"{number}.png", pixels, scale=False)
    return ImageData.from_folder(tmp_path / "photos", size=SIZE, batch_size=4, valid_fraction=1 / 3)


def test_photos_are_decoded_once_where_decoding_is_the_limit(in_files):
    slow, fast = Speed(read=0.03, step=0.01, decode=0.02), Speed(read=0.03, step=0.02, decode=0.01)

    decided = make_plan(in_files, slow, effort="best")
    each_time = make_plan(in_files, slow, effort="best", decode_once="never")

    assert seconds_to_decode_once(in_files, slow) == pytest.approx(12 * 0.02)
    assert seconds_to_decode_once(in_files, fast) == 0
    assert seconds_to_decode_once(data(), slow) == 0  # in memory
    assert seconds_to_decode_once(in_files.replace(resize_method="squish"), slow) == 0
    assert measure_speed(classifier(), in_files).decode == 0  # on a CPU steps need the same cores
    assert "photos decoded once (1 s), then" in decided.describe(SIZE)
    assert each_time.decode_seconds == 0
    assert each_time.tuning_seconds == pytest.approx(2 * decided.tuning_seconds)
    assert make_plan(in_files, slow, effort="quick").decode_seconds == 0


def test_decoded_once_they_are_the_same_photos(in_files, tmp_path, monkeypatch):
    said, decided = [], plan(decode_seconds=1.0)

    kept = decoded_once(in_files, decided, tmp_path / "caches", said.append)
    monkeypatch.setattr("kclf.recipe.best.has_room", lambda folder, needed: False)
    without_room = decoded_once(in_files, decided, tmp_path / "caches", said.append)

    for ours, theirs in ((kept.train, in_files.train), (kept.valid, in_files.valid)):
        for one, other in zip(ours, theirs, strict=True):
            assert (one[0].int() - other[0].int()).abs().max() <= 3  # windows lie on whole pixels of each
            assert torch.equal(one[1], other[1])
    assert not isinstance(kept.train.dataset, type(in_files.train.dataset))
    assert without_room is in_files
    assert "decoded in each pass" in said[0]
    assert decoded_once(in_files, plan(), tmp_path, said.append) is in_files


def test_the_passes_read_the_cache_which_a_finished_run_removes(in_files, tmp_path):
    seen, folder = [], tmp_path / ACTIVATIONS

    fit_best(
        classifier(),
        in_files,
        plan=plan(decode_seconds=1.0),
        folder=folder,
        fit=lambda photos, passes, schedule: seen.append(photos),
        **SILENT,
    )

    assert [type(split.dataset) for split in seen[0].splits.values()] == [CachedImages, CachedImages]
    assert any(path.name.startswith(f"{SIZE}px-") for path in folder.iterdir())
    finish(tmp_path)
    assert not folder.exists()


class Clock:
    """Time that passes by so many seconds each time it is asked for."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def cycle(passes, seconds_a_step, seconds, end=0.0):
    """Rates of the steps of a cycle that was planned at a second a step, and when it was over."""
    photos_at_hand, model, clock = data(), classifier(), Clock(seconds_a_step)
    model.compile(keras.optimizers.SGD())
    steps = passes * len(photos_at_hand.train)
    told = dataclasses.replace(plan(passes), tuning_seconds=float(steps), end_seconds=end)
    schedule = OneCycleInTime(0.01, plan=told, until=seconds, clock=clock, momentum=None)
    rates = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: rates.append(float(model.optimizer.learning_rate))
    )
    model.fit(photos_at_hand.train, epochs=passes, callbacks=[schedule, look], verbose=0)
    return rates, clock.now


def test_a_cycle_in_time_is_the_whole_cycle():
    in_time, _ = cycle(4, seconds_a_step=0.9, seconds=24.0)
    unlimited, _ = cycle(4, seconds_a_step=9.0, seconds=None)

    assert len(in_time) == 4 * 6
    assert in_time == unlimited


@pytest.mark.parametrize("end", [0.0, 4.0])
def test_a_cycle_that_is_late_falls_in_the_time_left(end):
    """Steps take twice as long as was planned, and so will what comes after them."""
    rates, now = cycle(4, seconds_a_step=2.0, seconds=30.0, end=end)

    assert 26 <= now + 2 * end <= 34
    assert max(rates) > 0.005
    assert rates[-1] < 0.1 * max(rates)


def test_a_size_that_there_is_no_time_for_is_left_out(monkeypatch):
    monkeypatch.setattr("kclf.recipe.best._too_late", lambda *times: True)
    sizes = (SIZE, 2 * SIZE)

    found = fit_best(classifier(), data(), plan=plan(0, sizes=sizes, minutes=1.0), **SILENT)

    assert found.model.size == SIZE
    assert not too_late(SIZE, SIZE, time.monotonic(), None)
    assert too_late(SIZE, 2 * SIZE, time.monotonic() - 1, time.monotonic() + 5)
    assert not too_late(SIZE, 2 * SIZE, time.monotonic() - 1, time.monotonic() + 20)


def test_a_kept_plan_is_taken_again(tmp_path):
    file = tmp_path / "plan.json"
    first = plan_best(classifier(), data(), minutes=1, file=file)

    assert plan_best(classifier(), data(), effort="quick", file=file) == first


# ---- what is kept ------------------------------------------------------------


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_the_model_is_the_better_one(task):
    model, photos_at_hand = classifier(task, augmentation=kclf.aug_transforms(size=SIZE)), data(task)

    found = fit_best(model, photos_at_hand, plan=plan(), **SILENT)

    now = kclf.predict(model, photos_at_hand.valid)
    np.testing.assert_allclose(now.probabilities, found.predictions.probabilities, rtol=1e-4, atol=1e-6)
    model.decision = None
    plain = kclf.predict(model, photos_at_hand.valid).probabilities
    assert plain == pytest.approx(found.comparison.kept.probabilities, rel=1e-4, abs=1e-6)
    assert found.kept == ("tuned" if found.comparison.choice else "probe")
    assert "by tuning" in str(found)
    assert "On new photos" in str(found)


def test_a_tuning_that_does_harm_is_undone():
    model, photos_at_hand = classifier(), data()
    solved = []

    found = fit_best(
        model,
        photos_at_hand,
        plan=plan(body_rate=1.0, head_rate=1.0),
        keep=lambda model: solved.append(weights(model)),
        **SILENT,
    )

    assert found.kept == "probe"
    assert equal(weights(model), solved[0])


@pytest.mark.parametrize("stopped", [RunStopped("Stopped.", 2), KeyboardInterrupt(), NotFiniteError("NaN")])
def test_what_ends_the_tuning_early_leaves_the_better_one(stopped):
    model, photos_at_hand = classifier(), data()
    solved = []

    def fit(train, passes, schedule):
        for variable in model.head.variables:
            variable.assign(variable.value * 0 + 3)
        raise stopped

    with pytest.raises(type(stopped)):
        fit_best(
            model,
            photos_at_hand,
            plan=plan(),
            fit=fit,
            keep=lambda model: solved.append(weights(model)),
            **SILENT,
        )

    assert equal(weights(model), solved[0])


def test_tuning_begins_at_the_solved_classifier():
    """The head's norm keeps the statistics that the last layer was solved with, in training too."""
    model, photos_at_hand = classifier(dropout=0.0), data()

    found = fit_best(model, photos_at_hand, plan=plan(body_rate=1e-12, head_rate=1e-12), **SILENT)

    before, after = found.comparison.probe.probabilities, found.comparison.readings[SIZE].probabilities
    assert after == pytest.approx(before, abs=1e-5)
    assert model.head.get_layer("norm").trainable


def test_photos_are_held_apart_where_none_are():
    train = photos(num_photos=60, shuffle=True)

    found = fit_best(classifier(), ImageData(train, size=SIZE), plan=plan(), **SILENT)

    assert len(found.comparison.probe) == 12
    assert found.predictions is None
    assert len(found.estimate) == 48


# ---- once more on everything ------------------------------------------------------------


def test_the_solved_classifier_is_refitted_as_it_was_chosen():
    model, other, alone = alike = [classifier() for _ in range(3)]
    for copy in alike:
        copy.backbone.set_weights(model.backbone.get_weights())
    photos_at_hand = data()
    once = fit_best(other, photos_at_hand, plan=plan(0), **SILENT)

    found = fit_best(model, photos_at_hand, plan=plan(0, refit=True), **SILENT)

    everything = on_everything(photos_at_hand)
    fit_linear_probe(alone, everything, strength=once.probe.strength)
    assert found.refitted_on == everything.train.num_images == 96
    ours, theirs = (model.predict(photos_at_hand.valid, verbose=0) for model in (model, alone))
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert model.decision == once.model.decision
    assert found.predictions.probabilities == pytest.approx(once.predictions.probabilities, abs=1e-6)
    assert "Trained again on all 96 photos" in str(found)


def test_the_tuned_classifier_is_tuned_again_from_the_beginning(monkeypatch):
    monkeypatch.setattr(Comparison, "choice", SIZE)
    model, fits = classifier(), []
    body = weights(model.backbone)

    def fit(photos, passes, schedule):
        fits.append((photos.train.num_images, passes, equal(weights(model.backbone), body)))
        model.backbone.variables[0].assign_add(model.backbone.variables[0] * 0 + len(fits))

    found = fit_best(model, data(), plan=plan(refit=True), fit=fit, **SILENT)

    assert fits == [(48, 2, True), (96, 2, True)]
    assert found.refitted_on == 96
    assert equal(weights(model.backbone)[:1], [body[0] + 2])


def test_a_refit_that_is_stopped_leaves_what_was_chosen(monkeypatch):
    monkeypatch.setattr(Comparison, "choice", SIZE)
    model, chosen = classifier(), []

    def fit(photos, passes, schedule):
        if photos.train.num_images == 96:
            chosen.append(model.decision)
            raise RunStopped("Stopped.", 2)
        model.backbone.variables[0].assign_add(model.backbone.variables[0] * 0 + 1)

    kept = []
    options = {"fit": fit, "keep": lambda model: kept.append(weights(model))}
    with pytest.raises(RunStopped):
        fit_best(model, data(), plan=plan(refit=True), **options, **SILENT)

    assert equal(weights(model), kept[-1])
    assert model.decision is not None


@pytest.mark.parametrize(
    "stop_at",
    [pytest.param(10, id="in the tuning", marks=pytest.mark.heavy), pytest.param(26, id="in the refit")],
)
def test_a_run_that_is_cut_off_resumes_bit_for_bit(stop_at, tmp_path, monkeypatch):
    monkeypatch.setattr(Comparison, "choice", SIZE)

    def trained(folder, stop_at=None):
        steps = count(1)

        def stop(batch, logs):
            if next(steps) == stop_at:
                raise KeyboardInterrupt

        keras.utils.set_random_seed(3)
        model = classifier(augmentation=kclf.aug_transforms(size=SIZE))
        learner = kclf.Learner(data(), model, path=folder, verbose=False)
        look = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
        learner.fit_best(plan=plan(3, refit=True), callbacks=[look], resume=True)
        return weights(learner.model)

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", stop_at)

    assert equal(trained(tmp_path / "cut"), whole)


def test_the_images_of_several_sources():
    first, second = (np.full((2, 4 + n, 4, 3), 10 * n, np.uint8) for n in (1, 2))
    joined = JoinedImages([ArrayImages(first), ArrayImages(second)])

    assert [int(joined[i].mean()) for i in range(4)] == [10, 10, 20, 20]
    assert joined.take(np.array([3, 0])).frame(0, 4).mean() == 20
    other = JoinedImages([ArrayImages(first), ArrayImages(second + 1)])
    model = classifier()
    keys = {
        activation_key(model, kclf.ImageDataset(source, class_names=NAMES, presize=4))
        for source in (joined, other, joined.take(np.array([0, 1, 3, 2])))
    }
    assert len(keys) == 3


# ---- the size that photos are read at ------------------------------------------------------------


def reading(losses):
    """A reading whose held-out photos, of class 0, have these log losses."""
    likely = np.exp(-np.asarray(losses))
    held_out = Predictions(np.stack([likely, 1 - likely], axis=1), np.zeros(len(losses), int))
    return Reading(None, None, dataclasses.replace(PROBE, held_out=held_out))


PROBE = LinearProbe(*[np.zeros(1)] * 7)


def test_a_larger_size_is_taken_where_folds_speak_for_it():
    rng = np.random.default_rng(0)
    small = rng.uniform(0.5, 1, 50)
    first, a_little_better = reading(small), reading(small - rng.normal(0.005, 0.1, 50))
    worse, better = reading(small + 0.2), reading(small - 0.2)

    assert choose_reading([first, better]) is better
    assert choose_reading([first, a_little_better]) is first
    assert choose_reading([first, worse]) is first
    assert choose_reading([first, better, reading(small - 0.2)]) is better
    assert choose_reading([first, worse, better]) is better
    assert choose_reading([first, Reading(None, None, PROBE)]) is first


def test_a_classifier_that_reads_larger_is_another_model():
    model, photos_at_hand = classifier(augmentation=kclf.aug_transforms(size=SIZE)), data()

    found = fit_best(model, photos_at_hand, plan=plan(sizes=(SIZE, 2 * SIZE)), **SILENT)

    assert model.size == SIZE
    assert found.model.size in (SIZE, 2 * SIZE)
    assert set(found.comparison.readings) <= {SIZE, 2 * SIZE}


# ---- the estimate ------------------------------------------------------------


def test_the_estimate_is_cross_fitted():
    """Between two coin tossers, choosing on all photos looks better than it is; cross-fitting less so."""
    rng, gains = np.random.default_rng(0), []
    for _ in range(200):
        labels = rng.integers(0, 2, 40)
        first, second = (
            Predictions(np.stack([p, 1 - p], axis=1), labels) for p in rng.uniform(0.2, 0.8, (2, 40))
        )
        comparison = Comparison(first, {32: second})
        chosen = first if comparison.choose(np.arange(40)) is None else second
        gains.append((comparison.cross_fitted.log_loss(), chosen.log_loss(), comparison.tuned_is_better))
    cross_fitted, naive, kept = np.mean(gains, axis=0)
    assert naive < cross_fitted - 0.01
    assert kept < 0.35  # a choice that does not hold on the other half is not made


def test_a_learner_and_a_script_train_alike(tmp_path):
    both = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        both.append((classifier(dropout=0.0), data()))
    learner = kclf.Learner(both[0][1], both[0][0], path=tmp_path, verbose=False)

    ours = learner.fit_best(plan=plan())
    theirs = fit_best(both[1][0], both[1][1], plan=plan(), **SILENT)

    assert ours.comparison.readings[SIZE].probabilities == pytest.approx(
        theirs.comparison.readings[SIZE].probabilities, abs=1e-4
    )
    assert learner.data is both[0][1]
