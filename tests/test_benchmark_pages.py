"""The figures of README and the benchmark page are those that the benchmarks wrote."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import pages


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_table_is_made_from_the_records(page):
    text = page.read_text(encoding="utf-8")
    assert text == pages.filled(text, pages.read())


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_a_figure_that_was_typed_is_found(page):
    text = page.read_text(encoding="utf-8")
    changed = re.sub(r"^(\| .*\*\*)", r"\g<1>9", text, flags=re.MULTILINE)
    assert changed not in (text, pages.filled(changed, pages.read()))
