"""Several processes train one model: the script of one GPU, started on many by `torchrun`.

    torchrun --nproc-per-node 4 -m kclf train photos/
    torchrun --nproc-per-node 4 script.py

Each process (a rank) has one device, reads its share of every batch, and after each step all have the same
weights to the last bit. `batch_size` is that of all together, so a script trains the same model on one GPU
and on eight. With one process none of this does anything.
"""

from .group import (
    apart,
    average,
    barrier,
    broadcast,
    describe,
    from_main,
    gather,
    held,
    is_main,
    local_world_size,
    own_draws,
    rank,
    restarts,
    rows_of_rank,
    say,
    share,
    start,
    take_device,
    total,
    world_size,
)
from .joining import agree, join, require_joined

__all__ = [
    "agree",
    "apart",
    "average",
    "barrier",
    "broadcast",
    "describe",
    "from_main",
    "gather",
    "held",
    "is_main",
    "join",
    "local_world_size",
    "own_draws",
    "rank",
    "require_joined",
    "restarts",
    "rows_of_rank",
    "say",
    "share",
    "start",
    "take_device",
    "total",
    "world_size",
]
