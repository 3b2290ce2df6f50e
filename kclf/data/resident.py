"""Photos that stay on a GPU: read and sent once, then cut to size there, epoch after epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .._core.devices import copy_stream, gives_back, send
from .._core.sizes import Size, sides


def bytes_of(shapes: np.ndarray, channels: int = 3) -> int:
    """What photos of these shapes, int64 (n, 2), take as uint8."""
    return channels * int(shapes.astype(np.int64).prod(axis=1).sum())


class ResidentPhotos:
    """Pixels of photos on a GPU, in the order in which they came, and where each photo lies.

    Args:
        shapes: int64 (n, 2), height and width of each photo.
        device: of CUDA.
        channels: of every photo.
    """

    def __init__(self, shapes: np.ndarray, device: torch.device, channels: int = 3) -> None:
        self.shapes = shapes.astype(np.int64)
        self.channels = channels
        self.device = device
        self.shown = np.full(len(shapes), -1)  # which photo stands for each; -1 for none yet
        self._starts = np.zeros(len(shapes), np.int64)  # pixels
        self._filled = 0
        total = int(self.shapes.prod(axis=1).sum())
        self._pixels = torch.empty((total, channels), dtype=torch.uint8, device=device)
        self._pixels.record_stream(copy_stream(device))
        gives_back(self)

    @property
    def is_gone(self) -> bool:
        """Whether the memory was given back."""
        return not len(self._pixels)

    def release(self) -> None:
        """Give the memory back: photos are read anew from here on."""
        self._pixels = self._pixels[:0].clone()
        self.shown[:] = -1

    def has(self, indices: np.ndarray) -> bool:
        """Whether all of some photos are there."""
        return not self.is_gone and bool((self.shown[indices] >= 0).all())

    def buffer(self, indices: np.ndarray) -> tuple[torch.Tensor, list[np.ndarray]]:
        """Pinned memory for the pixels of photos to come, (pixels, channels), and the part of each."""
        shapes = self.shapes[indices]
        total = int(shapes.prod(axis=1).sum())
        flat = torch.empty((total, self.channels), dtype=torch.uint8, pin_memory=True)
        parts = np.split(flat.numpy(), np.cumsum(shapes.prod(axis=1)))[:-1]
        return flat, [part.reshape(*shape, -1) for part, shape in zip(parts, shapes.tolist(), strict=True)]

    def put(self, indices: np.ndarray, flat: torch.Tensor, shown: Sequence[int]) -> torch.cuda.Event:
        """Send what `buffer` has been filled with; the event tells when it is there."""
        stream = copy_stream(self.device)
        with torch.cuda.stream(stream):
            self._pixels[self._filled : self._filled + len(flat)].copy_(flat, non_blocking=True)
            arrived = stream.record_event()
        sizes = self.shapes[indices].prod(axis=1)
        self._starts[indices] = self._filled + np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.shown[indices] = shown
        self._filled += len(flat)
        return arrived

    def cut(self, indices: np.ndarray, size: Size, positions: np.ndarray) -> torch.Tensor:
        """Windows of photos that cover `size`: what `crop_or_pad` cuts, without a copy of pixels.

        Args:
            indices: int64 (count,).
            size: in pixels.
            positions: float64 (count, 2), x and y of the windows, in [0, 1].

        Returns:
            uint8 (count, *sides(size), channels), on the device.
        """
        lines, across = sides(size)
        heights, widths = self.shapes[indices].T
        x, y = positions.T
        lefts, tops = (
            np.round(share * free).astype(np.int64)
            for share, free in ((x, widths - across), (y, heights - lines))
        )
        corners = self._starts[indices] + tops * widths + lefts
        sent = send(torch.from_numpy(np.stack([corners, widths])), self.device)
        down = torch.arange(lines, device=self.device)
        rows = sent[0, :, None] + down * sent[1, :, None]  # (count, lines): where each row begins
        places = rows[:, :, None] + torch.arange(across, device=self.device)  # (count, lines, across)
        return self._pixels.index_select(0, places.reshape(-1)).reshape(*places.shape, -1)
