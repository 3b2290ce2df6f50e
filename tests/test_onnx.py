"""ONNX files in every task and precision, read back by `load_onnx` and by the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

import kclf
from kclf.cli.export_commands import compared
from kclf.cli.train import RunSettings, describe_settings, find_data, first_photos, write_settings
from kclf.data.decision import Decision
from kclf.errors import DataError, FileFormatError
from tests.conftest import with_random_logits
from tests.test_cli import run
from tests.test_export import SIDE, inverted_residual

pytestmark = pytest.mark.filterwarnings("default")  # of torch's exporter and onnxruntime's quantizer
TASKS = ("single_label", "multi_label", "regression")
LARGEST = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.1}


def noise(count, side=SIDE):
    """Photos that differ: brightness and contrast by photo."""
    draw = np.random.default_rng(0)
    levels, spreads = draw.uniform(30, 220, (count, 1, 1, 3)), draw.uniform(2, 60, (count, 1, 1, 1))
    return np.uint8(np.clip(draw.normal(levels, spreads, (count, side, side, 3)), 0, 255))


def classifier_of(task):
    classifier = inverted_residual(task=task)
    thresholds = (0.3, 0.6, 0.5) if task == "multi_label" else ()
    scores = (0.1, 0.4) if task == "single_label" else ()
    classifier.decision = Decision(1.0 if task == "regression" else 1.7, thresholds, scores)
    return classifier


@pytest.mark.parametrize(
    ("task", "precision"),
    [
        *(pytest.param(task, "fp32", marks=() if task == TASKS[0] else pytest.mark.heavy) for task in TASKS),
        *(("single_label", precision) for precision in ("fp16", "int8")),
    ],
)
def test_a_file_says_what_the_classifier_says(tmp_path, task, precision):
    model, photos = classifier_of(task), noise(200)
    calibration = photos[:64] if precision == "int8" else None
    kclf.to_onnx(model, tmp_path / "model.onnx", precision=precision, calibration=calibration)
    loaded = kclf.load_onnx(tmp_path / "model.onnx")
    found, expected = kclf.predict(loaded, photos), kclf.predict(model, photos)
    scale = max(1.0, float(np.abs(expected.probabilities).max()))  # of numbers to predict
    assert expected.probabilities.std() > 0.02 * scale
    np.testing.assert_allclose(
        found.probabilities, expected.probabilities, atol=LARGEST[precision] * scale, rtol=0
    )
    assert (loaded.task, loaded.size, list(found.class_names)) == (task, SIDE, model.class_names)
    if precision == "fp32":
        np.testing.assert_array_equal(found.predicted > 0.5, expected.predicted > 0.5)  # by its thresholds
    if task == "single_label":
        assert found.decision.conformity == model.decision.conformity


@pytest.mark.heavy
def test_precisions_take_less_room(tmp_path):
    model = with_random_logits(kclf.ImageClassifier("MobileNetV2_035", ["cat", "dog"], size=32, weights=None))
    for precision in LARGEST:
        calibration = noise(8, 32) if precision == "int8" else None
        kclf.to_onnx(model, tmp_path / precision, precision=precision, calibration=calibration)
    full, half, whole = ((tmp_path / precision).stat().st_size for precision in LARGEST)
    assert half < 0.6 * full
    assert whole < 0.4 * full


def test_int8_without_photos_is_refused(tmp_path):
    with pytest.raises(ValueError, match="calibration"):
        kclf.to_onnx(inverted_residual(), tmp_path / "model.onnx", precision="int8")


def foreign(path):
    value = onnx.helper.make_tensor_value_info("photos", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["photos"], ["out"])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "graph", [value], [out])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path
    )


def test_files_that_are_none_of_kclf_s_are_refused(tmp_path):
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x99 no protobuf" * 9)
    foreign(tmp_path / "foreign.onnx")
    with pytest.raises(DataError, match="No such file"):
        kclf.load_onnx(tmp_path / "missing.onnx")
    for name in ("damaged.onnx", "foreign.onnx"):
        with pytest.raises(FileFormatError, match=name):
            kclf.load_onnx(tmp_path / name)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A 12-bit photo in a file of 16 bits, and what a classifier of such photos exports."""
    folder = tmp_path_factory.mktemp("deep")
    values = np.random.default_rng(0).integers(0, 4096, (50, 60), dtype=np.uint16)
    Image.fromarray(values).save(folder / "photo.png")
    model = inverted_residual()
    model.depth = 12
    kclf.to_onnx(model, folder / "model.onnx")
    return folder, model


def with_details(folder, change):
    """The path of the exported file, saying something else of itself."""
    file = onnx.load(folder / "model.onnx")
    told = next(prop for prop in file.metadata_props if prop.key == "classifier")
    told.value = json.dumps(change(json.loads(told.value)))
    onnx.save(file, folder / "changed.onnx")
    return folder / "changed.onnx"


def test_deep_photos_are_read_as_the_classifier_reads_them(deep):
    folder, model = deep
    loaded = kclf.load_onnx(folder / "model.onnx")
    found, expected, shallow = (
        kclf.predict_files(classifier, [folder / "photo.png"], depth=depth)[0].probabilities
        for classifier, depth in ((loaded, None), (model, None), (loaded, 16))
    )
    assert loaded.depth == 12
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - shallow).max() > 0.01


def test_files_from_before_the_depth_was_kept_are_read(deep):
    folder, _ = deep
    older = with_details(folder, lambda told: {name: told[name] for name in told if name != "depth"})
    assert kclf.load_onnx(older).depth is None
    with pytest.raises(FileFormatError, match="1 to 32 bits"):
        kclf.load_onnx(with_details(folder, lambda told: told | {"depth": "evil"}))


# ---- the command ------------------------------------------------------------


def labels_of(task, count):
    draw = np.random.default_rng(1)
    if task == "single_label":
        return draw.choice(["blue", "red"], count)
    if task == "multi_label":
        return ["blue red" if both else "blue" for both in draw.integers(0, 2, count)]
    return draw.uniform(0, 9, count).round(2)


@pytest.fixture(autouse=True)
def _tiny_classifiers(monkeypatch):
    """Runs of these tests keep a backbone that is in no registry, and so a `.keras` archive."""
    load = kclf.models.load
    monkeypatch.setattr(kclf.models, "load", lambda path: load(path.with_suffix(".keras")))


def run_folder(base, task, count=30):
    """What a training leaves, without the training."""
    photos = noise(count)
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(base / f"{number}.png")
    rows = [f"{number}.png,{label}" for number, label in enumerate(labels_of(task, count))]
    (base / "table.csv").write_text("\n".join(["file,label", *rows]))
    settings = RunSettings(
        folder=base,
        out=base / "run",
        csv=base / "table.csv",
        task=task,
        size=32,
        presize=SIDE,
        label_delimiter=" " if task == "multi_label" else None,
        valid_fraction=0.5,
    )
    data = find_data(settings)
    settings.out.mkdir()
    inverted_residual(task=task, names=data.class_names or ["number"]).save(settings.out / "classifier.keras")
    (settings.out / "classifier.h5").touch()  # in whose place `_tiny_classifiers` reads the other
    write_settings(settings.out, describe_settings(settings, data))
    return settings.out


@pytest.mark.parametrize(
    "task",
    [
        "single_label",
        pytest.param("multi_label", marks=pytest.mark.heavy),
        pytest.param("regression", marks=pytest.mark.heavy),
    ],
)
def test_the_command_writes_measures_and_predicts(tmp_path, capsys, task):
    folder = run_folder(tmp_path, task)
    assert run("export", folder) == 0
    printed = capsys.readouterr().out
    words = printed.split("largest difference")[1].replace(" of a probability", "").split()
    assert float(words[0].strip(",")) <= 1e-4
    assert "16 validation photos" in printed
    rows = {}
    for classifier in (folder, folder / "classifier.onnx"):
        assert run("predict", classifier, tmp_path / "1.png", tmp_path / "2.png", "--json", "--top", 9) == 0
        rows[classifier] = json.loads(capsys.readouterr().out)
    for ours, theirs in zip(*rows.values(), strict=True):
        ours, theirs = ({c["class"]: c["probability"] for c in row["classes"]} for row in (ours, theirs))
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_int8_is_calibrated_on_training_photos_and_needs_them(tmp_path, capsys):
    folder = run_folder(tmp_path, "single_label")
    assert run("export", folder, "--precision", "int8", "--out", tmp_path / "small.onnx") == 0
    assert "other answers; accuracy" in capsys.readouterr().out
    assert run("export", folder / "classifier.h5", "--precision", "int8") == 2
    assert "training photos" in capsys.readouterr().err


def test_a_torch_program_is_measured(tmp_path, capsys):
    folder = run_folder(tmp_path, "single_label")
    assert run("export", folder, "--to", "torch") == 0
    assert "16 validation photos" in capsys.readouterr().out
    assert (folder / "classifier.pt2").is_file()


def test_what_cannot_be_written_says_what_to_do(tmp_path, capsys, monkeypatch):
    folder = run_folder(tmp_path, "single_label", 8)
    assert run("export", folder, "--to", "coreml") == 2
    assert "CoreMLExecutionProvider" in capsys.readouterr().err
    assert run("export", folder, "--to", "torch", "--precision", "int8") == 2
    monkeypatch.setitem(__import__("sys").modules, "litert_torch", None)
    assert run("export", folder, "--to", "tflite") == 2
    assert "pip install litert-torch" in capsys.readouterr().err


def test_photos_that_measure_are_spread_over_the_split(tmp_path):
    images, labels = noise(40, 8), ["a", "b"] * 20
    data = kclf.ImageData.from_arrays((images, labels), size=8, presize=8, batch_size=4)
    some = first_photos(data.valid, 3)
    assert some.num_images == 3
    predictions = kclf.Predictions(np.eye(2)[some.labels], some.labels, class_names=["a", "b"])
    assert "accuracy 1.0000 (the classifier 1.0000)" in compared(predictions, predictions)
