"""How the time is spent: what a run will do, from the size of the data and the speed of the machine."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from statistics import median_high
from typing import Any, TypedDict, Unpack

import keras
import torch

from .._core.arguments import one_of
from .._core.atomic import replacing
from .._core.settings import TrainSettings
from .._core.sizes import Size, as_size, num_pixels, scaled, sides, size_text
from ..backbones import backbone_spec, has_levels
from ..callbacks.run_state import Undo, remember_model, remember_randomness
from ..data import ImageData, ImageDataset
from ..data.sources import FileImages
from ..distributed import is_main, run_on_main, world_size
from ..models import ImageClassifier
from ..prediction.activation_cache import pooled_activations

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
LARGER = {"quick": (), "standard": (1.8,), "best": (1.4, 1.8)}  # sizes to read at, as shares of the given one
LARGER_TUNED = 1.4  # size at which what was tuned is tried, as a share of its own, beside that of the probe
LARGEST = 1.3  # of them, as a share of the size that the weights were trained at
MOST_FOR_LEVELS = 5000  # photos; with more, the second solution costs more time than is quick
SIZE_STEP = 32  # pixels: the stride of most backbones
MEASURED_BATCH, MEASURED_BATCHES = 16, 3
MEASURED_SHARE = 16  # of the photos one in so many is a batch that is measured: few photos are soon read
ENDING = 0.25  # time to write a run's report, as a share of that to start: both load packages
SOLVING = 3e-9  # seconds a photo, feature and output to choose and solve the last layer, on one core


@dataclass(frozen=True)
class Speed:
    """Seconds a photo.

    Args:
        read: to read it and compute its features.
        step: to train everything on it; 0 where nothing is to be trained.
        decode: to decode it, while a GPU makes the steps; 0 where the steps need the same cores.
    """

    read: float
    step: float = 0.0
    decode: float = 0.0


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
        multi_level: solve the last layer on several levels of the backbone, too, for folds to choose.
        sizes: in pixels, at which the last layer is solved, the first of them that of the tuning; () for that
            of the model.
        minutes: how long the run may take; None for as long as it does.
        refit: do it again in the end on the training and validation photos together, as was chosen.
        start_seconds: what it took until the plan was made.
        probe_seconds: expected time until the last layer is solved, and tried on the validation photos.
        decode_seconds: expected time to decode all photos once, into a cache that the passes read; 0 where
            each pass decodes them.
        tuning_seconds: expected time of the passes.
        end_seconds: expected time after them: to compare, and to write what belongs to a run.
    """

    effort: str
    passes: int
    batch_size: int
    body_rate: float = RATES[0]
    head_rate: float = RATES[1]
    first_group: float = 0.1
    warmup: float = 0.3
    views: int = 0
    multi_level: bool = False
    sizes: tuple[Size, ...] = ()
    minutes: float | None = None
    refit: bool = False
    start_seconds: float = 0.0
    probe_seconds: float = 0.0
    decode_seconds: float = 0.0
    tuning_seconds: float = 0.0
    end_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Expected time in all."""
        before = self.start_seconds + self.probe_seconds + self.decode_seconds
        return before + self.tuning_seconds + self.end_seconds

    def describe(self, size: Size) -> str:
        """One line: what is done, and how long it should take.

        Args:
            size: of the images that the model sees.
        """
        cores = torch.get_num_threads()
        host = f"{cores} core{'s' * (cores != 1)}"
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else host
        sizes = " and ".join(map(size_text, self.sizes or (size,)))
        levels = ", of one level and of several" if self.multi_level else ""
        probe = f"linear probe at {sizes} px{levels} ({duration(self.probe_seconds)})"
        once = f", photos decoded once ({duration(self.decode_seconds)})" if self.decode_seconds else ""
        passes = f"{once}, then {self.passes} passes at {size_text(size)} px in batches of {self.batch_size}"
        again = ", then again on all photos" if self.refit else ""
        return (
            f"Plan: {probe}{passes if self.passes else ''}{again}: {duration(self.seconds)} in all on {where}"
        )


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(8.6), duration(200)
        ('9 s', '3 min 20 s')
    """
    minutes, rest = divmod(max(1, round(seconds)), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class PlanOptions(TypedDict, total=False):
    """What `plan_best` passes on to `make_plan`."""

    minutes: float | None
    batch_size: int | None
    refit: bool
    decode_once: str


def plan_best(
    model: ImageClassifier,
    data: ImageData,
    *,
    effort: str = "standard",
    file: str | PathLike[str] | None = None,
    started: float | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """The plan of `fit_best`: this machine is measured for a few batches.

    Args:
        model: what is to be trained.
        data: its photos.
        effort: as for `fit_best`.
        file: where the plan of a run that resumes is kept: measured again, the machine has another speed.
        started: when a run that writes a report began, by `time.monotonic()`; None where it is no such run.
        **options: `minutes`, `batch_size`, `refit` and `decode_once`, as for `fit_best`.
    """
    plan = None if file is None else run_on_main(lambda: kept_plan(file))
    if plan is not None:
        return plan
    features = model.head.get_layer("pooling").output.shape[-1]
    sizes = (model.size, *larger_sizes(model, LARGER[one_of("effort", effort, EFFORTS)]))
    sized: dict[str, Any] = {"num_features": features, "sizes": sizes, "multi_level": has_choice(model)}
    speed = measure_speed(model, data, training=tunes(data, effort))
    before = 0.0 if started is None else time.monotonic() - started
    around = (before, ENDING * before)
    plan = run_on_main(lambda: make_plan(data, speed, effort=effort, around=around, **sized, **options))
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
    sizes: tuple[Size, ...] = (),
    multi_level: bool = False,
    around: tuple[float, float] = (0.0, 0.0),
    refit: bool = False,
    decode_once: str = "auto",
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
        multi_level: whether the classifier could read several levels of its backbone: tried with up to 5,000
            photos.
        around: seconds that had gone by before, and that writing the results will take.
        refit: as for `fit_best`.
        decode_once: as for `fit_best`.
    """
    settings: dict[str, Any] = {"effort": effort, "minutes": minutes, "batch_size": batch_size}
    TrainSettings(**settings | {"decode_once": decode_once})
    train = data.train.num_images
    valid = 0 if data.valid is None else data.valid.num_images
    batch = batch_size or max(batch_for(train), world_size())
    steps = max(1, train // batch)
    solving = SOLVING * train * min(train, num_features) * max(1, len(data.class_names))
    shares = [num_pixels(size) / num_pixels(sizes[0]) for size in sizes] or [1.0]
    start, end = around
    once = seconds_to_decode_once(data, speed) if decode_once == "auto" and tunes(data, effort) else 0.0
    left = math.inf if minutes is None else 60 * minutes - start - end - once
    levels = multi_level and train <= MOST_FOR_LEVELS
    more_solving = solving if levels else 0.0
    while (probe := _probe_seconds(data, speed, shares, solving) + more_solving) > left / 2 and shares[1:]:
        shares, sizes = shares[:-1], sizes[:-1]
    one_pass = steps * batch * (speed.step if once else max(speed.step, speed.decode))
    passes = max(PASSES[effort], -(-FEWEST_STEPS // steps)) if tunes(data, effort) else 0
    larger = (LARGER_TUNED**2 + shares[-1]) * (len(shares) > 1)
    compared = valid * speed.read * (1 + larger)
    again = (train + valid) * speed.read * shares[-1] + solving if refit else 0.0
    more = (train + valid) / train if refit else 0.0  # of a pass, for the passes of the refit
    if minutes is not None and passes:
        passes = min(MOST_PASSES, max(0, int((left - probe - compared - again) / (one_pass * (1 + more)))))
        passes = passes if passes * steps >= LEAST_STEPS else 0
    rates = GENTLE_RATES if train < FEW_PHOTOS else RATES
    after = end + again + passes * one_pass * more
    plan = Plan(effort, passes, batch, *rates, sizes=sizes, minutes=minutes, refit=refit, multi_level=levels)
    return dataclasses.replace(
        plan,
        start_seconds=start,
        probe_seconds=probe,
        decode_seconds=once if passes else 0.0,
        tuning_seconds=passes * one_pass,
        end_seconds=after + (compared if passes else 0.0),
    )


def tunes(data: ImageData, effort: str) -> bool:
    """Whether everything is tuned after the last layer is solved.

    Args:
        data: the photos.
        effort: as for `fit_best`.
    """
    return effort == "best" or (effort == "standard" and data.train.num_images >= MANY_PHOTOS)


def seconds_to_decode_once(data: ImageData, speed: Speed) -> float:
    """Time to decode all photos once, into a cache that the passes read; 0 where that is not worth while.

    It is where decoding a photo takes longer than the step on it, as with a GPU and few cores. What the
    passes see is then scaled before its window is cut, not after: the same but for fractions of a pixel.

    Args:
        data: the photos.
        speed: of this machine, from `measure_speed`.
    """
    photos = list(data.splits.values())
    in_files = all(isinstance(split.dataset, FileImages) for split in photos)
    same = all(split.resize_method == "crop" for split in photos)
    if not (in_files and same) or speed.decode <= speed.step:
        return 0.0
    return speed.decode * sum(split.num_images for split in photos)


def _probe_seconds(data: ImageData, speed: Speed, shares: Sequence[float], solving: float) -> float:
    """Time to solve the last layer at some sizes, as shares of the first one's pixels."""
    valid = 0 if data.valid is None else data.valid.num_images
    read = data.train.num_images * sum(shares) + valid * shares[-1]
    return read * speed.read + solving * len(shares)


def has_choice(model: ImageClassifier) -> bool:
    """Whether the last layer of a classifier could be solved on several levels of its backbone as well."""
    plain = model.backbone_name is not None and not model.multi_level and not model.hidden
    return plain and has_levels(model.backbone)


def larger_sizes(model: ImageClassifier, shares: Sequence[float]) -> list[Size]:
    """Sizes at which a classifier may read photos better than at its own, of its shape, rising.

    The short side is a multiple of 32 pixels.
    Touvron et al. 2019, https://arxiv.org/abs/1906.06423. Backbones whose weights belong to one size, as the
    positions of a transformer, have none.

    Args:
        model: the classifier.
        shares: the sides, as shares of its own; those far above the size of its weights are brought down.
    """
    spec = None if model.backbone_name is None else backbone_spec(model.backbone_name)
    free = model.backbone.input_shape[1] is None if spec is None else spec.patch == 1
    most = math.inf if spec is None else LARGEST * spec.default_size
    own = min(sides(model.size))
    short = {int(min(own * share, most)) // SIZE_STEP * SIZE_STEP for share in shares}
    return [scaled(model.size, side / own) for side in sorted(short) if free and side > own]


def batch_for(num_photos: int) -> int:
    """Photos a step: at most an eighth of them, from 4 to 32, a power of 2.

    Example:
        >>> [batch_for(n) for n in (20, 100, 1000)]
        [4, 8, 32]
    """
    wanted = min(max(num_photos // BATCHES_A_PASS, SMALLEST_BATCH), LARGEST_BATCH)
    return 1 << (wanted.bit_length() - 1)


def measure_speed(model: ImageClassifier, data: ImageData, *, training: bool = True) -> Speed:
    """Read a few batches, and train on them, and leave everything as it was, bit for bit.

    Args:
        model: what is to be trained.
        data: its photos.
        training: whether something is to be trained at all.
    """
    batch = max(world_size(), min(MEASURED_BATCH, data.train.num_images // MEASURED_SHARE))
    with remember_randomness():
        photos = data.train.replace(batch_size=batch, shuffle=False)

        def see(images: torch.Tensor) -> None:
            pooled_activations(model, images).cpu()

        see(photos.peek()[0])  # what is compiled, is compiled
        read = _seconds_a_photo(photos, MEASURED_BATCHES - 1, see)
        if not training:
            return Speed(read)
        decode = _seconds_a_photo(photos, MEASURED_BATCHES) if photos.device.type == "cuda" else 0.0
        return Speed(read, _seconds_of_training(model, data), decode)


def _seconds_a_photo(
    photos: ImageDataset, batches: int, see: Callable[[torch.Tensor], None] = lambda images: None
) -> float:
    """Seconds a photo, decoded by all threads of the loader, and seen."""
    count, start = 0, time.perf_counter()
    for (images, *_), _ in zip(photos, range(batches), strict=False):
        see(images)
        count += len(images)
    return (time.perf_counter() - start) / count


def _seconds_of_training(model: ImageClassifier, data: ImageData) -> float:
    """Seconds a photo, seen and learnt from with everything trainable."""
    batch, frozen = min(MEASURED_BATCH, data.train.num_images), model.first_trainable_group
    photos = data.train.replace(batch_size=batch, shuffle=False, drop_last=True)
    model.unfreeze()
    model.compile(keras.optimizers.SGD(0.0))
    with Undo(lambda: model.freeze_to(frozen)), remember_model(model):
        batches = [batch for batch, _ in zip(photos, range(MEASURED_BATCHES), strict=False)]
        times = []
        for part in [batches[0], *batches]:
            start = time.perf_counter()
            model.train_on_batch(*part)
            times.append(time.perf_counter() - start)
        return median_high(times[1:]) / batch  # without the first, which compiles


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
    return Plan(**kept | {"sizes": tuple(as_size("size", size) for size in kept["sizes"])})
