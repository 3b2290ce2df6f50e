"""Backbones by name: every model of `keras.applications` that torch can build, and those it lacks."""

from .building import build_backbone, built_name, split_backbone
from .registry import BackboneSpec, backbone_names, backbone_spec

__all__ = [
    "BackboneSpec",
    "backbone_names",
    "backbone_spec",
    "build_backbone",
    "built_name",
    "split_backbone",
]
