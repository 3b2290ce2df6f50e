"""The rules for what Python asks of torch: devices by name, `.device`, `.to`, `.numpy`, factories."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from .device import CUDA, Device, behind_the_scenes, place_of, put, tensors

DEVICE, IS_CUDA, IS_CPU = Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__
READERS = {Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__}
FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray}


def kind_of(device: Any) -> str | None:
    """The type of a device, "cuda" or "cpu"; None for anything that is neither."""
    name = device.type if isinstance(device, torch.device) else str(device).split(":")[0]
    return name if name in ("cuda", "cpu") and isinstance(device, str | torch.device) else None


class InPython(TorchFunctionMode):
    """Sees the calls of torch from Python, and of methods and attributes of tensors."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.answers: dict[Any, Callable[..., Any]] = {
            DEVICE: lambda t: CUDA if place_of(t) == "cuda" else DEVICE(t),
            IS_CUDA: lambda t: place_of(t) == "cuda",
            IS_CPU: lambda t: place_of(t) != "cuda" and not t.is_meta,
            Tensor.get_device: lambda t: 0 if place_of(t) == "cuda" else -1,
            Tensor.is_pinned: lambda t: place_of(t) == "pinned",
            Tensor.pin_memory: self.pin,
            Tensor.numpy: self.numpy,
            Tensor.__array__: partial(self.numpy, method=Tensor.__array__),
            Tensor.tolist: self.tolist,
            Tensor.__deepcopy__: self.deepcopy,
            Tensor.cpu: lambda t, **options: self.move(t, "cpu"),
            Tensor.cuda: lambda t, *args, **options: self.move(t, "cuda", **options),
            Tensor.to: self.to,
            Tensor.copy_: self.copy,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.answers:
            return self.answers[func](*args, **kwargs)
        if func in FROM_DATA:
            return self.from_data(func, *args, **kwargs)
        asked, pinned = kind_of(kwargs.get("device")), kwargs.pop("pin_memory", False)
        if asked:
            kwargs["device"] = "cpu"
        follows = asked is None and any(place_of(t) == "cuda" for t in tensors((args, kwargs)))
        self.device.inside += follows
        self.device.quiet = func is torch.nn.functional.one_hot  # on CUDA the kernel checks, not the host
        try:
            result = func(*args, **kwargs)
        finally:
            self.device.inside -= follows
            self.device.quiet = False
        if asked == "cuda":
            self.device.kernels[func.__name__] += func is not torch.empty
            put(result)
        return put(result, "pinned") if pinned else result

    # ---- copies

    def move(self, tensor: Tensor, kind: str, non_blocking: bool = False, **options: Any) -> Tensor:
        """`tensor` on a device, with whatever else `to` was asked for; itself where nothing changes."""
        there = place_of(tensor) == "cuda"
        if tensor.is_meta or there == (kind == "cuda"):
            return Tensor.to(tensor, **options) if options else tensor
        if kind == "cpu" and non_blocking:
            raise RuntimeError(
                "Read too early: .to('cpu', non_blocking=True) gives memory that the device has yet to fill"
            )
        way = "to the device" if kind == "cuda" else "to the host"
        self.device.crosses(tensor, way, non_blocking)
        if kind == "cuda":
            self.device.timeline.append(("copy", torch.cuda.current_stream().number))
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            moved = Tensor.to(tensor, **options) if options else tensor
            same = moved.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            moved = moved.clone() if same else moved
        return put(moved, kind)

    def to(self, tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        """`Tensor.to` in all its forms."""
        words = dict(zip(("device", "dtype", "non_blocking", "copy"), self._sorted(args), strict=False))
        options = {k: v for k, v in (words | options).items() if v is not None}
        other = options.pop("other", None)
        if other is not None:
            options |= {"device": "cuda" if place_of(other) == "cuda" else "cpu", "dtype": other.dtype}
        kind = kind_of(options.get("device"))
        if kind is None:
            return Tensor.to(tensor, **options)
        del options["device"]
        return self.move(tensor, kind, **options)

    @staticmethod
    def _sorted(args: Any) -> list[Any]:
        """Positional arguments of `to` as device, dtype, non_blocking, copy."""
        if args and isinstance(args[0], Tensor):
            return ["cuda" if place_of(args[0]) == "cuda" else "cpu", args[0].dtype, *args[1:]]
        if args and isinstance(args[0], torch.dtype):
            return [None, *args]
        return list(args)

    def copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """`Tensor.copy_`; into pinned memory it arrives when the device has come so far."""
        if not (non_blocking and place_of(target) == "pinned" and place_of(source) == "cuda"):
            return Tensor.copy_(target, source, non_blocking)
        with behind_the_scenes():
            value = source.clone()
        self.device.later(lambda: target.copy_(value))
        return target

    def from_data(self, func: Any, data: Any, *args: Any, **options: Any) -> Tensor:
        """`torch.tensor` and its like: from the host's data, or from a tensor."""
        kind = kind_of(options.get("device"))
        if isinstance(data, Tensor):
            kind = kind or ("cuda" if place_of(data) == "cuda" else "cpu")
            return self.move(func(data, *args, **{**options, "device": None}), kind)
        pinned = options.pop("pin_memory", False)
        if kind:
            options["device"] = "cpu"
        with _disable_current_modes():
            made = func(data, *args, **options)
            if kind != "cuda":
                return put(made.clone(), "pinned") if pinned else made
            made = made.clone()
        self.device.wait("to the device")
        return put(made)

    # ---- reading

    def numpy(self, tensor: Tensor, *args: Any, method: Any = Tensor.numpy, **options: Any) -> Any:
        """`Tensor.numpy`, which device memory has not."""
        if place_of(tensor) != "cuda":
            return method(tensor, *args, **options)
        if not options.get("force"):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                "host memory first."
            )
        return self.move(tensor.detach(), "cpu").numpy()

    def tolist(self, tensor: Tensor) -> Any:
        """`Tensor.tolist`, one wait however many numbers."""
        if place_of(tensor) == "cuda":
            self.device.wait("tolist")
            with _disable_current_modes():
                return Tensor.tolist(tensor)
        return Tensor.tolist(tensor)

    def pin(self, tensor: Tensor, *args: Any) -> Tensor:
        """`Tensor.pin_memory`, for memory of the host."""
        if place_of(tensor) == "cuda":
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return tensor if place_of(tensor) == "pinned" else put(tensor.clone(), "pinned")

    def deepcopy(self, tensor: Tensor, memo: Any) -> Tensor:
        """`copy.deepcopy` of a tensor, on its device."""
        with _disable_current_modes():
            copied = Tensor.__deepcopy__(tensor, memo)
        return put(copied, place_of(tensor))
