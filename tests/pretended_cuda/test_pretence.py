"""The pretended device keeps a GPU's rules: what each test says holds on a real one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from . import kernels, place_of, pretended_cuda


@pytest.fixture
def device():
    with pretended_cuda() as device:
        yield device


def waits(device):
    return sum(device.waits.values())


def test_devices_are_told_apart(device):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert here.device.type == "cpu"
    assert there.device == torch.device("cuda", 0)
    assert (there * 2 + 1).is_cuda
    assert there.view(3, 1).T.is_cuda
    assert torch.zeros_like(there).is_cuda
    assert copy.deepcopy(there).is_cuda
    assert torch.nn.Parameter(there).device.type == "cuda"
    with pytest.raises(RuntimeError, match="two devices"):
        here + there


def test_a_scalar_of_the_host_may_join(device):
    assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).is_cuda


def test_backward_passes_obey_too(device):
    weight = torch.ones(3, device="cuda", requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad.is_cuda
    assert weight.grad.cpu().tolist() == [2, 2, 2]


@pytest.mark.parametrize("read", [np.asarray, torch.Tensor.numpy])
def test_numpy_takes_no_device_memory(device, read):
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        read(torch.ones(2, device="cuda"))


@pytest.mark.parametrize(
    "read",
    [
        float, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.nonzero,
        lambda x: x.to("cpu"), lambda x: x[x > 0], lambda x: x[torch.tensor([0])],
    ],
)  # fmt: skip
def test_reading_waits(device, read):
    read(torch.ones(1, device="cuda"))
    assert waits(device) == 1


def test_sending_waits_unless_it_is_told_not_to(device):
    numbers = torch.ones(4)
    assert numbers.to("cuda").is_cuda
    assert torch.tensor([1.0], device="cuda").is_cuda
    assert waits(device) == 2
    numbers.pin_memory().to("cuda", non_blocking=True)
    assert waits(device) == 2
    assert not device.pageable
    numbers.to("cuda", non_blocking=True)
    assert sum(device.pageable.values()) == 1


def test_sync_debug_mode_raises(device):
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1, device="cuda").item()


def test_memory_that_is_not_filled_yet_is_not_handed_out(device):
    with pytest.raises(RuntimeError, match="Read too early"):
        torch.ones(2, device="cuda").to("cpu", non_blocking=True)


def test_reads_arrive_late_and_events_wait_for_them():
    with pretended_cuda(lag=2) as device:
        targets = [torch.zeros((), pin_memory=True) for _ in range(3)]
        events = [torch.cuda.Event() for _ in targets]
        for number, (target, event) in enumerate(zip(targets, events, strict=True)):
            target.copy_(torch.full((), number + 1.0, device="cuda"), non_blocking=True)
            event.record()
        assert [float(target) for target in targets] == [1, 0, 0]
        assert [event.query() for event in events] == [True, False, False]
        events[1].synchronize()
        assert [float(target) for target in targets] == [1, 2, 0]
        torch.cuda.synchronize()
        assert [float(target) for target in targets] == [1, 2, 3]
        assert waits(device) == 1


def test_kernels_are_counted_and_views_are_not(device):
    values = [torch.ones(3, device="cuda") for _ in range(5)]
    device.clear()
    torch._foreach_mul_(values, 2.0)
    values[0].view(3, 1).expand(3, 2).permute(1, 0).add(1)
    assert kernels(device) == 2


def test_nothing_is_left_afterwards():
    with pretended_cuda():
        assert torch.cuda.is_available()
    assert place_of(torch.ones(2)) == "cpu"
    assert torch.ones(2).sum().item() == 2
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(2, device="cuda")
