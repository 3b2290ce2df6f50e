"""The cells of the course, typed as its notes have them, but for the import line and the path."""

# ruff: noqa: F403, F405, SIM115, SIM905

from __future__ import annotations

import csv
import pathlib
import re

import PIL
import pytest
from PIL import Image

import kclf.fastai
from kclf.errors import DataError
from kclf.fastai import *
from kclf.fastai import course_learner

sz = 32
arch = "MobileNet_025"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Random weights, a small head and quiet, in a folder of our own; the scripts stay as they are."""
    make = course_learner.CourseLearner
    few = {"weights": None, "verbose": False}

    def learner(*arguments, **named):
        more = {} if named.get("xtra_fc") else {"hidden": (16,)}
        return make(*arguments, **(few | more | named))

    monkeypatch.setattr(course_learner, "CourseLearner", learner)
    monkeypatch.chdir(tmp_path)


def picture(name: str, number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 128, (40, 48, 3), dtype=np.uint8)
    pixels[..., hash_of(name)] += 100
    return Image.fromarray(pixels)


def hash_of(name: str) -> int:
    return sum(name.encode()) % 3


@pytest.fixture
def dogscats_folder(tmp_path):
    for split, count in (("train", 12), ("valid", 4)):
        for name in ("cats", "dogs"):
            folder = tmp_path / "dogscats" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(name, number).save(folder / f"{name[:3]}.{number}.jpg")
    return tmp_path / "dogscats"


def test_folders_of_other_names_are_those_that_are_taken(small, dogscats_folder):
    for name in ("cats", "dogs"):
        (dogscats_folder / "sample" / name).mkdir(parents=True)
        for number in range(2):
            picture(name, number).save(dogscats_folder / "sample" / name / f"{number}.jpg")
    tfms = tfms_from_model(arch, sz)
    data = ImageClassifierData.from_paths(dogscats_folder, tfms=tfms, trn_name="sample", val_name="train")
    assert {path.split("/")[-3] for path in data.train.paths} == {"sample"}
    assert {path.split("/")[-3] for path in data.valid.paths} == {"train"}
    with pytest.raises(DataError, match="samples"):
        ImageClassifierData.from_paths(dogscats_folder, tfms=tfms, trn_name="samples")


@pytest.mark.filterwarnings("ignore:The augmentation has no effect")
def test_lesson_1_eight_steps(small, dogscats_folder):
    PATH = f"{dogscats_folder}/"
    (dogscats_folder / "test1").mkdir()
    picture("cats", 1).save(dogscats_folder / "test1" / "1.jpg")
    tested = ImageClassifierData.from_paths(PATH, tfms=tfms_from_model(arch, sz), test_name="test1")
    assert tested.test_ds.fnames == ["test1/1.jpg"]
    data = ImageClassifierData.from_paths(PATH, tfms=tfms_from_model(arch, sz))
    learn = ConvLearner.pretrained(arch, data, precompute=True)
    learn.fit(0.01, 2)
    log_preds = learn.predict()
    preds = np.argmax(log_preds, axis=1)
    probs = np.exp(log_preds[:, 1])
    assert preds.tolist() == (probs > 0.5).astype(int).tolist()
    assert data.val_y.tolist() == [0] * 4 + [1] * 4
    assert data.classes == ["cats", "dogs"]

    learn.lr_find(num_it=6)
    assert len(learn.sched.plot_lr().lines[0].get_ydata()) == 6
    learn.sched.plot()

    tfms = tfms_from_model(arch, sz, aug_tfms=transforms_side_on, max_zoom=1.1)

    def get_augs():
        data = ImageClassifierData.from_paths(PATH, bs=2, tfms=tfms, num_workers=1)
        x, _ = next(iter(data.aug_dl))
        return data.trn_ds.denorm(x)[1]

    ims = np.stack([get_augs() for i in range(6)])
    assert len(plots(ims, rows=2).axes) == 6

    data = ImageClassifierData.from_paths(PATH, tfms=tfms)
    learn = ConvLearner.pretrained(arch, data, precompute=True)
    learn.fit(1e-2, 1)
    learn.precompute = False
    learn.fit(1e-2, 3, cycle_len=1)
    assert len(learn.sched.plot_lr().lines[0].get_ydata()) == 3 * len(data.train)
    learn.save("224_lastlayer")
    learn.load("224_lastlayer")

    learn.unfreeze()
    lr = np.array([1e-4, 1e-3, 1e-2])
    learn.fit(lr, 3, cycle_len=1, cycle_mult=2)
    assert len(learn.recorder.losses) == (1 + 3 + 7) * len(data.train)
    log_preds, y = learn.TTA()
    geometric, _ = learn.TTA(average="geometric")
    assert geometric.shape == log_preds.shape
    assert 0 <= accuracy(log_preds, y) <= 1
    assert metrics.log_loss(y, np.exp(log_preds)) >= 0


@pytest.mark.filterwarnings("ignore:The augmentation has no effect")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_dog_breeds(small, tmp_path):
    PATH = f"{tmp_path}/dogbreed/"
    for folder in ("train", "test"):
        pathlib.Path(PATH, folder).mkdir(parents=True)
    breeds = [f"breed_{number % 3}" for number in range(30)]
    with open(f"{PATH}labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "breed"], *([f"{n:04}", b] for n, b in enumerate(breeds))])
    for number, breed in enumerate(breeds):
        picture(breed, number).save(f"{PATH}train/{number:04}.jpg")
    for number in range(3):
        picture("breed_0", 90 + number).save(f"{PATH}test/t{number}.jpg")
    label_csv, bs = f"{PATH}labels.csv", 64
    n = len(list(open(label_csv))) - 1
    val_idxs = get_cv_idxs(n)

    def get_data(sz, bs):
        tfms = tfms_from_model(arch, sz, aug_tfms=transforms_side_on, max_zoom=1.1)
        data = ImageClassifierData.from_csv(
            PATH, "train", f"{PATH}labels.csv", test_name="test",
            val_idxs=val_idxs, suffix=".jpg", tfms=tfms, bs=bs,
        )  # fmt: skip
        return data if sz > 40 else data.resize(50, "tmp")

    data = get_data(sz, bs)
    assert data.augmentation is not None
    assert data.augmentation.is_random
    fn = PATH + data.trn_ds.fnames[0]
    assert PIL.Image.open(fn).size == (48, 40)
    size_d = {k: PIL.Image.open(PATH + k).size for k in data.trn_ds.fnames}
    assert set(size_d.values()) == {(48, 40)}
    assert (len(data.trn_ds), len(data.test_ds)) == (24, 3)
    assert (len(data.classes), data.classes[:5]) == (3, ["breed_0", "breed_1", "breed_2"])

    learn = ConvLearner.pretrained(arch, data, precompute=True, ps=0.5)
    learn.fit(1e-2, 2)
    learn.precompute = False
    assert learn.model.augmentation.is_random
    learn.fit(1e-2, 1, cycle_len=1)
    learn.set_data(get_data(48, bs))
    learn.freeze()
    learn.fit(1e-2, 1, cycle_len=1)
    learn.fit(1e-2, 1, cycle_len=1, cycle_mult=2)
    log_preds, y = learn.TTA()
    probs = np.exp(log_preds)
    assert probs.shape == (n // 5, 3)
    assert metrics.log_loss(y, probs) > 0
    assert 0 <= accuracy(log_preds, y) <= 1
    assert np.exp(learn.predict(is_test=True)).sum(axis=1) == pytest.approx(np.ones(3), rel=1e-5)
    learn.submission("subm.csv")
    assert (tmp_path / "subm.csv").read_text().splitlines()[0] == "id,breed_0,breed_1,breed_2"


@pytest.fixture
def pets_folder(tmp_path, monkeypatch):
    """Where `untar_data(URLs.PETS)` finds the photos, as if they had been fetched."""
    home = tmp_path / "keras"
    images = home / "datasets" / "kclf-pets" / "images"
    images.mkdir(parents=True)
    for number in range(30):
        name = ("great_pyrenees", "beagle", "Birman")[number % 3]
        picture(name, number).save(images / f"{name}_{number}.jpg")
    Image.new("RGB", (30, 30)).save(images / "beagle_90.jpg")
    monkeypatch.setenv("KERAS_HOME", str(home))
    return images.parent


def test_chapter_5_pets(small, pets_folder, capsys):
    path = untar_data(URLs.PETS)
    assert str(path.ls()) == f"(#1) [{path / 'images'}]"
    assert str((path / "images").ls()).startswith("(#31) [")
    fname = (path / "images").ls()[0]
    assert re.findall(r"(.+)_\d+.jpg$", fname.name) == ["Birman"]

    pets = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        splitter=RandomSplitter(seed=42),
        get_y=using_attr(RegexLabeller(r"(.+)_\d+.jpg$"), "name"),
        item_tfms=Resize(46),
        batch_tfms=aug_transforms(size=sz, min_scale=0.75),
    )
    dls = pets.dataloaders(path / "images")
    assert (len(dls.train_ds), len(dls.valid_ds)) == (25, 6)
    assert len(dls.show_batch(nrows=1, ncols=3).axes) >= 3
    pets.summary(path / "images")
    assert "Applying item_tfms: Resize(46" in capsys.readouterr().out

    pets1 = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        splitter=RandomSplitter(seed=42),
        get_y=using_attr(RegexLabeller(r"(.+)_\d+.jpg$"), "name"),
    )
    pets1.summary(path / "images", bs=25)
    said = capsys.readouterr().out
    assert "Found 31 items" in said
    assert "not possible to collate" in said
    assert "torch.Size([3, 40, 48])" in said

    learn = cnn_learner(dls, arch, metrics=error_rate)
    assert learn.model.augmentation.min_scale == 0.75
    learn.fine_tune(2)
    x, y = dls.one_batch()
    preds, _ = learn.get_preds(dl=[(x, y)])
    assert len(preds[0]) == 3
    assert preds[0].sum() == pytest.approx(1, rel=1e-5)

    interp = ClassificationInterpretation.from_learner(learn)
    interp.plot_confusion_matrix(figsize=(12, 12), dpi=60)
    interp.plot_top_losses(4)
    capsys.readouterr()
    interp.print_classification_report()
    assert "beagle" in capsys.readouterr().out
    interp.most_confused(min_val=5)

    learn = cnn_learner(dls, arch, metrics=error_rate)
    learn.fine_tune(1, base_lr=0.1)
    lr_min, lr_steep = learn.lr_find(num_it=6)
    assert "Minimum/10: " in capsys.readouterr().out
    assert lr_min == pytest.approx(learn.sched.finder.lr_min, nan_ok=True)
    assert lr_steep == pytest.approx(learn.sched.finder.lr_steep, nan_ok=True)
    learn.fine_tune(1, base_lr=3e-3, wd=0.1, moms=(0.95, 0.85, 0.95), cbs=[], reset_opt=True)
    learn.fit_one_cycle(1, 3e-3)
    learn.unfreeze()
    learn.fit_one_cycle(2, lr_max=slice(1e-6, 1e-4))
    learn.recorder.plot_loss()
    assert learn.model.optimizer.num_groups == 3
    assert learn.validate()[0] > 0
    assert len(learn.get_preds(0)[0]) == 25
    assert len(learn.get_preds(ds_idx=1)[0]) == 6

    learn = cnn_learner(dls, arch, metrics=error_rate).to_bf16()
    learn.fine_tune(1, freeze_epochs=1)
    assert "val_error_rate" in learn.recorder.epochs[-1]


def test_the_short_ways_to_data(pets_folder):
    files = get_image_files(pets_folder / "images")
    tfms = {"item_tfms": Resize(40), "batch_tfms": aug_transforms(size=sz), "bs": 8, "seed": 1}
    named = ImageDataLoaders.from_name_re(pets_folder, files, r"(.+)_\d+.jpg$", **tfms)
    assert named.vocab == ["Birman", "beagle", "great_pyrenees"]
    assert named.presize == 40
    assert named.size == sz
    breed = RegexLabeller(r"(.+)_\d+.jpg$")
    table = {"name": [f"images/{file.name}" for file in files], "breed": [breed(file.name) for file in files]}
    held = ImageDataLoaders.from_df(
        {**table, "is_valid": [n % 5 == 0 for n in range(31)]},
        pets_folder,
        valid_col="is_valid",
        **{k: v for k, v in tfms.items() if k != "seed"},
    )
    assert held.valid.num_images == 7
    several = ImageDataLoaders.from_df(
        {"name": table["name"], "tags": [f"pet {breed}" for breed in table["breed"]]},
        pets_folder,
        label_delim=" ",
        **tfms,
    )
    assert several.task == "multi_label"
    assert "pet" in several.vocab


def test_words_are_there_for_all_that_the_course_types():
    names = (
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50 dn121 untar_data URLs Path plots "
        "metrics accuracy error_rate DataBlock ImageBlock CategoryBlock MultiCategoryBlock "
        "RegressionBlock get_image_files RegexLabeller using_attr parent_label RandomSplitter "
        "GrandparentSplitter Resize aug_transforms ImageDataLoaders vision_learner cnn_learner "
        "ClassificationInterpretation ImageClassifierData tfms_from_model ConvLearner get_cv_idxs "
        "accuracy_np plot_confusion_matrix transforms_side_on transforms_top_down transforms_basic np L "
    ).split()
    assert sorted(set(names) - set(kclf.fastai.__all__)) == []
    words = (
        "fit fit_one_cycle fine_tune lr_find sched recorder predict TTA get_preds validate save load "
        "freeze unfreeze freeze_to set_data precompute dls data model crit loss_func opt warm_up "
        "predict_array bn_freeze no_bar remove_cb export show_results summary to_fp16 submission "
        "snapshots "
    ).split()
    missing = [word for word in words if not hasattr(kclf.fastai.CourseLearner, word)]
    assert missing == ["sched", "recorder", "data", "model"]  # made by its __init__


def test_transforms_carry_the_augmentation_to_the_learner(small, dogscats_folder):
    tfms = tfms_from_model(arch, sz, transforms_top_down, max_zoom=1.2)
    learn = ConvLearner.pretrained(arch, ImageClassifierData.from_paths(dogscats_folder, 64, tfms))
    assert learn.model.augmentation.max_zoom == 1.2
    assert learn.model.size == sz
    plain = ImageClassifierData.from_paths(dogscats_folder, 64, tfms_from_model(arch, sz))
    assert not cnn_learner(plain, arch).model.augmentation.flip
