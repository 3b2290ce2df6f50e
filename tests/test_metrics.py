"""Metrics and losses: figures, kinds of input, and what they refuse."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss

from kclf.losses import CrossEntropy
from kclf.metrics import ErrorRate, LabelAccuracy, accuracy, accuracy_multi, error_rate, log_loss

SCORES = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.5, 0.3, 0.2]], dtype="float32")
LABELS = np.array([0, 2, 0, 1])
KINDS = {
    "numpy": lambda a: a,
    "float64": lambda a: a.astype("float64") if a.dtype.kind == "f" else a,
    "torch": torch.from_numpy,
    "torch with gradient": lambda a: torch.from_numpy(a).requires_grad_(a.dtype.kind == "f"),
    "keras": lambda a: keras.ops.convert_to_tensor(a),
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_take_any_kind_of_array(kind):
    scores, labels = KINDS[kind](SCORES), KINDS[kind](LABELS)
    assert accuracy(scores, labels) == 0.5
    assert error_rate(scores, labels) == 0.5
    assert log_loss(labels, scores) == pytest.approx(sklearn_log_loss(LABELS, SCORES), rel=1e-6)


def test_accuracy_needs_only_the_order():
    assert accuracy(np.log(SCORES), LABELS) == accuracy(SCORES, LABELS)


def test_half_precision_scores():
    assert accuracy(torch.from_numpy(SCORES).bfloat16(), LABELS) == 0.5


def test_accuracy_multi_counts_every_answer():
    assert accuracy_multi(SCORES > 0.25, SCORES > 0.35) == pytest.approx(9 / 12)
    logits = np.log(SCORES / (1 - SCORES))
    assert accuracy_multi(logits, SCORES > 0.5, threshold=0.0) == accuracy_multi(SCORES, SCORES > 0.5)


def test_log_loss_of_certain_error_is_finite():
    assert log_loss([0], [[0.0, 1.0]]) == pytest.approx(15.94, abs=0.01)


@pytest.mark.parametrize(
    ("metric", "arguments", "message"),
    [
        (accuracy, (LABELS, SCORES), r"scores of shape \(4,\)"),
        (accuracy, (SCORES, LABELS[:3]), r"labels of shape \(3,\)"),
        (accuracy, (SCORES[:0], LABELS[:0]), "n >= 1"),
        (accuracy, (SCORES, LABELS + 1), "labels from 1 to 3"),
        (accuracy, (SCORES, LABELS + 0.5), "whole labels"),
        (accuracy_multi, (SCORES, LABELS), r"labels.shape=\(4,\)"),
        (log_loss, (LABELS, np.log(SCORES)), "np.exp"),
        (log_loss, (SCORES, LABELS), r"labels of shape \(4, 3\)"),
    ],
)
def test_metrics_refuse_what_does_not_go_together(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric(*arguments)


def test_cross_entropy_gives_the_figures_of_the_book():
    """The table of fastbook chapter 5: six photos, two classes, made from one column of scores each."""
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    labels = np.array([0, 1, 0, 1, 2, 0])
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(CrossEntropy()(labels, logits)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_torch(smoothing):
    logits = torch.randn(8, 5)
    labels = torch.randint(0, 5, (8,))
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert float(CrossEntropy(smoothing)(labels, logits)) == pytest.approx(float(expected), rel=1e-5)


def test_focal_factor():
    logits, labels = torch.randn(8, 5), torch.randint(0, 5, (8,))
    p = torch.softmax(logits, -1)[torch.arange(8), labels]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    assert float(CrossEntropy(focal_gamma=2.0)(labels, logits)) == pytest.approx(float(expected), rel=1e-5)


def test_mixed_labels_are_the_mean_of_two_losses():
    logits = torch.randn(4, 3)
    first, second = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    mixed = 0.3 * torch.eye(3)[first] + 0.7 * torch.eye(3)[second]
    loss = CrossEntropy()
    apart = 0.3 * loss(first, logits) + 0.7 * loss(second, logits)
    assert float(loss(mixed, logits)) == pytest.approx(float(apart), rel=1e-5)


def test_loss_and_metric_survive_saving():
    loss = keras.losses.deserialize(keras.losses.serialize(CrossEntropy(0.1, 2.0)))
    assert (loss.label_smoothing, loss.focal_gamma) == (0.1, 2.0)
    for metric in (LabelAccuracy(), ErrorRate()):
        assert keras.metrics.deserialize(keras.metrics.serialize(metric)).name == metric.name


@pytest.mark.parametrize("labels", [LABELS, np.eye(3, dtype="float32")[LABELS]], ids=["whole", "mixed"])
def test_metrics_while_training_equal_those_afterwards(labels):
    for metric, figure in ((LabelAccuracy(), accuracy), (ErrorRate(), error_rate)):
        metric.update_state(labels, SCORES)
        assert float(metric.result()) == pytest.approx(figure(SCORES, LABELS))


@pytest.mark.parametrize("arguments", [{"label_smoothing": 1.0}, {"focal_gamma": -1}])
def test_losses_refuse_impossible_settings(arguments):
    with pytest.raises(ValueError, match=f"Received: {next(iter(arguments))}"):
        CrossEntropy(**arguments)
