"""What torch libraries call the layers of Keras models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .conventions import TENSORFLOW, TORCH, Conventions

Rule = tuple[str, Callable[[re.Match[str]], str] | str]


@dataclass(frozen=True)
class Layout:
    """How one library names the modules of one family.

    Attributes:
        library: "torchvision", "timm" or "efficientnet_pytorch".
        rules: (pattern of a Keras layer's name, torch module as text or function of the match).
        conventions: of the networks with these names; None where they come in both.
    """

    library: str
    rules: tuple[Rule, ...]
    conventions: Conventions | None = TORCH


def _less(number: str) -> int:
    """What is counted from 1, counted from 0."""
    return int(number) - 1


def _letter(letter: str) -> int:
    """Place of a block in its stage: a -> 0."""
    return ord(letter) - ord("a")


RESNET: tuple[Rule, ...] = (
    (r"conv1_conv", "conv1"),
    (r"conv1_bn", "bn1"),
    (r"conv(\d)_block(\d+)_0_conv", lambda m: f"layer{_less(m[1])}.{_less(m[2])}.downsample.0"),
    (r"conv(\d)_block(\d+)_0_bn", lambda m: f"layer{_less(m[1])}.{_less(m[2])}.downsample.1"),
    (r"conv(\d)_block(\d+)_(\d)_(conv|bn)", lambda m: f"layer{_less(m[1])}.{_less(m[2])}.{m[4]}{m[3]}"),
    (r"predictions", "fc"),
)


DENSENET: tuple[Rule, ...] = (
    (r"conv1_conv", "features.conv0"),
    (r"conv1_bn", "features.norm0"),
    (r"conv(\d)_block(\d+)_0_bn", lambda m: f"features.denseblock{_less(m[1])}.denselayer{m[2]}.norm1"),
    (r"conv(\d)_block(\d+)_1_bn", lambda m: f"features.denseblock{_less(m[1])}.denselayer{m[2]}.norm2"),
    (
        r"conv(\d)_block(\d+)_([12])_conv",
        lambda m: f"features.denseblock{_less(m[1])}.denselayer{m[2]}.conv{m[3]}",
    ),
    (r"pool(\d)_bn", lambda m: f"features.transition{_less(m[1])}.norm"),
    (r"pool(\d)_conv", lambda m: f"features.transition{_less(m[1])}.conv"),
    (r"bn", "features.norm5"),
    (r"predictions", "classifier"),
)

MOBILENET_V2_STEPS = {"expand": 0, "depthwise": 1, "project": 2}


def _mobilenet_v2_module(match: re.Match[str]) -> str:
    """Torchvision's place of a block's layer; the first block has no expansion."""
    block, step, norm = int(match[1] or 0), MOBILENET_V2_STEPS[match[2]], bool(match[3])
    place = step - (match[1] is None)
    inner = f"{place + norm}" if step == 2 else f"{place}.{int(norm)}"
    return f"features.{block + 1}.conv.{inner}"


MOBILENET_V2: tuple[Rule, ...] = (
    (r"Conv1", "features.0.0"),
    (r"bn_Conv1", "features.0.1"),
    (r"(?:expanded_conv|block_(\d+))_(expand|depthwise|project)(_BN)?", _mobilenet_v2_module),
    (r"Conv_1", "features.18.0"),
    (r"Conv_1_bn", "features.18.1"),
    (r"predictions", "classifier.1"),
)

# First block of each stage of MobileNetV2, which timm counts by stage (Sandler et al. 2018, table 2).
MOBILENET_V2_STAGES = (0, 1, 3, 6, 10, 13, 16)


def _timm_mobilenet_v2_module(match: re.Match[str]) -> str:
    block = int(match[1] or 0)
    stage = max(i for i, first in enumerate(MOBILENET_V2_STAGES) if first <= block)
    return f"blocks.{stage}.{block - MOBILENET_V2_STAGES[stage]}." + _timm_step(
        match[2], bool(match[3]), expands=match[1] is not None
    )


def _timm_step(step: str, norm: bool, expands: bool) -> str:
    """Timm's name of a block's convolution or BatchNorm, with and without an expansion before it."""
    convolutions = ["conv_pw", "conv_dw", "conv_pwl"] if expands else ["", "conv_dw", "conv_pw"]
    place = MOBILENET_V2_STEPS[step]
    return f"bn{place + expands}" if norm else convolutions[place]


TIMM_MOBILENET_V2: tuple[Rule, ...] = (
    (r"Conv1", "conv_stem"),
    (r"bn_Conv1", "bn1"),
    (r"(?:expanded_conv|block_(\d+))_(expand|depthwise|project)(_BN)?", _timm_mobilenet_v2_module),
    (r"Conv_1", "conv_head"),
    (r"Conv_1_bn", "bn2"),
    (r"predictions", "classifier"),
)

# The layers of an EfficientNet block in Keras: (step, is it a BatchNorm).
EFFICIENTNET_STEPS = {
    "expand_conv": ("expand", False),
    "expand_bn": ("expand", True),
    "dwconv": ("depthwise", False),
    "bn": ("depthwise", True),
    "project_conv": ("project", False),
    "project_bn": ("project", True),
}
EFFICIENTNET_BLOCK = r"block(\d)([a-z])_(expand_conv|expand_bn|dwconv|bn|project_conv|project_bn)"
EFFICIENTNET_SE = r"block(\d)([a-z])_se_(reduce|expand)"


def _efficientnet_module(match: re.Match[str]) -> str:
    """torchvision: expand 0, depthwise 1, squeeze-and-excite 2, project 3; one less all in stage 1."""
    step, norm = EFFICIENTNET_STEPS[match[3]]
    place = {"expand": 0, "depthwise": 1, "project": 3}[step] - (match[1] == "1")
    return f"features.{match[1]}.{_letter(match[2])}.block.{place}.{int(norm)}"


def _efficientnet_se(match: re.Match[str]) -> str:
    place = 2 - (match[1] == "1")
    number = {"reduce": 1, "expand": 2}[match[3]]
    return f"features.{match[1]}.{_letter(match[2])}.block.{place}.fc{number}"


EFFICIENTNET: tuple[Rule, ...] = (
    (r"stem_conv", "features.0.0"),
    (r"stem_bn", "features.0.1"),
    (EFFICIENTNET_BLOCK, _efficientnet_module),
    (EFFICIENTNET_SE, _efficientnet_se),
    (r"top_conv", "features.8.0"),
    (r"top_bn", "features.8.1"),
    (r"predictions", "classifier.1"),
)

TIMM_EFFICIENTNET: tuple[Rule, ...] = (
    (r"stem_conv", "conv_stem"),
    (r"stem_bn", "bn1"),
    (
        EFFICIENTNET_BLOCK,
        lambda m: (
            f"blocks.{_less(m[1])}.{_letter(m[2])}."
            + _timm_step(*EFFICIENTNET_STEPS[m[3]], expands=m[1] != "1")
        ),
    ),
    (EFFICIENTNET_SE, lambda m: f"blocks.{_less(m[1])}.{_letter(m[2])}.se.conv_{m[3]}"),
    (r"top_conv", "conv_head"),
    (r"top_bn", "bn2"),
    (r"predictions", "classifier"),
)

# efficientnet_pytorch counts blocks through all stages: the number is filled in by `_numbered`.
EFFICIENTNET_PYTORCH: tuple[Rule, ...] = (
    (r"stem_conv", "_conv_stem"),
    (r"stem_bn", "_bn0"),
    (r"(block\d[a-z])_expand_conv", r"_blocks.{\1}._expand_conv"),
    (r"(block\d[a-z])_expand_bn", r"_blocks.{\1}._bn0"),
    (r"(block\d[a-z])_dwconv", r"_blocks.{\1}._depthwise_conv"),
    (r"(block\d[a-z])_bn", r"_blocks.{\1}._bn1"),
    (r"(block\d[a-z])_se_(reduce|expand)", r"_blocks.{\1}._se_\2"),
    (r"(block\d[a-z])_project_conv", r"_blocks.{\1}._project_conv"),
    (r"(block\d[a-z])_project_bn", r"_blocks.{\1}._bn2"),
    (r"top_conv", "_conv_head"),
    (r"top_bn", "_bn1"),
    (r"predictions", "_fc"),
)

CONVNEXT_STEPS = {"depthwise_conv": "0", "layernorm": "2", "pointwise_conv_1": "3", "pointwise_conv_2": "5"}
CONVNEXT_STEP = r"\w+_stage_(\d)_block_(\d+)_(depthwise_conv|layernorm|pointwise_conv_1|pointwise_conv_2)"
CONVNEXT: tuple[Rule, ...] = (
    (r"\w+_stem_conv", "features.0.0"),
    (r"\w+_stem_layernorm", "features.0.1"),
    (r"\w+_downsampling_layernorm_(\d)", lambda m: f"features.{2 * int(m[1]) + 2}.0"),
    (r"\w+_downsampling_conv_(\d)", lambda m: f"features.{2 * int(m[1]) + 2}.1"),
    (CONVNEXT_STEP, lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.block.{CONVNEXT_STEPS[m[3]]}"),
    (r"\w+_stage_(\d)_block_(\d+)_layer_scale", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}"),
    (r"layer_normalization#0|\w+_head_layernorm", "classifier.0"),
    (r"\w+_head_dense", "classifier.2"),
)

TIMM_CONVNEXT_STEPS = {
    "depthwise_conv": "conv_dw",
    "layernorm": "norm",
    "pointwise_conv_1": "mlp.fc1",
    "pointwise_conv_2": "mlp.fc2",
}
TIMM_CONVNEXT: tuple[Rule, ...] = (
    (r"\w+_stem_conv", "stem.0"),
    (r"\w+_stem_layernorm", "stem.1"),
    (r"\w+_downsampling_layernorm_(\d)", lambda m: f"stages.{int(m[1]) + 1}.downsample.0"),
    (r"\w+_downsampling_conv_(\d)", lambda m: f"stages.{int(m[1]) + 1}.downsample.1"),
    (CONVNEXT_STEP, lambda m: f"stages.{m[1]}.blocks.{m[2]}.{TIMM_CONVNEXT_STEPS[m[3]]}"),
    (r"\w+_stage_(\d)_block_(\d+)_layer_scale", r"stages.\1.blocks.\2"),
    (r"\w+_stage_(\d)_block_(\d+)_response", r"stages.\1.blocks.\2.mlp.grn"),
    (r"layer_normalization#0|\w+_(head|final)_layernorm", "head.norm"),
    (r"\w+_head_dense", "head.fc"),
)

# VGG counts convolutions, activations and pools alike; the number is filled in by `_numbered`.
VGG: tuple[Rule, ...] = (
    (r"(block\d_conv\d)", r"features.{\1}"),
    (r"fc1", "classifier.0"),
    (r"fc2", "classifier.3"),
    (r"predictions", "classifier.6"),
)
TIMM_VGG: tuple[Rule, ...] = (
    (r"(block\d_conv\d)", r"features.{\1}"),
    (r"fc1", "pre_logits.fc1"),
    (r"fc2", "pre_logits.fc2"),
    (r"predictions", "head.fc"),
)

VISION_TRANSFORMER: tuple[Rule, ...] = (
    (r"patch_embed_proj", "patch_embed.proj"),
    (r"tokens", ""),  # the class token, the registers and the positions are parameters of the model itself
    (
        r"block(\d+)_(norm|attn|ls|mlp)(?:_(qkv|proj|fc\d)|(\d))",
        lambda m: f"blocks.{_less(m[1])}.{m[2]}" + (f".{m[3]}" if m[3] else m[4]),
    ),
    (r"norm", "norm"),
    (r"attn_pool", "attn_pool"),
    (r"attn_pool_mlp_(fc\d)", r"attn_pool.mlp.\1"),
    (r"attn_pool_(q|kv|proj|norm)", r"attn_pool.\1"),
    (r"predictions", "head"),
)

LAYOUTS = (
    Layout("torchvision", RESNET),
    Layout("torchvision", DENSENET),
    Layout("torchvision", MOBILENET_V2),
    Layout("torchvision", EFFICIENTNET),
    Layout("torchvision", CONVNEXT),
    Layout("torchvision", VGG),
    Layout("timm", RESNET),
    Layout("timm", DENSENET),
    Layout("timm", TIMM_MOBILENET_V2, conventions=None),
    Layout("timm", TIMM_EFFICIENTNET, conventions=None),
    Layout("timm", TIMM_CONVNEXT),
    Layout("timm", TIMM_VGG),
    Layout("timm", VISION_TRANSFORMER),
    Layout("efficientnet_pytorch", EFFICIENTNET_PYTORCH, conventions=TENSORFLOW),
)


def torch_names(keras_names: Iterable[str], layout: Layout) -> dict[str, str]:
    """The torch module of each Keras layer, for the layers that the layout knows.

    Args:
        keras_names: layer keys of one model, in order.
        layout: whose names.

    Returns:
        Keras name -> torch module.
    """
    found = {}
    for name in keras_names:
        for pattern, module in layout.rules:
            if match := re.fullmatch(pattern, name):
                found[name] = module(match) if callable(module) else match.expand(module)
                break
    return _numbered(found)


def _numbered(modules: dict[str, str]) -> dict[str, str]:
    """Fill in numbers that count through the whole model: `{block2a}` -> 1, `{block2_conv1}` -> 5."""
    labels = [re.search(r"\{(\w+)\}", module) for module in modules.values()]
    known = sorted({label[1] for label in labels if label})
    numbers = {}
    for place, label in enumerate(known):
        vgg = re.fullmatch(r"block(\d)_conv\d", label)
        # Before a convolution of block b come its forerunners with a ReLU each, and b - 1 pools.
        numbers[label] = 2 * place + int(vgg[1]) - 1 if vgg else place
    return {name: module.format(**numbers) for name, module in modules.items()}
