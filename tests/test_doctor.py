"""The doctor: what it measures, what it names as the bottleneck, and what it finds on this machine."""

from __future__ import annotations

import keras
import pytest

from kclf.cli.doctor import Check, Diagnosis, diagnose, versions, write_photos


def stages(decode: float, augment: float, step: float) -> dict[str, float]:
    return {"decode": decode, "augment": augment, "step (all)": step}


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ((100, 900, 900), "decode"),
        ((900, 200, 300), "augment"),
        ((900, 300, 50), "step (all)"),
        ((170, 300, 300), "step (all)"),
    ],
)
def test_the_bottleneck_is_the_slowest_way(speeds, expected):
    # In the last row decoding is faster, since augment and step take turns: 150 photos a second together.
    assert Diagnosis({}, [], stages(*speeds)).bottleneck == expected


def test_without_measurement_there_is_no_bottleneck():
    assert Diagnosis({"python": "3"}).bottleneck is None


def test_one_failed_trial_is_told():
    diagnosis = Diagnosis({}, [Check("backend", True, "torch"), Check("overfit", False, "loss 1 -> 1")])
    assert not diagnosis.healthy
    assert "[NOT OK] overfit: loss 1 -> 1" in str(diagnosis)


def test_versions_name_what_computes():
    found = versions()
    assert found["backend"] == "torch"
    assert found["keras"] == keras.__version__


def test_this_machine_is_examined(tmp_path):
    said = []
    diagnosis = diagnose(write_photos(tmp_path), size=32, batch_size=8, seconds=0.1, say=said.append)
    text = str(diagnosis)
    assert diagnosis.healthy, text
    assert list(diagnosis.stages) == ["decode", "augment", "step (head)", "step (all)"]
    assert all(speed > 0 for speed in diagnosis.stages.values())
    assert "bottleneck: " in text
    assert "weights unchanged" in text
    assert [line.strip() for line in said[2:]] == list(diagnosis.stages)


def test_no_time_to_measure_is_refused():
    with pytest.raises(ValueError, match="seconds=0"):
        diagnose(seconds=0)
