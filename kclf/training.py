"""Recipes of the course as functions over `model.fit`: one cycle, and fine-tuning in two stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from .callbacks import OneCycle


def fit_one_cycle(
    model: keras.Model,
    train: Any,
    valid: Any = None,
    *,
    epochs: int,
    lr_max: float | slice | Sequence[float],
    pct_start: float = 0.25,
    div: float = 25.0,
    div_final: float = 1e5,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Train with one cycle of the learning rate and momentum (Smith 2018).

    Args:
        model: a compiled model.
        train: what `model.fit` takes.
        valid: what `validation_data` takes; None trains without.
        epochs: length of the cycle.
        lr_max: the peak rate; a slice or a list gives each layer group its own.
        pct_start: share of the cycle spent warming up.
        div: the first rate is `lr_max / div`.
        div_final: the last one is `lr_max / div_final`.
        callbacks: more callbacks.

    Returns:
        Keras' history of this cycle.
    """
    cycle = OneCycle(lr_max, pct_start=pct_start, div=div, div_final=div_final)
    return model.fit(
        train,
        validation_data=valid,
        epochs=epochs,
        callbacks=[cycle, *callbacks],
        verbose=0,
    )


def fine_tune(
    model: Any,
    train: Any,
    valid: Any = None,
    *,
    epochs: int,
    freeze_epochs: int = 1,
    base_lr: float = 2e-3,
    lr_mult: float = 100.0,
    pct_start: float = 0.3,
    div: float = 5.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, list[float]]:
    """Train the head with the backbone frozen, then everything with discriminative rates.

    First `freeze_epochs` at `base_lr` with 99 % of the cycle rising; then, unfrozen, `epochs` at rates that
    run geometrically from `base_lr / 2 / lr_mult` in the first layer group to `base_lr / 2` in the head.
    Method and defaults: fastai's `Learner.fine_tune`.

    Args:
        model: a compiled `ImageClassifier` with a `LayerGroupOptimizer`.
        train: what `model.fit` takes.
        valid: what `validation_data` takes; None trains without.
        epochs: epochs of the second stage.
        freeze_epochs: epochs of the first.
        base_lr: peak rate of the first stage.
        lr_mult: ratio of the head's rate to the first group's in the second stage.
        pct_start: share of the second cycle spent warming up.
        div: the second cycle starts at its peak over `div`.
        callbacks: more callbacks, for both stages.

    Returns:
        The history of both stages joined: name of a figure -> one value per epoch.
    """
    stages = []
    if freeze_epochs:
        model.freeze()
        stages.append(
            fit_one_cycle(
                model,
                train,
                valid,
                epochs=freeze_epochs,
                lr_max=slice(base_lr),
                pct_start=0.99,
                callbacks=callbacks,
            )
        )
    if epochs:
        model.unfreeze()
        stages.append(
            fit_one_cycle(
                model,
                train,
                valid,
                epochs=epochs,
                lr_max=slice(base_lr / 2 / lr_mult, base_lr / 2),
                pct_start=pct_start,
                div=div,
                callbacks=callbacks,
            )
        )
    names = dict.fromkeys(name for stage in stages for name in stage.history)
    return {name: [value for stage in stages for value in stage.history.get(name, [])] for name in names}
