"""Several labels a photo, and numbers: interpretation, report and table, by values."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from kclf.data.decision import Decision
from kclf.interpret import (
    Interpretation,
    MultiLabelInterpretation,
    RegressionInterpretation,
    interpretation_of,
)
from kclf.metrics import best_thresholds
from kclf.prediction.predictions import Predictions
from kclf.report import ReportInputs, read_run, write_report

NAMES = ["beach", "dog", "sun", "snow"]


def several(photos: int = 60, *, paths: bool = False, seed: int = 0) -> Predictions:
    """Predictions with a signal; no photo has the last label."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((photos, 4)) < 0.4).astype(np.float32)
    labels[:, 3] = 0
    said = 1 / (1 + np.exp(-(2 * labels - 1.5 + rng.normal(size=labels.shape))))
    files = np.array([f"{n}.png" for n in range(photos)]) if paths else None
    return Predictions(said.astype(np.float32), labels, files, NAMES, "multi_label")


def numbers(photos: int = 50) -> Predictions:
    rng = np.random.default_rng(1)
    true = rng.uniform(0, 90, photos)
    said = (true + rng.normal(2, 5, photos))[:, None]
    return Predictions(said, true, None, ["age"], "regression")


def test_scores_of_labels_are_scikit_learns():
    found = several()
    answers = MultiLabelInterpretation(found)
    labels, given = found.labels.astype(int), (found.probabilities > 0.5).astype(int)

    table = answers.class_scores()

    for column, score in enumerate(table):
        expected = sklearn.metrics.precision_recall_fscore_support(
            labels[:, column], given[:, column], average="binary", zero_division=np.nan
        )
        got = (score.precision.value, score.recall.value, score.f1.value)
        assert got[:2] == pytest.approx(expected[:2], nan_ok=True)
        assert got[2] == pytest.approx(expected[2] if labels[:, column].any() else 0.0)
    some = [score.average_precision for score in table[:3]]
    assert some == pytest.approx(
        [sklearn.metrics.average_precision_score(labels[:, n], found.probabilities[:, n]) for n in range(3)]
    )
    assert np.isnan(table[3].average_precision)
    assert answers.mean_average_precision == pytest.approx(np.mean(some))
    assert answers.f1("micro") == pytest.approx(sklearn.metrics.f1_score(labels, given, average="micro"))
    assert answers.f1() == pytest.approx(sklearn.metrics.f1_score(labels, given, average="macro"))
    assert answers.exact.value == sklearn.metrics.accuracy_score(labels, given)


def test_the_best_thresholds_have_the_highest_f1_there_is():
    answers = MultiLabelInterpretation(several())
    best = answers.with_thresholds(answers.best_thresholds())
    for column in range(3):
        p, has = answers.probabilities[:, column], answers.labels[:, column]
        reachable = [sklearn.metrics.f1_score(has, p > cut) for cut in [0.0, *np.unique(p)]]
        assert best.class_scores()[column].f1.value == pytest.approx(max(reachable))
    assert best.f1() > answers.f1()
    assert best.thresholds[3] == 0.5
    assert best.best_thresholds().tolist() == best.thresholds.tolist()


def test_few_photos_with_a_label_leave_its_threshold():
    labels = np.array([[1], [0], [0]] * 3)
    assert best_thresholds(np.array([[0.3], [0.2], [0.1]] * 3), labels).tolist() == [0.5]


def test_kept_thresholds_are_used():
    found = several()
    kept = Predictions(
        found.probabilities,
        found.labels,
        None,
        NAMES,
        "multi_label",
        decision=Decision(thresholds=(0.9,) * 4),
    )
    answers = MultiLabelInterpretation(kept)
    assert answers.thresholds.tolist() == [0.9] * 4
    assert answers.predicted.sum() == (found.probabilities > 0.9).sum()
    assert "  0.90  " in str(answers.class_scores())


def test_worst_photos_of_several_labels():
    said = np.array([[0.9, 0.2], [0.7, 0.1], [0.2, 0.95]], np.float32)
    has = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    answers = MultiLabelInterpretation(Predictions(said, has, None, ["sky", "sea"], "multi_label"))

    worst = answers.top_losses(3)

    assert [example.index for example in worst] == [1, 2, 0]
    assert (worst[0].predicted, worst[0].actual, worst[0].note) == ("sky", "sea", "sky 0.70, sea 0.10")
    assert (worst[2].is_right, worst[1].actual) == (True, "none")
    assert [example.index for example in answers.most_wrong()] == [2, 1]
    assert [example.index for example in answers.most_wrong(class_name="sky")] == [1]
    drawn = worst.plot(images=np.zeros((3, 4, 4, 3), np.uint8))
    assert [ax.title.get_color() for ax in drawn.axes_[:3]] == ["tab:red", "tab:red", "black"]


def test_plots_of_several_labels():
    answers = MultiLabelInterpretation(several())
    axes = answers.plot_precision_recall()
    assert len(axes.get_legend().get_texts()) == 3
    assert len(answers.plot_precision_recall(class_names=["dog"]).get_legend().get_texts()) == 1
    assert answers.calibration().count.sum() == 240
    assert "mean average precision" in answers.summary()


def test_figures_of_numbers_are_scikit_learns():
    found = numbers()
    answers = RegressionInterpretation(found)
    true, said = found.labels, found.probabilities[:, 0]
    assert answers.mean_absolute_error.value == pytest.approx(sklearn.metrics.mean_absolute_error(true, said))
    assert answers.mean_absolute_error.low < answers.mean_absolute_error.value
    squared = sklearn.metrics.root_mean_squared_error(true, said)
    assert answers.root_mean_squared_error == pytest.approx(squared)
    assert answers.r_squared == pytest.approx(sklearn.metrics.r2_score(true, said))
    assert answers.bias == pytest.approx((said - true).mean())
    assert answers.within(5).value == (np.abs(said - true) <= 5).mean()
    assert str(found) == f"mean absolute error {np.abs(said - true).mean():.4g} on 50 photos"
    assert "always the median would give" in answers.summary()


def test_residuals_and_worst_photos_of_numbers():
    answers = RegressionInterpretation(numbers())
    left, right = answers.plot_residuals().axes
    assert np.array_equal(left.collections[0].get_offsets()[:, 1], answers.predicted)
    assert np.array_equal(right.collections[0].get_offsets()[:, 1], answers.residuals)
    worst = answers.top_losses(2)
    assert worst[0].loss == np.abs(answers.residuals).max()
    assert worst[0].is_right  # a number is neither right nor wrong: no title is red
    assert float(worst[0].predicted) == pytest.approx(answers.predicted[worst[0].index], rel=1e-5)


def test_several_numbers_a_photo():
    said, true = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 1.0], [3.0, 3.0]])
    answers = RegressionInterpretation(Predictions(said, true, task="regression"))
    assert answers.losses.tolist() == [0.5, 1.0]
    assert answers.within(1).value == 0.5
    assert answers.plot_residuals().axes[0].collections[0].get_offsets().shape == (4, 2)


@pytest.mark.parametrize("found", [several(), numbers()])
def test_the_kind_goes_by_the_task(found):
    answers = interpretation_of(found)
    assert answers.task == found.task
    with pytest.raises(ValueError, match=f"interpretation_of.*task='{found.task}'"):
        Interpretation(found)


@pytest.mark.parametrize("kind", ["several", "numbers"])
def test_the_report_shows_the_task(kind, tmp_path):
    found = several(paths=True) if kind == "several" else numbers()
    answers = interpretation_of(found)
    text = write_report(ReportInputs(interpretation=answers), tmp_path / "report.html").read_text()
    shown = {
        "several": ["Mean average precision", f"{answers.mean_average_precision:.4f}", "Given from"]
        if kind == "several"
        else [],
        "numbers": ["Residuals", "Mean absolute error", "R²"],
    }[kind]
    assert [word for word in shown if word not in text] == []
    assert "matrix-data" not in text


@pytest.mark.parametrize("kind", ["several", "numbers"])
def test_a_run_is_read_back_as_it_was(kind, tmp_path):
    found = several() if kind == "several" else numbers()
    found.to_csv(tmp_path / "predictions.csv")
    (tmp_path / "settings.json").write_text(json.dumps({"data": {"task": found.task}}))

    answers = read_run(tmp_path).interpretation

    assert type(answers) is type(interpretation_of(found))
    np.testing.assert_allclose(
        answers.predictions.labels.reshape(found.labels.shape), found.labels, rtol=1e-5
    )
    np.testing.assert_allclose(answers.predictions.probabilities, found.probabilities, rtol=1e-5)


def test_a_run_without_labels_has_nothing_to_interpret(tmp_path):
    Predictions(np.full((2, 2), 0.5), class_names=["a", "b"]).to_csv(tmp_path / "predictions.csv")
    (tmp_path / "settings.json").write_text("{}")
    assert read_run(tmp_path).interpretation is None


def test_photos_of_the_page_have_their_labels(tmp_path):
    for number in range(3):
        Image.new("RGB", (20, 20), "navy").save(tmp_path / f"{number}.png")
    found = Predictions(
        np.array([[0.9, 0.8], [0.2, 0.6], [0.7, 0.1]]),
        np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        np.array([str(tmp_path / f"{number}.png") for number in range(3)]),
        ["sky", "sea"],
        "multi_label",
    )
    answers = MultiLabelInterpretation(found)
    text = write_report(ReportInputs(interpretation=answers), tmp_path / "report.html").read_text()
    assert text.count("data:image/jpeg") == 3
    assert 'data-actual="sky" data-predicted="sky;sea"' in text
    assert "sea 0.80" in text
