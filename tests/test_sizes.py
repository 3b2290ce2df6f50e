"""Photos of another shape than the square: read whole, turned undistorted, trained on, saved, exported."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pretended_cuda import pretended_cuda

import kclf
from kclf._core.h5_store import read_arrays, write_arrays
from kclf._core.settings import RunSettings
from kclf._core.sizes import as_size, presize_for, same_shape, scaled, size_text
from kclf.backbones.transformers import TRANSFORMERS, TransformerPlan
from kclf.data import ImageDataset
from kclf.data.images import crop_box, read_image, to_frame
from kclf.errors import BackboneError, FileFormatError
from kclf.layers import Augmentation, geometry
from kclf.layers.resampling import resample
from kclf.models.export import ResizeOfWholeNumbers, to_torch_export
from kclf.prediction.activation_cache import activation_key
from kclf.recipe.budget import larger_sizes
from kclf.recipe.reading_size import at_size
from kclf.report.thumbnails import thumbnails
from tests.conftest import with_random_logits
from tests.test_cli import run

SIZE, PRESIZE = (32, 48), (40, 60)
BAD = [0, (32, 0), (1, 2, 3), "224", (32.5, 48), True, (-3, 8), None, []]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(TRANSFORMERS, "ViTS16", TransformerPlan(16, 12, 2, patch=8, grid=4))


def pixels(count=16, size=SIZE):
    """Photos of two kinds, dark and light: uint8 (count, *size, 3)."""
    noise = np.random.default_rng(0).normal(0, 30, (count, *size, 3))
    return np.clip(noise + np.where(np.arange(count) % 2, 190, 60)[:, None, None, None], 0, 255).astype(
        np.uint8
    )


def classifier(**options):
    settings = {"size": SIZE, "presize": PRESIZE, "weights": None, "hidden": ()} | options
    return with_random_logits(kclf.ImageClassifier("ViTS16", ["dark", "light"], **settings))


def small(**options):
    """A classifier that is made at once; no single file can name its backbone."""
    settings = {"size": SIZE, "presize": PRESIZE, "normalization": "tf", "hidden": ()} | options
    return with_random_logits(kclf.ImageClassifier(backbone(), ["dark", "light"], **settings))


def backbone(sides=(None, None)):
    images, layer = keras.Input((*sides, 3)), keras.layers.Conv2D(4, 8, 8)
    return keras.Model(images, layer(images))


def disc(height, width, centre=None, radius=None):
    """A white disc on black, of smooth edge, uint8 (height, width, 3)."""
    x, y = centre or (4 * width / 2, 4 * height / 2)
    r = radius or 1.2 * height
    image = Image.new("RGB", (4 * width, 4 * height))
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill="white")
    return np.array(image.resize((width, height), Image.Resampling.BOX))


def spreads(image):
    """Centre (y, x) and standard deviations (y, x) of what is bright, in pixels."""
    weights = image[..., 0].astype(float) / image[..., 0].sum()
    places = np.indices(weights.shape)
    centre = (places * weights).sum((1, 2))
    return centre, np.sqrt(((places - centre[:, None, None]) ** 2 * weights).sum((1, 2)))


@pytest.fixture
def folder(tmp_path):
    """Photos of 2 to 3 in the folders of two classes."""
    for number, photo in enumerate(pixels(16, (60, 90))):
        place = tmp_path / "photos" / ["dark", "light"][number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(place / f"{number}.png")
    return tmp_path / "photos"


# ---- the one form of a size --------------------


def test_a_size_has_one_form():
    forms = [as_size("size", given) for given in (224, (224, 224), [224, 336], np.int64(5))]
    assert forms == [224, 224, (224, 336), 5]
    assert [size_text(form) for form in forms[1:3]] == ["224", "224x336"]
    assert scaled((225, 337), 1.25) == (281, 421)
    assert same_shape((281, 421), (225, 337))
    assert not same_shape((336, 224), (224, 336))
    assert [presize_for((288, 432), presize) for presize in ((280, 420), (460, 690), 460)] == [
        (288, 432),
        (460, 690),
        (460, 690),
    ]


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_size_is_one_message(bad):
    with pytest.raises(ValueError, match=r"whole number of pixels.*\(height, width\)\. Received: size="):
        as_size("size", bad)
    if bad is not None:
        with pytest.raises(ValueError, match=r"\(height, width\)\. Received: size="):
            kclf.ImageData.from_arrays((pixels(), [0, 1] * 8), size=bad)
        with pytest.raises(ValueError, match=r"\(height, width\)\. Received: size="):
            kclf.ImageClassifier("ViTS16", ["dark", "light"], size=bad, weights=None)


@pytest.mark.parametrize("presize", [40, (40, 70)])
def test_a_presize_of_another_shape_is_refused_with_one_that_goes(presize):
    arrays = pixels(), [0, 1] * 8
    for make in (
        lambda: kclf.ImageData.from_arrays(arrays, size=(24, 36), presize=presize),
        lambda: small(size=(24, 36), presize=presize),
        lambda: to_torch_export(small(size=(24, 36), presize=None), "never.pt2", side=presize),
    ):
        with pytest.raises(ValueError, match=r"same shape as size=\(24, 36\).*such as \(\d+, \d+\)"):
            make()


def test_settings_take_a_pair_and_come_back_from_json():
    settings = RunSettings(folder="photos", out="run", size=[224, 336])
    assert (settings.size, settings.presize) == ((224, 336), (280, 420))
    assert RunSettings.from_json(settings.to_json()) == settings
    assert RunSettings.from_json(settings.to_json() | {"size": 224, "presize": 280}).size == 224
    with pytest.raises(ValueError, match=r"from 16 to 8192.*Received: size=\[8, 224\]"):
        RunSettings(folder="photos", out="run", size=[8, 224])


# ---- how photos are read --------------------


@pytest.mark.parametrize("method", ["crop", "pad", "squish"])
def test_a_photo_of_the_shape_is_read_whole_and_undistorted(method):
    photo = disc(240, 360)
    frame = to_frame(photo, (80, 120), method)
    expected = Image.fromarray(photo).resize((120, 80), Image.Resampling.BILINEAR)
    assert np.abs(frame.astype(int) - np.asarray(expected)).max() <= 1
    _, (down, across) = spreads(frame)
    assert down == pytest.approx(across, rel=2e-3)


def test_a_photo_of_another_shape_loses_its_ends_or_gets_mirrored_ones():
    assert crop_box(500, 500, (0.5, 1.0), (224, 336)) == (0, 167, 500, 500)
    photo = disc(120, 120, radius=4 * 20)
    for method, radius in (("crop", 20), ("pad", 20 * 80 / 120)):
        _, (down, across) = spreads(to_frame(photo, (80, 120), method))
        assert (down, across) == pytest.approx((radius / 2, radius / 2), rel=0.02)


@pytest.mark.parametrize(("orientation", "shape"), [(1, (400, 600)), (6, (300, 200))])
def test_a_jpeg_is_decoded_no_smaller_than_its_upright_frame(orientation, shape, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (1200, 800)).save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg", at_least=(300, 200)).shape[:2] == shape


def test_windows_caches_and_notes_have_the_shape(folder, tmp_path):
    data = kclf.ImageData.from_folder(folder, size=SIZE, presize=PRESIZE, batch_size=4)
    assert (data.size, data.presize) == (SIZE, PRESIZE)
    assert "40x60 px rectangles, the model sees 32x48 px" in data.summary()
    assert "4 x 4 rectangles of 40x60 px" in repr(data.replace(batch_size=4).train) or data.train
    assert data.train.peek()[0].shape == (4, *PRESIZE, 3)
    direct = data.valid.peek()[0]
    cached = data.resize((50, 75), tmp_path / "cache")
    assert (cached.presize, cached.train.dataset.largest) == (PRESIZE, (50, 75))
    assert int((cached.valid.peek()[0].int() - direct.int()).abs().max()) <= 30  # noise, resized twice
    assert [path.name[:8] for path in (tmp_path / "cache").iterdir()] == ["50x75px-"]
    with pytest.raises(ValueError, match=r"presize <= \(50, 75\)"):
        cached.replace(presize=(60, 90))
    assert len(data.show_batch(4).axes) == 4


def test_photos_stay_on_a_gpu_and_are_cut_there_to_the_shape():
    with pretended_cuda():
        options = {"class_names": ["dark", "light"], "presize": (32, 40), "batch_size": 4}
        stays = ImageDataset(pixels(8), [0, 1] * 4, on_gpu=True, random_crop=True, shuffle=True, **options)
        goes, shown = stays.replace(on_gpu=False), []
        for dataset in (stays, goes):
            list(dataset)
            shown.append(next(iter(dataset))[0].cpu())
        assert stays.resident() is not None
    assert shown[0].shape == (4, 32, 40, 3)
    assert torch.equal(*shown)


def test_features_of_another_shape_are_kept_apart(folder):
    keys = {
        activation_key(model, kclf.ImageData.from_folder(folder, size=model.size).train)
        for model in (small(size=size, presize=None) for size in (SIZE, SIZE[::-1], 32))
    }
    assert len(keys) == 3


# ---- augmentation --------------------


def test_the_centre_of_a_photo_of_the_shape_is_the_photo():
    photos = pixels(2)
    assert np.array_equal(Augmentation(SIZE)(photos).numpy(), photos)
    resized = Augmentation(SIZE)(pixels(2, PRESIZE)).numpy()
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(pixels(2, PRESIZE)).permute(0, 3, 1, 2), SIZE, mode="bilinear", antialias=True
    )
    assert np.array_equal(resized, expected.permute(0, 2, 3, 1).float().numpy())


@pytest.mark.parametrize("degrees", [30.0, 90.0, -45.0])
def test_a_turned_circle_is_a_circle_where_it_belongs(degrees):
    height, width = 64, 96
    photo = disc(height, width, centre=(4 * 62.0, 4 * 32.0), radius=4 * 8.0)  # 14 px right of the middle
    maps = geometry.for_aspect(geometry.rotation(torch.tensor([degrees], dtype=torch.float64)), height, width)
    turned = resample(torch.from_numpy(photo)[None], maps, (height, width)).numpy()[0]
    (y, x), (down, across) = spreads(turned)
    angle = np.deg2rad(degrees)
    middle = (height - 1) / 2, (width - 1) / 2
    assert (y, x) == pytest.approx((middle[0] + 14 * np.sin(angle), middle[1] + 14 * np.cos(angle)), abs=0.3)
    assert down == pytest.approx(across, rel=0.02)


def test_random_turns_and_zooms_keep_a_circle():
    layer = Augmentation((64, 96), max_rotate=180, max_zoom=1.2, p_affine=1.0, flip="dihedral", seed=3)
    photos = np.repeat(disc(80, 120, radius=4 * 18.0)[None], 8, 0)
    for view in layer(photos, training=True).numpy():
        _, (down, across) = spreads(view)
        assert down == pytest.approx(across, rel=0.01)
        assert 14.0 / 2 < down < 18.0 / 2


def test_a_rectangle_has_four_symmetries():
    photo = pixels(1)
    views = Augmentation(SIZE, flip="dihedral", seed=0)(np.repeat(photo, 32, 0), training=True).numpy()
    allowed = [photo[0], photo[0, :, ::-1], photo[0, ::-1], photo[0, ::-1, ::-1]]
    seen = [[np.array_equal(view, one) for one in allowed] for view in views]
    assert all(map(any, seen))
    assert np.array(seen).any(0).all()


# ---- the classifier --------------------


def test_trained_predicted_and_explained(tmp_path):
    photos, sizes = pixels(16, PRESIZE), {"size": SIZE, "presize": PRESIZE}
    data = kclf.ImageData.from_arrays((photos, [0, 1] * 8), batch_size=4, **sizes)
    options = {"normalization": "tf", "hidden": (), "augmentation": kclf.aug_transforms()}
    learner = kclf.Learner(data, backbone(), path=tmp_path, **options)
    assert learner.model.input_shape == (None, *SIZE, 3)
    learner.fit_best(effort="quick")
    learner.model.unfreeze()
    learner.fit_one_cycle(1, 1e-3)
    photo = photos[0]
    expected = kclf.predict(learner.model, photo[None]).probabilities[0]
    np.testing.assert_allclose(learner.predict(photo)[2], expected, atol=1e-6)
    assert kclf.predict_tta(learner.model, data.valid, views="dihedral").tta.views == 3


def test_saved_and_read_back(tmp_path):
    model, photos = classifier(), pixels(4, PRESIZE)
    expected = kclf.predict(model, photos).probabilities
    assert kclf.grad_cam(model, photos).maps.shape == (4, 4, 6)
    for file in ("model.h5", "model.keras"):
        model.save(tmp_path / file)
        again = kclf.load(tmp_path / file, check=True)
        assert (again.size, again.presize) == (SIZE, PRESIZE)
        np.testing.assert_allclose(kclf.predict(again, photos).probabilities, expected, atol=1e-6)


def test_files_are_predicted_at_the_shape_of_the_classifier(folder):
    model, file = small(), next(folder.rglob("*.png"))
    found, _ = kclf.predict_files(model, [file])
    assert model.read(file).shape == (*PRESIZE, 3)
    expected = kclf.predict(model, model.read(file)[None]).probabilities
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


def test_another_size_keeps_the_shape():
    named = SimpleNamespace(size=(224, 336), backbone_name="MobileNetV2")
    assert larger_sizes(named, (1.1, 1.4, 1.8)) == [(288, 432)]  # 1.3 times what its weights know, at most
    data = kclf.ImageData.from_arrays((pixels(16, PRESIZE), [0, 1] * 8), size=SIZE, presize=PRESIZE)
    model, larger = at_size(small(), data, (48, 72))
    assert (model.size, model.presize, larger.size, larger.presize) == ((48, 72),) * 4


def test_a_backbone_of_fixed_sides_says_which_size_it_takes():
    fixed = backbone(SIZE)
    assert kclf.ImageClassifier(fixed, ["a", "b"], size=SIZE, normalization="none").size == SIZE
    with pytest.raises(BackboneError, match=r"\(batch, 48, 32, 3\).*Pass size=\(32, 48\)"):
        kclf.ImageClassifier(fixed, ["a", "b"], size=SIZE[::-1], normalization="none")


def test_the_heat_lies_where_the_class_was_seen():
    images, layer = keras.Input((None, None, 3)), keras.layers.Conv2D(2, 8, 8, use_bias=False)
    body = keras.Model(images, layer(images))
    layer.kernel.assign(np.stack([np.ones((8, 8, 3)), -np.ones((8, 8, 3))], -1) / 192)
    model = kclf.ImageClassifier(body, ["a", "b"], size=SIZE, normalization="none", hidden=())
    model.head.get_layer("logits").kernel.assign([[1, -1], [-1, 1], [1, -1], [-1, 1]])
    photo = disc(*SIZE, centre=(4 * 44, 4 * 12), radius=4 * 4)
    (heat,) = kclf.grad_cam(model, photo[None], np.array([0])).maps
    assert np.unravel_index(heat.argmax(), heat.shape) == (12 // 8, 44 // 8)


def test_a_file_that_claims_no_size_is_refused(tmp_path):
    classifier().save(tmp_path / "model.h5")
    arrays, attributes = read_arrays(tmp_path / "model.h5")
    for claimed in ([0, 48], [32, 48, 3], "48", [32, 9000], {}):
        attributes["config"]["size"] = claimed
        write_arrays(tmp_path / "model.h5", arrays, attributes)
        with pytest.raises(FileFormatError, match=r"settings are damaged.*Expected size"):
            kclf.load(tmp_path / "model.h5")


def test_thumbnails_have_the_shape(folder):
    (shown,) = thumbnails([str(next(folder.rglob("*.png")))], small())
    photo = Image.open(io.BytesIO(base64.b64decode(shown.photo.partition(",")[2])))
    assert photo.size == (shown.width, shown.height) == (176, 117)


# ---- exports and the command --------------------


def test_the_resize_of_exports_is_torchs_along_both_axes():
    photos = torch.from_numpy(pixels(2, (45, 60)))
    expected = torch.nn.functional.interpolate(
        photos.permute(0, 3, 1, 2), (32, 48), mode="bilinear", antialias=True
    ).permute(0, 2, 3, 1)
    assert torch.equal(ResizeOfWholeNumbers((45, 60), (32, 48))(photos), expected.float())


@pytest.mark.heavy
@pytest.mark.filterwarnings("default")  # of torch's exporter about itself
def test_onnx_files_take_the_shape(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    model, photos = small(), pixels(8, PRESIZE)
    kclf.to_onnx(model, tmp_path / "model.onnx")
    loaded = kclf.load_onnx(tmp_path / "model.onnx")
    assert loaded.size == PRESIZE
    expected = kclf.predict(model, photos).probabilities
    np.testing.assert_allclose(kclf.predict(loaded, photos).probabilities, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("word", ["0", "1x2x3", "wide", "32x9"])
def test_the_command_refuses_what_is_no_size(word, folder, tmp_path, capsys):
    assert run("train", folder, "--out", tmp_path / "run", "--size", word) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "expected SIDE or HEIGHTxWIDTH of 16 to 8192 pixels, such as 224 or 224x336" in said
    assert f"Received: --size {word}" in said


def test_the_command_refuses_a_presize_of_another_shape(folder, tmp_path, capsys):
    words = ["--size", "32x48", "--presize", "60x60"]
    assert run("train", folder, "--out", tmp_path / "run", *words) == 2
    assert "expected the shape of --size 32x48" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.heavy
def test_the_command_trains_predicts_and_reports_at_a_shape(folder, tmp_path, capsys):
    words = ["--backbone", "MobileNetV2_035", "--weights", "none", "--size", "32x48"]
    assert run("train", folder, "--out", tmp_path / "run", "--effort", "quick", *words) == 0
    model = kclf.load(tmp_path / "run" / "classifier.h5")
    assert (model.size, model.presize) == (SIZE, PRESIZE)
    assert "MobileNetV2_035 at 32x48 px" in (tmp_path / "run" / "report.html").read_text()
    assert run("predict", tmp_path / "run", next(folder.rglob("*.png"))) == 0
    assert "light" in capsys.readouterr().out
