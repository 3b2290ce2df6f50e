"""Many processes train as one. Few tests start processes: each costs seconds, to import keras."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import ranks
import torch

import kclf
from kclf import distributed
from kclf.cli.train import RESULTS
from kclf.data.image_dataset import ImageDataset
from kclf.prediction.activation_cache import ActivationDataset


def as_one_of(monkeypatch, rank: int, world_size: int) -> None:
    """Let this process believe that it is one of several; nothing may be said to the others."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))


# ---- one process ------------------------------------------------------------


def test_alone_nothing_is_divided_and_nobody_is_waited_for():
    tensor = torch.ones(3)
    distributed.average([tensor])
    distributed.barrier()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather("me") == ["me"]
    assert distributed.describe(64) == ""
    assert not torch.distributed.is_initialized()


def test_joining_alone_leaves_the_model_as_it_was():
    model = ranks.small_model()
    before = set(vars(model)), set(vars(model.optimizer))
    distributed.distribute(model)
    assert (set(vars(model)), set(vars(model.optimizer))) == before


def test_the_environment_of_a_launcher_says_who_one_is(monkeypatch):
    as_one_of(monkeypatch, 2, 4)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (2, 4, False)
    with distributed.single_process():
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.describe(62, seed=3) == (
        "4 processes with one CPU each. A batch of 62 is shared by them, 15 or 16 photos each; "
        "learning rates are those for 62. Seed 3 on all."
    )


@pytest.mark.parametrize("ranks_here", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("count", "drop_last"), [(64, False), (67, False), (67, True), (9, False)])
def test_the_shares_of_all_ranks_are_the_batches_of_one(ranks_here, count, drop_last):
    images, labels = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, -1), np.arange(count)
    some = {"shuffle": True, "presize": 1, "batch_size": 8, "drop_last": drop_last, "task": "regression"}
    alone = list(ImageDataset(images, labels, **some))
    shares = [list(ImageDataset(images, labels, **some, shard=(i, ranks_here))) for i in range(ranks_here)]
    assert len({len(share) for share in shares}) == 1
    seen = [sorted(float(y) for share in shares for y in share[n][1]) for n in range(len(shares[0]))]
    merged = [sorted(batch[1].tolist()) for batch in alone]
    if len(seen) < len(alone):  # the last batch has fewer images than there are ranks
        merged[-2:] = [sorted(merged[-2] + merged[-1])]
    assert seen == merged
    sizes = [[len(batch[1]) for batch in share] for share in shares]
    assert all(max(of_batch) - min(of_batch) <= 1 for of_batch in zip(*sizes, strict=True))


def test_activations_are_shared_as_the_photos_are():
    images, labels = ranks.pictures(20)
    photos = ImageDataset(images, labels, presize=20, batch_size=8, shuffle=True, shard=(1, 3))
    features = np.arange(20, dtype=np.float32)[None, :, None]
    shared = ActivationDataset(features, np.arange(20), photos)
    order = photos.order(0)
    found = [x[:, 0].tolist() for x, _ in shared]
    assert found == [order[start : start + 8][1::3].tolist() for start in (0, 8, 16)]


def test_a_batch_must_have_a_photo_for_each_rank(monkeypatch):
    as_one_of(monkeypatch, 0, 4)
    images, labels = ranks.pictures(20)
    with pytest.raises(kclf.DataError, match=r"batches of 3 .*4 processes"):
        ImageDataset(images, labels, presize=20, batch_size=3)
    with pytest.raises(ValueError, match="0 <= i < n"):
        ImageDataset(images, labels, presize=20, shard=(4, 4))


def test_predictions_are_of_all_photos_on_every_rank(monkeypatch):
    images, labels = ranks.pictures(10)
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
    alone = kclf.predict(model, ImageDataset(images, labels, presize=20, batch_size=4))
    as_one_of(monkeypatch, 1, 2)
    shared = ImageDataset(images, labels, presize=20, batch_size=4)
    assert len(next(iter(shared))[0]) == 2
    np.testing.assert_array_equal(kclf.predict(model, shared).probabilities, alone.probabilities)


def test_a_model_that_has_not_joined_is_refused(monkeypatch):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    as_one_of(monkeypatch, 0, 2)
    with pytest.raises(kclf.TrainingError, match=r"kclf.distributed.distribute\(model\)"):
        model.fit(np.ones((8, 4)), np.ones(8), callbacks=[kclf.OneCycle(0.1)], verbose=0)


def test_random_rows_of_ranks_are_those_of_one_process(monkeypatch):
    def rows(count: int) -> torch.Tensor:
        return torch.rand(count, 2, generator=torch.Generator().manual_seed(1))

    def dropped(rank: int) -> torch.Tensor:
        as_one_of(monkeypatch, rank, 2)
        torch.manual_seed(0)
        with distributed.per_rank_rng():
            shares.append(distributed.shard_random(rows, 3))
            mask = torch.rand(8)
        after.append(torch.rand(1))
        return mask

    shares: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    first, second = dropped(0), dropped(1)
    assert torch.equal(torch.stack(shares, 1).reshape(6, 2), rows(6))
    assert not torch.equal(first, second)
    assert torch.equal(*after)


def test_only_rank_0_prints_and_saves(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("kclf.callbacks.snapshots.barrier", lambda: None)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    for rank in (1, 0):
        as_one_of(monkeypatch, rank, 2)
        kclf.callbacks.SnapshotSaver(tmp_path / f"rank{rank}").save(model, 0)
        distributed.print_on_main(f"rank {rank}")
    assert [file.name for file in tmp_path.iterdir()] == ["rank0_cyc_0.weights.h5"]
    assert capsys.readouterr().out == "rank 0\n"


# ---- several processes ------------------------------------------------------------

PATIENCE = 600  # seconds for a command on a machine that has much else to do


def assert_together(found: list[dict[str, np.ndarray]]) -> None:
    """The ranks agree to the last bit, and without BatchNorm with one process to 1e-5."""
    for name, value in found[0].items():
        assert np.isfinite(value).all(), name
        assert all(np.array_equal(value, other[name]) for other in found[1:]), name
    for scenario in (ranks.plain, ranks.augmented, ranks.infinite, ranks.synced):
        for name, value in scenario().items():
            np.testing.assert_allclose(
                found[0][f"{scenario.__name__}/{name}"], value, atol=1e-5, err_msg=scenario.__name__
            )
    for name, value in ranks.predicted().items():
        np.testing.assert_array_equal(found[0][f"predicted/{name}"], value, err_msg=name)
    assert len(found[0]["predicted/plain"]) == ranks.PHOTOS - 1
    assert found[0]["overlapping/during"] >= 1
    assert found[0]["overlapping_folds/during"] >= 8
    assert found[0]["infinite/scale"] == 512.0
    assert found[0]["other_data/labels"]
    assert found[0]["other_data/photos"]
    assert found[0]["other_predictions/weights"]
    assert found[0]["other_predictions/photos"]
    assert found[0]["recipe/tried"]


def test_two_processes_train_as_one(tmp_path):
    found = ranks.run("everything", tmp_path)
    assert_together(found)
    assert sorted(file.name for file in (tmp_path / "models").iterdir()) == [
        "best.weights.h5",
        "cycle_cyc_0.weights.h5",
        "cycle_cyc_1.weights.h5",
    ]
    alone = ranks.plain()
    assert len(alone["losses"]) >= 20


@pytest.mark.heavy
def test_four_processes_train_as_one(tmp_path):
    assert_together(ranks.run("everything", tmp_path, 4, timeout=600))


@pytest.mark.heavy
def test_a_rank_that_fails_ends_the_others_with_its_message(tmp_path):
    with ranks.torchrun(ranks.__file__, "failing", str(tmp_path)) as started:
        said, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode != 0
    assert "the disk of this rank is gone" in said
    assert time.time() - float((tmp_path / "failed").read_text()) < 60


@pytest.mark.heavy
def test_a_killed_rank_is_started_again_and_ends_as_if_it_had_not_been(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, scenario in ((whole, "checkpointed"), (cut, "killed")):
        folder.mkdir()
        with ranks.torchrun(ranks.__file__, scenario, str(folder), restarts=1) as started:
            said, _ = started.communicate(timeout=PATIENCE)
        assert started.returncode == 0, said[-3000:]
    assert (cut / "killed").exists()
    for rank in range(2):
        expected, found = (np.load(folder / f"found{rank}.npz")["weights"] for folder in (whole, cut))
        np.testing.assert_array_equal(found, expected)


def photos_in_folders(place: Path) -> Path:
    images, labels = ranks.pictures(60, side=40)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        folder = place / ranks.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(folder / f"{number}.png", pixels)
    return place


@pytest.mark.heavy
def test_sigterm_stops_all_processes_together_and_the_run_goes_on(tmp_path):
    photos, out = photos_in_folders(tmp_path / "photos"), tmp_path / "out"
    words = ["--backbone=MobileNet_025", "--weights=none", "--size=32", "--batch-size=6", "--recipe=course"]
    command = ["-m", "kclf", "train", str(photos), *words, "--epochs=200", f"--out={out}"]
    with ranks.torchrun(*command) as started:
        deadline = time.monotonic() + PATIENCE
        while not list((out / "checkpoints").glob("stage*")) and started.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        started.send_signal(signal.SIGTERM)
        said, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode != 0
    assert f"kclf train --resume {out}" in said
    assert kclf.load(out / "classifier.h5").class_names == ranks.CLASSES
    assert [path.name for path in (out / "checkpoints").glob("stage*")]


@pytest.mark.heavy
def test_the_command_trains_on_all_processes_and_speaks_once(tmp_path):
    photos = photos_in_folders(tmp_path / "photos")
    words = ["--backbone=MobileNet_025", "--weights=none", "--size=32", "--batch-size=16", "--epochs=1"]
    out = tmp_path / "out"
    with ranks.torchrun("-m", "kclf", "train", str(photos), *words, f"--out={out}") as started:
        said, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, said[-3000:]
    assert said.count("2 processes with one CPU each") == 1
    assert said.count("Saved in") == 1
    assert sorted(file.name for file in Path(out).glob("[!.]*")) == sorted(
        [*RESULTS, "batches.csv", "predictions.csv"]
    )
