"""A classifier on a backbone of one's own: saved, loaded, and used by the command."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from PIL import Image

from kclf import ImageData, Learner, load_learner
from kclf.cli.main import main
from kclf.errors import WeightsError
from kclf.fastai import cnn_learner
from kclf.fastai import load_learner as load_course_learner

SIZE = 16


@keras.saving.register_keras_serializable(package="tests")
class Scaled(keras.layers.Layer):
    """A layer of one's own, registered."""

    def call(self, x):
        return x * 0.5


class Unknown(keras.layers.Layer):
    """A layer that nobody registered."""

    def call(self, x):
        return x * 0.5


def backbone(extra: keras.Layer) -> keras.Model:
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, strides=4, activation="relu")(image)
    return keras.Model(image, extra(x), name="own")


@pytest.fixture
def photos(tmp_path):
    for number in range(8):
        name = ("blue", "red")[number % 2]
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 99, (SIZE, SIZE, 3), np.uint8)
        pixels[..., 2 * (name == "blue")] += 120
        Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    return stopped.value.code or 0


def learner_of(photos, make=Learner, extra=None) -> Learner:
    data = ImageData.from_folder(photos, size=SIZE, presize=SIZE, batch_size=4, valid_fraction=0.5)
    settings = {"hidden": (), "normalization": "tf", "path": photos.parent, "verbose": False}
    return make(data, backbone(extra or Scaled()), **settings)


def test_export_and_load_learner(photos):
    learner = learner_of(photos)
    learner.fit_one_cycle(1, 1e-2)
    file = learner.export()
    assert file == photos.parent / "export.keras"
    back = load_learner(file, learner.data, verbose=False)
    np.testing.assert_allclose(back.get_preds()[0], learner.get_preds()[0], atol=1e-6)
    back.fit_one_cycle(1, 1e-3)


def test_save_and_load(photos):
    learner = learner_of(photos)
    before = learner.get_preds()[0]
    assert learner.save("first").name == "first.keras"
    learner.fit_one_cycle(1, 1e-1)
    learner.load("first")
    np.testing.assert_allclose(learner.get_preds()[0], before, atol=1e-6)


def test_the_course_says_export_pkl(photos):
    learner = learner_of(photos, cnn_learner)
    learner.export()
    back = load_course_learner(photos.parent / "export.pkl")
    photo = photos / "red" / "1.png"
    np.testing.assert_allclose(back.predict(photo)[2], learner.predict(photo)[2], atol=1e-6)


def test_the_command_takes_the_file(photos, capsys):
    learner = learner_of(photos)
    file = str(learner.export())
    assert run(["predict", file, str(photos / "red"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = learner.predict(photos / "red" / "1.png")
    assert found[0]["classes"][0]["class"] == expected[0]
    assert found[0]["classes"][0]["probability"] == pytest.approx(expected[2].max(), abs=1e-5)
    assert run(["evaluate", file, str(photos)]) == 0
    assert "8 photos: accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("extra", [keras.layers.Lambda(lambda x: x * 0.5), Unknown()])
def test_what_could_not_be_read_back_is_not_saved(extra, photos):
    learner = learner_of(photos, extra=extra)
    with pytest.raises(WeightsError, match=r"'own' could not be read back.*register_keras_serializable"):
        learner.export()
    assert not (photos.parent / "export.keras").exists()


def test_an_h5_says_what_to_do(photos):
    with pytest.raises(WeightsError, match=r'save\(".*export\.keras"\)'):
        learner_of(photos).model.save(photos.parent / "export.h5")
