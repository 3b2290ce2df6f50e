"""KerasTuner searches over models with our optimizer and over classifiers, and gets the best ones back."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kclf
from tests.test_compile_names import SIDE, classifier, easy_photos

keras_tuner = pytest.importorskip("keras_tuner", reason="the extra [tuner] is not installed")


def functional(hp):
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dense(hp.Choice("units", [4, 8]), "relu")(x)
    model = kclf.accelerate(keras.Model(inputs, keras.layers.Dense(2)(x)))
    optimizer = keras.optimizers.Adam(hp.Float("rate", 1e-3, 1e-2, sampling="log"))
    model.compile(
        kclf.LayerGroupOptimizer(optimizer, model, slice(0.1, 1.0)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def transfer(hp):
    model = classifier()
    model.unfreeze()
    model.compile(
        kclf.LayerGroupOptimizer(
            keras.optimizers.Adam(hp.Float("rate", 1e-3, 1e-1, sampling="log"), use_ema=hp.Boolean("ema")),
            model,
        )
    )
    return model


TUNERS = {
    "random": lambda build, folder: keras_tuner.RandomSearch(
        build, "val_accuracy", max_trials=3, seed=0, directory=folder, overwrite=True
    ),
    "hyperband": lambda build, folder: keras_tuner.Hyperband(
        build, "val_accuracy", max_epochs=4, factor=2, seed=0, directory=folder, overwrite=True
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*begins anew", "ignore:Skipping variable")
@pytest.mark.parametrize("build", [functional, transfer])
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_search_gives_its_best_models_back(tmp_path, tuner, build):
    x, y = easy_photos()
    search = TUNERS[tuner](build, tmp_path)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=3)
    search.search(x, y, validation_data=(x, y), epochs=4, batch_size=8, verbose=0, callbacks=[stop])
    (best,) = search.get_best_models(1)
    (trial,) = search.oracle.get_best_trials(1)
    again = best.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
    assert again == pytest.approx(trial.score, abs=0.02)
    assert trial.score > 0.9
    assert best.fit(x, y, epochs=1, batch_size=8, verbose=0).history["loss"][0] < 0.7
    assert np.isfinite(best.predict(x, verbose=0)).all()
