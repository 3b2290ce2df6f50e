from __future__ import annotations

import pytest

from kclf._core.atomic import replacing


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    target = tmp_path / "a.weights.h5"
    target.write_text("old")

    with replacing(target) as temporary:
        temporary.write_text("new")
        assert temporary.name.endswith(".weights.h5")
        assert target.read_text() == "old"

    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")

    with pytest.raises(OSError, match="full"), replacing(target) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")

    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_plain_file_is_as_readable_as_open_makes_it(tmp_path):
    (tmp_path / "plain").write_text("")

    with replacing(tmp_path / "ours") as temporary:
        temporary.write_text("")

    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
