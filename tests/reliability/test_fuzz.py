"""Damaged files of every kind end in kclf's own errors: a few now, ten thousand and ten minutes by name."""

from __future__ import annotations

import random
from pathlib import Path

import fuzz
import pytest

SEEDS = sorted((Path(__file__).parent / "seeds").glob("*"))
MANY = 10_000
TEN_MINUTES = 600


@pytest.fixture
def draw():
    return random.Random(11)


@pytest.mark.parametrize("parser", fuzz.PARSERS)
def test_a_parser_survives_some_damage(parser, draw, tmp_path):
    count = 5 if parser in {"cache", "keras_weights", "labels"} else 25

    assert fuzz.fuzz_parser(parser, count, 0, draw, tmp_path, tmp_path / "keep")["failures"] == {}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF
def test_the_loader_survives_some_damage(draw, tmp_path):
    found = fuzz.fuzz_images(100, draw, tmp_path)

    assert 25 < found["unreadable"] < 95


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_what_once_failed_does_no_more(seed, tmp_path):
    parser = seed.name.split("-")[0]
    _, read = fuzz.PARSERS[parser](tmp_path)
    path = tmp_path / "mutated"
    path.write_bytes(seed.read_bytes())

    assert fuzz.attempt(read, path) is None


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_damaged_photos(draw, tmp_path, capsys):
    found = fuzz.fuzz_images(MANY, draw, tmp_path)

    with capsys.disabled():
        print(f"\n{found}")
    assert found["memory_mb_at_the_end"] < found["memory_mb_half_way"] + 20


@pytest.mark.heavy
@pytest.mark.parametrize("parser", fuzz.PARSERS)
def test_ten_minutes_of_damage(parser, draw, tmp_path):
    found = fuzz.fuzz_parser(parser, None, TEN_MINUTES, draw, tmp_path, tmp_path / "keep")

    assert found["failures"] == {}
