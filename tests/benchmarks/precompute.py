"""Images a second while the head trains: on cached activations, and through the frozen backbone.

    .venv/bin/python tests/benchmarks/precompute.py --rounds 5 --threads 2 --set backbone=ResNet50

Both run `Learner.fit` on the same photos, noise of 224 px in memory (reading files is not part of it). The
settings say how many photos a round trains on: more on activations, where they are gone in no time.
"""

from __future__ import annotations

import tempfile
from types import SimpleNamespace

import harness

ROUNDS_AT_ONCE = 20  # epochs a round on activations: a single one is over too soon to be timed


def make_learner(settings: SimpleNamespace, precompute: bool):
    import numpy as np

    import kclf
    from kclf.learner import Learner

    rng = np.random.default_rng(0)
    photos = rng.integers(0, 255, (settings.photos, settings.size, settings.size, 3), dtype=np.uint8)
    labels = np.arange(settings.photos) % 2
    data = kclf.ImageData.from_arrays((photos, labels), (photos[:2], labels[:2]), batch_size=settings.batch)
    return Learner(
        data,
        settings.backbone,
        weights=None,
        precompute=precompute,
        path=tempfile.mkdtemp(),
        verbose=False,
    )


def trained(settings: SimpleNamespace, precompute: bool, epochs: int) -> harness.Round:
    learner = make_learner(settings, precompute)
    learner.fit(1e-3, 1)

    def one_round() -> float:
        learner.fit(1e-3, epochs)
        return epochs * len(learner.data.train) * settings.batch

    return one_round


@harness.contestant("through the backbone", reference=True)
def through_the_backbone(settings: SimpleNamespace) -> harness.Round:
    return trained(settings, False, 1)


@harness.contestant("on cached activations")
def on_cached_activations(settings: SimpleNamespace) -> harness.Round:
    return trained(settings, True, ROUNDS_AT_ONCE)


if __name__ == "__main__":
    harness.main(
        "Training the head",
        unit="image",
        settings={"backbone": "ResNet50", "photos": 128, "size": 224, "batch": 64},
    )
