"""A saved classifier comes back equal or not at all, whatever happened to its file."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tracemalloc

import h5py
import keras
import numpy as np
import pytest
import torch

import kclf.models
from kclf._core.h5_store import read_arrays, write_arrays
from kclf.backbones import build_backbone
from kclf.errors import FileFormatError, KclfError
from kclf.models import ImageClassifier, load
from kclf.weights import load_weights, named_variables, save_weights
from tests.conftest import with_random_logits


def tiny_backbone(name, *, weights=None, input_shape=(None, None, 3)):
    """A stand-in that builds in milliseconds, since the files of this test are built hundreds of times."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, strides=4, use_bias=False, name="stem_conv")(inputs)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.layers.Conv2D(4, 1, use_bias=False)(x)
    return keras.Model(inputs, keras.layers.Conv2D(4, 1, use_bias=False)(x), name=name)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(kclf.models.classifier, "build_backbone", tiny_backbone)
    monkeypatch.setattr(
        kclf.models.classifier,
        "split_backbone",
        lambda model, name: [[*model.layers[1:3]], [*model.layers[3:]]],
    )


@pytest.fixture
def saved(tiny, tmp_path):
    model = ImageClassifier("MobileNet_025", ["cat", "dog"], size=32, hidden=[8], weights=None)
    for variable in model.weights:
        if variable.dtype == "float32":
            variable.assign(np.random.default_rng(len(variable.path)).uniform(0.5, 1.5, variable.shape))
    model.save(tmp_path / "classifier.h5")
    return tmp_path / "classifier.h5"


def values(model) -> list[np.ndarray]:
    return [variable.value.detach().cpu().numpy() for variable in model.weights]


def damage(content: bytes, dice: random.Random) -> bytes:
    """Random damage, as disks and transfers do it."""
    at = dice.randrange(len(content))
    length = dice.randrange(1, 600)
    return dice.choice(
        [
            content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :],
            content[:at],
            content[:at] + dice.randbytes(length) + content[at + length :],
            content[:at] + content[at + length :],
            content + dice.randbytes(length),
            content[at:] + content[:at],
        ]
    )


def drop(arrays, attributes, dice):
    del arrays[dice.choice(list(arrays))]


def rename(arrays, attributes, dice):
    name = dice.choice(list(arrays))
    arrays[f"{name}_"] = arrays.pop(name)


def reshape(arrays, attributes, dice):
    name = dice.choice(list(arrays))
    array = arrays[name]
    arrays[name] = dice.choice([array[None], array.ravel()[:1], array.ravel(), np.zeros(0, array.dtype)])


def retype(arrays, attributes, dice):
    name = dice.choice(list(arrays))
    arrays[name] = (arrays[name] > 0)[None]


def probe(arrays, attributes, dice):
    """Photos to check with, more or larger than a reader should look at."""
    shape = dice.choice([(0, 64, 64, 3), (60_000, 1, 1, 3), (2, 0, 64, 3), (1, 1, 2000, 3), (2, 64, 64)])
    arrays["probe/images"] = np.zeros(shape, np.uint8)
    arrays["probe/logits"] = np.zeros((shape[0], 2), np.float32)


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def rewrite(arrays, attributes, dice):
    """Put a wrong value somewhere into the settings, or take one away."""
    *path, last = dice.choice([place for place in places(attributes) if place])
    target = attributes
    for key in path:
        target = target[key]
    if dice.random() < 0.3:
        del target[last]
    else:
        target[last] = dice.choice(WRONG)


WRONG = [None, -1, 0, 1.5, 10**6, 10**30, "", "os.system", [], {}, [1 << 30], [1] * 1500, True]
FORGERIES = [drop, rename, reshape, retype, probe, rewrite, rewrite, rewrite]


def forged(path, dice):
    """Change the contents and write a checksum that agrees."""
    arrays, attributes = read_arrays(path)
    dice.choice(FORGERIES)(arrays, attributes, dice)
    write_arrays(path, arrays, attributes)


def edited(path, change):
    """Change the settings in a file."""
    arrays, attributes = read_arrays(path)
    change(attributes)
    write_arrays(path, arrays, attributes)


def damaged(path, dice):
    path.write_bytes(damage(path.read_bytes(), dice))


def refused_of(path, mutations: int) -> int:
    """How many mutated copies of a classifier are refused; all others load equal to it."""
    content, original = path.read_bytes(), values(load(path, check=True))
    dice, refused = random.Random(20161101), 0
    for mutation in range(mutations):
        path.write_bytes(content)
        [damaged, forged][mutation % 2](path, dice)
        try:
            model = load(path, check=True)
        except KclfError:
            refused += 1
            continue
        for old, new in zip(original, values(model), strict=True):
            np.testing.assert_array_equal(old, new)
    return refused


@pytest.mark.parametrize("mutations", [20, pytest.param(500, marks=pytest.mark.heavy)])
def test_a_mutated_file_is_refused_or_loads_equal(saved, mutations):
    tracemalloc.start()
    refused = refused_of(saved, mutations)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 0.8 * mutations
    assert peak < 30_000_000


def resident_peak() -> int:
    """The most memory that this process has held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_another_process(statement: str, timeout: float) -> dict:
    """What a statement of this module prints as JSON, in a process of its own that may crash or hang."""
    code = f"import json\nfrom pathlib import Path\nfrom tests.test_file_format import *\n{statement}"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.heavy
def test_500_mutated_files_of_a_real_backbone_neither_crash_nor_hang_nor_take_memory(tmp_path):
    ImageClassifier("EfficientNetLite0", ["cat", "dog"], size=64, hidden=[8]).save(tmp_path / "file.h5")
    found = in_another_process(
        f"""
path = Path("{tmp_path}/file.h5")
load(path, check=True)
once = resident_peak()
print(json.dumps({{"refused": refused_of(path, 500), "once": once, "peak": resident_peak()}}))""",
        timeout=3600,
    )
    print(found)
    assert found["refused"] > 400
    assert found["peak"] < 2 * found["once"]


def outcomes_of(path, mutations: int) -> dict[str, int]:
    """What loading damaged copies of a weights file without a checksum comes to."""
    content, dice = path.read_bytes(), random.Random(20161101)
    model = build_backbone("EfficientNetLite0", weights=None)
    outcomes = {"refused": 0, "loaded": 0}
    for _ in range(mutations):
        path.write_bytes(damage(content, dice))
        try:
            load_weights(model, path)
        except KclfError:
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
    return outcomes


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["backbone.weights.h5", "backbone.h5", "backbone.keras", "backbone.pth"])
def test_500_damaged_files_of_other_kinds_neither_crash_nor_hang_nor_take_memory(tmp_path, name):
    save_weights(
        build_backbone("EfficientNetLite0", weights=None), tmp_path / name, library="efficientnet_pytorch"
    )
    found = in_another_process(
        f"""
path = Path("{tmp_path}/{name}")
outcomes_of(path, 1)
once = resident_peak()
print(json.dumps(outcomes_of(path, 500) | {{"once": once, "peak": resident_peak()}}))""",
        timeout=1800,
    )
    print(name, found)
    assert found["refused"] + found["loaded"] == 500
    assert found["peak"] < 2 * found["once"]


@pytest.mark.parametrize(
    "settings",
    [{"hidden": [1 << 40]}, {"hidden": [1] * 1500}, {"resize_method": "evil"}, {"resize_method": ["crop"]}],
    ids=["a wide layer", "many layers", "evil", "a list"],
)
def test_settings_that_no_classifier_has_are_refused_at_once(saved, settings):
    edited(saved, lambda attributes: attributes["config"].update(settings))
    with pytest.raises(FileFormatError):
        load(saved)


@pytest.mark.parametrize(
    "shape", [(0, 64, 64, 3), (60_000, 1, 1, 3), (2, 0, 64, 3), (1, 1, 2000, 3), (2, 64)]
)
def test_a_probe_that_would_take_all_memory_is_refused(saved, shape):
    arrays, attributes = read_arrays(saved)
    arrays["probe/images"] = np.zeros(shape, np.uint8)
    arrays["probe/logits"] = np.zeros((shape[0], 2), np.float32)
    write_arrays(saved, arrays, attributes)

    with pytest.raises(FileFormatError, match="probe"):
        load(saved, check=True)


def test_the_photos_of_a_probe_are_not_looked_at_in_gigapixels(saved):
    edited(saved, lambda attributes: attributes["config"].update(size=8192, presize=None))

    with pytest.raises(FileFormatError, match="too large to check"):
        load(saved, check=True)


def test_plain_h5py_finds_everything(saved):
    with h5py.File(saved) as file:
        settings = json.loads(file["attributes"][()])
        assert settings["format"] == "kclf-classifier"
        assert settings["config"]["class_names"] == ["cat", "dog"]
        assert file["arrays/backbone/stem_conv/kernel"].shape == (3, 3, 3, 4)
        assert file["arrays/probe/images"].dtype == "uint8"


LOADERS = {
    "frozen/classifier.h5": "kclf.models.load(path, check=True)",
    "unfrozen/classifier.h5": "kclf.models.load(path, check=True)",
    "unfrozen/classifier.keras": "keras.saving.load_model(path)",
    "frozen/classifier.weights.h5": "with_weights(path)",
}


def test_a_new_process_gives_the_same_probabilities(tmp_path):
    photos = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)
    np.save(tmp_path / "photos.npy", photos.numpy())
    settings = {"size": 32, "presize": 40, "weights": None}
    model, expected = with_random_logits(ImageClassifier("MobileNet_025", ["cat", "dog"], **settings)), {}
    for file in LOADERS:
        model.unfreeze() if file.startswith("unfrozen") else model.freeze()
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (model.save_weights if file.endswith(".weights.h5") else model.save)(tmp_path / file)
        with torch.no_grad():
            expected[file] = model(photos, training=False).softmax(-1).cpu().numpy()
        expected[file + " facts"] = sum(v.trainable for v in model.weights), model.class_names, model.presize
    calls = "".join(f"    path = {file!r}; tell(path, {loader})\n" for file, loader in LOADERS.items())
    script = f"""
import json, numpy, torch, kclf.models, keras
def with_weights(path):
    model = kclf.models.ImageClassifier("MobileNet_025", ["cat", "dog"], size=32, presize=40, weights=None)
    model.load_weights(path)
    return model
def tell(path, model):
    numpy.save(path + ".npy", model(photos, training=False).softmax(-1).cpu().numpy())
    print(json.dumps([sum(v.trainable for v in model.weights), model.class_names, model.presize]))
photos = torch.from_numpy(numpy.load("photos.npy"))
with torch.no_grad():
{calls}"""

    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)

    for file, facts in zip(LOADERS, done.stdout.splitlines(), strict=True):
        np.testing.assert_allclose(np.load(tmp_path / f"{file}.npy"), expected[file], atol=1e-6)
        assert tuple(json.loads(facts)) == expected[file + " facts"]


def test_a_file_of_a_newer_kclf_asks_for_an_upgrade(saved):
    edited(saved, lambda attributes: attributes.update(version=99))
    with pytest.raises(FileFormatError, match="newer kclf"):
        load(saved)


def test_variables_whose_names_keras_made_up_come_back(tmp_path):
    class Unnamed(keras.layers.Layer):
        def build(self, shape):
            self.first, self.second = self.add_weight(shape=(2,)), self.add_weight(shape=(3,), name="second")

    names = []
    for _ in range(2):
        layer = Unnamed()
        layer.build(None)
        names.append(list(named_variables(layer)))
    assert names == [["variable#0", "second"]] * 2
