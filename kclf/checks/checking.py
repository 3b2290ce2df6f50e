"""The check itself: every finding of every kind, in one ledger."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import duplicates, notes, wrong_labels
from .duplicates import Pair
from .file_info import FileInfo, Photo, file_digest, inspect_files, named_format, other_files, photos_of
from .findings import PROBLEMS, Finding, Findings
from .wrong_labels import backbone_features

SMALL = 64  # pixels of the short side: a fur or a face can hardly be recognised below
LONG = 3.0  # times as long as wide: the square crop keeps less than a third
LEAST_PER_CLASS = 5  # photos; with fewer a class cannot be judged by the others of its kind

FeatureFunction = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class _Surveyed:
    """The photos with their facts, and a short way to make a finding of one."""

    folder: str
    photos: list[Photo]
    facts: list[FileInfo]

    def readable(self) -> list[int]:
        return [place for place, facts in enumerate(self.facts) if facts.is_readable]

    def finding(self, place: int, problem: str, score: float, detail: str, **more: Any) -> Finding:
        photo, facts = self.photos[place], self.facts[place]
        checked: dict[str, Any] = {"num_bytes": facts.num_bytes, "digest": facts.digest}
        return Finding(
            self.name(place), problem, score, detail, photo.label, folder=self.folder, **checked, **more
        )

    def is_link_to(self, place: int, other: int) -> bool:
        """Whether one photo is the file of another, reached by a link."""
        real, theirs = (os.path.realpath(self.photos[number].path) for number in (place, other))
        own = os.path.join(os.path.realpath(self.folder), self.name(place))
        return real == theirs and real != own

    def name(self, place: int) -> str:
        return os.path.relpath(os.path.abspath(self.photos[place].path), self.folder)


def check(
    data: Any,
    model: Any = None,
    *,
    label: Callable[[str], str] | None = None,
    features: FeatureFunction | None = None,
    threads: int | None = None,
) -> Findings:
    """Look for what is wrong with photos and labels.

    Without a model: files that cannot be read, wrong extensions, odd files, photos that are there twice,
    the same photo in train and valid, very small and very long photos, uneven classes, and sizes that give
    the class away. With a model also labels that are likely wrong, and photos that its backbone takes for
    the same.

    Args:
        data: an `ImageData`, or a folder that holds a folder a class, with or without `train`, `valid` and
            `test` above them.
        model: an `ImageClassifier`; its backbone is used, not its head, which may have learnt wrong labels.
            Of another Keras model what its last layer is given is used.
        label: path -> name of the class; without it the class is the folder the photo lies in.
        features: paths -> activations, float (n, channels); in place of a model.
        threads: that read files; as many as there are cores, if None.

    Returns:
        The findings, worst kinds first; nothing is changed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("train/cat/a.png", "valid/cat/b.png"):
        ...     (folder / name).parent.mkdir(parents=True)
        ...     Image.linear_gradient("L").save(folder / name)
        >>> [(finding.path, finding.problem, finding.other) for finding in check(folder)]
        [('train/cat/a.png', 'leak', 'valid/cat/b.png')]
    """
    folder, photos = photos_of(data, label)
    survey = _Surveyed(folder, photos, inspect_files(photos, threads=threads))
    if features is None and model is not None:
        features = partial(backbone_features, model)
    places = survey.readable()
    vectors = features([photos[place].path for place in places]) if features and places else None
    found = [
        *_file_problems(survey),
        *_repeats(survey, places, vectors),
        *_wrong_labels(survey, places, vectors),
    ]
    if isinstance(data, str | os.PathLike):
        found += _foreign_files(folder)
    found.sort(key=lambda finding: (PROBLEMS.index(finding.problem), -finding.score, finding.path))
    return Findings(found, _notes(survey, places, vectors is not None), len(photos))


def _file_problems(survey: _Surveyed) -> Iterable[Finding]:
    for place, facts in enumerate(survey.facts):
        if not facts.is_readable:
            yield survey.finding(place, "unreadable", 1.0, str(facts.error), advice="delete")
            continue
        promised = named_format(survey.photos[place].path)
        if promised and facts.format != promised:
            yield survey.finding(place, "wrong_extension", 0.5, f"a {facts.format} named as a {promised}")
        if facts.oddity:
            yield survey.finding(place, "odd", 0.5, facts.oddity)
        yield from _odd_sizes(survey, place, facts)


def _odd_sizes(survey: _Surveyed, place: int, facts: FileInfo) -> Iterable[Finding]:
    short, long = sorted((facts.width, facts.height))
    size = f"{facts.width} x {facts.height} pixels"
    if short < SMALL:
        yield survey.finding(place, "small", 1 - short / SMALL, size)
    if long >= LONG * short:
        yield survey.finding(
            place, "long", 1 - short / long, f"{size}: a square crop keeps {short / long:.0%}"
        )


def _foreign_files(folder: str) -> Iterable[Finding]:
    for path in other_files(folder):
        name = os.path.relpath(path, folder)
        num_bytes, digest = file_digest(path)
        yield Finding(
            name, "odd", 0.2, "not an image by its name", folder=folder, num_bytes=num_bytes, digest=digest
        )


def _repeats(survey: _Surveyed, places: list[int], vectors: np.ndarray | None) -> Iterable[Finding]:
    pairs: dict[tuple[int, int], Pair] = {}
    for pair in _pairs(survey, places, vectors):
        pairs.setdefault((pair.first, pair.second), pair)
    repeated: dict[int, Finding] = {}
    for pair in pairs.values():
        place, finding = _repeat(survey, pair)
        known = repeated.get(place)
        # One row a photo, about its worst repetition; a leak hides mere duplicates.
        if known is None or PROBLEMS.index(finding.problem) < PROBLEMS.index(known.problem):
            repeated[place] = finding
    return repeated.values()


def _pairs(survey: _Surveyed, places: list[int], vectors: np.ndarray | None) -> Iterable[Pair]:
    """Pairs of photos that are the same, the surest kind first; places are those of the survey."""
    yield from duplicates.same_files([facts.digest * facts.is_readable for facts in survey.facts])
    if not places:
        return
    sets = [survey.photos[place].set_name for place in places]
    looks = duplicates.same_looks(np.stack([survey.facts[place].thumbnail for place in places]), sets)
    alike = duplicates.same_activations(vectors, sets=sets) if vectors is not None else []
    for pair in [*looks, *alike]:
        yield pair._replace(first=places[pair.first], second=places[pair.second])


def _repeat(survey: _Surveyed, pair: Pair) -> tuple[int, Finding]:
    """The finding of a pair, on the photo to part with: that of train, else the smaller or later one."""
    one, two = survey.photos[pair.first], survey.photos[pair.second]
    apart = bool(one.set_name and two.set_name and one.set_name != two.set_name)
    place, kept = pair.second, pair.first
    if (apart and one.set_name == "train") or (not apart and _pixels(survey, kept) < _pixels(survey, place)):
        place, kept = kept, place
    if survey.is_link_to(kept, place):  # whose photo would be gone from both
        place, kept = kept, place
    detail, advice = pair.how, "delete"
    if one.label != two.label:
        detail, advice = f"{detail}, but of class {survey.photos[kept].label}", "keep"
    if apart:
        detail = f"{detail}, in {survey.photos[kept].set_name}"
    problem = "leak" if apart else "duplicate" if pair.how == "same file" else "near_duplicate"
    if pair.how == "similar activations":
        advice = "keep"
    return place, survey.finding(place, problem, pair.score, detail, other=survey.name(kept), advice=advice)


def _pixels(survey: _Surveyed, place: int) -> int:
    return survey.facts[place].width * survey.facts[place].height


def _wrong_labels(survey: _Surveyed, places: list[int], vectors: np.ndarray | None) -> Iterable[Finding]:
    if vectors is None:
        return
    names = [survey.photos[place].label for place in places]
    judged = {name for name, count in Counter(names).items() if name and count >= LEAST_PER_CLASS}
    rows = [row for row, name in enumerate(names) if name in judged]
    if len(judged) < 2:
        return
    class_names, classes = np.unique([names[row] for row in rows], return_inverse=True)
    probabilities = wrong_labels.out_of_fold_probabilities(vectors[rows], classes)
    for issue in wrong_labels.label_issues(probabilities, classes):
        suggested = str(class_names[issue.suggested])
        sure = probabilities[issue.place, issue.suggested]
        yield survey.finding(
            places[rows[issue.place]],
            "label",
            issue.score,
            f"looks like {suggested} ({sure:.2f})",
            advice="relabel" if issue.confident else "keep",
            target=suggested,
        )


def _notes(survey: _Surveyed, places: list[int], with_features: bool) -> list[str]:
    names = [survey.photos[place].label for place in places]
    found = notes.balance_notes(names, [survey.photos[place].set_name for place in places])
    if not with_features:
        found.append("labels were not checked: that needs a model (a saved classifier)")
    return found
