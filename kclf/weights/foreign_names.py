"""State dicts under other people's names as timm names them: transformers' and the authors' own files."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

Rules = tuple[tuple[str, str], ...]

# Hugging Face transformers: ViT, Dinov2 and Dinov2WithRegisters.
_HF_VIT: Rules = (
    (r"(?:vit|dinov2|dinov2_with_registers)\.", ""),
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^(encoder\.)?layers?\.(?=\d)", "blocks."),  # with and without, by the version
    (r"attention\.attention\.(query|key|value)", r"attn.\1"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"attention\.(q|k|v)_proj", r"attn.\1"),  # transformers 5
    (r"attention\.o_proj", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(blocks\.\d+)\.output\.dense", r"\1.mlp.fc2"),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
# Hugging Face transformers: SigLIP and SigLIP 2, of which only the vision tower is read.
_HF_SIGLIP: Rules = (
    (r"vision_model\.", ""),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"embeddings\.patch_embedding", "patch_embed.proj"),
    (r"encoder\.layers\.", "blocks."),
    (r"self_attn\.(q|k|v)_proj", r"attn.\1"),
    (r"self_attn\.out_proj", "attn.proj"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"post_layernorm", "norm"),
    (r"^head\.probe", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_(weight|bias)", r"attn_pool.in.\1"),
    (r"^head\.attention\.out_proj", "attn_pool.proj"),
    (r"^head\.layernorm", "attn_pool.norm"),
    (r"^head\.mlp", "attn_pool.mlp"),
)
_HF_CONVNEXT: Rules = (
    (r"convnext(v2)?\.", ""),
    (r"embeddings\.patch_embeddings", "stem.0"),
    (r"embeddings\.layernorm", "stem.1"),
    (r"encoder\.stages\.(\d)\.downsampling_layer", r"stages.\1.downsample"),
    (r"encoder\.stages\.(\d)\.layers", r"stages.\1.blocks"),
    (r"layer_scale_parameter", "gamma"),
    (r"(blocks\.\d+)\.layernorm", r"\1.norm"),
    (r"^layernorm\.", "head.norm."),
    (r"^classifier\.", "head.fc."),
    (r"dwconv", "conv_dw"),
    (r"\.pwconv", ".mlp.fc"),
    (r"\.grn", ".mlp.grn"),
)
# facebookresearch/ConvNeXt and ConvNeXt-V2.
_CONVNEXT: Rules = (
    (r"^downsample_layers\.0", "stem"),
    (r"^downsample_layers\.(\d)", r"stages.\1.downsample"),
    (r"^stages\.(\d)\.(\d+)", r"stages.\1.blocks.\2"),
    (r"dwconv", "conv_dw"),
    (r"pwconv", "mlp.fc"),
    (r"grn\.gamma", "mlp.grn.weight"),
    (r"grn\.beta", "mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)", r"head.fc.\1"),
)
_DINOV2: Rules = ((r"^register_tokens$", "reg_token"),)
# What shows where a file comes from: the end of a name in it, and the rules for its names.
_KINDS: tuple[tuple[str, Rules], ...] = (
    (r"(^|\.)embeddings\.patch_embedding\.weight", _HF_SIGLIP),
    (r"(^|\.)embeddings\.patch_embeddings\.projection\.weight", _HF_VIT),
    (r"(^|\.)embeddings\.patch_embeddings\.weight", _HF_CONVNEXT),
    (r"downsample_layers\.0\.0\.weight", _CONVNEXT),
    (r"register_tokens", _DINOV2),
)
# Of pretraining and of models around the backbone; no part of what a photo goes through.
_UNUSED = r"mask_token|pooler\..*|logit_(scale|bias)|text_model\..*|embeddings\.position_ids"
_PARTS = ("query", "key", "value"), ("q", "k", "v")


def timm_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of timm's, of whatever origin.

    Knows transformers' ViT, DINOv2 (with and without registers), SigLIP, ConvNeXt and ConvNeXt V2, and the
    authors' DINOv2, ConvNeXt and ConvNeXt V2. Others come back as they are, less what pretraining leaves.

    Args:
        state_dict: tensors by name.

    Example:
        >>> list(timm_names({"downsample_layers.0.0.weight": torch.zeros(1), "norm.bias": torch.zeros(1)}))
        ['stem.0.weight', 'head.norm.bias']
    """
    kinds = (rules for end, rules in _KINDS if any(re.search(f"{end}$", name) for name in state_dict))
    rules = next(kinds, ())
    found = {_renamed(name, rules): tensor for name, tensor in state_dict.items()}
    found = {name: tensor for name, tensor in found.items() if not re.fullmatch(_UNUSED, name)}
    return _with_positions(_flat_vectors(_split_pool(_fused(found))))


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Queries, keys and values in one tensor, where a file has three."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.attn\.)(query|key|value|q|k|v)\.(weight|bias)", name)
        if match is None:
            found[name] = tensor
            continue
        parts = next(parts for parts in _PARTS if match[2] in parts)
        names = [f"{match[1]}{part}.{match[3]}" for part in parts]
        if match[2] == parts[0] and all(part in tensors for part in names):
            found[f"{match[1]}qkv.{match[3]}"] = torch.cat([tensors[part] for part in names])
    return found


def _split_pool(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The pooling's projections as timm keeps them: the query's alone, those of keys and values together."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"attn_pool\.in\.(weight|bias)", name):
            width = len(tensor) // 3
            found[f"attn_pool.q.{match[1]}"] = tensor[:width]
            found[f"attn_pool.kv.{match[1]}"] = tensor[width:]
        else:
            found[name] = tensor
    return found


def _flat_vectors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scales that authors keep as (1, 1, 1, channels) as (channels,)."""
    return {
        name: tensor.reshape(-1) if re.search(r"\.grn\.(weight|bias)$", name) else tensor
        for name, tensor in tensors.items()
    }


def _with_positions(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Positions as (1, tokens, channels), with one for the class token.

    timm adds DINOv2's position of the class token into the token itself where there are registers: it is
    nought then.
    """
    positions = tensors.get("pos_embed")
    if positions is None:
        return tensors
    if positions.ndim == 2:
        positions = positions[None]
    if "reg_token" in tensors and round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]:
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    return tensors | {"pos_embed": positions}
