"""Keras files of every age go in and out; what does not fit is told in full, and changes nothing."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import torch

import kclf.weights.keras_files
from kclf.errors import FileFormatError, WeightsError
from kclf.weights import layer_keys, load_weights, save_weights
from tests.conftest import fetched_weights, with_random_logits

layers = keras.layers
FORMATS = ["model.weights.h5", "model.h5", "model.keras"]


def network(classes: int = 3, data_format: str = "channels_last") -> keras.Model:
    """A nested model with named and unnamed layers, BatchNorm, depthwise and separable convolutions."""
    shape = (8, 8, 3) if data_format == "channels_last" else (3, 8, 8)
    axis = -1 if data_format == "channels_last" else 1
    body = keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(4, 3, data_format=data_format, name="stem"),
            layers.BatchNormalization(axis=axis),
            layers.DepthwiseConv2D(3, data_format=data_format),
            layers.SeparableConv2D(5, 3, data_format=data_format, name="separable"),
            layers.Conv2D(5, 1, data_format=data_format),
            layers.Conv2D(5, 1, data_format=data_format),
            layers.GlobalAveragePooling2D(data_format=data_format),
        ],
        name="body",
    )
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Dense(classes, name="predictions")(body(inputs)))


def shaken(model: keras.Model) -> keras.Model:
    for variable in model.weights:
        variable.assign(np.random.default_rng(len(variable.path)).uniform(0.5, 1.5, variable.shape))
    return model


@torch.no_grad()
def logits(model: keras.Model, data_format: str = "channels_last") -> torch.Tensor:
    pixels = torch.linspace(0, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    return model(pixels if data_format == "channels_last" else pixels.permute(0, 3, 1, 2), training=False)


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("saved_frozen", [False, True])
@pytest.mark.parametrize("loaded_frozen", [False, True])
def test_every_format_comes_back_whatever_was_frozen(tmp_path, file, saved_frozen, loaded_frozen):
    model, other = shaken(network()), network()
    model.layers[1].trainable, other.layers[1].trainable = not saved_frozen, not loaded_frozen
    save_weights(model, tmp_path / file)
    report = load_weights(other, tmp_path / file)
    assert report.complete
    assert len(report.matched) == len(model.weights)
    torch.testing.assert_close(logits(other), logits(model), atol=0, rtol=0)


@pytest.mark.parametrize("file", ["model.weights.h5", "model.h5"])
def test_data_formats_exchange_weights(tmp_path, file):
    model, other = shaken(network()), network(data_format="channels_first")
    save_weights(model, tmp_path / file)
    load_weights(other, tmp_path / file)
    torch.testing.assert_close(logits(other, "channels_first"), logits(model), atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_whole_model_in_keras_own_legacy_file_gives_its_weights(tmp_path):
    model, other = shaken(network()), network()
    model.save(tmp_path / "model.h5")
    load_weights(other, tmp_path / "model.h5")
    torch.testing.assert_close(logits(other), logits(model), atol=0, rtol=0)


def test_keras_reads_the_legacy_file(tmp_path):
    model, other = shaken(network()), network()
    save_weights(model, tmp_path / "model.h5")
    other.load_weights(tmp_path / "model.h5")
    torch.testing.assert_close(logits(other), logits(model), atol=0, rtol=0)


def test_a_new_process_with_keras_alone_reads_an_exported_backbone(tmp_path):
    model = shaken(keras.applications.MobileNet(alpha=0.25, weights=None, include_top=False))
    save_weights(model, tmp_path / "backbone.weights.h5")
    probe = np.linspace(0, 1, 32 * 32 * 3, dtype="float32").reshape(1, 32, 32, 3)
    np.save(tmp_path / "probe.npy", probe)
    with torch.no_grad():
        expected = model(torch.from_numpy(probe), training=False)
    script = f"""
import os; os.environ["KERAS_BACKEND"] = "torch"
import keras, numpy, sys, torch
model = keras.applications.MobileNet(alpha=0.25, weights=None, include_top=False)
model.load_weights("{tmp_path}/backbone.weights.h5")
with torch.no_grad():
    found = model(torch.from_numpy(numpy.load("{tmp_path}/probe.npy")), training=False)
numpy.save("{tmp_path}/found.npy", found.cpu().numpy())
assert "kclf" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected.cpu(), rtol=1e-6)


APPLICATIONS = {
    "mobilenet_v2_0.35_224_no_top.weights.h5": ("MobileNetV2", {"alpha": 0.35, "include_top": False}),
    "mobilenet_v2_1.0_224_no_top.weights.h5": ("MobileNetV2", {"include_top": False}),
    "resnet50_no_top.weights.h5": ("ResNet50", {"include_top": False}),
    "resnet50.weights.h5": ("ResNet50", {}),
}


@pytest.mark.parametrize(
    "file", [name if "0.35" in name else pytest.param(name, marks=pytest.mark.heavy) for name in APPLICATIONS]
)
@torch.no_grad()
def test_published_files_load_as_keras_itself_loads_them(file):
    path = fetched_weights(file)
    name, options = APPLICATIONS[file]
    theirs = getattr(keras.applications, name)(weights=path, **options)
    ours = getattr(keras.applications, name)(weights=None, **options)
    assert load_weights(ours, path).by_position == ()
    pixels = torch.rand(2, 224, 224, 3) * 2 - 1
    found, expected = (model(pixels, training=False) for model in (ours, theirs))
    assert found.std() > 0
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def renamed(file: h5py.File, old: str, new: str) -> None:
    """Rename a layer of a legacy file, as Keras did between releases."""
    file.move(old, new)
    names = [new.encode() if name == old.encode() else name for name in file.attrs["layer_names"]]
    file.attrs["layer_names"] = np.array(names)
    group = file[new]
    group.move(old, new)
    names = [name.replace(old.encode(), new.encode()) for name in group.attrs["weight_names"]]
    group.attrs["weight_names"] = np.array(names)


def flat(names: list[str]) -> keras.Model:
    inner = [layers.Dense(4, name=name) for name in names]
    return keras.Sequential([keras.Input((4,)), *inner])


def test_layers_that_keras_renamed_are_found_by_place_and_reported(tmp_path):
    model = shaken(flat(["first", "second", "third"]))
    save_weights(model, tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        renamed(file, "first", "res2a")
        renamed(file, "third", "res2c")
    other = flat(["first", "second", "third"])
    report = load_weights(other, tmp_path / "old.h5")
    assert report.by_position == ("first", "third")
    np.testing.assert_array_equal(other.get_weights()[4], model.get_weights()[4])


def test_old_names_of_variables_are_known(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.DepthwiseConv2D(3, name="depthwise")])
    save_weights(shaken(model), tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        group = file["depthwise"]
        group.move("depthwise/kernel:0", "depthwise/depthwise_kernel:0")
        group.attrs["weight_names"] = np.array([b"depthwise/depthwise_kernel:0", b"depthwise/bias:0"])
    assert load_weights(model, tmp_path / "old.h5").matched == ("depthwise/kernel", "depthwise/bias")


def test_names_that_keras_made_up_match_by_class_and_place(tmp_path):
    model = network()
    save_weights(model, tmp_path / "model.weights.h5")
    for _ in range(3):
        layers.Conv2D(1, 1)  # moves Keras' counter, so that the next model's names differ
    other = network()
    assert [layer.name for layer in other.layers[1].layers] != [
        layer.name for layer in model.layers[1].layers
    ]
    assert list(layer_keys(other)) == list(layer_keys(model))
    assert load_weights(other, tmp_path / "model.weights.h5").by_position == ()


def nested():
    """A model in a model, whose automatic names come twice."""
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(4)])
    return keras.Model(inputs, layers.Dense(4)(inner(layers.Dense(4)(inputs))))


class Attention(layers.Layer):
    """Layers held by attributes, which Keras saves in the order of the letters."""

    def __init__(self):
        super().__init__()
        self.query, self.key = layers.Dense(4), layers.Dense(4)

    def build(self, shape):
        self.query.build(shape)
        self.key.build(shape)

    def call(self, x):
        return self.query(x) - 2 * self.key(x)


def test_only_layers_without_names_of_their_own_are_looked_for_in_the_model(tmp_path, monkeypatch):
    walked, saved_paths = [], kclf.weights.keras_files.saved_paths
    monkeypatch.setattr(
        kclf.weights.keras_files, "saved_paths", lambda model: walked.append(1) or saved_paths(model)
    )
    for name, walks in (("named", 0), (None, 1)):
        walked.clear()
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name=name)])
        model.save_weights(tmp_path / "model.weights.h5")
        load_weights(model, tmp_path / "model.weights.h5")
        assert len(walked) == walks


@pytest.mark.parametrize(
    "make", [nested, lambda: keras.Sequential([keras.Input((4,)), Attention(), layers.Dense(4)])]
)
@pytest.mark.parametrize("file", ["model.weights.h5", "model.keras"])
def test_layers_in_layers_get_their_own_weights(tmp_path, make, file):
    model, other, photos = shaken(make()), make(), torch.rand(3, 4)
    model.save(tmp_path / file) if file.endswith(".keras") else model.save_weights(tmp_path / file)

    report = load_weights(other, tmp_path / file)

    assert report.complete
    assert torch.equal(model(photos), other(photos))


def test_bfloat16_weights_are_saved_and_come_back(tmp_path):
    model = kclf.ImageClassifier("MobileNetV2", ["cat", "dog"], size=32, weights=None, dtype="bfloat16")
    with_random_logits(model)
    model.save(tmp_path / "classifier.h5")
    photos = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert torch.equal(model(photos), kclf.load(tmp_path / "classifier.h5")(photos))


@pytest.mark.parametrize("file", FORMATS)
def test_a_head_of_another_class_count_is_left_out_on_request(tmp_path, file, capsys):
    model, other = shaken(network(3)), network(5)
    head = other.get_layer("predictions").kernel.value.detach().clone()
    save_weights(model, tmp_path / file)
    with pytest.raises(WeightsError, match=r"predictions/kernel \(file \(5, 3\), model \(5, 5\)\)"):
        load_weights(other, tmp_path / file)
    report = load_weights(other, tmp_path / file, skip=["predictions"], report=True)
    assert report.skipped == ("predictions",)
    assert "skipped: predictions" in capsys.readouterr().out
    assert torch.equal(other.get_layer("predictions").kernel.value, head)
    assert torch.equal(other.layers[1].layers[0].kernel.value, model.layers[1].layers[0].kernel.value)


def test_nothing_is_assigned_when_something_does_not_fit(tmp_path):
    model = shaken(flat(["first", "second"]))
    save_weights(model, tmp_path / "model.weights.h5")
    other = flat(["first", "other", "third"])
    before = other.get_weights()
    with pytest.raises(WeightsError) as caught:
        load_weights(other, tmp_path / "model.weights.h5")
    assert "missing in the file: other/kernel, other/bias, third/kernel, third/bias" in str(caught.value)
    assert "unexpected in the file: second/0, second/1" in str(caught.value)
    for old, new in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Received: path=.*model\.npz"):
        save_weights(flat(["first"]), tmp_path / "model.npz")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", b"\x80\x02 no pickle", b"\x89HDF\r\n\x1a\n no"]
)
def test_what_is_no_weights_file_is_refused(tmp_path, content):
    path = tmp_path / "bad.h5"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=str(path)):
        load_weights(flat(["first"]), path)


def test_an_archive_without_weights_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(FileFormatError, match=r"bad\.keras"):
        load_weights(flat(["first"]), tmp_path / "bad.keras")


def test_a_zip_bomb_is_refused_while_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(1 << 28))
    with pytest.raises(FileFormatError, match=r"bomb\.keras: .*unpacks to far more"):
        load_weights(flat(["first"]), tmp_path / "bomb.keras")


def external(file):
    del file["layers/dense/vars/0"]
    file["layers/dense/vars"].create_dataset("0", (4, 4), "float32", external=[("/etc/hostname", 0, 64)])


def soft(file):
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = h5py.SoftLink("/layers/dense_1/vars/0")


def link(file):
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = h5py.ExternalLink("other.h5", "/x")


def huge(file):
    del file["layers/dense/vars/0"]
    file["layers/dense/vars"].create_dataset("0", (1 << 40,), "float32", chunks=(1024,))


def objects(file):
    del file["layers/dense/vars/0"]
    file["layers/dense/vars"].create_dataset("0", data=["a"] * 4)


@pytest.mark.parametrize("attack", [external, soft, link, huge, objects], ids=lambda a: a.__name__)
def test_a_hostile_keras_file_is_refused(tmp_path, attack):
    model = flat(["first", "second"])
    save_weights(model, tmp_path / "bad.weights.h5")
    with h5py.File(tmp_path / "bad.weights.h5", "r+") as file:
        attack(file)
    with pytest.raises((FileFormatError, WeightsError), match=r"bad\.weights\.h5"):
        load_weights(model, tmp_path / "bad.weights.h5")
