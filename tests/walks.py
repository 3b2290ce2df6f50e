"""Which files of the package a photo passes on its way to a prediction, and a rate on its way to the update.

    .venv/bin/python tests/walks.py [ROOT]

ROOT is a checkout, this one by default. A file is listed where it is entered first; a climb is a call from a
file into one of a higher floor, by the floors of that checkout's `tests/test_house.py`. A wrapper, which
closes over the function that it calls, does not climb: a decorator stands before functions of all floors. The
rate is followed as a number: files count whose functions take it as an argument or return it.
"""

from __future__ import annotations

import ast
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
RATE = 0.0123457


def floors(root: Path) -> dict[str, int]:
    """The floor of each room, as the checkout's own test has them."""
    tree = ast.parse((root / "tests" / "test_house.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            return {
                room: number for number, rooms in enumerate(ast.literal_eval(node.value)) for room in rooms
            }
    raise ValueError(f"{root}: its test_house.py has no FLOORS")


@dataclass
class Walk:
    """Files in the order in which they were entered, and the calls that went up."""

    package: Path
    floors: dict[str, int]
    wanted: Callable[[FrameType, Any], bool] = lambda frame, value: True
    files: list[str] = field(default_factory=list)
    climbs: list[str] = field(default_factory=list)

    def name(self, frame: FrameType | None) -> str | None:
        """The file of a frame below the package; None for others'."""
        path = "" if frame is None else frame.f_code.co_filename
        inside = path.startswith(f"{self.package}/")
        return str(Path(path).relative_to(self.package)) if inside else None

    def floor(self, name: str) -> int:
        return self.floors.get(name.split("/")[0].removesuffix(".py"), 0)

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        if event not in ("call", "return") or (name := self.name(frame)) is None:
            return
        if not self.wanted(frame, value if event == "return" else None):
            return
        if name not in self.files:
            self.files.append(name)
        caller = self.name(frame.f_back)
        if event == "return" or caller is None or wraps(frame.f_back, frame):
            return
        if self.floor(name) > self.floor(caller):
            self.climbs.append(f"{caller} -> {name}")

    @contextmanager
    def followed(self) -> Iterator[None]:
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


def wraps(caller: FrameType, called: FrameType) -> bool:
    """Whether a function closes over the one that it calls."""
    closed_over = [caller.f_locals.get(name) for name in caller.f_code.co_freevars]
    return any(getattr(value, "__code__", None) is called.f_code for value in closed_over)


def holds_rate(value: Any) -> bool:
    """Whether a value is the rate, or a small container that holds it."""
    if isinstance(value, float):
        return abs(value - RATE) < 1e-9
    if isinstance(value, list | tuple) and len(value) < 10:
        return any(holds_rate(one) for one in value)
    return isinstance(value, slice) and any(holds_rate(one) for one in (value.start, value.stop))


def carries_rate(frame: FrameType, returned: Any) -> bool:
    code = frame.f_code
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return holds_rate(returned) or any(holds_rate(frame.f_locals.get(name)) for name in arguments)


def learner_and_photo(folder: Path) -> tuple[Any, str]:
    """A learner of small photos that has seen both, and the path of one more."""
    import keras
    import numpy as np
    from PIL import Image

    from kclf import ImageData, Learner

    photos = np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3), np.uint8)
    Image.fromarray(photos[0]).save(folder / "one.png")
    data = ImageData.from_arrays((photos, ["cat", "dog"] * 8), batch_size=4)
    images = keras.Input((None, None, 3))
    backbone = keras.Model(images, keras.layers.Conv2D(4, 3, strides=2)(images))
    learner = Learner(data, backbone, normalization="tf", path=folder, verbose=False)
    learner.fit(1e-3, 1)
    learner.predict(str(folder / "one.png"))
    return learner, str(folder / "one.png")


def walks(root: Path, folder: Path) -> tuple[Walk, Walk]:
    """The walk of a photo and that of a rate, in a folder for what a learner writes."""
    learner, photo = learner_and_photo(folder)
    place = {"package": root / "kclf", "floors": floors(root)}
    predicted, fitted = Walk(**place), Walk(**place, wanted=carries_rate)
    with predicted.followed():
        learner.predict(photo)
    with fitted.followed():
        learner.fit(RATE, 1)
    return predicted, fitted


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    sys.path.insert(0, str(root))
    titles = ("photo, from path to prediction", "rate, from Learner.fit to the update")
    with tempfile.TemporaryDirectory() as folder:
        found = walks(root, Path(folder))
    for title, walk in zip(titles, found, strict=True):
        print(f"{title}: {len(walk.files)} files, {len(set(walk.climbs))} climbs")
        print("".join(f"    {name}\n" for name in walk.files), end="")
        print("".join(f"    up: {climb}\n" for climb in dict.fromkeys(walk.climbs)))


if __name__ == "__main__":
    main()
