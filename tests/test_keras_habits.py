"""Whoever comes with Keras' habits: files, other people's models, models that change."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import torch
from PIL import Image

import kclf
from kclf.checks.wrong_labels import features_of
from kclf.errors import BackboneError
from kclf.prediction.inference import last_activation
from tests.test_compile_names import SIDE, classifier, easy_photos


def plain_model(last="softmax", optimizer=None):
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(2, last)]
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), *layers])
    model.compile(optimizer or keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_a_file_written_under_a_schedule_has_the_values_from_before(tmp_path, ending, grouped):
    def built():
        model = plain_model()
        optimizer = keras.optimizers.Adam(1e-3)
        model.compile(
            kclf.LayerGroupOptimizer(optimizer, model) if grouped else optimizer,
            "sparse_categorical_crossentropy",
        )
        return model

    model, path = built(), tmp_path / f"m{ending}"
    saver = keras.callbacks.ModelCheckpoint(path, save_weights_only=ending == ".weights.h5")
    model.fit(*easy_photos(), epochs=2, batch_size=8, verbose=0, callbacks=[kclf.OneCycle(1e-2), saver])
    if ending == ".keras":
        again = keras.models.load_model(path)
    else:
        again = built()
        again.optimizer.build(again.trainable_variables)
        again.load_weights(path)
    for optimizer in (model.optimizer, again.optimizer):
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        assert float(np.array(optimizer.learning_rate)) == pytest.approx(1e-3)
        assert inner.beta_1 == pytest.approx(0.9)
    assert int(np.array(again.optimizer.iterations)) == 8
    assert "get_config" not in vars(model.optimizer)


def test_a_fit_ended_by_ctrl_c_hands_the_own_values_back():
    class Interrupt(keras.layers.Layer):
        calls = 0

        def call(self, x):
            self.calls += 1
            if self.calls > 4:
                raise KeyboardInterrupt
            return x

    model = keras.Sequential([keras.Input((4,)), Interrupt(), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    with pytest.raises(KeyboardInterrupt):
        model.fit(np.ones((32, 4)), np.ones((32, 2)), batch_size=4, verbose=0, callbacks=[kclf.OneCycle(1.0)])
    assert float(np.array(model.optimizer.learning_rate)) == pytest.approx(1e-3)
    assert model.optimizer.beta_1 == pytest.approx(0.9)


def test_weights_load_beside_another_optimizer_s_state_with_a_warning(tmp_path):
    model = plain_model()
    model.fit(*easy_photos(), verbose=0)
    model.save_weights(tmp_path / "adam.weights.h5")
    other = plain_model()
    other.compile(kclf.LayerGroupOptimizer("sgd", other), "mse")
    with pytest.warns(UserWarning, match="begins anew|Skipping variable loading"):
        other.load_weights(tmp_path / "adam.weights.h5")
    np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "m.keras"])
def test_every_name_for_a_whole_classifier_is_read_back(tmp_path, name):
    model = kclf.ImageClassifier("MobileNet_025", ["a", "b"], size=32, weights=None)
    model.save(tmp_path / name)
    again = kclf.load(tmp_path / name)
    x = np.full((1, 32, 32, 3), 100, "uint8")
    np.testing.assert_allclose(
        np.array(again(x).detach().cpu()), np.array(model(x).detach().cpu()), atol=1e-5
    )
    with pytest.raises(ValueError, match="save_weights"):
        model.save(tmp_path / "m.weights.h5")


def test_a_classifier_starts_the_next_one(tmp_path):
    old = kclf.ImageClassifier("MobileNet_025", ["a", "b"], size=32, weights=None)
    old.save(tmp_path / "old.h5")
    old.save(tmp_path / "old.keras")
    old.save_weights(tmp_path / "old.weights.h5")
    base = keras.applications.MobileNet(alpha=0.25, weights=None, include_top=False, input_shape=(32, 32, 3))
    base.set_weights(old.backbone.get_weights())
    nested = keras.Sequential(
        [keras.Input((32, 32, 3)), base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)]
    )
    nested.save(tmp_path / "nested.keras")
    for name in ("old.h5", "old.keras", "old.weights.h5", "nested.keras"):
        new = kclf.ImageClassifier("MobileNet_025", ["x", "y", "z"], size=32, weights=tmp_path / name)
        for ours, theirs in zip(new.backbone.get_weights(), old.backbone.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_backbone_of_a_classifier_keeps_its_groups_and_its_name(tmp_path):
    old = kclf.ImageClassifier("MobileNet_025", ["a", "b"], size=32, weights=None)
    new = kclf.ImageClassifier(old.backbone, ["x", "y", "z"], size=32)
    assert [len(group) for group in new.layer_groups] == [len(group) for group in old.layer_groups]
    new.save(tmp_path / "new.h5")
    assert kclf.load(tmp_path / "new.h5").class_names == ["x", "y", "z"]


def test_a_backbone_of_another_size_or_with_a_top_is_refused_when_it_is_built():
    inputs = keras.Input((SIDE, SIDE, 3))
    top = keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(inputs))
    with pytest.raises(BackboneError, match="include_top=False"):
        kclf.ImageClassifier(keras.Model(inputs, top), ["a", "b"], size=SIDE, normalization="tf")
    features = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    with pytest.raises(BackboneError, match=f"size={SIDE}"):
        kclf.ImageClassifier(features, ["a", "b"], size=2 * SIDE, normalization="tf")


@pytest.mark.parametrize("last", ["softmax", None])
@pytest.mark.parametrize("subclassed", [False, True])
def test_probabilities_are_not_softmaxed_twice(last, subclassed):
    x, y = easy_photos()
    model = plain_model(last)
    expected = model.predict(x, verbose=0)
    if last is None:
        expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    if subclassed:
        inner = model

        class Other(keras.Model):
            def call(self, x):
                return inner(x)

        model = Other()
    data = kclf.ImageDataset(x, y, class_names=["a", "b"], presize=SIDE, batch_size=8)
    np.testing.assert_allclose(kclf.predict(model, data).probabilities, expected, atol=1e-5)


def test_a_sigmoid_is_seen_where_a_photo_has_many_labels():
    x, y = easy_photos()
    model = plain_model("sigmoid")
    data = kclf.ImageDataset(x, np.eye(2)[y], class_names=["a", "b"], presize=SIDE, task="multi_label")
    np.testing.assert_allclose(
        kclf.predict(model, data).probabilities, model.predict(x, verbose=0), atol=1e-6
    )


def test_a_classifier_is_known_to_give_logits():
    assert last_activation(classifier()) is None


def change(model, how):
    if how == "pop and add":
        model.pop()
        model.add(keras.layers.Dense(3, name="new"))
    elif how == "add":
        model.add(keras.layers.Softmax())
    elif how == "activation":
        model.layers[-1].activation = keras.activations.softplus


@pytest.mark.parametrize("how", ["pop and add", "add", "activation"])
def test_acceleration_follows_a_model_that_changes(how):
    x, y = easy_photos()
    x = x.astype("float32")
    results = []
    for accelerated in (False, True):
        keras.utils.set_random_seed(3)
        model = plain_model("linear")
        if accelerated:
            kclf.accelerate(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
        model.fit(x, y, verbose=0, shuffle=False)
        change(model, how)
        model.compile("sgd", loss)
        fitted = model.fit(x, y, epochs=2, verbose=0, shuffle=False).history["loss"]
        results.append([*fitted, model.evaluate(x, y, verbose=0)])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4)


def test_a_sequential_that_is_built_later_is_planned_then():
    model = kclf.accelerate(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)]))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = easy_photos()
    model.fit(x.astype("float32") / 255, y, verbose=0)
    model.evaluate(x.astype("float32") / 255, y, verbose=0)
    assert len(model.__dict__["_kclf_acceleration"].plans) == 1


def test_a_classifier_has_the_shapes_of_a_functional_model():
    model = classifier()
    assert model.input_shape == (None, SIDE, SIDE, 3)
    assert model.output_shape == model.compute_output_shape((None, SIDE, SIDE, 3)) == (None, 2)
    x = easy_photos()[0]
    again = keras.Model(model.inputs, model.outputs)
    np.testing.assert_allclose(
        again.predict(x.astype("float32"), verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


def test_the_summary_of_a_classifier_has_shapes():
    lines = []
    classifier().summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert "unbuilt" not in text
    assert "?" not in text


@pytest.mark.parametrize("loaded", [False, True])
def test_a_classifier_is_exported_for_torch(tmp_path, loaded):
    model = classifier()
    if loaded:
        model.save(tmp_path / "m.keras")
        model = kclf.load(tmp_path / "m.keras")
    x = easy_photos()[0][:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its tracing
        model.export(tmp_path / "m.pt2", format="torch", verbose=False)
        again = torch.export.load(tmp_path / "m.pt2").module()
    found = again(torch.tensor(x, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-6)


def test_a_quantized_classifier_predicts_alike_and_is_read_back(tmp_path):
    x, y = easy_photos()
    model = classifier()
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(x, y, epochs=3, verbose=0)
    before = model.predict(x, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras names every layer that stays as it is
        model.quantize("int8")
    after = model.predict(x, verbose=0)
    assert 0 < np.abs(after - before).max() < 0.05 * np.abs(before).max()
    model.save(tmp_path / "m.keras")
    again = kclf.load(tmp_path / "m.keras")
    assert any("int8" in str(variable.dtype) for variable in again.weights)
    np.testing.assert_allclose(again.predict(x, verbose=0), after, atol=1e-6)
    with pytest.raises(kclf.WeightsError, match=r"\.keras"):
        model.save(tmp_path / "m.h5")


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5"])
def test_a_file_that_nobody_could_read_back_is_not_written(tmp_path, name):
    with pytest.raises(ValueError, match=r"model\.save"):
        keras.saving.save_model(classifier(), tmp_path / name)


def photo_model(last):
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu", name="early"),
            keras.Sequential([keras.layers.Conv2D(5, 3, strides=2, activation="relu")], name="body"),
            keras.layers.GlobalAveragePooling2D(),
            *last,
        ]
    )


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("ending", ["softmax", "layer", "logits"])
def test_grad_cam_of_a_keras_model_explains_its_logits(ending, accelerated):
    last = {"softmax": [keras.layers.Dense(2, "softmax")], "logits": [keras.layers.Dense(2)]}
    model = photo_model(last.get(ending, [keras.layers.Dense(2), keras.layers.Softmax()]))
    if accelerated:
        kclf.accelerate(model)
    x = easy_photos()[0][:3]
    before = model.predict(x, verbose=0)
    heat = kclf.grad_cam(model, x)
    dense = next(one for one in model.layers if isinstance(one, keras.layers.Dense))
    maps = keras.Sequential(model.layers[:3])(x.astype("float32")).detach().cpu().numpy()
    shares = np.array(dense.kernel.value.detach().cpu())[:, heat.classes].T
    by_hand = np.maximum((maps * shares[:, None, None]).sum(-1), 0)
    np.testing.assert_allclose(heat.maps, by_hand / by_hand.max((1, 2), keepdims=True).clip(1e-9), atol=1e-4)
    np.testing.assert_array_equal(heat.classes, before.argmax(1))
    np.testing.assert_allclose(model.predict(x, verbose=0), before, atol=1e-6)
    assert kclf.grad_cam(model, x, layer="early").maps.shape == (3, SIDE - 2, SIDE - 2)
    with pytest.raises(ValueError, match="early"):
        kclf.grad_cam(model, x, layer="absent")


def test_files_are_predicted_and_checked_by_a_keras_model(tmp_path):
    x, y = easy_photos()
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        path = tmp_path / "ab"[label] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    model = photo_model([keras.layers.Dense(2, "softmax")])
    predictions, skipped = kclf.predict_files(model, [tmp_path], class_names=["a", "b"])
    order = [int(path.rsplit("/", 1)[1][:-4]) for path in map(str, predictions.paths)]
    np.testing.assert_allclose(predictions.probabilities, model.predict(x[order], verbose=0), atol=1e-5)
    assert skipped == []
    assert predictions.class_names == ["a", "b"]
    assert all("not checked" not in note for note in kclf.check(tmp_path, model).notes)


def test_a_model_that_does_not_tell_what_is_needed_is_answered(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "1.png")
    anyhow = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="size=SIDE"):
        kclf.predict_files(anyhow, [tmp_path])
    assert len(kclf.predict_files(anyhow, [tmp_path], size=8)[0].probabilities) == 1
    with pytest.raises(TypeError, match="features="):
        features_of(keras.Model())
    with pytest.raises(TypeError, match=r"model\.export"):
        kclf.to_onnx(anyhow, tmp_path / "m.onnx")


def wrong_calls(model):
    x, y = easy_photos()
    data = kclf.ImageData.from_arrays((x, y), class_names=["cat", "dog"], size=SIDE, batch_size=8)
    return {
        "all parts": (lambda: model.fit(data), "data.train to fit"),
        "all parts to validate": (lambda: model.fit(data.train, validation_data=data), "data.valid"),
        "all parts to evaluate": (lambda: model.evaluate(data), "data.valid to evaluate"),
        "a data set to split": (
            lambda: model.fit(data.train, validation_split=0.2),
            "validation_data=data.valid",
        ),
        "labels from 1": (lambda: model.fit(x, y + 1), "from 0 to 1.*Received: 2"),
        "names": (lambda: model.evaluate(x, np.array(["cat", "dog"])[y]), "class_names.index"),
    }


@pytest.mark.parametrize("case", ["all parts", "all parts to validate", "all parts to evaluate",
                                  "a data set to split", "labels from 1", "names"])  # fmt: skip
def test_data_that_no_step_could_take_are_answered_at_once(case):
    model = classifier()
    model.compile()
    call, answer = wrong_calls(model)[case]
    with pytest.raises((TypeError, ValueError), match=answer):
        call()


def test_a_classifier_that_is_not_compiled_says_so_when_it_is_evaluated(tmp_path):
    model = classifier()
    with pytest.raises(ValueError, match="compile"):
        model.evaluate(*easy_photos())
    model.compile()
    assert len(model.evaluate(*easy_photos(), verbose=0)) == 2


def test_heat_maps_of_a_data_set_are_answered_with_its_images():
    data = kclf.ImageData.from_arrays(easy_photos(), class_names=["cat", "dog"], size=SIDE, batch_size=8)
    with pytest.raises(TypeError, match=r"peek\(\)\[0\]"):
        kclf.grad_cam(classifier(), data.valid)
    assert len(kclf.grad_cam(classifier(), data.valid.peek()[0]).maps)


def test_one_file_needs_no_list(tmp_path):
    Image.fromarray(easy_photos()[0][0].astype(np.uint8)).save(tmp_path / "a.png")
    model = classifier()
    one, _ = kclf.predict_files(model, tmp_path / "a.png")
    listed, _ = kclf.predict_files(model, [str(tmp_path)])
    np.testing.assert_array_equal(one.probabilities, listed.probabilities)
