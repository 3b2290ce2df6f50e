"""The same photo twice: the same file, or the same look after re-encoding, resizing or mirroring."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

ROWS_AT_A_TIME = 1024
FREQUENCIES = 8  # 8 x 8 lowest frequencies of the thumbnail: the classic 64-bit perceptual hash
NEAREST = 4  # photos that each of many look-alikes is paired with
MOST_BITS_APART = 12  # of 63; the sieve. The correlation below decides.
LEAST_CORRELATION = 0.95  # of thumbnails; copies at 30-150 % of the size, JPEG quality 30-95, have .986 to 1
LEAST_CONTRAST = 2.0  # grey levels: below it a thumbnail is plain, and plain ones all look the same


class Pair(NamedTuple):
    """Two photos that look the same.

    Args:
        first, second: their places, first < second.
        score: correlation of their looks, in [0, 1]; 1 for the same file.
        how: "same file", "same look", "mirrored" or "similar activations".
    """

    first: int
    second: int
    score: float
    how: str


def same_files(digests: Sequence[str]) -> list[Pair]:
    """Pairs of files with the same content: each later one with the first; "" stands for an unread file."""
    places = defaultdict(list)
    for place, digest in enumerate(digests):
        if digest:
            places[digest].append(place)
    return [Pair(same[0], later, 1.0, "same file") for same in places.values() for later in same[1:]]


def same_looks(thumbnails: np.ndarray, sets: Sequence[str] = ()) -> list[Pair]:
    """Pairs of photos that look the same, as they are or mirrored.

    A perceptual hash (signs of the 63 lowest frequencies of a cosine transform against their median) sieves
    all pairs by one matrix product; what is left is compared by the correlation of the grey thumbnails. Of
    many that look the same, such as the frames of a video, each is paired with the nearest few alone.

    Args:
        thumbnails: uint8 (n, side, side, 3).
        sets: the set of each photo; the nearest photos of other sets are paired as well.
    """
    grey = thumbnails.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    places = np.flatnonzero(grey.std(axis=(1, 2)) >= LEAST_CONTRAST)  # plain ones all look the same
    if len(places) < 2:
        return []
    grey, groups = grey[places], _groups(sets, len(thumbnails))[places]
    hashes, looks = perceptual_hash(grey), _normalised(grey)
    near = (hashes.shape[1] - 2 * MOST_BITS_APART) / hashes.shape[1]
    pairs = {}
    for how, seen in (("mirrored", grey[:, :, ::-1]), ("same look", grey)):
        other_looks = _normalised(seen)
        for first, second, _ in _close(hashes, perceptual_hash(seen), near, groups):
            correlations = np.einsum("ij,ij->i", looks[first], other_looks[second])
            for i in np.flatnonzero(correlations >= LEAST_CORRELATION):
                pair = int(places[first[i]]), int(places[second[i]])
                pairs[pair] = Pair(*pair, min(float(correlations[i]), 1.0), how)
    return sorted(pairs.values())


def same_activations(features: np.ndarray, least: float = 0.95, sets: Sequence[str] = ()) -> list[Pair]:
    """Pairs of photos that a backbone takes for the same: finds crops that a perceptual hash does not.

    Args:
        features: pooled activations, float (n, channels).
        least: cosine of the two, after the mean over all photos is taken away.
        sets: as in `same_looks`.
    """
    directions = _unit(features - features.mean(axis=0))
    return [
        Pair(int(first), int(second), min(float(cosine), 1.0), "similar activations")
        for some in _close(directions, directions, least, _groups(sets, len(features)))
        for first, second, cosine in zip(*some, strict=True)
    ]


def _groups(sets: Sequence[str], count: int) -> np.ndarray:
    """The number of each photo's set."""
    return np.unique(np.asarray(sets), return_inverse=True)[1] if len(sets) else np.zeros(count, np.int64)


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """Bits of the lowest frequencies as +-1/sqrt(63), so that a product counts equal bits; (n, 63)."""
    side = grey.shape[1]
    angles = np.pi / side * (np.arange(side) + 0.5) * np.arange(FREQUENCIES)[:, None]
    cosines = np.cos(angles).astype(np.float32)
    spectrum = (cosines @ grey @ cosines.T).reshape(len(grey), -1)[:, 1:]
    bits = np.where(spectrum > np.median(spectrum, axis=1, keepdims=True), 1, -1)
    return (bits / np.sqrt(bits.shape[1])).astype(np.float32)


def _close(
    left: np.ndarray, right: np.ndarray, least: float, groups: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places (first, second) with first < second whose rows have a product of at least `least`, and these.

    For each second the `NEAREST` firsts of all, and of those in another group; memory is bounded.
    """
    for start in range(0, len(right), ROWS_AT_A_TIME):
        block = right[start : start + ROWS_AT_A_TIME]
        products = block @ left[: start + len(block)].T
        seconds = np.arange(start, start + len(block))
        products[np.arange(products.shape[1]) >= seconds[:, None]] = -np.inf
        many = np.count_nonzero(products >= least, axis=1) > 2 * NEAREST
        rows, firsts = np.nonzero((products >= least) & ~many[:, None])
        kept = [(rows, firsts)]
        for row in np.flatnonzero(many):
            near = _nearest(products[row], least, groups, groups[start + row])
            kept.append((np.full(len(near), row), near))
        rows, firsts = (np.concatenate(part) for part in zip(*kept, strict=True))
        if len(rows):
            yield firsts, start + rows, products[rows, firsts]


def _nearest(products: np.ndarray, least: float, groups: np.ndarray, own: int) -> np.ndarray:
    """The places of the largest products: of all, and of those of other groups."""
    near = np.flatnonzero(products >= least)
    foreign = near[groups[near] != own]
    return np.unique(np.concatenate([_largest(products, some) for some in (near, foreign)]))


def _largest(products: np.ndarray, places: np.ndarray) -> np.ndarray:
    if len(places) <= NEAREST:
        return places
    return places[np.argpartition(-products[places], NEAREST)[:NEAREST]]


def _normalised(grey: np.ndarray) -> np.ndarray:
    """Thumbnails as unit vectors around their mean, so that a product is a correlation; (n, pixels)."""
    flat = grey.reshape(len(grey), -1)
    return _unit(flat - flat.mean(axis=1, keepdims=True))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
