"""What is known of each backbone before it is built: one row of a table each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from ..errors import BackboneError
from .convnext import CONVNEXTS
from .resnet import PLANS
from .transformers import TRANSFORMERS, TransformerPlan

Normalization = Literal["caffe", "tf", "torch", "none"]
Family = Literal["applications", "convnext", "lite", "resnet", "torch", "transformer"]


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone's conventions.

    Attributes:
        name: the name it is built by.
        normalization: what its weights expect of pixels in [0, 255]: "caffe" (BGR less the ImageNet mean),
            "tf" ([-1, 1]), "torch" (ImageNet mean and standard deviation), "none" (it does so itself).
        default_size: side of the square its ImageNet weights were trained at, in pixels.
        starts_second_group: pattern of the names of layers that begin the second layer group, or
        ends_first_group: pattern of the names of layers that end the first.
        family: who builds it: Keras Applications, kclf ("convnext", "lite", "resnet", "transformer"), or
            Keras Applications by torch's conventions of padding and BatchNorm ("torch").
        torch_file: torchvision's file of its ImageNet weights, where these are used.
        patch: what each side must be a multiple of, in pixels.
        keras_file: Keras' file of its ImageNet weights without top.
        constructor: of `keras.applications`, where the name is not that of one, and
        options: what it is called with, as pairs.
    """

    name: str
    normalization: Normalization
    default_size: int = 224
    starts_second_group: str = ""
    ends_first_group: str = ""
    family: Family = "applications"
    torch_file: str = ""
    patch: int = 1
    keras_file: str = ""
    constructor: str = ""
    options: tuple[tuple[str, Any], ...] = ()


def _specs() -> list[BackboneSpec]:
    """Groups split where the stride passes from 8 to 16, as ResNet's stages 1-2 and 3-4 in the course."""
    spec = BackboneSpec
    efficientnet = {"B0": 224, "B1": 240, "B2": 260, "B3": 300, "B4": 380, "B5": 456, "B6": 528, "B7": 600}
    efficientnet_v2 = {"B0": 224, "B1": 240, "B2": 260, "B3": 300, "S": 384, "M": 480, "L": 480}
    convnext = ("Tiny", "Small", "Base", "Large", "XLarge")
    resnet = r"conv4_block1_.*"  # in DenseNets too
    return [
        *[spec(f"ConvNeXt{size}", "none", 224, r".*_downsampling_block_1") for size in convnext],
        *[spec(f"DenseNet{depth}", "torch", 224, resnet) for depth in (121, 169, 201)],
        *[spec(f"EfficientNet{b}", "none", size, r"block4a_.*") for b, size in efficientnet.items()],
        *[spec(f"EfficientNetV2{b}", "none", size, r"block4a_.*") for b, size in efficientnet_v2.items()],
        spec("EfficientNetLite0", "none", 224, r"block4a_.*", family="lite"),
        spec("InceptionResNetV2", "tf", 299, ends_first_group=r"mixed_6a"),
        spec("InceptionV3", "tf", 299, ends_first_group=r"mixed2(_\d+)?"),
        *_mobilenets(),
        spec("NASNetLarge", "tf", 331, ends_first_group=r"normal_concat_5"),
        *[spec(f"ResNet{depth}", "caffe", 224, resnet) for depth in (50, 101, 152)],
        *[spec(f"ResNet{depth}V2", "tf", 224, resnet) for depth in (50, 101, 152)],
        *[spec(f"VGG{depth}", "caffe", 224, r"block4_conv1") for depth in (16, 19)],
        spec("Xception", "tf", 299, r"block5_.*"),
        *[
            spec(name, "torch", 224, resnet, family="resnet", torch_file=plan.file)
            for name, plan in PLANS.items()
        ],
        *_torch_specs(),
        *[spec(name, "torch", 224, r".*_downsampling_layernorm_1", family="convnext") for name in CONVNEXTS],
        *[_transformer_spec(name, plan) for name, plan in TRANSFORMERS.items()],
    ]


def _mobilenets() -> list[BackboneSpec]:
    """MobileNets in every width that has weights: MobileNetV2_035 is the third of MobileNetV2."""
    v1 = BackboneSpec("MobileNet", "tf", 224, r"conv_(pad|dw)_6")
    v2 = BackboneSpec("MobileNetV2", "tf", 224, r"block_6_.*")
    large = BackboneSpec("MobileNetV3Large", "none", 224, r"expanded_conv_6_.*")
    small = BackboneSpec("MobileNetV3Small", "none", 224, r"expanded_conv_3_.*")
    widths = {v1: (0.25, 0.5, 0.75), v2: (0.35, 0.5, 0.75, 1.3, 1.4), large: (0.75,), small: (0.75,)}
    return [
        *widths,
        *[
            _variant(spec, f"_{round(100 * alpha):03d}", alpha=alpha)
            for spec, alphas in widths.items()
            for alpha in alphas
        ],
        *[_variant(spec, "Minimalistic", minimalistic=True) for spec in (large, small)],
    ]


def _variant(spec: BackboneSpec, suffix: str, **options: Any) -> BackboneSpec:
    return replace(spec, name=spec.name + suffix, constructor=spec.name, options=tuple(options.items()))


# Files of applications without top, by the start of their names; the first that fits, {rest} follows it.
KERAS_FILES = {
    "MobileNetV2": "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5",
    "MobileNetV3": "weights_mobilenet_v3_{rest}_224_{alpha}_float_no_top_v2.h5",
    "MobileNet": "mobilenet_{width}_224_tf_no_top.h5",
    "NASNetLarge": "nasnet_large_no_top.h5",
    "EfficientNetV2": "efficientnetv2-{rest}_notop.h5",
    "EfficientNet": "efficientnet{rest}_notop.h5",
    "ConvNeXt": "convnext_{rest}_notop.h5",
    "InceptionV3": "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "InceptionResNetV2": "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "": "{rest}_weights_tf_dim_ordering_tf_kernels_notop.h5",
}
_WIDTHS = {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"}  # of MobileNet in such a name


def _keras_file(spec: BackboneSpec) -> str:
    """The name that Keras gives the downloaded weights of one of its applications, without top."""
    options = dict(spec.options)
    name, alpha = spec.constructor or spec.name, float(options.get("alpha", 1))
    start = next(start for start in KERAS_FILES if name.startswith(start))
    rest = name.removeprefix(start).lower() + "_minimalistic" * ("minimalistic" in options)
    return KERAS_FILES[start].format(rest=rest, alpha=alpha, width=_WIDTHS.get(alpha))


def _transformer_spec(name: str, plan: TransformerPlan) -> BackboneSpec:
    """Groups split in the middle of the blocks. Google's transformers read pixels in [-1, 1]."""
    return BackboneSpec(
        name,
        "torch" if name.startswith("DINOv2") else "tf",
        plan.patch * plan.grid,
        rf"block{plan.depth // 2 + 1}_.*",
        family="transformer",
        patch=plan.patch,
    )


def _torch_specs() -> list[BackboneSpec]:
    """Networks that Keras and torchvision both have and compute differently: here torchvision's version."""
    efficientnet = {
        "B0": (224, "efficientnet_b0_rwightman-7f5810bc.pth"),
        "B1": (240, "efficientnet_b1_rwightman-bac287d4.pth"),
        "B2": (288, "efficientnet_b2_rwightman-c35c1473.pth"),
        "B3": (300, "efficientnet_b3_rwightman-b3899882.pth"),
        "B4": (380, "efficientnet_b4_rwightman-23ab8bcd.pth"),
    }
    spec = partial(BackboneSpec, family="torch")
    return [
        *[
            spec(f"TorchEfficientNet{b}", "none", size, r"block4a_.*", torch_file=file)
            for b, (size, file) in efficientnet.items()
        ],
        spec("TorchMobileNetV2", "torch", 224, r"block_6_.*", torch_file="mobilenet_v2-b0353104.pth"),
        spec("TorchVGG16", "torch", 224, r"block4_conv1", torch_file="vgg16-397923af.pth"),
        spec("TorchVGG19", "torch", 224, r"block4_conv1", torch_file="vgg19-dcbb9e9d.pth"),
    ]


SPECS = {
    spec.name: replace(spec, keras_file=_keras_file(spec)) if spec.family == "applications" else spec
    for spec in sorted(_specs(), key=lambda spec: spec.name)
}
CANNOT_BE_BUILT = {
    "NASNetMobile": "Keras cannot build NASNetMobile on torch. Take NASNetLarge, or MobileNetV2 for its size."
}


def backbone_names() -> list[str]:
    """Names of all backbones that can be built, sorted.

    Example:
        >>> {"EfficientNetLite0", "MobileNetV2", "ResNet50"} <= set(backbone_names())
        True
    """
    return list(SPECS)


def backbone_spec(name: str) -> BackboneSpec:
    """The conventions of a backbone.

    Args:
        name: one of `backbone_names()`.

    Raises:
        BackboneError: there is no such backbone; the message offers the nearest names.

    Example:
        >>> backbone_spec("ResNet50").normalization
        'caffe'
    """
    if name in SPECS:
        return SPECS[name]
    if name in CANNOT_BE_BUILT:
        raise BackboneError(CANNOT_BE_BUILT[name])
    lower = {known.lower(): known for known in SPECS}
    near = [lower[match] for match in difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)]
    same = [known for known in SPECS if _letters(known) == _letters(str(name))]
    near = same or near
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(SPECS)}."
    raise BackboneError(f"Unknown backbone. Received: name={name!r}. {hint}")


def _letters(name: str) -> str:
    """A name without case and punctuation."""
    return "".join(filter(str.isalnum, name)).lower()


# Starts of names; one that begins with another comes before it.
FAMILIES = (
    *("ConvNeXtV2", "ConvNeXt", "DINOv2", "DenseNet", "EfficientNetV2", "EfficientNet", "Inception"),
    *("MobileNetV2", "MobileNetV3", "MobileNet", "NASNet", "ResNeXt", "ResNet", "SigLIP2"),
    *("TorchEfficientNet", "TorchMobileNetV2", "TorchResNet", "TorchVGG"),
    *("VGG", "ViT", "WideResNet", "Xception"),
)


def relatives(name: str) -> list[str]:
    """Backbones of the same family but another width or depth, whose files are easily taken for each other.

    Example:
        >>> relatives("MobileNetV2")
        ['MobileNetV2_035', 'MobileNetV2_050', 'MobileNetV2_075', 'MobileNetV2_130', 'MobileNetV2_140']
    """
    return [other for other in SPECS if other != name and _family_name(other) == _family_name(name)]


def _family_name(name: str) -> str:
    """The start of a name, before width and depth: MobileNetV2_035 -> MobileNetV2."""
    found = next((start for start in FAMILIES if name.startswith(start)), None)
    if found is None:
        raise BackboneError(f"Expected the start of {name!r} in FAMILIES of kclf/backbones/registry.py")
    return found
