from __future__ import annotations

import errno
import os
import pathlib
import stat

import pytest

from kclf._core import atomic
from kclf._core.atomic import replacing, sweep
from kclf.errors import OutputError


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


def test_a_link_stays_one_and_its_target_is_written(tmp_path):
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "real.h5", tmp_path / "link.h5"
    target.write_text("old")
    link.symlink_to(target)

    with replacing(link) as temporary:
        temporary.write_text("new")

    assert link.is_symlink()
    assert target.read_text() == "new"


def test_the_mode_of_the_old_file_stays(tmp_path):
    target = tmp_path / "secret"
    target.write_text("")
    target.chmod(0o600)

    with replacing(target) as temporary:
        temporary.write_text("new")

    assert target.stat().st_mode & 0o777 == 0o600


def test_a_mount_whose_files_belong_to_somebody_else_can_be_written(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "chmod", refused)
    monkeypatch.setattr(pathlib.Path, "chmod", refused)

    for name in "ab":
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("new")

    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["new", "new"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_can_be_written(tmp_path, monkeypatch, number):
    sync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "no fsync of folders")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)

    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")

    assert (tmp_path / "a").read_text() == "new"


def test_a_disk_that_fails_is_not_passed_over(tmp_path, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)

    with pytest.raises(OSError, match="Input/output"), replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OutputError, match="a device or a pipe"), replacing(tmp_path / "pipe"):
        pass


def test_windows_waits_for_a_reader_to_close_the_old_file(tmp_path, monkeypatch):
    rename, refusals = os.replace, iter([PermissionError, PermissionError])

    def busy(*paths):
        if error := next(refusals, None):
            raise error
        rename(*paths)

    monkeypatch.setattr(atomic, "_PAUSE", 0)
    monkeypatch.setattr(atomic, "_is_windows", lambda: True)
    monkeypatch.setattr(os, "replace", busy)

    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")

    assert (tmp_path / "a").read_text() == "new"


def test_only_what_bears_the_mark_of_kclf_is_swept_away(tmp_path):
    for name in (".download.partial", ".a1b2.partial.h5", ".kclf-a1b2.partial.h5"):
        (tmp_path / name).write_text("half")

    assert [path.name for path in sweep(tmp_path)] == [".kclf-a1b2.partial.h5"]
    assert len(list(tmp_path.iterdir())) == 2
