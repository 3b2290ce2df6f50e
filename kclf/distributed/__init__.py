"""Several processes train one model: the script of one GPU, started on many by `torchrun`.

    torchrun --nproc-per-node 4 -m kclf train photos/
    torchrun --nproc-per-node 4 script.py

Each process (a rank) has one device, reads its share of every batch, and after each step all have the same
weights to the last bit. `batch_size` is that of all together, so a script trains the same model on one GPU
and on eight. With one process none of this does anything.
"""

from .group import (
    average,
    barrier,
    broadcast,
    describe,
    describe_data,
    described,
    gather,
    is_main,
    local_world_size,
    locked_by_main,
    per_rank_rng,
    print_on_main,
    rank,
    require_same,
    restarts,
    run_on_main,
    shard_random,
    share,
    single_process,
    start,
    take_device,
    total,
    world_size,
)
from .joining import broadcast_state, distribute, require_joined

__all__ = [
    "average",
    "barrier",
    "broadcast",
    "broadcast_state",
    "describe",
    "describe_data",
    "described",
    "distribute",
    "gather",
    "is_main",
    "local_world_size",
    "locked_by_main",
    "per_rank_rng",
    "print_on_main",
    "rank",
    "require_joined",
    "require_same",
    "restarts",
    "run_on_main",
    "shard_random",
    "share",
    "single_process",
    "start",
    "take_device",
    "total",
    "world_size",
]
