"""3x3 convolutions of many channels by Winograd's products: 16 multiplications where the sum has 36."""

from __future__ import annotations

import torch

TILE_BYTES = 2**22  # of the tiles that are multiplied at once: they stay in a processor's cache

# y = A' [(G w G') * (B' x B)] A for tiles x of 4x4 pixels, kernels w and results y of 2x2 pixels
B = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=torch.float32)
G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=torch.float32)
TILES_IN, TILES_OUT = torch.kron(B, B), torch.kron(A, A)


def winograd_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """(out, in, 3, 3) as the (16, in, out) that `winograd` multiplies by."""
    outputs, inputs = kernel.shape[:2]
    products = torch.einsum("ij,ocjk,lk->ilco", G, kernel, G)
    return products.reshape(16, inputs, outputs).contiguous()


def winograd(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A 3x3 convolution with a border of one zero, as F(2x2, 3x3) of Lavin and Gray (arXiv:1509.09308).

    Its rounding errors are of the size of the direct sum's.

    Args:
        x: float32 (batch, channels, height, width).
        kernel: of `winograd_kernel`.
        bias: (out,), or None.

    Returns:
        (batch, out, height, width), in the memory order of channels_last.
    """
    batch, channels, height, width = x.shape
    y = x.new_empty(batch, height, width, kernel.shape[2])
    tiles = (height + 1) // 2 * ((width + 1) // 2)
    at_once = max(1, TILE_BYTES // (16 * channels * tiles * x.element_size()))
    for photos, results in zip(x.permute(0, 2, 3, 1).split(at_once), y.split(at_once), strict=True):
        _convolve(photos, kernel, results)
    return (y if bias is None else y.add_(bias)).permute(0, 3, 1, 2)


def _convolve(x: torch.Tensor, kernel: torch.Tensor, y: torch.Tensor) -> None:
    """Write the convolution of (batch, height, width, in) to y, (batch, height, width, out)."""
    batch, height, width, channels = x.shape
    rows, columns, outputs = (height + 1) // 2, (width + 1) // 2, kernel.shape[2]
    bordered = x.new_zeros(batch, 2 * rows + 2, 2 * columns + 2, channels)
    bordered[:, 1 : height + 1, 1 : width + 1] = x
    photo, row, column, _ = bordered.stride()
    shape, strides = (4, 4, batch, rows, columns, channels), (row, column, photo, 2 * row, 2 * column, 1)
    tiles = TILES_IN @ bordered.as_strided(shape, strides).reshape(16, -1)
    products = torch.bmm(tiles.view(16, -1, channels), kernel)
    pixels = (TILES_OUT @ products.view(16, -1)).view(2, 2, batch, rows, columns, outputs)
    pixels = pixels.permute(2, 3, 0, 4, 1, 5)
    if height % 2 == width % 2 == 0:
        y.view(batch, rows, 2, columns, 2, outputs).copy_(pixels)
    else:
        y.copy_(pixels.reshape(batch, 2 * rows, 2 * columns, outputs)[:, :height, :width])
