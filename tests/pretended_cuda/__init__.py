"""A CUDA device that is not there: real values on the CPU under a GPU's rules.

    with pretended_cuda() as device:
        model.fit(...)
    assert device.waits == {}

Storages know whether they lie "on the device". One mode answers for what Python asks of tensors
(`device="cuda"`, `.to`, `.cpu`, `.numpy`), one stands at torch's dispatcher, backward passes included. They
raise what CUDA raises (tensors of two devices in one operation, numpy on device memory), count what makes
the host wait, the copies from pageable memory and the kernels, and can keep the device some reads behind.
Values are computed for real, so whole trainings run. Not seen: dtypes that a CUDA kernel lacks, its
numerics, races, memory, speed.
"""

from .device import Device, kernels, place_of
from .interface import pretended_cuda

__all__ = ["Device", "kernels", "place_of", "pretended_cuda"]
