"""Temperature, sets of classes, thresholds: found, kept in the file, applied by every prediction."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

import kclf
from kclf.cli.main import app
from kclf.data.decision import Decision
from kclf.interpret import Interpretation
from kclf.prediction import Predictions
from kclf.recipe import solve_linear_probe
from kclf.recipe.deciding import at_temperature, cross_fitted, fit_decision, fit_temperature

RNG = np.random.default_rng(0)


def drawn(n, classes=5, temperature=1.0, seed=0):
    """Predictions whose labels are drawn from their probabilities at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    truth = np.exp(logits / temperature)
    truth /= truth.sum(1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in truth])
    shown = np.exp(logits)
    return Predictions(shown / shown.sum(1, keepdims=True), labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_is_found(temperature):
    assert fit_temperature(drawn(4000, temperature=temperature)) == pytest.approx(temperature, rel=0.1)


def test_photos_that_are_all_right_do_not_ask_for_a_temperature_of_zero():
    rows = np.full((30, 2), [0.7, 0.3])
    assert 0.4 < fit_temperature(Predictions(rows, np.zeros(30, int))) < 1


def test_calibration_holds_on_other_photos():
    held_out, others = drawn(500, temperature=2), drawn(4000, temperature=2, seed=1)
    calibrated = at_temperature(others, fit_temperature(held_out))
    assert Interpretation(others).calibration().error > 0.1
    assert Interpretation(calibrated).calibration().error < 0.03
    assert cross_fitted(held_out).log_loss() < held_out.log_loss()


def over_100_splits(everything, held_out):
    """Shares of the other photos whose sets hold the right class, and errors of their calibration."""
    covered, errors = [], []
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(everything))
        decision = fit_decision(everything.take(order[:held_out]))
        others = at_temperature(everything.take(order[held_out:]), decision.temperature)
        chosen = decision.sets(others.probabilities, 0.95)
        assert chosen.any(axis=1).all()
        covered.append(chosen[np.arange(len(others)), others.labels].mean())
        errors.append(Interpretation(others).calibration().error)
    return covered, errors


def test_sets_hold_their_coverage_over_100_splits():
    covered, _ = over_100_splits(drawn(1000, temperature=1.5), 400)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.006)


def test_sets_hold_their_coverage_over_100_splits_of_real_predictions():
    """A linear probe of 100 real digits, wrong on one in seven, judged by halves of the others."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    train, rest = order[:100], order[100:1100]
    probe = solve_linear_probe(bunch.data[train].astype(np.float32), bunch.target[train])
    logits = probe.outputs(bunch.data[rest])
    shown = np.exp(logits - logits.max(1, keepdims=True))
    everything = Predictions(shown / shown.sum(1, keepdims=True), bunch.target[rest])
    assert 0.8 < everything.accuracy() < 0.93  # above .95 the likeliest class alone covers more
    covered, errors = over_100_splits(everything, 500)
    assert np.mean(covered) == pytest.approx(0.95, abs=np.std(covered))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.006)
    assert np.mean(errors) < 0.04  # of which the noise of 500 photos is most


def test_thresholds_are_those_of_each_label():
    labels = RNG.random((400, 2)) < [0.5, 0.2]
    probabilities = np.clip(0.3 * labels + 0.1 + 0.05 * RNG.normal(size=(400, 2)), 0.01, 0.99)
    held_out = Predictions(probabilities, labels.astype(float), task="multi_label")
    decision = fit_decision(held_out)
    calibrated = at_temperature(held_out, decision.temperature).probabilities
    found = Predictions(calibrated, labels.astype(float), task="multi_label", decision=decision)
    assert (found.predicted == labels).mean() > 0.95


@pytest.mark.parametrize(
    "held_out",
    [None, drawn(5), Predictions(np.ones((30, 1)), np.ones(30), task="regression")],
    ids=["none", "few", "numbers"],
)
def test_nothing_is_decided_where_nothing_can_be(held_out):
    assert fit_decision(held_out) is None


def test_sets_need_scores():
    with pytest.raises(ValueError, match="keeps no scores"):
        Decision().sets(np.ones((1, 2)) / 2, 0.9)


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": -1, "thresholds": [], "conformity": []},
        {"temperature": float("nan"), "thresholds": [], "conformity": []},
        {"temperature": 1, "thresholds": [2], "conformity": []},
        {"temperature": 1, "thresholds": [], "conformity": [0.5, 0.1]},
    ],
)
def test_a_decision_that_none_could_be_is_refused(config):
    with pytest.raises(ValueError, match="Received"):
        Decision.from_config(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier that tells red from blue photos, its file, and a folder of photos."""
    root = tmp_path_factory.mktemp("photos")
    for name, channel in (("blue", 2), ("red", 0)):
        (root / name).mkdir()
        for number in range(30):
            pixels = RNG.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += np.uint8(number % 3 * 25)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    data = kclf.ImageData.from_folder(root, size=32, batch_size=8, valid_fraction=0.4)
    model = kclf.ImageClassifier("MobileNet_025", data.class_names, size=32, weights=None, hidden=())
    kclf.fit_linear_probe(model, data)
    model.decision = fit_decision(kclf.predict(model, data.valid))
    file = root.parent / "classifier.h5"
    model.save(file)
    return model, file, root


def test_a_file_keeps_the_decision_and_predictions_apply_it(trained):
    model, file, root = trained
    again = kclf.load(file)
    assert again.decision == model.decision
    photos = sorted(root.rglob("*.png"))
    found, _ = kclf.predict_files(again, photos)
    again.decision = None
    plain, _ = kclf.predict_files(again, photos)
    expected = at_temperature(plain, model.decision.temperature).probabilities
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


def test_training_on_forgets_the_decision(trained):
    model = kclf.load(trained[1])
    model.compile()
    model.fit(np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 1, 0, 1]), verbose=0)
    assert model.decision is None


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_gives_sets_and_none_of_these(trained):
    _, file, root = trained
    assert "none of these" in run("predict", file, root / "red" / "0.png", "--threshold", 0.9999)
    assert "blue" in run("predict", file, root / "blue", "--coverage", 0.9)


def test_the_command_evaluates_on_labelled_photos(trained):
    _, file, root = trained
    said = run("evaluate", file, root)
    assert "60 photos: accuracy" in said
    assert "red" in said
    assert '"calibration_error"' in run("evaluate", file, root, "--json")


@pytest.mark.parametrize("name", ["green", ".net"])
def test_another_class_is_named(name, trained, tmp_path):
    (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    with pytest.raises(kclf.DataError, match=f"'{name}'"):
        CliRunner().invoke(app, ["evaluate", str(trained[1]), str(tmp_path)], catch_exceptions=False)
