"""A classifier made again at another size or in other number formats, with its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..acceleration import is_accelerated
from .classifier import ImageClassifier


def clone_with(model: ImageClassifier, **changes: Any) -> ImageClassifier:
    """The same classifier with another setting: its weights, and what is frozen, are carried over.

    Args:
        model: the classifier.
        **changes: settings of `ImageClassifier`, such as `size` or `dtype`. With another `multi_level` the
            head starts anew.
    """
    config = model.get_config() | {"accelerate": is_accelerated(model)} | changes
    if "dtype" in changes:  # a backbone that was given as a model carries the policies of its layers
        config["backbone"] = in_policy(config["backbone"], changes["dtype"], model.dtype_policy.name)
    other = ImageClassifier.from_config(config)
    same_head = other.multi_level == model.multi_level
    copy_weights(model, other, ("backbone", "head") if same_head else ("backbone",))
    return other


def in_policy(config: Any, new: str, old: str | None = None) -> Any:
    """A serialized model whose layers of one dtype policy have another.

    Args:
        config: what `get_config` returned, or a part of it.
        new: name of the policy to have.
        old: the policy to replace; None replaces every one.
    """
    if isinstance(config, list | tuple):
        return [in_policy(part, new, old) for part in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy" and old in (None, config["config"]["name"]):
        return config | {"config": {"name": new}}
    return {name: in_policy(part, new, old) for name, part in config.items()}


def copy_weights(
    source: ImageClassifier, target: ImageClassifier, parts: Sequence[str] = ("backbone", "head")
) -> None:
    """Give a classifier the weights of another one whose parts have the same layers."""
    for part in parts:
        pairs = zip(getattr(source, part).weights, getattr(target, part).weights, strict=True)
        for value, variable in pairs:
            variable.assign(value.value.detach())
