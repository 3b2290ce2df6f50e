"""torch.compile of a plan: one graph, Keras' results, and no stale weights in it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from test_acceleration import compiled, history, images, inverted, residual

from kclf.acceleration import accelerate, deaccelerate

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
    ),  # inductor's
]
CXX = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[pytest.mark.heavy, pytest.mark.skipif(not CXX, reason="inductor needs a C++ compiler")],
    ),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [residual, pytest.param(inverted, marks=pytest.mark.heavy)])
def test_compiled_training_and_prediction_equal_stock_keras(backend, make):
    expected = history(compiled(make), epochs=2)
    model = accelerate(compiled(make), compile=backend)
    found = history(model, epochs=2)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    for variable in model.trainable_variables:  # changes after compiling are seen
        variable.assign(variable * 0.9)
    predicted = model.predict(images(4), verbose=0)
    stock = deaccelerate(model).predict(images(4), verbose=0)
    np.testing.assert_allclose(predicted, stock, rtol=1e-4, atol=1e-5)


def test_a_backend_that_does_not_work_is_named():
    model = accelerate(compiled(residual), compile="no_such_backend")
    with pytest.raises(Exception, match="no_such_backend"):
        history(model, epochs=1)


def test_freezing_counts_from_the_next_compiled_step():
    model = accelerate(compiled(residual), compile="aot_eager")
    history(model, epochs=1)
    for layer in model.layers:
        layer.trainable = False
    model.layers[-1].trainable = True
    before = [variable.numpy().copy() for layer in model.layers[:-1] for variable in layer.variables]
    history(model, epochs=1)
    after = [variable.numpy() for layer in model.layers[:-1] for variable in layer.variables]
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
