"""Ledgers: the photo that was checked moves, no other; nothing leaves the data; all comes back."""

from __future__ import annotations

import csv
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from photo_makers import make_tree, photo_bytes

from kclf._core import atomic
from kclf.checks import Finding, Findings, apply_ledger, check, read_ledger, undo_ledger
from kclf.checks.file_info import file_digest
from kclf.errors import DataError, FileFormatError, OutputError

NAMES = [
    "x.png ",
    " x.png",
    "new\nline.png",
    "re\rturn.png",
    "uni\u2028line.png",
    "next\u0085.png",
    "=1+1.png",
    "-x.png",
    "'x.png",
    '"x", y;.png',
]


def files(folder: Path) -> dict:
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for p in leaves(folder)
    }


def leaves(folder: Path):
    return sorted(p for p in folder.rglob("*") if p.is_symlink() or p.is_file())


def ledger_of(folder, *paths, action="delete", target="", label="cat", **more):
    """A ledger as a check writes it and a person edits it."""
    rows = []
    for path in paths:
        num_bytes, digest = file_digest(str(Path(folder, path)))
        known = {"folder": str(folder), "num_bytes": num_bytes, "digest": digest, **more}
        rows.append(Finding(path, "odd", 0.5, "", label, action=action, target=target, **known))
    ledger = Path(folder).parent / "ledger.csv"
    Findings(rows).to_csv(ledger)
    return ledger


@pytest.fixture
def data(tmp_path):
    return make_tree(tmp_path / "data", {"cat/": 2, "dog/": 2, "cat/x.png": None})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["cat", " cat", "cat "])
def test_the_named_photo_moves_and_its_neighbours_stay(tmp_path, name, folder):
    root = make_tree(
        tmp_path / "data", {"cat/x.png": None, "dog/": 1, "cat/newline.png": None, f"{folder}/{name}": None}
    )
    before = files(root)
    ledger = ledger_of(root, f"{folder}/{name}", label=folder)
    done = apply_ledger(ledger, apply=True)
    assert set(before) - set(files(root)) == {f"{folder}/{name}"}
    assert files(tmp_path / "removed/data") == {f"{folder}/{name}": before[f"{folder}/{name}"]}
    undo_ledger(done.log)
    assert files(root) == before


def test_a_data_folder_whose_name_ends_in_a_blank(tmp_path):
    root = make_tree(tmp_path / "data ", {"cat/": 1, "dog/": 1})
    apply_ledger(ledger_of(root, "cat/0.png"), apply=True)
    assert (tmp_path / "removed/data /cat/0.png").is_file()


def test_a_check_s_rows_come_back_exactly(tmp_path):
    tree = {f"cat/{name}": photo_bytes(1) for name in NAMES} | {"dog/": 2}
    findings = check(make_tree(tmp_path / "data", tree), threads=1)
    findings.to_csv(tmp_path / "ledger.csv")
    assert read_ledger(tmp_path / "ledger.csv") == list(findings)
    with open(tmp_path / "ledger.csv", newline="", encoding="utf-8-sig") as file:
        assert not [cell for row in csv.reader(file) for cell in row if cell[:1] in "=@" and cell]


@pytest.mark.parametrize("other", [b"another photo", photo_bytes(7)])
def test_a_photo_that_changed_since_the_check_is_refused(data, other):
    ledger = ledger_of(data, "cat/x.png", "cat/0.png")
    (data / "cat/x.png").write_bytes(other)
    before = files(data)
    with pytest.raises(DataError, match=r"cat/x\.png.*changed"):
        apply_ledger(ledger, apply=True)
    assert files(data) == before


def test_a_photo_of_the_same_length_and_other_content_is_refused(data):
    ledger = ledger_of(data, "cat/x.png")
    content = (data / "cat/x.png").read_bytes()
    (data / "cat/x.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="has changed"):
        apply_ledger(ledger, apply=True)


def test_a_row_without_a_digest_moves_photos_only(data):
    make_tree(data, {".ssh/id_rsa": b"secret"})
    with pytest.raises(DataError, match="expected a photo"):
        apply_ledger(ledger_of(data, ".ssh/id_rsa", num_bytes=-1, digest=""), apply=True)
    assert (data / ".ssh/id_rsa").exists()


@pytest.mark.parametrize(
    "path", ["../outside.png", "cat/../../outside.png", "/etc/hostname", "out/secret.png"]
)
def test_nothing_outside_the_data_moves(data, path):
    make_tree(data.parent, {"outside.png": None, "elsewhere/secret.png": None})
    (data / "out").symlink_to(data.parent / "elsewhere")
    ledger = ledger_of(data, path, num_bytes=-1, digest="")
    with pytest.raises(DataError, match=r"below the data folder|leads out of the data folder"):
        apply_ledger(ledger, apply=True)
    assert (data.parent / "outside.png").exists()
    assert (data.parent / "elsewhere/secret.png").exists()


def test_a_class_folder_that_leads_outside_is_no_target(data):
    (data.parent / "elsewhere").mkdir()
    (data / "owl").symlink_to(data.parent / "elsewhere")
    with pytest.raises(DataError, match="leads out of the data folder"):
        apply_ledger(ledger_of(data, "cat/x.png", action="relabel", target="owl"), apply=True)


def test_rows_of_two_data_folders_are_refused(data):
    make_tree(data.parent / "other", {"cat/x.png": None})
    rows = [
        *read_ledger(ledger_of(data, "cat/x.png")),
        *read_ledger(ledger_of(data.parent / "other", "cat/x.png")),
    ]
    Findings(rows).to_csv(data.parent / "ledger.csv")
    with pytest.raises(DataError, match="rows of one data folder"):
        apply_ledger(data.parent / "ledger.csv", apply=True)


@pytest.mark.parametrize(
    "row", ["{outside},{data}/cat/x.png", "{data}/cat/y.png,{outside}", "{data}/../y,{data}/cat/x.png"]
)
def test_an_undo_log_cannot_lead_outside(data, row):
    outside = data.parent / "outside.png"
    outside.write_bytes(b"kept")
    done = apply_ledger(ledger_of(data, "cat/0.png"), apply=True)
    with open(done.log, "a") as file:
        file.write(row.format(outside=outside, data=data) + "\n")
    with pytest.raises(FileFormatError, match="leads outside"):
        undo_ledger(done.log)
    assert outside.read_bytes() == b"kept"
    assert (data / "cat/x.png").exists()


def test_a_log_without_its_places_is_refused(data):
    (data.parent / "a.undo.csv").write_text(f"{data}/cat/y.png,{data}/cat/x.png\n")
    with pytest.raises(FileFormatError, match="no undo log"):
        undo_ledger(data.parent / "a.undo.csv")


def test_a_log_with_a_nul_is_damaged(data):
    done = apply_ledger(ledger_of(data, "cat/x.png"), apply=True)
    done.log.write_text(done.log.read_text().replace("cat/x", "cat/\0"))
    with pytest.raises(FileFormatError, match="NUL"):
        undo_ledger(done.log)


def test_links_come_back_as_links_also_where_their_photos_are_away(data):
    make_tree(data.parent, {"disk/a.png": None})
    (data / "cat/link.png").symlink_to(data.parent / "disk/a.png")
    (data / "cat/relative.png").symlink_to("x.png")
    before = files(data)
    done = apply_ledger(ledger_of(data, "cat/link.png", "cat/relative.png"), apply=True)
    (data.parent / "disk").rename(data.parent / "away")
    undo_ledger(done.log)
    assert files(data) == before


def test_removed_photos_that_are_away_for_now_come_back_later(data):
    before = files(data)
    done = apply_ledger(ledger_of(data, "cat/0.png", "cat/1.png"), apply=True)
    (data.parent / "removed").rename(data.parent / "unmounted")
    with pytest.raises(DataError, match=r"neither place.*kclf clean --undo"):
        undo_ledger(done.log)
    (data.parent / "unmounted").rename(data.parent / "removed")
    undo_ledger(done.log)
    assert files(data) == before


def test_two_moves_of_one_photo_are_taken_back(data):
    before = files(data)
    apply_ledger(ledger_of(data, "cat/x.png", action="relabel", target="dog"), apply=True)
    done = apply_ledger(ledger_of(data, "dog/x.png", label="dog"), apply=True)
    undo_ledger(done.log)
    assert files(data) == before


def test_a_row_that_was_done_may_stand_and_another_wish_for_its_photo_may_not(data):
    apply_ledger(ledger_of(data, "cat/x.png", action="relabel", target="dog"), apply=True)
    rows = read_ledger(data.parent / "ledger.csv")
    assert apply_ledger(data.parent / "ledger.csv", apply=True).items == []
    Findings([replace(rows[0], action="delete")]).to_csv(data.parent / "ledger.csv")
    with pytest.raises(DataError, match="moved since the check"):
        apply_ledger(data.parent / "ledger.csv", apply=True)


def test_a_photo_that_went_elsewhere_is_not_done_by_the_name_of_a_folder_above(tmp_path):
    data = make_tree(tmp_path / "dog" / "data", {"cat/": 2, "dog/": 2})
    apply_ledger(ledger_of(data, "cat/0.png"), apply=True)
    (row,) = read_ledger(data.parent / "ledger.csv")
    Findings([replace(row, action="relabel", target="dog")]).to_csv(data.parent / "ledger.csv")
    with pytest.raises(DataError, match="moved since the check"):
        apply_ledger(data.parent / "ledger.csv", apply=True)


@pytest.mark.parametrize("line", ["{data}/cat/0.p", "{data}/cat/0.png,{data}/re", "moved within,{data}"])
@pytest.mark.parametrize("again", [False, True], ids=["undo", "apply and undo"])
def test_a_line_that_a_kill_cut_off_is_passed_over(data, line, again):
    before = files(data)
    done = apply_ledger(ledger_of(data, "cat/x.png"), apply=True)
    with open(done.log, "a") as file:
        file.write(line.format(data=data))
    if again:
        apply_ledger(ledger_of(data, "cat/0.png"), apply=True)
    undo_ledger(done.log)
    assert files(data) == before


def other_disk(monkeypatch, after_copy=None):
    """Renames between folders fail as those between file systems do."""
    rename = os.rename

    def refuse(source, target):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "another file system")
        rename(source, target)
        if after_copy:
            after_copy()

    monkeypatch.setattr(os, "rename", refuse)


def test_photos_move_across_file_systems(data, monkeypatch):
    before = files(data)
    other_disk(monkeypatch)
    done = apply_ledger(ledger_of(data, "cat/x.png"), apply=True)
    assert files(data.parent / "removed/data") == {"cat/x.png": before["cat/x.png"]}
    undo_ledger(done.log)
    assert files(data) == before


def test_a_kill_between_copy_and_removal_is_undone(data, monkeypatch):
    before = files(data)
    ledger = ledger_of(data, "cat/x.png")

    def kill():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        other_disk(patched, kill)
        with pytest.raises(KeyboardInterrupt):
            apply_ledger(ledger, apply=True)
    undo_ledger(ledger.with_name("ledger.undo.csv"))
    assert files(data) == before
    assert files(data.parent / "removed/data") == {}


def test_a_move_killed_between_copy_and_removal_is_done_on_the_next_call(data, monkeypatch):
    before = files(data)
    ledger = ledger_of(data, "cat/0.png", "cat/x.png", "cat/1.png")
    done = apply_ledger(ledger, apply=True)
    for name in ("cat/x.png", "cat/1.png"):  # as if it had been killed at x.png, which is in both places
        (data / name).write_bytes(before[name])
    (data.parent / "removed/data/cat/1.png").unlink()
    done.log.write_text("".join(done.log.read_text().splitlines(keepends=True)[:-1]))
    other_disk(monkeypatch)
    assert len(apply_ledger(ledger, apply=True).items) == 2
    assert set(files(data.parent / "removed/data")) == {"cat/0.png", "cat/x.png", "cat/1.png"}
    assert not (data / "cat/x.png").exists()
    assert "--undo" not in str(undo_ledger(done.log))
    assert files(data) == before


@pytest.mark.parametrize("way", ["apply", "undo"])
def test_a_kill_in_the_middle_of_a_copy_leaves_the_photo_to_the_next_call(data, monkeypatch, way):
    before = files(data)
    ledger = ledger_of(data, "cat/x.png")

    def half(source, target, **_):
        Path(target).write_bytes(before["cat/x.png"][:40])
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # a kill runs nothing after it
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        other_disk(patched)
        patched.setattr(atomic.shutil, "copy2", half)
        with pytest.raises(KeyboardInterrupt):
            apply_ledger(ledger, apply=True)
        monkeypatch.undo()
    assert files(data) == before
    if way == "apply":
        apply_ledger(ledger, apply=True)
    undo_ledger(ledger.with_name("ledger.undo.csv"))
    assert files(data) == before
    assert list(leaves(data.parent / "removed")) == []


def test_a_photo_that_cannot_be_moved_stays_and_the_rest_comes_back(data, monkeypatch):
    before = files(data)
    ledger = ledger_of(data, "cat/0.png", "cat/x.png")
    rename = os.rename

    def refuse(source, target):
        if Path(source).name == "x.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        with pytest.raises(OutputError, match=r"x\.png cannot be moved.*ermission denied.*--undo"):
            apply_ledger(ledger, apply=True)
    assert not (data.parent / "removed/data/cat/x.png").exists()
    undo_ledger(ledger.with_name("ledger.undo.csv"))
    assert files(data) == before


def test_relabel_takes_the_class_folder_not_the_folder_below(tmp_path):
    root = make_tree(tmp_path / "data", {"train/cat/tabby/": 2, "train/dog/husky/": 2})
    apply_ledger(ledger_of(root, "train/cat/tabby/0.png", action="relabel", target="dog"), apply=True)
    assert (root / "train/dog/tabby/0.png").is_file()


def test_an_undo_log_without_rows_and_one_whose_folder_is_a_file_are_answered(tmp_path):
    (tmp_path / "bare.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(FileFormatError, match="no row"):
        undo_ledger(tmp_path / "bare.csv")
    photo = tmp_path / "data" / "b.png"
    photo.parent.mkdir()
    photo.write_bytes(b"photo")
    log, lost = tmp_path / "undo.csv", tmp_path / "removed" / "a.png"
    log.write_text(
        f"moved within,{photo.parent},{lost.parent}\n{photo.parent / 'a.png'},{photo / 'removed' / 'a.png'}\n"
    )
    with pytest.raises(DataError, match="neither place"):
        undo_ledger(log)
    assert photo.read_bytes() == b"photo"
