"""The check of the data: what it finds, what it leaves alone, and a ledger that can be undone."""

from __future__ import annotations

import csv
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kclf.checks import (
    Finding,
    Findings,
    apply_ledger,
    check,
    label_issues,
    read_ledger,
    same_activations,
    same_looks,
    undo_ledger,
)
from kclf.data import ImageData
from kclf.data.images import read_image, to_frame
from kclf.errors import DataError, FileFormatError, OutputExistsError


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A photo-like picture: smooth blobs of its own, with a little noise."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 4, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(blobs) + noise).clip(0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve photos of each of two classes, in train and valid, with nothing wrong."""
    folder = tmp_path / "photos"
    for number in range(24):
        where = f"{'valid' if number % 4 == 3 else 'train'}/{'cat' if number < 12 else 'dog'}/{number}.jpg"
        save(scene(number), folder / where)
    return folder


def found(findings: Findings) -> list[tuple[str, str]]:
    return [(finding.problem, Path(finding.path).name) for finding in findings]


def test_sound_data_gives_no_finding(photos):
    findings = check(photos)
    assert found(findings) == []
    assert findings.num_photos == 24
    assert findings.notes == ["labels were not checked: that needs a model (a saved classifier)"]


def test_images_in_memory_are_refused():
    data = ImageData.from_arrays((np.zeros((8, 4, 4, 3), np.uint8), [0, 1] * 4), batch_size=2)
    with pytest.raises(DataError, match=r"in files.*train .*in memory"):
        check(data)


def test_damaged_and_odd_files_are_named(photos):
    train = photos / "train/cat"
    (train / "cut.jpg").write_bytes((train / "0.jpg").read_bytes()[:2000])
    (train / "empty.jpg").touch()
    (train / "page.jpg").write_text("<html>not found</html>")
    save(scene(101), train / "really_png.jpg", format="PNG")
    save(scene(102).convert("CMYK"), train / "press.jpg")
    save(scene(103), train / "film.gif", save_all=True, append_images=[scene(104)])
    (train / "Thumbs.db").touch()
    findings = check(photos)
    assert sorted(found(findings)) == [
        ("odd", "Thumbs.db"),
        ("odd", "film.gif"),
        ("odd", "press.jpg"),
        ("unreadable", "cut.jpg"),
        ("unreadable", "empty.jpg"),
        ("unreadable", "page.jpg"),
        ("wrong_extension", "really_png.jpg"),
    ]
    assert {f.detail for f in findings.of("unreadable")} >= {"empty file"}
    assert findings.of("wrong_extension")[0].detail == "a PNG named as a JPEG"
    assert {f.advice for f in findings.of("unreadable")} == {"delete"}


def test_sizes_that_lose_the_subject_are_found(photos):
    save(scene(201, (40, 50)), photos / "train/cat/icon.png")
    save(scene(202, (900, 200)), photos / "train/cat/panorama.png")
    assert found(check(photos)) == [("small", "icon.png"), ("long", "panorama.png")]


def test_repeats_in_one_set_keep_the_largest(photos):
    small = scene(0).resize((96, 72))
    save(small, photos / "train/cat/again.jpg", quality=60)
    shutil.copy(photos / "train/dog/16.jpg", photos / "train/dog/copy.jpg")
    save(scene(17).transpose(Image.Transpose.FLIP_LEFT_RIGHT), photos / "train/dog/mirrored.jpg")
    findings = check(photos)
    assert {(f.problem, Path(f.path).name, Path(f.other).name, f.detail) for f in findings} == {
        ("duplicate", "copy.jpg", "16.jpg", "same file"),
        ("near_duplicate", "again.jpg", "0.jpg", "same look"),
        ("near_duplicate", "mirrored.jpg", "17.jpg", "mirrored"),
    }


def test_a_leak_is_found_on_the_photo_of_train(photos):
    save(scene(0).resize((120, 90)), photos / "valid/cat/other_name.jpg", quality=70)
    (finding,) = check(photos)
    assert (finding.problem, finding.path) == ("leak", "train/cat/0.jpg")
    assert finding.other == "valid/cat/other_name.jpg"
    assert finding.advice == "delete"


def test_the_same_photo_under_two_classes_is_left_to_a_person(photos):
    shutil.copy(photos / "train/dog/16.jpg", photos / "train/cat/16.jpg")
    (finding,) = check(photos)
    assert finding.advice == "keep"
    assert "but of class" in finding.detail


def test_plain_photos_are_not_taken_for_each_other():
    grey = np.full((3, 32, 32, 3), 200, np.uint8)
    grey[1] += np.random.default_rng(0).integers(0, 2, (32, 32, 3), dtype=np.uint8)
    assert same_looks(grey) == []


def test_activations_find_what_looks_do_not():
    features = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    features[17] = features[3] + 0.05 * features[5]
    assert [(pair.first, pair.second) for pair in same_activations(features)] == [(3, 17)]


def test_uneven_few_and_absent_classes_are_noted(tmp_path):
    for number in range(40):
        save(scene(number), tmp_path / f"train/cat/{number}.jpg")
    save(scene(98), tmp_path / "valid/cat/98.jpg")
    save(scene(99), tmp_path / "train/dog/99.jpg")
    notes = "\n".join(check(tmp_path).notes)
    assert "41 photos of cat, 1 of dog" in notes
    assert "fewer than 10 photos of dog" in notes
    assert "no photo in valid of dog" in notes


def test_wrong_labels_are_found_and_named(tmp_path):
    centres = np.random.default_rng(1).normal(size=(3, 16))
    names, features = {}, {}
    for number in range(90):
        place = number % 3
        given = (place + 1) % 3 if number in {4, 8, 40} else place
        path = save(scene(number), tmp_path / f"{'abc'[given]}/{number}.jpg")
        names[number] = "abc"[place]
        features[str(path)] = centres[place] + np.random.default_rng(number).normal(scale=0.3, size=16)
    findings = check(tmp_path, features=lambda paths: np.stack([features[path] for path in paths]))
    doubted = {int(Path(f.path).stem): f.target for f in findings.of("label")[:3]}
    assert doubted == {number: names[number] for number in (4, 8, 40)}
    assert findings.of("label")[0].advice == "relabel"


def test_label_issues_are_confident_where_the_photo_is_typical_of_the_other_class():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.1, 0.9], [0.52, 0.48], [0.95, 0.05]])
    issues = label_issues(probabilities, np.array([0, 0, 1, 1, 1]))
    assert [(issue.place, issue.suggested, issue.confident) for issue in issues] == [
        (4, 0, True),
        (3, 0, False),
    ]


def test_image_data_is_checked_with_its_own_labels_and_sets(photos):
    shutil.copy(photos / "train/cat/0.jpg", photos / "valid/cat/copy.jpg")

    def dataset(where: str) -> SimpleNamespace:
        paths = np.array(sorted(str(p) for p in (photos / where).rglob("*.jpg")))
        return SimpleNamespace(paths=paths, labels=np.array(["dog" in p for p in paths], np.int32))

    data = SimpleNamespace(
        train=dataset("train"), valid=dataset("valid"), test=None, class_names=["cat", "dog"]
    )
    (finding,) = check(data)
    assert (finding.problem, finding.label, finding.path) == ("leak", "cat", "train/cat/0.jpg")


def test_summary_counts_and_explains(photos):
    (photos / "train/cat/empty.jpg").touch()
    text = str(check(photos))
    assert "25 photos looked at, 1 with a problem" in text
    assert "cannot be decoded" in text


def edit(ledger: Path, **changes: str) -> None:
    """Change fields of every row, as a person would in a spreadsheet."""
    rows = list(csv.DictReader(ledger.read_text(encoding="utf-8-sig").splitlines()))
    with open(ledger, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, **changes} for row in rows)


@pytest.fixture
def ledger(photos, tmp_path) -> Path:
    """A ledger of one duplicate, train/dog/copy.jpg."""
    shutil.copy(photos / "train/dog/16.jpg", photos / "train/dog/copy.jpg")
    check(photos).to_csv(tmp_path / "ledger.csv")
    return tmp_path / "ledger.csv"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_ledger_comes_back_as_written(photos, ledger):
    assert read_ledger(ledger) == list(check(photos))


def test_a_ledger_survives_a_spreadsheet_with_semicolons(photos, ledger):
    text = ledger.read_text(encoding="utf-8-sig").replace(",", ";").replace("1.0000", "1,0000")
    ledger.write_text(text, encoding="utf-8-sig")
    assert read_ledger(ledger) == list(check(photos))


def test_an_unedited_ledger_changes_nothing(photos, ledger):
    before = files(photos)
    assert apply_ledger(ledger, apply=True).items == []
    assert files(photos) == before


def test_advice_is_accepted_only_where_asked(photos, tmp_path, ledger):
    check(photos).to_csv(ledger, accept=["duplicate"])
    assert [row.action for row in read_ledger(ledger)] == ["delete"]


def test_delete_moves_to_removed_and_undo_brings_it_back(photos, ledger):
    before = files(photos)
    edit(ledger, action="delete")
    planned = apply_ledger(ledger)
    assert "would be moved" in str(planned)
    assert files(photos) == before
    done = apply_ledger(ledger, apply=True)
    assert (photos.parent / "removed/photos/train/dog/copy.jpg").is_file()
    assert not (photos / "train/dog/copy.jpg").exists()
    undo_ledger(done.log)
    assert files(photos) == before
    assert not done.log.exists()


def test_relabel_moves_to_the_class_folder(photos, ledger):
    edit(ledger, action="relabel", target="cat")
    apply_ledger(ledger, apply=True)
    assert (photos / "train/cat/copy.jpg").is_file()


def test_move_goes_to_the_other_set(photos, ledger):
    edit(ledger, action="Move", target="valid")
    apply_ledger(ledger, apply=True)
    assert (photos / "valid/dog/copy.jpg").is_file()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"action": "destroy"}, FileFormatError, "row 2: expected an action of keep, delete"),
        ({"action": "relabel", "target": "wolf"}, DataError, "make it first if the class is new"),
        ({"action": "relabel", "target": "../cat"}, DataError, "name of a folder"),
        ({"action": "relabel", "target": "cat", "label": "hound"}, DataError, "where your labels come from"),
        ({"action": "move", "target": "holidays"}, DataError, "from one set's folder to another"),
        ({"action": "delete", "path": "../../elsewhere.jpg"}, DataError, "below the data folder"),
        ({"action": "delete", "path": "train/gone.jpg"}, DataError, "No such photo"),
        ({"action": "delete", "score": "bad"}, FileFormatError, "expected a number as score"),
    ],
)
def test_rows_that_cannot_be_done_are_refused_before_anything_moves(photos, ledger, changes, error, message):
    before = files(photos)
    edit(ledger, **changes)
    with pytest.raises(error, match=message):
        apply_ledger(ledger, apply=True)
    assert files(photos) == before


def test_no_photo_takes_the_place_of_another(photos, ledger):
    (photos / "train/cat/copy.jpg").write_bytes(b"another")
    edit(ledger, action="relabel", target="cat")
    with pytest.raises(OutputExistsError, match=r"copy\.jpg is there already"):
        apply_ledger(ledger, apply=True)
    assert (photos / "train/cat/copy.jpg").read_bytes() == b"another"


def test_rows_that_contradict_each_other_are_refused(photos, tmp_path):
    rows = [
        Finding("train/dog/16.jpg", "label", 0.5, "", "dog", action=action, target="cat", folder=str(photos))
        for action in ("delete", "relabel")
    ]
    Findings(rows).to_csv(tmp_path / "ledger.csv")
    with pytest.raises(DataError, match="one action a photo"):
        apply_ledger(tmp_path / "ledger.csv")


def test_a_run_killed_between_log_and_move_can_be_undone(photos, ledger):
    edit(ledger, action="delete")
    done = apply_ledger(ledger, apply=True)
    with open(done.log, "a") as file:
        file.write(f"{photos / 'train/dog/16.jpg'},{photos.parent / 'removed/16.jpg'}\n")
    undo_ledger(done.log)
    assert (photos / "train/dog/copy.jpg").is_file()
    assert (photos / "train/dog/16.jpg").is_file()


def test_what_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "notes.csv").write_text("name,price\n")
    with pytest.raises(FileFormatError, match="no column action"):
        read_ledger(tmp_path / "notes.csv")


def test_25_copies_among_2000_photos_are_found(dogscats, tmp_path):
    """12 of the 25 re-encoded and resized; false alarms are looked at by hand: one true repeat is known."""
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in dogscats.glob("*.jpg"))
    order = rng.permutation(len(names))
    train, valid = tmp_path / "train", tmp_path / "valid"
    for rank, place in enumerate(order):
        save_link(dogscats / names[place], (valid if rank < 400 else train) / names[place])
    for count, place in enumerate(order[400:425]):
        if count < 13:
            shutil.copy(dogscats / names[place], valid / f"copy{count}.jpg")
            continue
        with Image.open(dogscats / names[place]) as image:
            factor = rng.uniform(0.5, 1.3)
            resized = image.resize([max(32, round(side * factor)) for side in image.size])
        save(resized, valid / f"copy{count}.jpg", quality=int(rng.integers(50, 95)))
    findings = check(tmp_path, label=lambda path: "")
    copies = {names[place] for place in order[400:425]}
    leaks = {Path(f.path).name for f in findings.of("leak")}
    assert leaks >= copies
    assert len(leaks - copies) + len(findings.of("duplicate", "near_duplicate")) <= 5


def save_link(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    target.symlink_to(source)


def mobilenet_activations(paths: list[str], weights: Path) -> np.ndarray:
    """Pooled MobileNetV2 activations at 160 pixels, a third faster to run than at 224."""
    import keras

    backbone = keras.applications.MobileNetV2(
        include_top=False, pooling="avg", input_shape=(160, 160, 3), weights=str(weights)
    )
    batches = [
        np.stack([to_frame(read_image(path, 160), 160) for path in paths[start : start + 64]])
        for start in range(0, len(paths), 64)
    ]
    return np.concatenate([backbone.predict_on_batch(batch / np.float32(127.5) - 1) for batch in batches])


@pytest.mark.heavy
def test_40_flipped_labels_come_first_in_the_ledger(dogscats, mobilenet_weights, tmp_path):
    weights = mobilenet_weights.with_name("mobilenet_v2_1.0_224_no_top.weights.h5")
    paths = sorted(dogscats.glob("*.jpg"))
    flipped = {paths[place].name for place in np.random.default_rng(0).choice(len(paths), 40, replace=False)}

    def label(path: str) -> str:
        name = Path(path).name
        return {"cat": "dog", "dog": "cat"}[name[:3]] if name in flipped else name[:3]

    check(dogscats, label=label, features=partial(mobilenet_activations, weights=weights)).to_csv(
        tmp_path / "ledger.csv"
    )
    first = read_ledger(tmp_path / "ledger.csv")[:60]
    assert len({row.path for row in first if row.problem == "label"} & flipped) >= 30
