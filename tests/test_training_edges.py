"""Idioms of the course and of Keras at the edges: long accumulation, partials, thawed backbones."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest
import torch

import kclf
from kclf.callbacks.delivered import live_batchnorms
from kclf.metrics import accuracy, accuracy_multi, log_loss
from tests.test_compile_names import SIDE, classifier, easy_photos, small_backbone


def learner(tmp_path, accumulation):
    keras.utils.set_random_seed(0)
    x, y = easy_photos()
    data = kclf.ImageData.from_arrays((x, y), (x, y), size=SIDE, batch_size=8)
    return kclf.Learner(
        data, small_backbone(), normalization="tf", hidden=(), dropout=0.0, path=tmp_path,
        gradient_accumulation=accumulation, verbose=False,
    )  # fmt: skip


def kernel_after(learn):
    learn.fit_one_cycle(1, 1e-2)
    return np.array(learn.model.head.get_layer("logits").kernel.value.detach().cpu())


def test_accumulation_longer_than_a_fit_makes_one_step_of_all_its_batches(tmp_path):
    longer = kernel_after(learner(tmp_path, 7))
    assert np.abs(longer).max() > 0
    np.testing.assert_allclose(longer, kernel_after(learner(tmp_path, 4)), atol=1e-7)  # 4 batches a fit


def test_batches_that_are_left_make_the_last_step(tmp_path):
    learn = learner(tmp_path, 3)
    kernel_after(learn)
    optimizer = learn.model.optimizer
    assert int(optimizer._update_counts.value.max()) == 2
    sums = [one.value.abs().max() for one in optimizer.inner_optimizer._accumulated_gradients]
    assert float(max(sums)) == 0.0


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
def test_epsilon_stands_where_torch_has_it(scale):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    inner = keras.optimizers.AdamW(1e-2, beta_2=0.99, epsilon=1e-5, weight_decay=0.01)
    optimizer = kclf.LayerGroupOptimizer(inner, model, torch_epsilon=True)
    optimizer.build(model.trainable_variables)
    value = model.trainable_variables[0].value
    theirs = torch.nn.Parameter(value.detach().clone())
    other = torch.optim.AdamW([theirs], 1e-2, (0.9, 0.99), eps=1e-5, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        theirs.grad = scale * torch.randn(theirs.shape, generator=generator)
        optimizer.apply([theirs.grad.clone()], model.trainable_variables)
        other.step()
        torch.testing.assert_close(value.detach(), theirs.detach(), rtol=1e-5, atol=1e-7)
    assert inner.epsilon == 1e-5
    again = kclf.LayerGroupOptimizer.from_config(optimizer.get_config())
    assert again.torch_epsilon


def test_a_partial_of_the_course_s_metric_is_that_of_the_logits():
    x, y = easy_photos(3)
    rows = np.eye(3, dtype="float32")[y]
    model = classifier(3, "multi_label")
    model.compile(keras.optimizers.SGD(0.05), metrics=[partial(accuracy_multi, threshold=0.3)])
    model.fit(x, rows, epochs=2, verbose=0)
    found = model.evaluate(x, rows, verbose=0, return_dict=True)["accuracy_multi"]
    shares = 1 / (1 + np.exp(-model.predict(x, verbose=0)))
    assert found == pytest.approx(accuracy_multi(shares, rows, 0.3), abs=1e-6)


@pytest.mark.parametrize(
    "metric", [partial(accuracy, labels=None), log_loss, partial(accuracy_multi, threshold=2.0)]
)
def test_functions_of_finished_predictions_are_refused(metric):
    with pytest.raises(ValueError, match="finished predictions"):
        classifier().compile(metrics=[metric])


def test_weights_of_another_task_are_refused(tmp_path):
    from kclf.learner.adapt import take_weights

    one, many = (
        kclf.ImageClassifier("MobileNetV2_035", ["a", "b"], size=32, weights=None, task=task)
        for task in ("single_label", "multi_label")
    )
    one.save(tmp_path / "one.h5")
    with pytest.raises(kclf.WeightsError, match="task='multi_label'"):
        take_weights(tmp_path / "one.h5", many)


def test_a_backbone_thawed_in_keras_words_keeps_its_policy():
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.BatchNormalization(name="bn")(keras.layers.Conv2D(4, 4, strides=4)(inputs))
    model = kclf.ImageClassifier(keras.Model(inputs, x), ["a", "b"], size=SIDE, normalization="tf", hidden=())
    model.backbone.trainable = True
    model.compile(keras.optimizers.SGD(0.1))
    bn = model.backbone.get_layer("bn")
    before = [np.array(v.value.detach().cpu()) for v in (bn.moving_mean, bn.gamma)]
    model.fit(*easy_photos(), epochs=3, verbose=0)  # logits start at zero: the first step moves them alone
    after = [np.array(v.value.detach().cpu()) for v in (bn.moving_mean, bn.gamma)]
    np.testing.assert_array_equal(after[0], before[0])
    assert np.abs(after[1] - before[1]).max() > 0
    assert bn not in live_batchnorms(model)
    assert model.first_trainable_group == 0
