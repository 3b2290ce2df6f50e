"""What a run remembers of how photos are read, and what is said of weights that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from photo_makers import make_tree
from PIL import Image

import kclf
from kclf.checks.wrong_labels import backbone_features
from kclf.cli.main import main
from kclf.data import ImageDataset
from kclf.data.decoding import decoding, set_decoding
from kclf.data.images import read_image, to_frame
from kclf.data.sources import FileImages
from kclf.errors import FileFormatError, WeightsError
from kclf.prediction import inference
from kclf.prediction.activation_cache import activation_key
from kclf.prediction.inference import predict_files
from kclf.weights import load_weights

TINY = ["--backbone", "MobileNet_025", "--weights", "none", "--size", "32", "--effort", "quick"]


def run(*words) -> int:
    """Exit status of `kclf WORDS...`."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code or 0


@pytest.fixture(autouse=True)
def _as_before():
    before = decoding()
    yield
    set_decoding(depth=before.depth, max_pixels=before.max_pixels)


@pytest.fixture(scope="module")
def of_12_bits():
    """A classifier of photos of 12 bits; the tests leave it as it is."""
    return kclf.ImageClassifier("MobileNet_025", ["cat", "dog"], size=32, weights=None, depth=12)


@pytest.fixture(scope="module")
def deep_photos(tmp_path_factory):
    """12-bit values in 16-bit files, of two classes."""
    folder = tmp_path_factory.mktemp("deep")
    for number in range(12):
        place = folder / "photos" / ("cat" if number % 2 else "dog") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        least = 2048 * (number % 2)  # cats are bright
        values = np.random.default_rng(number).integers(least, least + 2048, (40, 40), dtype=np.uint16)
        Image.fromarray(values).save(place)
    return folder / "photos"


# ---- depth ------------------------------------------------------------


def test_the_command_trains_and_predicts_at_one_depth(deep_photos, tmp_path, monkeypatch):
    run("train", deep_photos, "--out", tmp_path / "run", "--depth", 12, *TINY)
    set_decoding()
    model = kclf.load(tmp_path / "run" / "classifier.h5")
    photo = str(deep_photos / "cat/1.png")

    assert model.depth == 12
    assert model.read(photo).max() > 200
    assert np.array_equal(model.read(photo), to_frame(read_image(photo, at_least=40, depth=12), 40))
    assert np.array_equal(model.read((deep_photos / "cat/1.png").read_bytes()), model.read(photo))
    most = []
    real = inference.predict
    monkeypatch.setattr(
        inference,
        "predict",
        lambda model, photos: (most.append(int(photos.peek()[0].max())), real(model, photos))[1],
    )
    for words in ([], ["--depth", 12], ["--depth", 16]):
        set_decoding()
        assert run("predict", tmp_path / "run", photo, *words) == 0
    assert most[0] == most[1] > 200
    assert most[2] <= 16


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_saved_classifier_remembers_its_depth(deep_photos, of_12_bits, tmp_path, suffix):
    of_12_bits.save(tmp_path / f"c{suffix}")
    again = kclf.load(tmp_path / f"c{suffix}")
    photos = [str(path) for path in sorted(deep_photos.rglob("*.png"))]

    assert again.depth == 12
    squares = [to_frame(read_image(path, at_least=32, depth=12), 32) for path in photos]
    expected = of_12_bits.features(np.stack(squares))
    found = backbone_features(again, photos)
    np.testing.assert_allclose(found, expected.detach().numpy().mean(axis=(1, 2)), rtol=1e-3, atol=1e-4)
    predicted, _ = predict_files(again, photos)
    assert len(predicted) == 12


def test_a_learner_hands_the_depth_of_its_data_on(deep_photos, tmp_path):
    set_decoding(depth=12)
    data = kclf.ImageData.from_folder(deep_photos, size=32, batch_size=4, num_threads=1)
    learner = kclf.Learner(data, "MobileNet_025", weights=None, path=tmp_path)
    set_decoding()
    cached = data.resize(40, tmp_path / "cache")

    assert learner.model.depth == 12
    assert next(iter(data.train))[0].max() > 200
    assert next(iter(cached.train))[0].max() > 200
    assert cached.train.dataset.take(np.arange(2)).depth == 12


def test_no_cache_is_read_at_another_depth(deep_photos, of_12_bits, tmp_path):
    photos = [str(path) for path in sorted(deep_photos.rglob("*.png"))]
    keys, sums = set(), set()
    for depth in (None, 12, 14):
        data = ImageDataset(FileImages(photos, depth), presize=32, num_threads=1)
        keys.add(activation_key(of_12_bits, data, weights="the same"))
        images = kclf.ImageData(data).resize(32, tmp_path).train.dataset
        sums.add(int(images[0].sum()))
    assert len(keys) == len(sums) == 3


@pytest.mark.parametrize("depth", [0, 33, -1, 12.0, "12", True])
def test_what_is_no_depth_is_refused(depth):
    with pytest.raises(ValueError, match="1 to 32 bits"):
        kclf.ImageClassifier("MobileNet_025", ["cat", "dog"], size=32, weights=None, depth=depth)


def test_a_file_with_a_hostile_depth_is_refused(of_12_bits, tmp_path, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(of_12_bits, "depth", "evil")
        of_12_bits.save(tmp_path / "c.h5")
    with pytest.raises(FileFormatError, match="1 to 32 bits"):
        kclf.load(tmp_path / "c.h5")


# ---- weights that do not fit ------------------------------------------------------------


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
    """Weights of another network, in each kind of file."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("weights")
    model = kclf.build_backbone("MobileNetV2", weights=None, input_shape=(64, 64, 3))
    model.save_weights(folder / "a.weights.h5")
    model.save(folder / "a.keras")
    torch.save({f"blocks.{i}.weight": torch.zeros(3, 4) for i in range(300)}, folder / "a.pth")
    return folder


@pytest.mark.parametrize("name", ["a.weights.h5", pytest.param("a.keras", marks=pytest.mark.heavy), "a.pth"])
def test_weights_that_do_not_fit_are_told_in_ten_lines(other_weights, of_12_bits, name):
    for call in (
        lambda: kclf.build_backbone("MobileNet", weights=other_weights / name),
        lambda: load_weights(of_12_bits.backbone, other_weights / name),
    ):
        with pytest.raises(WeightsError) as refused:
            call()
        lines = str(refused.value).splitlines()
        assert len(lines) <= 10
        assert len(str(refused.value)) < 2500
        assert name in lines[0]


@pytest.mark.parametrize("name", [pytest.param("a.weights.h5", marks=pytest.mark.heavy), "a.pth"])
def test_the_command_tells_them_in_ten_lines(other_weights, tmp_path, capsys, name):
    photos = make_tree(tmp_path / "photos", {"cat/": 4, "dog/": 4})
    words = [*TINY, "--weights", str(other_weights / name), "--out", str(tmp_path / "run")]
    status = run("train", photos, *words)
    said = capsys.readouterr().err
    assert status == 2
    assert name in said
    assert len(said.splitlines()) <= 10
    assert len(said) < 2500
