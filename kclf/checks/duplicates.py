"""The same photo twice: the same file, or the same look after re-encoding, resizing or mirroring."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

ROWS_AT_A_TIME = 1024
FREQUENCIES = 8  # 8 x 8 lowest frequencies of the thumbnail: the classic 64-bit perceptual hash
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


def same_looks(thumbnails: np.ndarray) -> list[Pair]:
    """Pairs of photos that look the same, as they are or mirrored.

    A perceptual hash (signs of the 63 lowest frequencies of a cosine transform against their median) sieves
    all pairs by one matrix product; what is left is compared by the correlation of the grey thumbnails.

    Args:
        thumbnails: uint8 (n, side, side, 3).
    """
    grey = thumbnails.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    plain = grey.std(axis=(1, 2)) < LEAST_CONTRAST
    hashes, looks = perceptual_hash(grey), _normalised(grey)
    mirrored = perceptual_hash(grey[:, :, ::-1]), _normalised(grey[:, :, ::-1])
    pairs = {}
    for how, (other_hashes, other_looks) in (("mirrored", mirrored), ("same look", (hashes, looks))):
        near = (hashes.shape[1] - 2 * MOST_BITS_APART) / hashes.shape[1]
        for first, second, _ in _close(hashes, other_hashes, near):
            correlation = float(looks[first] @ other_looks[second])
            if correlation >= LEAST_CORRELATION and not (plain[first] or plain[second]):
                pairs[first, second] = Pair(first, second, min(correlation, 1.0), how)
    return sorted(pairs.values())


def same_activations(features: np.ndarray, least: float = 0.95) -> list[Pair]:
    """Pairs of photos that a backbone takes for the same: finds crops that a perceptual hash does not.

    Args:
        features: pooled activations, float (n, channels).
        least: cosine of the two, after the mean over all photos is taken away.
    """
    directions = _unit(features - features.mean(axis=0))
    return [
        Pair(first, second, min(cosine, 1.0), "similar activations")
        for first, second, cosine in _close(directions, directions, least)
    ]


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """Bits of the lowest frequencies as +-1/sqrt(63), so that a product counts equal bits; (n, 63)."""
    side = grey.shape[1]
    angles = np.pi / side * (np.arange(side) + 0.5) * np.arange(FREQUENCIES)[:, None]
    cosines = np.cos(angles).astype(np.float32)
    spectrum = (cosines @ grey @ cosines.T).reshape(len(grey), -1)[:, 1:]
    bits = np.where(spectrum > np.median(spectrum, axis=1, keepdims=True), 1, -1)
    return (bits / np.sqrt(bits.shape[1])).astype(np.float32)


def _close(left: np.ndarray, right: np.ndarray, least: float) -> Iterator[tuple[int, int, float]]:
    """Places first < second whose rows have a product of at least `least`; bounded memory."""
    for start in range(0, len(left), ROWS_AT_A_TIME):
        products = left[start : start + ROWS_AT_A_TIME] @ right[start:].T
        rows, columns = np.nonzero(products >= least)
        for row, column in zip(rows[rows < columns].tolist(), columns[rows < columns].tolist(), strict=True):
            yield start + row, start + column, float(products[row, column])


def _normalised(grey: np.ndarray) -> np.ndarray:
    """Thumbnails as unit vectors around their mean, so that a product is a correlation; (n, pixels)."""
    flat = grey.reshape(len(grey), -1)
    return _unit(flat - flat.mean(axis=1, keepdims=True))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
