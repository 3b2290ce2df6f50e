"""Which Keras layer a torch module is, for the layouts of names in use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from string import ascii_lowercase

from ..errors import WeightsError

NameFunction = Callable[[str], str | None]

# Blocks in each stage of EfficientNet-B0 and Lite0 (Tan & Le 2019, table 1).
EFFICIENTNET_B0_STAGES = (1, 2, 2, 3, 3, 4, 1)


def keras_name_function(names: Iterable[str]) -> NameFunction:
    """The function module name -> Keras layer name for a state dict.

    Args:
        names: the names in the state dict.

    Raises:
        WeightsError: the names follow no layout known here.
    """
    modules = {name.rpartition(".")[0] for name in names}
    if "_conv_stem" in modules:
        return _efficientnet_pytorch(modules)
    raise WeightsError(
        f"The names of these torch weights follow no layout known here. Received: {sorted(modules)[:6]}..."
    )


def _efficientnet_pytorch(modules: set[str]) -> NameFunction:
    """Names of the efficientnet_pytorch package: `_blocks.3._expand_conv`."""
    ends = {
        "_conv_stem": "stem_conv",
        "_bn0": "stem_bn",
        "_conv_head": "top_conv",
        "_bn1": "top_bn",
        "_fc": "predictions",
    }
    parts = {
        "_expand_conv": "expand_conv",
        "_bn0": "expand_bn",
        "_depthwise_conv": "dwconv",
        "_bn1": "bn",
        "_se_reduce": "se_reduce",
        "_se_expand": "se_expand",
        "_project_conv": "project_conv",
        "_bn2": "project_bn",
    }
    blocks = block_letters(EFFICIENTNET_B0_STAGES)

    def keras_name(module: str) -> str | None:
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", module)
        if match and match[2] in parts and int(match[1]) < len(blocks):
            return f"block{blocks[int(match[1])]}_{parts[match[2]]}"
        return ends.get(module)

    return keras_name


def block_letters(stages: Iterable[int]) -> list[str]:
    """Keras' labels of EfficientNet blocks, counted through the stages: 1a, 2a, 2b, 3a, ..."""
    return [
        f"{stage}{ascii_lowercase[block]}" for stage, count in enumerate(stages, 1) for block in range(count)
    ]
