"""Backbones by name: every model of `keras.applications` that torch can build, and those it lacks."""

from .building import build_backbone, built_name, split_backbone, split_blocks
from .levels import has_levels, multi_level
from .published import BackboneInfo, backbone_info, backbone_table, find_weights
from .registry import BackboneSpec, backbone_names, backbone_spec

__all__ = [
    "BackboneInfo",
    "BackboneSpec",
    "backbone_info",
    "backbone_names",
    "backbone_spec",
    "backbone_table",
    "build_backbone",
    "built_name",
    "find_weights",
    "has_levels",
    "multi_level",
    "split_backbone",
    "split_blocks",
]
