"""`kclf weights` shows, converts and checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kclf.backbones import build_backbone
from kclf.cli.weights_commands import app
from kclf.errors import FileFormatError, WeightsError
from kclf.models import ImageClassifier
from kclf.weights import overview, save_weights
from tests.conftest import with_random_logits


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_convert_and_check_a_backbone(tmp_path):
    model = build_backbone("EfficientNetLite0", weights=None)
    save_weights(model, tmp_path / "lite.pth", library="efficientnet_pytorch")
    run("convert", tmp_path / "lite.pth", tmp_path / "lite.weights.h5", "--backbone", "EfficientNetLite0")
    assert "fits" in run("check", tmp_path / "lite.weights.h5", "--backbone", "EfficientNetLite0")
    assert "stem_conv/0" in run("show", tmp_path / "lite.weights.h5")
    loaded = build_backbone("EfficientNetLite0", weights=tmp_path / "lite.weights.h5")
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        assert torch.equal(ours.value, theirs.value)
    with pytest.raises(WeightsError, match="missing in the file"):
        run("check", tmp_path / "lite.weights.h5", "--backbone", "MobileNetV2")


def test_check_a_classifier(tmp_path):
    model = with_random_logits(ImageClassifier("MobileNet_025", ["cat", "dog"], size=32, weights=None))
    model.save(tmp_path / "classifier.h5")
    assert "answers its probe batch" in run("check", tmp_path / "classifier.h5")
    assert overview(tmp_path / "classifier.h5").attributes["config"]["class_names"] == ["cat", "dog"]


def test_show_a_state_dict_and_refuse_what_is_none(tmp_path):
    torch.save({"fc.weight": torch.zeros(3, 4)}, tmp_path / "w.pth")
    assert run("show", tmp_path / "w.pth").split("\n")[0].split() == ["fc.weight", "3", "x", "4"]
    np.save(tmp_path / "w.npy", np.zeros(3))
    with pytest.raises(FileFormatError, match=r"w\.npy"):
        run("show", tmp_path / "w.npy")
