"""Published weights: where they are found, how they are fetched, what is said of files that do not fit."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

import kclf
from kclf.backbones import backbone_info, backbone_table, build_backbone, find_weights, published
from kclf.backbones.channels import adapted_kernel
from kclf.backbones.downloads import HUB_DIGEST, fetch_weights, unavailable
from kclf.backbones.parameters import PARAMETERS
from kclf.backbones.registry import SPECS, relatives
from kclf.backbones.transformers import TRANSFORMERS, TransformerPlan
from kclf.errors import BackboneError, FileFormatError, WeightsError, WeightsUnavailableError
from kclf.weights import array_of, save_weights, to_torch

TINY = TransformerPlan(16, 1, 2, patch=8, grid=3)


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; addresses of Hugging Face redirect to it, and say the sha256 that `digests` has."""

    digests: dict[str, str] = {}  # noqa: RUF012

    def do_GET(self):
        if "/resolve/main/" not in self.path:
            super().do_GET()
            return
        self.send_response(302)
        self.send_header("Location", f"/{self.path.split('/')[2]}.bytes")
        self.send_header(HUB_DIGEST, f'"{self.digests.get(self.path.split("/")[2], "0" * 64)}"')
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that stands for all servers, with empty caches."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(Server, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{serving.server_port}"
        monkeypatch.setattr(published, "TORCH_URL", f"{url}/")
        monkeypatch.setattr(published, "META_URL", f"{url}/")
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield folder
        serving.shutdown()


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("KCLF_WEIGHTS", raising=False)
    monkeypatch.setitem(TRANSFORMERS, "ViTS16", TINY)
    return tmp_path


@pytest.fixture
def vit(tmp_path):
    """A tiny model under the name of ViTS16, and its weights as timm publishes them."""
    model = build_backbone("ViTS16", weights=None, input_shape=(24, 24, 3))
    path = tmp_path / "model.safetensors"
    save_weights(model, path, library="timm")
    return model, path.read_bytes()


def same_weights(first, second):
    pairs = zip(first.variables, second.variables, strict=True)
    return all(np.array_equal(array_of(a), array_of(b)) for a, b in pairs)


def torchvision_file(monkeypatch, content):
    file = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(SPECS, "ResNet18", replace(SPECS["ResNet18"], torch_file=file))
    return file


def test_torch_weights_are_downloaded_once_and_checked_each_time(server, monkeypatch):
    file = torchvision_file(monkeypatch, b"some weights")
    (server / file).write_bytes(b"some weights")
    path = fetch_weights("ResNet18")
    (server / file).unlink()
    assert fetch_weights("ResNet18") == path
    assert path.read_bytes() == b"some weights"
    path.write_bytes(b"other weights")
    with pytest.raises(WeightsError, match=r"damaged.*sha256"):
        fetch_weights("ResNet18")


@pytest.mark.parametrize("content", [b"not what the name says", None])
def test_weights_that_cannot_be_had_leave_nothing_behind(server, tmp_path, monkeypatch, content):
    file = torchvision_file(monkeypatch, b"some weights")
    if content:
        (server / file).write_bytes(content)
    with pytest.raises(WeightsUnavailableError, match=rf"weights of ResNet18 .*{file}"):
        fetch_weights("ResNet18")
    assert [path for path in (tmp_path / "torch").rglob("*") if path.is_file()] == []


def test_weights_of_hugging_face_are_downloaded_and_their_sha256_compared(server, vit, monkeypatch):
    model, content = vit
    repository = "vit_small_patch16_224.augreg_in21k_ft_in1k"
    (server / f"{repository}.bytes").write_bytes(content)
    with pytest.raises(WeightsUnavailableError, match="what came has the sha256"):
        build_backbone("ViTS16", input_shape=(24, 24, 3))
    monkeypatch.setitem(Server.digests, repository, hashlib.sha256(content).hexdigest())
    assert same_weights(build_backbone("ViTS16", input_shape=(24, 24, 3)), model)
    assert find_weights("ViTS16").name == f"{repository}.safetensors"


def test_weights_in_the_cache_of_huggingface_hub_are_found_and_checked(vit, tmp_path):
    model, content = vit
    place = tmp_path / "hf/hub/models--timm--vit_small_patch16_224.augreg_in21k_ft_in1k"
    blob = place / "blobs" / hashlib.sha256(content).hexdigest()
    link = place / "snapshots/abc/model.safetensors"
    for folder in (blob.parent, link.parent, place / "refs"):
        folder.mkdir(parents=True)
    blob.write_bytes(content)
    link.symlink_to(blob)
    (place / "refs/main").write_text("abc")
    assert find_weights("ViTS16") == link
    assert same_weights(build_backbone("ViTS16", input_shape=(24, 24, 3)), model)
    blob.write_bytes(content[:-4] + b"\0\0\0\1")
    with pytest.raises(WeightsError, match="damaged"):
        build_backbone("ViTS16", input_shape=(24, 24, 3))


def test_weights_are_found_in_a_folder(vit, tmp_path, monkeypatch):
    model, content = vit
    folder = tmp_path / "files"
    folder.mkdir()
    assert find_weights("ViTS16", folder) is None
    with pytest.raises(FileNotFoundError, match="ViTS16"):
        build_backbone("ViTS16", weights=folder)
    (folder / "vit_small_patch16_224.augreg_in21k_ft_in1k.safetensors").write_bytes(content)
    assert same_weights(build_backbone("ViTS16", weights=folder, input_shape=(24, 24, 3)), model)
    monkeypatch.setenv("KCLF_WEIGHTS", str(folder))
    assert same_weights(build_backbone("ViTS16", input_shape=(24, 24, 3)), model)
    assert backbone_info("ViTS16").weights.parent == folder


@pytest.mark.parametrize("ending", ["pth", "bin", "h5", "weights.h5", "safetensors"])
def test_every_kind_of_file_gives_the_same_weights(vit, tmp_path, ending):
    model, _ = vit
    path = tmp_path / f"vit.{ending}"
    if ending == "bin":
        torch.save({"model": to_torch(model, "timm") | {"head.weight": torch.zeros(5, 16)}}, path)
    else:
        save_weights(model, path, library="timm")
    assert same_weights(build_backbone("ViTS16", weights=path, input_shape=(24, 24, 3)), model)


def short(error):
    message = str(error.value)
    assert len(message.splitlines()) <= 10
    assert len(message) < 2000
    return message


@pytest.mark.parametrize("ending", ["pth", "safetensors", "weights.h5"])
def test_a_truncated_file_is_said_in_a_few_lines(vit, tmp_path, ending):
    path = tmp_path / f"vit.{ending}"
    save_weights(vit[0], path, library="timm")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(FileFormatError) as caught:
        build_backbone("ViTS16", weights=path)
    assert path.name in short(caught)


def test_a_pickle_that_would_run_code_is_refused_in_a_few_lines(tmp_path):
    class Runs:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"a": Runs()}, tmp_path / "runs.pth")
    with pytest.raises(FileFormatError) as caught:
        build_backbone("ViTS16", weights=tmp_path / "runs.pth")
    short(caught)


def test_a_missing_tensor_and_another_size_are_said_in_a_few_lines(vit, tmp_path):
    state = to_torch(vit[0], "timm")
    del state["blocks.0.attn.qkv.weight"]
    state["pos_embed"] = state["pos_embed"][:, :-1]
    torch.save(state, tmp_path / "lacks.pth")
    with pytest.raises(WeightsError) as caught:
        build_backbone("ViTS16", weights=tmp_path / "lacks.pth", input_shape=(24, 24, 3))
    message = short(caught)
    assert "block1_attn_qkv/kernel" in message
    assert "tokens/pos_embed (file (1, 9, 16), model (1, 10, 16))" in message


def test_a_file_of_another_width_is_called_by_its_name(tmp_path):
    model = build_backbone("MobileNetV3Small_075", weights=None)
    model.save_weights(tmp_path / "narrow.weights.h5")
    with pytest.raises(WeightsError) as caught:
        build_backbone("MobileNetV3Small", weights=tmp_path / "narrow.weights.h5")
    assert "Its shapes are those of 'MobileNetV3Small_075': build that." in short(caught)


def test_relatives_differ_in_width_or_depth_alone():
    assert "ConvNeXtTiny22k" in relatives("ConvNeXtTiny")
    assert "ConvNeXtV2Tiny" not in relatives("ConvNeXtTiny")
    assert relatives("MobileNet") == ["MobileNet_025", "MobileNet_050", "MobileNet_075"]


# ---- what is known of all --------------------


def test_every_backbone_has_parameters_a_licence_and_a_source():
    table = {info.name: info for info in backbone_table()}
    assert list(table) == kclf.backbone_names() == list(PARAMETERS)
    assert all(info.parameters > 0 and info.licence and info.source for info in table.values())
    assert "CC-BY-NC-4.0" in str(table["ConvNeXtV2Atto"])


OFTEN = ["ConvNeXtV2Atto", "DINOv2S14", "MobileNetV2_035", "MobileNet_025"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.heavy) for name in PARAMETERS]
)
def test_the_parameters_are_those_of_the_model(name, monkeypatch):
    monkeypatch.undo()
    with keras.device("meta"):
        assert build_backbone(name, weights=None).count_params() == PARAMETERS[name]


APPLICATIONS = [name for name, spec in SPECS.items() if spec.keras_file and name != "NASNetLarge"]
OF_KERAS = ["MobileNetV2_035", "MobileNetV3SmallMinimalistic", "MobileNet_025", "VGG16"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OF_KERAS else pytest.mark.heavy) for name in APPLICATIONS]
)
def test_the_file_of_an_application_is_called_as_keras_calls_it(name, monkeypatch):
    asked = []

    def refuse(url, *_, **__):
        asked.append(url)
        raise OSError("no network in this test")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refuse)
    with pytest.raises(WeightsUnavailableError):
        build_backbone(name)
    assert asked[0].rpartition("/")[2] == SPECS[name].keras_file


# ---- channels --------------------


def test_one_channel_gives_what_grey_in_all_three_gives(tmp_path):
    colours = build_backbone("ResNet18", weights=None, input_shape=(32, 32, 3))
    save_weights(colours, tmp_path / "resnet.weights.h5")
    grey = build_backbone("ResNet18", weights=tmp_path / "resnet.weights.h5", input_shape=(32, 32, 1))
    images = torch.rand(2, 32, 32, 1)
    expected = colours(images.expand(-1, -1, -1, 3), training=False)
    torch.testing.assert_close(grey(images, training=False), expected, rtol=1e-4, atol=1e-4)


def test_more_channels_get_the_colours_in_turn():
    kernel = np.arange(3.0).reshape(1, 1, 3, 1)
    assert adapted_kernel(kernel, 6).ravel().tolist() == [0, 0.5, 1, 0, 0.5, 1]


@pytest.mark.parametrize("name", ["ViTS16", "EfficientNetLite0", "MobileNetV2_035"])
@pytest.mark.parametrize("channels", [1, 4])
def test_backbones_of_every_make_take_other_channels(name, channels):
    model = build_backbone(name, weights=None, input_shape=(32, 48, channels))
    assert model.input_shape == (None, 32, 48, channels)


def test_channels_that_an_architecture_cannot_have_are_said():
    with pytest.raises(BackboneError, match="cannot be built for 4 channels"):
        build_backbone("ConvNeXtTiny", weights=None, input_shape=(32, 32, 4))


def test_weights_that_cannot_be_had_are_asked_for_where_they_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("KCLF_WEIGHTS", raising=False)
    assert "in the folder /cache," in str(unavailable("X", "https://a.org/x.pth", Path("/cache"), "offline"))
    monkeypatch.setenv("KCLF_WEIGHTS", str(tmp_path))
    said = str(unavailable("X", "https://a.org/x.pth", Path("/cache"), "offline"))
    assert f"Put x.pth (https://a.org/x.pth) in the folder {tmp_path}," in said
