"""The states of all global random generators, as arrays and numbers that a file can hold."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's, torch's and Keras' global generators.

    Returns:
        Nested dicts of arrays and plain values, which `set_random_states` takes back.
    """
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - others draw from it
    states = {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": {**numpy["state"], "has_gauss": numpy["has_gauss"], "gauss": numpy["gauss"]},
        "torch": torch.get_rng_state().numpy(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = {str(i): state.numpy() for i, state in enumerate(torch.cuda.get_rng_state_all())}
    seeds = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    if seeds is not None:
        states["keras"] = seeds.state.value.detach().cpu().numpy().copy()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put the generators back to where `random_states` found them."""
    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(int(word) for word in python["words"]), python["gauss"]))
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy["key"], "pos": int(numpy["pos"])},
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": numpy["gauss"],
        }
    )
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.from_numpy(state) for state in states["cuda"].values()])
    if "keras" in states:
        global_seed_generator().state.assign(states["keras"])
    else:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
