"""Count what makes the host wait for the device."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts what stops the host on a GPU: reading a tensor, and sending a number or an array."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        for name in ("as_tensor", "tensor", "from_numpy"):
            monkeypatch.setattr(torch, name, self._counting(getattr(torch, name)))

    def _counting(self, function):
        def counted(*args, **kwargs):
            self.count += not torch.is_tensor(args[0])
            return function(*args, **kwargs)

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
