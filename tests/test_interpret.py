"""Interpretation: figures against known ones, promises kept on photos not seen, plots."""

from __future__ import annotations

import math
import resource
import sys
import time

import keras
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from PIL import Image

from kclf.interpret import ConfusionMatrix, Interpretation, compare, grad_cam, wilson_interval
from kclf.interpret.statistics import compare_answers
from kclf.metrics import log_loss
from kclf.prediction.ensembles import EnsembleTable
from kclf.prediction.predictions import Predictions

PETS = ["Birman", "Ragdoll", "Siamese", "beagle", "boxer"]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def interpretation(probabilities, labels, class_names, paths=None) -> Interpretation:
    return Interpretation(Predictions(probabilities, labels, paths, class_names))


def simulated(photos: int, classes: int, *, seed: int = 0, sharpness: float = 1.0, signal: float = 4.0):
    """Photos whose logits, at sharpness 1, are exactly calibrated; above 1 the model is too sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(photos, classes)) * signal
    cumulative = softmax(logits).astype(np.float64).cumsum(axis=1)
    labels = (rng.random((photos, 1)) * cumulative[:, -1:] > cumulative).sum(axis=1)
    names = [f"class {number}" for number in range(classes)]
    return interpretation(softmax(logits * sharpness), labels, names)


@pytest.fixture
def pets_answers() -> Interpretation:
    """Five photos of each of five breeds; two Birmans and one Ragdoll are taken for one another."""
    labels = np.repeat(np.arange(5), 5)
    predicted = labels.copy()
    predicted[[0, 1]], predicted[5] = 1, 0
    probabilities = np.full((25, 5), 0.05, np.float32)
    probabilities[np.arange(25), predicted] = 0.8
    probabilities[1, 1], probabilities[1, 2] = 0.7, 0.15
    return interpretation(probabilities, labels, PETS, np.array([f"{n}.jpg" for n in range(25)]))


def test_wilson_interval_of_the_literature():
    # Newcombe (1998), table I: 81 of 263 and 15 of 148.
    assert wilson_interval(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148)[1:] == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_an_interval_of_nothing_says_nothing():
    nothing = wilson_interval(0, 0)
    assert math.isnan(nothing.value)
    assert nothing[1:] == (0, 1)


def test_wilson_interval_and_mcnemar_are_scipys():
    for hits, trials in ((0, 7), (3, 10), (1984, 2000), (25, 25)):
        theirs = scipy.stats.binomtest(hits, trials).proportion_ci(0.95, "wilson")
        assert wilson_interval(hits, trials)[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    first, second = np.arange(40) < 22, np.arange(40) > 6
    apart = scipy.stats.binomtest(7, 25).pvalue
    assert compare_answers(first, second).p_value == pytest.approx(apart, abs=1e-9)


def test_accuracy_has_its_interval(pets_answers):
    assert pets_answers.accuracy == wilson_interval(22, 25)


def test_confusion_matrix_is_scikit_learns(pets_answers):
    expected = sklearn.metrics.confusion_matrix(pets_answers.labels, pets_answers.predicted)
    np.testing.assert_array_equal(pets_answers.confusion_matrix().counts, expected)


def test_most_confused_counts_descend_from_min_val(pets_answers):
    assert pets_answers.most_confused() == [("Birman", "Ragdoll", 2), ("Ragdoll", "Birman", 1)]
    assert pets_answers.most_confused(min_val=2) == [("Birman", "Ragdoll", 2)]


def test_class_scores_are_scikit_learns():
    answers = simulated(500, 6, signal=1.5)
    expected = sklearn.metrics.precision_recall_fscore_support(answers.labels, answers.predicted)
    scores = answers.class_scores()
    for place, name in enumerate(("precision", "recall", "f1")):
        np.testing.assert_allclose([getattr(s, name).value for s in scores], expected[place])
    assert all(s.f1.low < s.f1.value < s.f1.high for s in scores)
    assert "class 3" in str(scores)


def test_a_class_never_named_has_no_precision():
    answers = interpretation(np.array([[1, 0], [1, 0]], np.float32), np.array([0, 1]), ["cat", "dog"])
    assert math.isnan(answers.class_scores()[1].precision.value)


def test_every_log_loss_has_the_same_floor():
    """A photo given the probability 0 for its class costs the same wherever it is counted."""
    probabilities, labels = np.array([[1.0, 0.0], [1.0, 1e-20], [0.0, 1.0]]), np.array([1, 1, 1])
    predictions = Predictions(probabilities, labels, class_names=["cat", "dog"])
    answers = Interpretation(predictions)
    expected = 2 / 3 * -math.log(np.finfo(np.float32).eps)
    assert predictions.log_loss() == pytest.approx(expected)
    assert answers.losses.mean() == pytest.approx(expected)
    assert log_loss(labels, probabilities) == pytest.approx(expected)
    assert EnsembleTable.of({"only": predictions}, base="only").rows[0].log_loss == pytest.approx(expected)
    assert [answer.index for answer in answers.top_losses(3)] == [0, 1, 2]  # told apart below the floor too


def test_top_losses_are_the_largest_losses(pets_answers):
    assert [answer.index for answer in pets_answers.top_losses(3)] == [0, 1, 5]
    assert pets_answers.top_losses(1)[0].loss == pytest.approx(-math.log(0.05))
    assert pets_answers.top_losses(2, largest=False)[0].is_right


def test_galleries_choose_what_they_say(pets_answers):
    assert [a.index for a in pets_answers.most_wrong()] == [0, 5, 1]
    assert [a.actual for a in pets_answers.most_right(9, "boxer")] == ["boxer"] * 5
    assert pets_answers.most_uncertain(1)[0].index == 1
    assert [a.index for a in pets_answers.confused("Birman", "Ragdoll")] == [0, 1]
    assert "Ragdoll 0.80 / Birman 0.05  0.jpg" in str(pets_answers.most_wrong())


def test_a_probability_of_zero_has_a_finite_loss():
    answers = interpretation(np.array([[1, 0]], np.float32), np.array([1]), ["cat", "dog"])
    assert np.isfinite(answers.losses).all()


def test_calibrated_probabilities_have_no_calibration_error():
    assert simulated(20_000, 5).calibration().error < 0.01


def test_calibration_bins_hold_every_photo():
    reliability = simulated(1000, 5).calibration(bins=10)
    assert reliability.count.sum() == 1000
    assert all(0 <= i.low <= i.high <= 1 for i in reliability.intervals())


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
def test_temperature_finds_how_much_too_sure_a_model_is(sharpness):
    assert simulated(20_000, 10, sharpness=sharpness).fit_temperature() == pytest.approx(sharpness, rel=0.04)


def test_temperature_is_bounded_where_every_answer_is_right():
    answers = interpretation(softmax(np.eye(4) * 3), np.arange(4), list("abcd"))
    assert 0.05 <= answers.fit_temperature() < 0.2


def test_temperature_lowers_calibration_error_on_the_half_it_has_not_seen():
    answers = simulated(2000, 5, sharpness=2.5)
    seen, unseen = halves(answers)
    cooled = unseen.with_temperature(seen.fit_temperature())
    assert cooled.calibration().error < unseen.calibration().error / 2
    np.testing.assert_array_equal(cooled.predicted, unseen.predicted)


def halves(answers: Interpretation, seed: int = 0) -> tuple[Interpretation, Interpretation]:
    order = np.random.default_rng(seed).permutation(len(answers))
    return tuple(
        interpretation(answers.probabilities[half], answers.labels[half], answers.class_names)
        for half in np.array_split(order, 2)
    )


def test_abstention_keeps_its_promise_on_photos_it_has_not_seen():
    """Over 40 splits, the precision on the other half lies below the promise no more often than promised."""
    answers = simulated(8000, 5, signal=6)
    broken = 0
    for seed in range(40):
        seen, unseen = halves(answers, seed)
        rule = seen.abstain(0.99)
        answered = unseen.confidence >= rule.threshold
        truth = wilson_interval(int(unseen.right[answered].sum()), int(answered.sum()))
        assert rule.guaranteed
        assert truth.high >= 0.99
        broken += truth.value < 0.99
    assert broken <= 6


def test_abstention_says_when_photos_are_too_few():
    few = interpretation(softmax(np.eye(3) * 9), np.arange(3), list("abc"))
    rule = few.abstain(0.99)
    assert not rule.guaranteed
    assert rule.answered.value == 1
    assert "Too few photos" in str(rule)


def test_abstention_answers_nothing_where_nothing_is_right():
    wrong = interpretation(np.array([[0.9, 0.1]], np.float32), np.array([1]), ["cat", "dog"])
    assert wrong.abstain(0.9).threshold == math.inf
    assert "never answer" in str(wrong.abstain(0.9))


def test_photos_of_one_probability_are_answered_together():
    confidence = np.full((400, 2), 0.5, np.float32)
    tied = interpretation(confidence, np.r_[np.zeros(200, int), np.ones(200, int)], ["cat", "dog"])
    assert tied.abstain(0.9).threshold == math.inf


def test_mcnemar_is_the_exact_binomial():
    first, second = np.zeros(40, bool), np.zeros(40, bool)
    first[:3], second[3:15] = True, True
    result = compare_answers(first, second)
    assert (result.only_first, result.only_second) == (3, 12)
    assert result.p_value == pytest.approx(2 * (1 + 15 + 105 + 455) / 2**15)
    assert not result.is_noise
    assert result.difference.low > 0


def test_992_against_991_on_2000_photos_is_noise():
    labels = np.zeros(2000, int)
    probabilities = np.tile(np.array([0.9, 0.1], np.float32), (2000, 1))
    first, second = probabilities.copy(), probabilities.copy()
    first[:16] = first[:16, ::-1]
    second[8:26] = second[8:26, ::-1]
    result = compare(*(interpretation(p, labels, ["cat", "dog"]) for p in (first, second)))
    assert result.is_noise
    assert ".9920 against .9910 on 2,000 photos" in str(result)
    assert "may well be chance" in str(result)


def test_only_answers_to_the_same_photos_are_compared(pets_answers):
    other = interpretation(pets_answers.probabilities, pets_answers.labels[::-1], PETS)
    with pytest.raises(ValueError, match="same photos"):
        compare(pets_answers, other)


def test_predictions_are_taken_as_they_are(pets_answers):
    predictions = Predictions(
        probabilities=pets_answers.probabilities,
        labels=pets_answers.labels,
        paths=pets_answers.paths,
        class_names=PETS,
    )
    assert Interpretation(predictions).accuracy == pets_answers.accuracy


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (None, "single_label", "labels=None"),
        (np.zeros((2, 2), np.float32), "multi_label", "multi_label"),
    ],
)
def test_predictions_without_one_label_a_photo_are_refused(labels, task, message):
    predictions = Predictions(np.full((2, 2), 0.5, np.float32), labels, class_names=["a", "b"], task=task)
    with pytest.raises(ValueError, match=message):
        Interpretation(predictions)


@pytest.mark.parametrize(
    ("probabilities", "labels", "paths", "message"),
    [
        (np.zeros((3, 2)), np.zeros(2, int), None, "2 labels"),
        (np.zeros((2, 3)), np.zeros(2, int), None, "2 class_names"),
        (np.zeros((2, 2)), np.array([0, 2]), None, "from 0 to 2"),
        (np.zeros((2, 2)), np.array([0, 1]), np.array(["a.jpg"]), "1 paths"),
    ],
)
def test_what_does_not_fit_together_is_refused(probabilities, labels, paths, message):
    with pytest.raises(ValueError, match=message):
        interpretation(probabilities, labels, ["cat", "dog"], paths)


def test_order_by_confusion_puts_confused_classes_side_by_side():
    counts = np.diag([9] * 6)
    counts[0, 4], counts[5, 1], counts[1, 3] = 3, 2, 1
    names = ConfusionMatrix(counts, list("abcdef")).ordered("confusion").class_names
    assert abs(names.index("a") - names.index("e")) == 1
    assert abs(names.index("f") - names.index("b")) == 1
    assert abs(names.index("b") - names.index("d")) == 1
    assert names[-1] == "c"


@pytest.mark.parametrize("order", ["given", "confusion", "accuracy"])
def test_every_order_keeps_every_count(order):
    counts = np.random.default_rng(0).integers(0, 9, (7, 7))
    matrix = ConfusionMatrix(counts, list("abcdefg"))
    ordered = matrix.ordered(order)
    places = [matrix.class_names.index(name) for name in ordered.class_names]
    assert sorted(places) == list(range(7))
    np.testing.assert_array_equal(ordered.counts, counts[np.ix_(places, places)])


def test_an_unknown_order_is_refused():
    matrix = ConfusionMatrix(np.eye(2, dtype=int), ["a", "b"])
    with pytest.raises(ValueError, match="order='alphabet'"):
        matrix.ordered("alphabet")


def test_worst_block_holds_the_most_confused():
    counts = np.diag([9] * 6)
    counts[0, 4], counts[5, 1], counts[1, 3] = 1, 4, 2
    assert set(ConfusionMatrix(counts, list("abcdef")).worst(3).class_names) == {"b", "d", "f"}
    assert len(ConfusionMatrix(counts, list("abcdef")).worst(99).class_names) == 6


@pytest.mark.parametrize("normalize", [False, True])
def test_confusion_plot_draws_on_the_axes_given(pets_answers, normalize):
    from matplotlib import pyplot

    figure, ax = pyplot.subplots()
    drawn = pets_answers.plot_confusion_matrix(ax, normalize=normalize)
    texts = {text.get_text() for text in ax.texts}
    pyplot.close(figure)
    assert drawn.ax_ is ax
    assert (".40" if normalize else "2") in texts
    assert ax.get_title() == "3 errors in 25 photos"


def test_plots_draw(pets_answers, tmp_path):
    from matplotlib import pyplot

    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    paths = np.array([str(tmp_path / "photo.png")] * 24 + [str(tmp_path / "gone.png")])
    answers = interpretation(pets_answers.probabilities, pets_answers.labels, PETS, paths)
    reliability, gallery = answers.calibration().plot(), answers.top_losses(25).plot()
    for figure in (reliability.figure_, gallery.figure_):
        figure.canvas.draw()
    assert "no such file" in {text.get_text() for ax in gallery.axes_ for text in ax.texts}
    pyplot.close("all")


def test_answers_that_are_no_numbers_are_refused():
    probabilities = np.array([[0.5, 0.5], [np.nan, np.nan]])
    with pytest.raises(ValueError, match="NaN for 1 of 2"):
        interpretation(probabilities, np.array([0, 1]), ["cat", "dog"])


def test_names_with_dollars_are_drawn_as_they_are(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    names = ["$x_$", "US$ to $^"]
    paths = np.array([str(tmp_path / "photo.png")] * 2)
    answers = interpretation(np.eye(2), np.array([1, 0]), names, paths)
    answers.top_losses(2).plot().figure_.canvas.draw()
    answers.plot_confusion_matrix().figure_.canvas.draw()


def test_images_in_memory_are_drawn_from_memory():
    from matplotlib import pyplot

    images = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    answers = interpretation(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]), ["cat", "dog"])

    gallery = answers.top_losses(2)
    with pytest.raises(ValueError, match=r"images=data\.valid\.dataset"):
        gallery.plot()
    drawn = gallery.plot(images=images).axes_

    assert np.array_equal(drawn[0].images[0].get_array(), images[1])
    assert np.array_equal(drawn[1].images[0].get_array(), images[0])
    pyplot.close("all")


class TinyClassifier(keras.Model):
    """The parts of an ImageClassifier: logit 0 sees red, logit 1 sees blue, in cells of 8 pixels."""

    def __init__(self):
        super().__init__()
        self.augmentation = keras.layers.Identity()
        self.normalization = keras.layers.Rescaling(1 / 255)
        self.backbone = keras.layers.AveragePooling2D(8)
        self.head = keras.Sequential(
            [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, use_bias=False)]
        )
        self(keras.ops.zeros((1, 32, 32, 3)))
        self.head.layers[-1].kernel.assign(np.array([[1, 0], [0, 0], [0, 1]], np.float32))

    def features(self, x):
        return self.backbone(self.normalization(self.augmentation(x)))

    def call(self, x):
        return self.head(self.features(x))


def test_grad_cam_points_at_what_the_class_is():
    photo = np.zeros((1, 32, 32, 3), np.uint8)
    photo[0, :8, :8, 0], photo[0, 24:, 24:, 2] = 255, 200
    model = TinyClassifier()
    red, blue = (grad_cam(model, photo, np.array([label])).maps[0] for label in (0, 1))
    assert np.unravel_index(red.argmax(), red.shape) == (0, 0)
    assert np.unravel_index(blue.argmax(), blue.shape) == (3, 3)
    assert red.max() == blue.max() == 1


def test_grad_cam_explains_the_prediction_and_leaves_no_trace():
    photo = np.zeros((2, 32, 32, 3), np.uint8)
    photo[0, :8, :8, 0], photo[1, 24:, 24:, 2] = 255, 255
    model = TinyClassifier()
    result = grad_cam(model, photo)
    assert result.classes.tolist() == [0, 1]
    assert all(variable.value.grad is None for variable in model.trainable_variables)
    np.testing.assert_array_equal(result.images, photo)
    assert result.plot().figure_ is not None


def test_fifty_thousand_predictions_in_ten_seconds_and_one_gigabyte():
    probabilities = softmax(np.random.default_rng(0).normal(size=(50_000, 120)).astype(np.float32) * 3)
    labels = probabilities.argmax(axis=1)
    labels[::7] = (labels[::7] + 1) % 120
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = interpretation(probabilities, labels, [f"class {n}" for n in range(120)])
    answers.summary()
    answers.class_scores()
    answers.confusion_matrix().ordered().worst()
    answers.top_losses(100)
    kibibytes = 1 if sys.platform != "darwin" else 1 / 1024
    assert time.process_time() - start < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * kibibytes < 2**20
