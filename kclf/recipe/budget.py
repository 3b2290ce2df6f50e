"""How the time is spent: what a run will do, from the size of the data and the speed of the machine."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import torch

from .._core.arguments import one_of
from .._core.atomic import replacing
from .._core.settings import TrainSettings
from ..backbones import backbone_spec
from ..callbacks.run_state import remember_model, remember_randomness
from ..data import ImageData
from ..distributed import is_main, run_on_main, world_size
from ..models import ImageClassifier

EFFORTS = ("quick", "standard", "best")
SMALLEST_BATCH, LARGEST_BATCH = 4, 32
BATCHES_A_PASS = 8  # at least, where photos are few
FEWEST_STEPS = 100  # of a fine-tuning that is worth its while
LEAST_STEPS = 50  # below, the head of a run is next to where it began
PASSES = {"standard": 4, "best": 12}
MOST_PASSES = 120
MANY_PHOTOS = 500  # from which "standard" tunes: with fewer, it made classifiers surer and no better
FEW_PHOTOS = 300  # below, "best" tunes at lower rates
GENTLE_RATES, RATES = (3e-5, 3e-5), (1e-4, 3e-4)  # highest of the body and of the head, by AdamW
LARGER = {"quick": (), "standard": (1.4,), "best": (1.4, 1.8)}  # sizes to read at, as shares of the given one
SIZE_STEP = 32  # pixels: the stride of most backbones
MEASURED_BATCH, MEASURED_BATCHES = 16, 3
SOLVING = 3e-9  # seconds a photo, feature and output to choose and solve the last layer, on one core


@dataclass(frozen=True)
class Speed:
    """Seconds a photo.

    Args:
        read: to read it and compute its features.
        step: to train everything on it.
    """

    read: float
    step: float


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Args:
        effort: "quick", "standard" or "best".
        passes: over the training photos, with everything trainable; 0 solves the last layer alone.
        batch_size: photos a step.
        body_rate: highest learning rate of the middle layer group.
        head_rate: that of the head.
        first_group: rate of the first layer group, as a share of `body_rate`.
        warmup: share of the steps in which the rates rise.
        views: augmented views of each photo from which the last layer is solved, besides the plain one.
        sizes: sides, in pixels, at which the last layer is solved, the first of them that of the tuning; ()
            for that of the model.
        probe_seconds: expected time until the last layer is solved, and tried on the validation photos.
        tuning_seconds: expected time of the passes.
    """

    effort: str
    passes: int
    batch_size: int
    body_rate: float = RATES[0]
    head_rate: float = RATES[1]
    first_group: float = 0.1
    warmup: float = 0.3
    views: int = 0
    sizes: tuple[int, ...] = ()
    probe_seconds: float = 0.0
    tuning_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Expected time in all."""
        return self.probe_seconds + self.tuning_seconds

    def describe(self, size: int) -> str:
        """One line: what is done, and how long it should take.

        Args:
            size: side of the images that the model sees.
        """
        cores = torch.get_num_threads()
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cores} cores"
        where = "1 core" if where == "1 cores" else where
        sizes = " and ".join(map(str, self.sizes or (size,)))
        probe = f"linear probe at {sizes} px {duration(self.probe_seconds)}"
        if not self.passes:
            return f"Plan: {probe} on {where}"
        return (
            f"Plan: {probe}, then {self.passes} passes at {size} px in batches of {self.batch_size}, "
            f"{duration(self.seconds)} in all on {where}"
        )


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(8.6), duration(200)
        ('9 s', '3 min 20 s')
    """
    whole = max(1, round(seconds))
    minutes, rest = divmod(whole, 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plan_best(
    model: ImageClassifier,
    data: ImageData,
    *,
    effort: str = "standard",
    minutes: float | None = None,
    batch_size: int | None = None,
    file: str | PathLike[str] | None = None,
) -> Plan:
    """The plan of `fit_best`: this machine is measured for a few batches.

    Args:
        model: what is to be trained.
        data: its photos.
        effort: as for `fit_best`.
        minutes: as for `fit_best`.
        batch_size: photos a step; None for what suits their number.
        file: where the plan of a run that resumes is kept: measured again, the machine has another speed.
    """
    plan = None if file is None else run_on_main(lambda: kept_plan(file))
    if plan is not None:
        return plan
    features = model.head.get_layer("pooling").output.shape[-1]
    sizes = (model.size, *larger_sizes(model, effort))
    options = {"effort": effort, "minutes": minutes, "batch_size": batch_size, "num_features": features}
    options["sizes"] = sizes
    speed = measure_speed(model, data)
    plan = run_on_main(lambda: make_plan(data, speed, **options))
    if file is not None and is_main():
        keep_plan(file, plan)
    return plan


def make_plan(
    data: ImageData,
    speed: Speed,
    *,
    effort: str = "standard",
    minutes: float | None = None,
    batch_size: int | None = None,
    num_features: int = 2560,
    sizes: tuple[int, ...] = (),
) -> Plan:
    """What to do with these photos in this time.

    Args:
        data: the photos.
        speed: of this machine, from `measure_speed`.
        effort: "quick" solves the last layer alone; "standard" tunes everything after it where there are 500
            photos, and "best" always, for three times as long.
        minutes: how long the run may take, in place of what the effort would; where that is too short for
            50 steps, the last layer alone is solved.
        batch_size: photos a step; None for what suits their number.
        num_features: of the head's pooling.
        sizes: at which the last layer may be solved, the given one first; those are left out that there is
            no time for.
    """
    TrainSettings(effort=effort, minutes=minutes, batch_size=batch_size)  # type: ignore[arg-type]
    train = data.train.num_images
    valid = 0 if data.valid is None else data.valid.num_images
    batch = batch_size or max(batch_for(train), world_size())
    steps = max(1, train // batch)
    solving = SOLVING * train * min(train, num_features) * outputs_of(data)
    shares = [(side / sizes[0]) ** 2 for side in sizes] or [1.0]
    limit = float("inf") if minutes is None else 30 * minutes  # half of the time
    while len(shares) > 1 and _probe_seconds(data, speed, shares, solving) > limit:
        shares, sizes = shares[:-1], sizes[:-1]
    probe = _probe_seconds(data, speed, shares, solving)
    one_pass = steps * batch * speed.step
    tunes = effort == "best" or (effort == "standard" and train >= MANY_PHOTOS)
    passes = max(PASSES[effort], -(-FEWEST_STEPS // steps)) if tunes else 0
    compared = valid * speed.read * (1 + shares[-1] * (len(shares) > 1))
    if minutes is not None and passes:
        passes = min(MOST_PASSES, int((60 * minutes - probe - compared) / one_pass))
        passes = passes if passes * steps >= LEAST_STEPS else 0
    tuning = passes * one_pass + compared if passes else 0.0
    rates = GENTLE_RATES if train < FEW_PHOTOS else RATES
    plan = Plan(effort, passes, batch, *rates, sizes=sizes)
    return dataclasses.replace(plan, probe_seconds=probe, tuning_seconds=tuning)


def _probe_seconds(data: ImageData, speed: Speed, shares: Sequence[float], solving: float) -> float:
    """Time to solve the last layer at some sizes, as shares of the first one's pixels."""
    photos = sum(split.num_images for name, split in data.splits.items() if name != "test")
    return photos * speed.read * sum(shares) + solving * len(shares)


def larger_sizes(model: ImageClassifier, effort: str) -> list[int]:
    """Sizes at which a classifier may read photos better than at its own, multiples of 32 pixels.

    Touvron et al. 2019, https://arxiv.org/abs/1906.06423. Backbones whose weights belong to one size, as the
    positions of a transformer, have none.
    """
    one_of("effort", effort, EFFORTS)
    name = model.backbone_name
    free = model.backbone.input_shape[1] is None if name is None else backbone_spec(name).patch == 1
    sides = {int(model.size * share) // SIZE_STEP * SIZE_STEP for share in LARGER[effort]}
    return sorted(side for side in sides if free and side > model.size)


def batch_for(num_photos: int) -> int:
    """Photos a step: at most an eighth of them, from 4 to 32, a power of 2.

    Example:
        >>> [batch_for(n) for n in (20, 100, 1000)]
        [4, 8, 32]
    """
    wanted = min(max(num_photos // BATCHES_A_PASS, SMALLEST_BATCH), LARGEST_BATCH)
    return 1 << (wanted.bit_length() - 1)


def outputs_of(data: ImageData) -> int:
    """Columns of the last layer."""
    return max(1, len(data.class_names))


def measure_speed(model: ImageClassifier, data: ImageData) -> Speed:
    """Read and train on a few batches, and leave everything as it was, bit for bit.

    Args:
        model: what is to be trained.
        data: its photos.
    """
    batch = min(MEASURED_BATCH, data.train.num_images)
    photos = data.train.replace(batch_size=batch, shuffle=False, drop_last=True)
    frozen, restore_randomness = model.first_trainable_group, remember_randomness()
    model.unfreeze()
    model.compile(keras.optimizers.SGD(0.0))
    restore_model = remember_model(model)
    try:
        batches = [batch for batch, _ in zip(photos, range(MEASURED_BATCHES), strict=False)]
        read = _seconds_of_reading(model, photos, batch)
        step = _seconds(lambda part: model.train_on_batch(*part), batches) / batch
    finally:
        restore_model()
        restore_randomness()
        model.freeze_to(frozen)
    return Speed(read, step)


def _seconds_of_reading(model: ImageClassifier, photos: Any, batch: int) -> float:
    """Seconds a photo, decoded and seen."""
    model.predict_on_batch(photos.peek()[0])  # what is compiled, is compiled
    count, start = 0, time.perf_counter()
    for part, _ in zip(photos, range(MEASURED_BATCHES + 1), strict=False):
        model.predict_on_batch(part[0])
        count += batch
    return (time.perf_counter() - start) / count


def _seconds(work: Any, batches: list[Any]) -> float:
    """The median time of a batch after the first."""
    times = []
    for part in [batches[0], *batches]:
        start = time.perf_counter()
        work(part)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[len(batches) // 2]


def keep_plan(path: str | PathLike[str], plan: Plan) -> None:
    """Write a plan, whole or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n")


def kept_plan(path: str | PathLike[str]) -> Plan | None:
    """The plan in a file; None where there is none."""
    if not Path(path).is_file():
        return None
    kept = json.loads(Path(path).read_text())
    return Plan(**kept | {"sizes": tuple(kept["sizes"])})
