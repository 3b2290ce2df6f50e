"""What every test shares: one seed, the real photos where they are, and a reason for each skip."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("MPLBACKEND", "agg")
# A GPU is left alone unless `-m gpu` asks for it; workers of pytest-xdist inherit the answer.
os.environ.setdefault("KCLF_TESTS_SEE_GPU", str(int("gpu" in sys.argv)))
if os.environ["KCLF_TESTS_SEE_GPU"] == "0":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import pytest
import torch
from pretended_cuda import pretended_cuda

from kclf.backbones.published import keras_cache

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


SEED = 20161101


def pytest_fixture_setup(fixturedef):
    """What several tests share starts from the seed too, whatever ran before it."""
    if fixturedef.scope != "function":
        keras.utils.set_random_seed(SEED)


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from one seed and one policy, leaves neither changed, and no figure open."""
    policy = keras.config.dtype_policy()
    keras.utils.set_random_seed(SEED)
    yield
    keras.config.set_dtype_policy(policy)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def with_random_logits(model):
    """The classifier with random weights in its last layer: a new one gives zeros for every image."""
    kernel = model.head.get_layer("logits").kernel
    kernel.assign(keras.random.normal(kernel.shape, stddev=(2 / kernel.shape[0]) ** 0.5))
    return model


def pytest_collection_finish(session):
    """What the packages made lives to the end, which the garbage collector need not look through."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_addoption(parser):
    parser.addoption("--pretend-cuda", action="store_true", help="run on a GPU that is pretended")


@pytest.fixture(autouse=True)
def _pretended_cuda(request):
    """With --pretend-cuda every test runs on a pretended GPU of its own."""
    if not request.config.getoption("--pretend-cuda") or "pretended_cuda" in request.path.parts:
        yield
        return
    with pretended_cuda():
        yield


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available() and not config.getoption("--pretend-cuda"):
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


def shared_path(name: str) -> Path:
    """Material that lies beside the checkout (photos, weights); the test skips where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name}, which is not beside this checkout")
    return path


def fetched_weights(*names: str) -> Path:
    """A file of published weights, under any of its names, from the folder that KCLF_WEIGHTS names or from
    Keras' cache; the test skips where there is none.
    """
    folders = Path(os.environ.get("KCLF_WEIGHTS", SHARED / "weights")), keras_cache()
    found = next((path for folder in folders for name in names if (path := folder / name).exists()), None)
    if found is None:
        pytest.skip(f"needs {names[0]} in the folder that KCLF_WEIGHTS names, or in Keras' cache")
    return found


@pytest.fixture(scope="session")
def dogscats() -> Path:
    return shared_path("data/dogscats")


@pytest.fixture(scope="session")
def pets() -> Path:
    return shared_path("data/pets")


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    return shared_path("weights/mobilenet_v2_0.35_224_no_top.weights.h5")


@pytest.fixture(scope="session")
def golden() -> dict:
    """Figures that a faithful implementation must match (read from fastai, Keras and torch)."""
    return json.loads((Path(__file__).parent / "golden.json").read_text())
