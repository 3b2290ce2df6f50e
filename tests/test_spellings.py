"""The table of spellings is complete, and every word and argument in it exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import kclf
import kclf.fastai
from kclf import ImageData, Learner
from kclf.callbacks import Recorder
from kclf.fastai import course_data, course_interpretation, course_learner, course_recorder
from kclf.fastai.spellings import SAME, SPELLINGS, markdown
from kclf.interpret import Interpretation
from kclf.learner.plots import Sched

PAGE = Path(__file__).resolve().parent.parent / "docs" / "spellings.md"
OURS = {
    "learn": Learner,
    "data": ImageData,
    "recorder": Recorder,
    "sched": Sched,
    "train": kclf.ImageDataset,
    "valid": kclf.ImageDataset,
    "model": kclf.ImageClassifier,
}
COURSES = OURS | {
    "learn": course_learner.CourseLearner,
    "data": course_data.CourseData,
    "dls": course_data.CourseData,
    "recorder": course_recorder.CourseRecorder,
    "trn_ds": course_data.CourseSplit,
    "interp": course_interpretation.ClassificationInterpretation,
}
INSTANCE = (
    "sched recorder model data train valid test training callbacks "
    "paths labels optimizer learning_rates epochs"
)
MADE = set(INSTANCE.split())  # made by __init__


def chains(text: str) -> list[list[str]]:
    """Names joined by dots: `learn.sched.plot()` -> [learn, sched, plot]; texts in quotes left out."""
    plain = re.sub(r"\"[^\"]*\"|'[^']*'", "", text)
    return [found.split(".") for found in re.findall(r"[A-Za-z_]\w*(?:\.\w+)+", plain)]


def is_there(owner: type, name: str) -> bool:
    return hasattr(owner, name) or name in MADE or name in inspect.signature(owner).parameters


@pytest.mark.parametrize("spelling", SPELLINGS, ids=[one.course[:40] for one in SPELLINGS])
def test_the_words_exist_on_both_sides(spelling):
    for text, owners, room in ((spelling.course, COURSES, kclf.fastai), (spelling.kclf, OURS, kclf)):
        for first, *rest in chains(text):
            owner = owners.get(first) or getattr(room, first, None)
            for name in rest:
                if owner is None:
                    break
                assert is_there(owner, name), f"{first}.{'.'.join(rest)}: no {name}"
                owner = owners.get(name) or getattr(owner, name, None)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=[one.course[:40] for one in SPELLINGS])
def test_the_courses_arguments_exist(spelling):
    for owner, name, inside in re.findall(r"(\w+)?\.?(\b\w+)\(([^()]*)\)", spelling.course):
        holder = COURSES.get(owner) or getattr(kclf.fastai, owner, None) if owner else kclf.fastai
        called = getattr(holder, name, None)
        if not callable(called) or inside.startswith(("'", "[")) or not re.search(r"[a-z]", inside):
            continue
        known = inspect.signature(called).parameters
        takes_more = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
        keywords = re.findall(r"(\w+)=", inside)
        assert takes_more or set(keywords) <= set(known), (name, keywords)


def own_names(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_every_word_of_the_room_is_in_the_table():
    said = set(re.findall(r"\w+", " ".join(one.course for one in SPELLINGS)))
    kinds = (
        course_learner.CourseLearner,
        course_data.CourseData,
        course_data.CourseSplit,
        course_recorder.CourseRecorder,
        course_interpretation.ClassificationInterpretation,
    )
    words = set(kclf.fastai.__all__).union(*map(own_names, kinds))
    inner = {"split", "folder", "recorder_type"}  # of the classes themselves
    assert sorted(words - said - inner) == []


def test_the_page_is_made_from_the_table():
    page = PAGE.read_text(encoding="utf-8")
    assert page.endswith(markdown()), "python -m kclf.fastai.spellings prints the table"


def test_same_is_said_of_words_that_are_kclfs_own():
    for spelling in SPELLINGS:
        if spelling.kclf == SAME:
            for first, *rest in chains(spelling.course):
                assert is_there(OURS[first], rest[0])
    assert not hasattr(Interpretation, "plot_top_losses")
