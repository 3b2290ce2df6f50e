"""The rules at torch's dispatcher: what may be mixed, what the host waits for, what is a kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .device import Device, place_of, put, tensors

READS = {  # operations whose result, or the size of it, the host has to know
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal",
    "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave",
}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
BOOKKEEPING = {"aten::_has_compatible_shallow_copy_type", "aten::set_", "aten::set_data"}
ALLOCATIONS = ("aten::empty", "aten::new_empty", "aten::_local_scalar_dense", "aten::lift_fresh")
NOT_IN_BYTES = {"aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa", "aten::grid_sampler_2d"}
MIXED = (
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
    "(pretended; {name})"
)


class AtTheDispatcher(TorchDispatchMode):
    """Sees every operation, those of backward passes too."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, given = func._schema.name, list(tensors((args, kwargs)))
        there = [tensor for tensor in given if place_of(tensor) == "cuda"]
        if torch.Tag.nondeterministic_seeded in func.tags and not there:
            self.device.forbid_in_graphs(f"{name} on the host")
        if not there:
            made = func(*args, **kwargs)  # a factory within a call on device tensors follows them
            return put(made) if self.device.inside and not given else made
        here = [tensor for tensor in given if place_of(tensor) != "cuda" and not tensor.is_meta]
        if name == "aten::copy_" and here:
            return self._copy(func, args, kwargs)
        self._check(func, name, args, here, there)
        if name in READS:
            self.device.wait(name)
        if is_kernel(func, name):
            self.device.kernels[name] += 1
        made = func(*args, **kwargs)
        return put(made) if func._schema.returns else made

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        asynchronous = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        target, source = args[:2]
        if place_of(target) == "cuda":
            self.device.crosses(source, "to the device", asynchronous)
        else:
            self.device.crosses(source, "to the host", asynchronous and place_of(target) == "pinned")
        return func(*args, **kwargs)

    def _check(self, func: Any, name: str, args: Any, here: list[Any], there: list[Any]) -> None:
        """Raise where CUDA would: on tensors of two devices, and on bytes where a kernel takes none."""
        wrong = [t for t in here if t.ndim or torch.Tag.pointwise not in func.tags]
        if name in INDEXING:
            wrong = self._indices(name, args, wrong)
        if wrong and name not in BOOKKEEPING:
            raise RuntimeError(MIXED.format(name=name))
        if name in NOT_IN_BYTES and there[0].dtype is torch.uint8:
            raise NotImplementedError(f"\"{name}\" not implemented for 'Byte' (pretended)")

    def _indices(self, name: str, args: Any, wrong: list[Any]) -> list[Any]:
        """Indices may come from the host, which then waits, as it does for masks."""
        indices = list(tensors(args[1]))
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.device.wait(f"{name} by a mask")
        if place_of(args[0]) != "cuda":
            return wrong
        if any(place_of(index) != "cuda" for index in indices):
            self.device.wait(f"{name} by indices from the host")
        return [t for t in wrong if t.ndim and not any(t is index for index in indices)]


def is_kernel(func: Any, name: str) -> bool:
    """Whether an operation launches something: not views, not allocations."""
    views = [ret.alias_info is not None and not ret.alias_info.is_write for ret in func._schema.returns]
    return not any(views) and not name.startswith(ALLOCATIONS) and name not in BOOKKEEPING
