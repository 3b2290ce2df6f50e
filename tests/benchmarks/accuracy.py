"""How good the classifiers of few photos are: kclf's recipe, scikit-learn, fastai and torch, side by side.

    .venv/bin/python tests/benchmarks/accuracy.py --photos FOLDER --weights FOLDER --peers VENV
    .venv/bin/python tests/benchmarks/accuracy.py --report

The folder of photos holds `dogscats/` (cat.N.jpg, dog.N.jpg) and `pets/` (a folder a breed); that of weights
`efficientnet-lite0-57934424.pth`, the file that kclf's package of weights carries. A set is called
SOURCE-PHOTOS_A_CLASS, or SOURCE:CLASSES-PHOTOS_A_CLASS where some of the classes are drawn; `digits` are
scikit-learn's, drawn as images. Seeds draw classes, training photos and test photos; all contestants get the
same. A trial is a process of its own, or with --together all of them share this one, which loads its packages
once; what one prepares (imports) is not counted. Rows are appended as trials
end, and a run that is started again with the same file passes over what it holds. Settings may be chosen by
the means over all sets alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import numpy as np
from accuracy_tables import read_rows, report

SETS = ["dogs-5", "dogs-10", "dogs-25", "dogs-100", "dogs-800"]
SETS += ["pets-7", "pets:12-5", "pets:5-7", "digits-10", "digits-40"]
MOST_TESTED = {"dogs": 100, "pets": 10, "digits": 40}  # photos a class that judge
TORCH_WEIGHTS = "efficientnet-lite0-57934424.pth"
STEPS, LARGEST_BATCH, HEAD_RATE, BODY_RATE = 100, 32, 3e-4, 1e-4  # of the torch loop
BINS = 15
Trial = SimpleNamespace
Photos = list[tuple[str, int]]
Predict = Callable[[], np.ndarray]
Row = dict[str, Any]


# ---- the photos of a trial


def photos_of(source: str, trial: Trial) -> dict[str, list[str]]:
    """Files by class, classes and files in a fixed order."""
    if source == "digits":
        return drawn_digits(Path(trial.scratch))
    root = Path(trial.photos) / {"dogs": "dogscats", "pets": "pets"}[source]
    found = defaultdict(list)
    for file in sorted(root.rglob("*.jpg")):
        found[file.name.split(".")[0] if source == "dogs" else file.parent.name].append(str(file))
    return dict(sorted(found.items()))


def drawn_digits(folder: Path) -> dict[str, list[str]]:
    """scikit-learn's digits of 8 x 8 pixels as files of 128 x 128."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch, found = load_digits(), defaultdict(list)
    for number, (pixels, digit) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        file = folder / "digits" / f"{digit}.{number}.png"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((255 - pixels * (255 / 16)).astype(np.uint8))
            grey.resize((128, 128), Image.Resampling.BICUBIC).convert("RGB").save(file)
        found[str(digit)].append(str(file))
    return dict(sorted(found.items()))


def drawn(trial: Trial) -> tuple[Photos, Photos, list[str]]:
    """Training photos, test photos, and class names of a set and a seed."""
    places, _, count = trial.set.rpartition("-")
    source, _, classes = places.partition(":")
    draw, every = random.Random(f"{trial.set} {trial.seed}"), photos_of(source, trial)
    names = sorted(draw.sample(list(every), int(classes))) if classes else list(every)
    train, test = [], []
    for label, name in enumerate(names):
        files = draw.sample(every[name], len(every[name]))
        train += [(file, label) for file in files[: int(count)]]
        test += [(file, label) for file in files[int(count) :][: MOST_TESTED[source]]]
    return train, test, names


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mistakes, accuracy, log loss, and calibration error of the highest probability.

    Args:
        probabilities: (n, classes).
        labels: int (n,).
    """
    probabilities = np.asarray(probabilities, np.float64)
    guess, sure = probabilities.argmax(1), probabilities.max(1)
    right, place = guess == labels, np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs((right[place == i] - sure[place == i]).sum()) for i in range(BINS)]
    likelihood = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-7)
    return {
        "mistakes": float((~right).sum()),
        "accuracy": float(right.mean()),
        "log_loss": float(-np.log(likelihood).mean()),
        "calibration": float(sum(gaps) / len(labels)),
    }


def judged(train: Callable[[], Predict], test: Photos) -> harness.Round:
    """A round of the harness: train, predict the test photos, score, each with its own CPU time."""
    labels = np.array([label for _, label in test])

    def one_round() -> tuple[float, dict[str, float]]:
        start = harness.cpu_seconds()
        predict = train()
        trained = harness.cpu_seconds()
        found = scores(predict(), labels)
        predicting = (harness.cpu_seconds() - trained) / len(test)
        return 1, found | {"train_cpu": trained - start, "predict_cpu": 1000 * predicting}

    return one_round


# ---- kclf


def kclf_data(size: int, photos: Photos, names: Sequence[str], **options: Any) -> Any:
    import kclf

    files, labels = zip(*photos, strict=True)
    options |= {"class_names": list(names), "presize": int(size * 1.25)}
    return kclf.ImageDataset(list(files), np.array(labels), **options)


def kclf_classifier(trial: Trial, names: Sequence[str], **options: Any) -> Any:
    import keras

    import kclf

    keras.utils.set_random_seed(trial.seed)
    options |= {"hidden": (), "augmentation": kclf.aug_transforms(), "presize": int(trial.size * 1.25)}
    return kclf.ImageClassifier("EfficientNetLite0", list(names), size=trial.size, **options)


def kclf_predict(model: Any, photos: Photos) -> Predict:
    """By the classifier's own preprocessing."""
    from kclf.prediction.inference import predict_files

    return lambda: predict_files(model, [file for file, _ in photos])[0].probabilities


def by_recipe(effort: str) -> Callable[[Trial], harness.Round]:
    """The recipe at an effort, as `kclf train` runs it."""

    def prepare(trial: Trial) -> harness.Round:
        from kclf import ImageData
        from kclf.recipe import fit_best

        train, test, names = drawn(trial)

        def fit() -> Predict:
            model = kclf_classifier(trial, names)
            data = ImageData(kclf_data(trial.size, train, names, shuffle=True), size=trial.size)
            return kclf_predict(fit_best(model, data, effort=effort).model, test)

        return judged(fit, test)

    return prepare


for _effort in ("quick", "standard", "best"):
    harness.contestant(f"kclf {_effort}")(by_recipe(_effort))


@harness.contestant("kclf course")
def course(trial: Trial) -> harness.Round:
    """1 epoch of the head and 3 of everything, batches of 64: `kclf train --recipe course`."""
    import kclf
    from kclf.cli.main import main as command

    train, test, names = drawn(trial)

    def fit() -> Predict:
        with tempfile.TemporaryDirectory() as folder:
            return kclf_predict(run(Path(folder)), test)

    def run(folder: Path) -> Any:
        for number, (file, label) in enumerate(train):
            place = folder / "photos" / names[label] / f"{number}{Path(file).suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(Path(file).resolve())
        words = ["train", folder / "photos", "--recipe", "course"]
        words += ["--size", trial.size, "--out", folder / "run"]
        command([str(word) for word in words])
        return kclf.load(folder / "run" / "model.kclf")

    return judged(fit, test)


# ---- scikit-learn on the same features


def logistic(strengths: Sequence[float]) -> Callable[[Trial], harness.Round]:
    """Logistic regression on standardised features, C by the log loss of folds."""

    def prepare(trial: Trial) -> harness.Round:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        from kclf.prediction.activation_cache import activations

        train, test, names = drawn(trial)

        def features(model: Any, photos: Photos) -> np.ndarray:
            with tempfile.TemporaryDirectory() as folder:
                data = kclf_data(trial.size, photos, names)
                return activations(model, data, folder, progress=False).features[0]

        def fit() -> Predict:
            model, labels = kclf_classifier(trial, names), np.array([label for _, label in train])
            probe = make_pipeline(StandardScaler(), regression(strengths, labels))
            probe.fit(features(model, train), labels)
            return lambda: probe.predict_proba(features(model, test))

        return judged(fit, test)

    return prepare


def regression(strengths: Sequence[float], labels: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    plain = LogisticRegression(C=strengths[0], max_iter=1000)
    if len(strengths) == 1:
        return plain
    return GridSearchCV(
        plain, {"C": list(strengths)}, scoring="neg_log_loss", cv=min(4, np.bincount(labels).min())
    )


harness.contestant("logistic, C 1")(logistic([1.0]))
harness.contestant("logistic", reference=True)(logistic([1e-4, 1e-3, 1e-2, 1e-1, 1.0]))


# ---- peers, with the same weights


def timm_backbone(trial: Trial) -> Any:
    """EfficientNet-Lite0 of timm with kclf's weights: both files have the same tensors in the same order."""
    import timm
    import torch

    model = timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="")
    saved = torch.load(Path(trial.weights) / TORCH_WEIGHTS, map_location="cpu", weights_only=True)
    values = [value for name, value in saved.items() if "_fc" not in name]
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    return model.to(memory_format=torch.channels_last)


def by_fastai(epochs: int) -> Callable[[Trial], harness.Round]:
    """`fine_tune` with fastai's defaults, concatenated pooling and hidden layer included."""

    def prepare(trial: Trial) -> harness.Round:
        from fastai.vision import all as fastai

        train, test, names = drawn(trial)
        labels = dict(train + test)

        def loaders() -> Any:
            block = fastai.DataBlock(
                blocks=(fastai.ImageBlock, fastai.CategoryBlock(vocab=names)),
                get_items=lambda _: [Path(file) for file, _ in train + test],
                get_y=lambda file: names[labels[str(file)]],
                splitter=lambda _: (list(range(len(train))), list(range(len(train), len(train + test)))),
                item_tfms=fastai.Resize(int(trial.size * 1.25)),
                batch_tfms=[
                    *fastai.aug_transforms(size=trial.size),
                    fastai.Normalize.from_stats([127 / 255] * 3, [128 / 255] * 3),
                ],
            )
            return block.dataloaders(".", bs=max(4, min(64, len(train) // 4)), num_workers=0, device="cpu")

        class NoValidation(fastai.Callback):
            def before_validate(self) -> None:
                raise fastai.CancelValidException

        def fit() -> Predict:
            fastai.set_seed(trial.seed)
            body = timm_backbone(trial)
            head = fastai.create_head(1280, len(names), pool=True)
            model = fastai.nn.Sequential(body, head)
            fastai.apply_init(model[1], fastai.nn.init.kaiming_normal_)
            learner = fastai.Learner(loaders(), model, splitter=fastai.default_split, cbs=NoValidation())
            with learner.no_bar(), learner.no_logging():
                learner.fine_tune(epochs)
            learner.remove_cb(NoValidation)
            return lambda: seen(learner)

        def seen(learner: Any) -> np.ndarray:
            with learner.no_bar(), learner.no_logging():
                return learner.get_preds(dl=learner.dls.valid)[0].numpy()

        return judged(fit, test)

    return prepare


for _epochs in (3, 10):
    harness.contestant(f"fastai {_epochs}", peer=True)(by_fastai(_epochs))


@harness.contestant("torch", peer=True)
def torch_loop(trial: Trial) -> harness.Round:
    """The plain loop that a practitioner writes: logistic regression, then everything by AdamW from there."""
    import torch
    from sklearn.linear_model import LogisticRegression

    train, test, names = drawn(trial)
    labels = torch.tensor([label for _, label in train])

    def pooled(model: Any, photos: Any) -> Any:
        return model(photos.sub(127).div(128)).mean((2, 3))

    def plain(model: Any, photos: Any) -> Any:
        edge = (photos.shape[-1] - trial.size) // 2
        inner = photos[..., edge : edge + trial.size, edge : edge + trial.size]
        with torch.no_grad():
            return torch.cat([pooled(model, part.float()) for part in inner.split(32)])

    def fit() -> Predict:
        torch.manual_seed(trial.seed)
        photos = torch_photos(train, trial)
        model = timm_backbone(trial).eval()
        x = plain(model, photos)
        mean, deviation = x.mean(0), x.std(0) + 1e-3
        probe = LogisticRegression(C=0.1, max_iter=1000).fit((x - mean) / deviation, labels)
        head = torch.nn.Linear(x.shape[1], len(names))
        kernel, bias = torch.tensor(probe.coef_), torch.tensor(probe.intercept_)
        with torch.no_grad():
            head.weight.copy_(kernel if len(kernel) > 1 else torch.cat([-kernel, kernel]) / 2)
            head.bias.copy_(bias if len(bias) > 1 else torch.cat([-bias, bias]) / 2)
        tuned_by_torch(
            lambda part: head((pooled(model, part) - mean) / deviation), model, head, photos, labels, trial
        )
        return lambda: seen(lambda: head((plain(model, torch_photos(test, trial)) - mean) / deviation))

    def seen(outputs: Callable[[], Any]) -> np.ndarray:
        with torch.no_grad():
            return outputs().softmax(1).numpy()

    return judged(fit, test)


def torch_photos(photos: Photos, trial: Trial) -> Any:
    """uint8 (n, 3, 1.25 size, 1.25 size), the centre squares."""
    import torch
    from PIL import Image, ImageOps

    side = int(trial.size * 1.25)
    squares = [ImageOps.fit(Image.open(file).convert("RGB"), (side, side)) for file, _ in photos]
    return torch.stack([torch.from_numpy(np.array(square)).permute(2, 0, 1) for square in squares])


def tuned_by_torch(logits: Any, model: Any, head: Any, photos: Any, labels: Any, trial: Trial) -> None:
    """At least 100 steps and 4 passes, one cycle; random crops and flips; norms keep their statistics."""
    import torch

    batch = max(4, min(LARGEST_BATCH, len(photos) // 8))
    steps = max(STEPS, 4 * len(photos) // batch)
    groups = [{"params": model.parameters()}, {"params": head.parameters()}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [BODY_RATE, HEAD_RATE], total_steps=steps)
    order = torch.cat([torch.randperm(len(photos)) for _ in range(steps * batch // len(photos) + 1)])
    for rows in order[: steps * batch].split(batch):
        top, left = torch.randint(photos.shape[-1] - trial.size + 1, (2,))
        part = photos[rows][..., top : top + trial.size, left : left + trial.size].float()
        part = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, part.flip(-1), part)
        loss = torch.nn.functional.cross_entropy(logits(part), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


# ---- the driver's side


def trials(options: argparse.Namespace, rows: Sequence[Row]) -> list[tuple[str, int, harness.Contestant]]:
    """What is not in the rows yet: seed by seed, so that a run that is stopped has all sets."""
    done = {(row["set"], row["seed"], row["contestant"]) for row in rows}
    entries = [harness.CONTESTANTS[name] for name in options.contestants]
    every = [
        (name, seed, entry) for seed in range(options.seeds) for name in options.sets for entry in entries
    ]
    return [trial for trial in every if (trial[0], trial[1], trial[2].name) not in done]


def measure(options: argparse.Namespace, name: str, seed: int, entry: harness.Contestant) -> Row:
    """The row of one trial."""
    settings = {key: str(getattr(options, key)) for key in ("photos", "weights", "scratch")}
    settings |= {"set": name, "seed": seed, "size": options.size}
    where = {"set": name, "seed": seed, "contestant": entry.name, "size": options.size}
    where |= {"threads": options.threads, "machine": harness.machine(), "together": options.together}
    if options.together:
        result = harness.timed(entry.prepare(Trial(**settings)))
        cost = {"cpu": result["cpu"], "wall": result["wall"], "peak_memory": harness.peak_memory()}
        return where | result["found"] | cost | {"versions": harness.loaded_versions(), "skipped": None}
    worker = harness.Worker(entry, options, settings)
    worker.wait()
    if worker.running:
        worker.round(keep=True)
    worker.close()
    row, found = worker.row, {key: values[0] for key, values in worker.row.found.items()}
    cost = {"cpu": row.cpu[0], "wall": row.wall[0], "peak_memory": row.peak_memory} if row.cpu else {}
    return where | found | cost | {"versions": row.versions, "skipped": row.skipped}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--photos", type=Path, help="folder with dogscats/ and pets/")
    options.add_argument("--weights", type=Path, help="folder with the weights of the peers")
    options.add_argument(
        "--peers", default=os.environ.get("KCLF_PEERS"), help="virtual environment of the peers"
    )
    options.add_argument("--sets", nargs="*", default=SETS)
    options.add_argument(
        "--contestants", nargs="*", default=list(harness.CONTESTANTS), choices=harness.CONTESTANTS
    )
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--size", type=int, default=160, help="side of the images that the backbone sees")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument(
        "--rows", type=Path, default=Path("accuracy.jsonl"), help="rows are read and appended here"
    )
    options.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "kclf-accuracy")
    options.add_argument(
        "--report", action="store_true", help="print the tables of the rows, and run nothing"
    )
    options.add_argument("--together", action="store_true", help="all trials in this process")
    options.add_argument("--verbose", action="store_true", help="show what the contestants print")
    options.add_argument("--work", help=argparse.SUPPRESS)
    return options


def main() -> None:
    options = parser().parse_args()
    if options.work:
        task = json.loads(options.work)
        return harness.work(task["name"], task["settings"], task["threads"])
    rows = read_rows(options.rows)
    for name, seed, entry in [] if options.report else trials(options, rows):
        row = measure(options, name, seed, entry)
        rows.append(row)
        with options.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        figures = {key: round(row[key], 4) for key in ("accuracy", "log_loss", "train_cpu") if key in row}
        print(name, seed, entry.name, figures or row["skipped"], file=sys.stderr, flush=True)
    print(report(rows))
    return None


if __name__ == "__main__":
    main()
