"""The model card of a run: what Hugging Face reads, and what a person reads."""

from __future__ import annotations

import numpy as np
import pytest

import kclf
from kclf.errors import FileFormatError
from kclf.interpret import interpretation_of
from kclf.report import ReportInputs, write_model_card

SETTINGS = {"backbone": "MobileNetV2", "weights": "imagenet", "size": 96, "presize": 120}


def card(tmp_path, predictions, settings=SETTINGS, title="pets", **data):
    data = {"class_names": predictions.class_names, "task": predictions.task, "train": 30, "valid": 4} | data
    answers = interpretation_of(predictions)
    inputs = ReportInputs(title, {"settings": settings, "data": data}, interpretation=answers)
    return write_model_card(inputs, tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.fixture
def predictions():
    sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], np.float32)
    return kclf.Predictions(sure, np.array([0, 1, 1, 0]), class_names=["cat", "dog"])


def test_a_card_says_data_figures_licence_and_use(tmp_path, predictions):
    text = card(tmp_path, predictions, class_counts={"cat": 20, "dog": 10})
    _, front, body = text.split("---\n", 2)
    assert "license: apache-2.0\nlibrary_name: keras\npipeline_tag: image-classification\n" in front
    assert 'name: "pets"' in front
    assert "- type: accuracy\n      value: 0.7500" in front
    assert "| cat | 20 | 2 |\n| dog | 10 | 2 |" in body
    assert "| accuracy | 0.7500 (95 % interval 0.3006 to 0.9544) |" in body
    assert "| dog | cat | 1 |" in body
    assert 'model = kclf.load("classifier.h5")' in body


def test_a_card_says_how_the_classifier_reads_that_was_kept(tmp_path, predictions):
    data = {"class_names": ["cat", "dog"], "task": "single_label", "train": 30, "valid": 4}
    reads = {"size": 160, "presize": 200, "multi_level": True}
    described = {"settings": SETTINGS, "data": data, "reads": reads}
    path = write_model_card(ReportInputs("pets", described), tmp_path / "MODEL_CARD.md")
    said = path.read_text(encoding="utf-8")
    assert "MobileNetV2, several levels of it, at 160 pixels." in said
    assert "read at 200 pixels" in said
    assert "MobileNetV2 at 96 pixels." in card(tmp_path, predictions)


def test_weights_of_the_user_s_own_have_no_known_licence(tmp_path, predictions):
    text = card(tmp_path, predictions, SETTINGS | {"weights": "/home/me/own.pth"})
    assert "license: other" in text
    assert "licence kclf does not know" in text
    assert "/home/me" not in text


def test_names_cannot_write_markdown_or_html(tmp_path):
    names = ["<script>alert(1)</script>", "a|b\n# c"]
    predictions = kclf.Predictions(np.eye(2), np.array([0, 1]), class_names=names)
    text = card(tmp_path, predictions, title='x"\n---\nlicense: mit')
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert r"a\|b \# c" in text
    assert "\nlicense: mit" not in text


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [("multi_label", np.eye(2), "1.0000. Log loss"), ("regression", np.eye(2) + 0.25, "Mean error of 2")],
)
def test_other_tasks_have_their_own_figures(tmp_path, task, labels, said):
    predictions = kclf.Predictions(np.eye(2) * 0.8 + 0.1, labels, class_names=["a", "b"], task=task)
    assert said in card(tmp_path, predictions)


def test_photos_that_cannot_be_read_are_counted(tmp_path, predictions):
    assert "Photos: 30 for training, 4 for validation; 2 of them cannot be read." in card(
        tmp_path, predictions, unreadable=2
    )


@pytest.mark.parametrize("count", ["many", [1], -1, None, 2.5, True])
@pytest.mark.parametrize("name", ["train", "unreadable"])
def test_a_number_of_photos_that_is_none_is_refused(tmp_path, predictions, name, count):
    with pytest.raises(FileFormatError, match=f"expected a number of photos. Received: {name}="):
        card(tmp_path, predictions, **{name: count})


@pytest.mark.parametrize(
    ("photos", "wrong", "said"),
    [(40, 20, "too few photos"), (400, 2, "too few photos"), (400, 100, "not sure enough")],
)
def test_probabilities_are_judged_by_enough_photos_and_mistakes(tmp_path, photos, wrong, said):
    labels = np.arange(photos) % 2
    given = np.where(np.arange(photos) < wrong, 1 - labels, labels)
    unsure = kclf.Predictions(np.eye(2)[given] * 0.2 + 0.4, labels, class_names=["cat", "dog"])
    assert said in card(tmp_path, unsure)
