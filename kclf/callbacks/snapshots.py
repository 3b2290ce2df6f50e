"""Weights of a run saved along the way, for ensembles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras

from ..distributed import barrier, is_main
from ..weights import save_weights


@contextmanager
def without_optimizer(model: keras.Model) -> Iterator[None]:
    """Set the optimizer aside, so that files of weights are written and read without its state."""
    optimizer, model.optimizer = getattr(model, "optimizer", None), None
    try:
        yield
    finally:
        model.optimizer = optimizer


def load_snapshot(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Load the weights of a snapshot; the model's optimizer stays as it is.

    Args:
        model: a model with the same layers as the one that was saved.
        path: a file that `SnapshotSaver` or `CosineRestarts` wrote.
    """
    with without_optimizer(model):
        model.load_weights(path)


class SnapshotSaver:
    """Saves a model's weights as `{name}_cyc_{k}.weights.h5`, without the optimizer's state.

    Args:
        name: path of the snapshots up to `_cyc_{k}`; folders are made.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> saver = SnapshotSaver(tempfile.mkdtemp() + "/dogs")
        >>> saver.save(model, 0).endswith("/dogs_cyc_0.weights.h5")
        True
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = Path(name)
        self.paths: list[str] = []

    def path(self, cycle: int) -> str:
        """Where the snapshot of a cycle goes."""
        return str(self.name.with_name(f"{self.name.name}_cyc_{cycle}.weights.h5"))

    def start(self, model: keras.Model) -> None:
        """Make the folder, to fail now rather than after hours."""
        self.name.parent.mkdir(parents=True, exist_ok=True)

    def keep(self, cycles: int) -> None:
        """Forget all snapshots but those of the first cycles, which a run that goes on has behind it."""
        own = {self.path(cycle) for cycle in range(cycles)}
        self.paths = [path for path in self.paths if path in own]

    def save(self, model: keras.Model, cycle: int) -> str:
        """Save the weights of now as the snapshot of a cycle and return its path.

        With several processes rank 0 writes it while the others wait.
        """
        target = self.path(cycle)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        if is_main():
            with without_optimizer(model):
                save_weights(model, target)
        barrier()
        if target not in self.paths:
            self.paths.append(target)
        return target
