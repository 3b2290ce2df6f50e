"""Photos stream out of tar files."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

import kclf
from kclf.data import TarShards

CLASSES = ["cat", "dog"]
pytestmark = [  # webdataset leaves a tar file to the garbage collector where it is not read to its end
    pytest.mark.filterwarnings("ignore:unclosed file"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def shards(tmp_path):
    """Three tar files of 8, 8 and 4 photos; the red of a photo is its number, and one photo is damaged."""
    pytest.importorskip("webdataset", reason="the extra [webdataset] is not installed")
    paths = []
    for shard, numbers in enumerate((range(8), range(8, 16), range(16, 20))):
        path = tmp_path / f"photos-{shard}.tar"
        with tarfile.open(path, "w") as tar:
            for number in numbers:
                picture = io.BytesIO()
                Image.new("RGB", (30, 24), (number * 10, 0, 0)).save(picture, "PNG")
                content = b"no picture" if number == 5 else picture.getvalue()
                label = CLASSES[number % 2].encode() if number < 10 else str(number % 2).encode()
                for ending, data in (("png", content), ("cls", label)):
                    member = tarfile.TarInfo(f"{number:04}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        paths.append(str(path))
    return paths


def numbers_and_labels(batches) -> tuple[list[int], list[int]]:
    seen = [
        (int(x[0, 0, 0]) // 10, int(y))
        for images, labels in batches
        for x, y in zip(images, labels, strict=True)
    ]
    return [number for number, _ in seen], [label for _, label in seen]


def test_an_epoch_has_each_readable_photo_with_its_label(shards):
    loader = TarShards(shards, CLASSES, num_images=19, presize=16, batch_size=19)
    [(images, labels)] = list(loader)
    assert images.shape == (19, 16, 16, 3)
    assert str(images.dtype) == "torch.uint8"
    numbers, found = numbers_and_labels([(images, labels)])
    assert sorted(numbers) == [number for number in range(20) if number != 5]
    assert found == [number % 2 for number in numbers]


def test_epochs_differ_and_come_again_from_their_state(shards):
    loader = TarShards(shards, CLASSES, num_images=20, presize=16, batch_size=4, among=6)
    first, state = numbers_and_labels(loader)[0], loader.state_dict()
    second = numbers_and_labels(loader)[0]
    loader.load_state_dict(state)
    assert first != second
    assert numbers_and_labels(loader)[0] == second


def test_processes_have_shards_of_their_own(shards, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    seen = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        loader = TarShards(shards, CLASSES, num_images=18, presize=16, batch_size=9)
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [3, 3]
        seen.append(set(numbers_and_labels(batches)[0]))
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]


def test_a_model_fits_them(shards):
    model = kclf.ImageClassifier("MobileNetV2", CLASSES, size=32, weights=None)
    model.compile()
    loader = TarShards(shards, CLASSES, num_images=20, presize=32, batch_size=8)
    history = model.fit(loader, epochs=1, verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"]).all()


def test_what_is_missing_is_said(shards, monkeypatch):
    loader = TarShards(shards, CLASSES, num_images=20, batch_size=4, label="class")
    with pytest.raises(kclf.DataError, match=r"expected a photo and a member 'class'. Received: png, cls"):
        next(iter(loader))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(kclf.DataError, match=r"a shard for each of 4 processes. Received: 3"):
        TarShards(shards, CLASSES, num_images=20)
