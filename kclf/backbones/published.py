"""Where the published weights of each backbone are, under which licence, and which of them are at hand."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BackboneError
from .convnext import CONVNEXTS
from .lite import packaged_file
from .parameters import PARAMETERS
from .registry import SPECS, BackboneSpec, backbone_spec
from .transformers import TRANSFORMERS

TORCH_URL = "https://download.pytorch.org/models/"
META_URL = "https://dl.fbaipublicfiles.com/"
WEIGHTS_FOLDER = "KCLF_WEIGHTS"  # environment variable: a folder of weights files, looked into first
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in a repository of Hugging Face
ENDINGS = (".safetensors", ".bin", ".pth", ".pt")

_SIZE_WORDS = {"S": "small", "B": "base", "L": "large"}
# Licences of the weights, by the start of a backbone's name; the first that fits.
LICENCES = (
    ("ConvNeXtV2", "CC-BY-NC-4.0"),
    ("ConvNeXt", "MIT"),
    ("DenseNet", "BSD-3-Clause"),
    ("DINOv2|SigLIP2|ViT|EfficientNet|Inception|MobileNet|NASNet", "Apache-2.0"),
    ("Xception", "MIT"),
    ("VGG", "CC-BY-4.0"),
    ("ResNet", "MIT"),  # Keras'; torchvision's are BSD-3-Clause
)


@dataclass(frozen=True)
class PublishedFile:
    """One file of weights that its authors or a library publish.

    Attributes:
        url: where it is.
        file: its name on this machine.
        repository: of Hugging Face, whose cache may hold it too.
    """

    url: str
    file: str
    repository: str = ""

    @property
    def digest(self) -> str:
        """The start of its sha256 where its name says it, as torchvision's do: "resnet50-0676ba61.pth"."""
        match = re.fullmatch(r".*-([0-9a-f]{8})", Path(self.file).stem)
        return match[1] if match else ""


# Number in WordNet and name of each of ImageNet's classes, as Keras publishes them.
CLASS_INDEX = PublishedFile(
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json",
    "imagenet_class_index.json",
)


def hub_url(repository: str, file: str) -> str:
    """Address of a file of Hugging Face; the variable HF_ENDPOINT names another server, as for its client."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{repository}/resolve/main/{file}"


def _hub(repository: str) -> PublishedFile:
    name = f"{repository.rpartition('/')[2]}.safetensors"
    return PublishedFile(hub_url(repository, HUB_FILES[0]), name, repository)


def _meta(path: str) -> PublishedFile:
    return PublishedFile(META_URL + path, path.rpartition("/")[2])


def published_files(name: str) -> list[PublishedFile]:
    """The files of weights that serve a backbone, the one that is downloaded first.

    Those of Keras Applications are fetched by Keras itself and are not among them.

    Args:
        name: one of `backbone_names()`.

    Example:
        >>> [file.file for file in published_files("DINOv2S14")][0]
        'dinov2_vits14_pretrain.pth'
    """
    spec = backbone_spec(name)
    if spec.torch_file:
        return [PublishedFile(TORCH_URL + spec.torch_file, spec.torch_file)]
    if name in TRANSFORMERS:
        return _transformer_files(name)
    if name in CONVNEXTS:
        return _convnext_files(name)
    return []


def _transformer_files(name: str) -> list[PublishedFile]:
    if name == "SigLIP2B16":
        return [_hub("timm/vit_base_patch16_siglip_224.v2_webli"), _hub("google/siglip2-base-patch16-224")]
    if match := re.fullmatch(r"ViT([SBL])(\d+)", name):
        return [_hub(f"timm/vit_{_SIZE_WORDS[match[1]]}_patch{match[2]}_224.augreg_in21k_ft_in1k")]
    size, registers = name[6], name.endswith("Registers")
    model = f"dinov2_vit{size.lower()}14"
    word = _SIZE_WORDS[size]
    return [
        _meta(f"dinov2/{model}/{model}_{'reg4_' if registers else ''}pretrain.pth"),
        _hub(f"timm/vit_{word}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"),
        _hub(f"facebook/dinov2-{'with-registers-' if registers else ''}{word}"),
    ]


def _convnext_files(name: str) -> list[PublishedFile]:
    if match := re.fullmatch(r"ConvNeXt(\w+)22k", name):
        size = match[1].lower()
        return [_meta(f"convnext/convnext_{size}_22k_224.pth"), _hub(f"timm/convnext_{size}.fb_in22k")]
    size = name.removeprefix("ConvNeXtV2").lower()
    small = size in ("atto", "femto", "pico")  # never trained on ImageNet-22k
    data, training = ("1k", "fcmae_ft_in1k") if small else ("22k", "fcmae_ft_in22k_in1k")
    return [
        _meta(f"convnext/convnextv2/im{data}/convnextv2_{size}_{data}_224_ema.pt"),
        _hub(f"timm/convnextv2_{size}.{training}"),
    ]


# ---- on this machine --------------------


def find_weights(name: str, folder: str | os.PathLike[str] | None = None) -> Path | None:
    """A file of a backbone's weights on this machine, or None.

    Looks into `folder` alone where one is given; else into the folder that the variable KCLF_WEIGHTS names,
    the caches of torch.hub (where kclf and timm put downloads) and of huggingface_hub, and Keras' own, and
    for EfficientNetLite0 into the package of its weights.

    Args:
        name: one of `backbone_names()`.
        folder: of weights files, under the names that they are published by.

    Example:
        >>> find_weights("ViTS16", folder="/nowhere") is None
        True
    """
    return next((path for path in _places(backbone_spec(name), folder) if path.is_file()), None)


def _places(spec: BackboneSpec, folder: str | os.PathLike[str] | None) -> Iterator[Path]:
    files = published_files(spec.name)
    local = folder or os.environ.get(WEIGHTS_FOLDER)
    if local:
        yield from _in_folder(Path(local), files, spec)
    if folder:
        return
    for file in files:
        yield torch_cache() / file.file
    for file in files:
        if file.repository:
            yield from _in_hub_cache(file.repository)
    if spec.keras_file:
        yield keras_cache() / spec.keras_file
    if spec.name == "EfficientNetLite0" and (packaged := packaged_file()):
        yield packaged


def _in_folder(folder: Path, files: list[PublishedFile], spec: BackboneSpec) -> Iterator[Path]:
    for file in files:
        yield folder / file.file
        if file.repository:
            stem = file.file.removesuffix(".safetensors")
            yield from (folder / f"{stem}{ending}" for ending in ENDINGS)
            yield from (folder / stem / hub_file for hub_file in HUB_FILES)
    if spec.keras_file:
        yield folder / spec.keras_file


def _in_hub_cache(repository: str) -> Iterator[Path]:
    """The files of a repository in huggingface_hub's cache, of the newest commit that was fetched."""
    place = hub_cache() / f"models--{repository.replace('/', '--')}"
    reference = place / "refs" / "main"
    commits = [reference.read_text().strip()] if reference.is_file() else []
    commits += sorted(path.name for path in (place / "snapshots").glob("*"))
    for commit in dict.fromkeys(commits):
        yield from (place / "snapshots" / commit / file for file in HUB_FILES)


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads, and timm with it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"


def torch_cache() -> Path:
    """Where torch.hub keeps weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def keras_cache() -> Path:
    """Where Keras keeps the weights that it downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


# ---- what is known of all --------------------


@dataclass(frozen=True)
class BackboneInfo:
    """What helps to choose a backbone.

    Attributes:
        name: the name it is built by.
        parameters: numbers in its weights, without a top.
        size: side of the photos that its published weights were trained on, in pixels.
        licence: of the published weights, as an SPDX identifier.
        source: where these come from.
        weights: their file on this machine; None where they would be downloaded.
    """

    name: str
    parameters: int
    size: int
    licence: str
    source: str
    weights: Path | None

    def __str__(self) -> str:
        here = "here" if self.weights else ""
        million = self.parameters / 1e6
        return (
            f"{self.name:<24}{million:>7.1f} M {self.size:>4} px  {self.licence:<13} {here:<5} {self.source}"
        )


def backbone_info(name: str) -> BackboneInfo:
    """Parameters, size, licence and source of a backbone, and whether its weights are on this machine.

    Args:
        name: one of `backbone_names()`.

    Raises:
        BackboneError: there is no such backbone.

    Example:
        >>> info = backbone_info("DINOv2S14")
        >>> info.parameters, info.size, info.licence
        (22056192, 518, 'Apache-2.0')
    """
    spec = backbone_spec(name)
    licence = "BSD-3-Clause" if spec.family in ("resnet", "torch") else _first_licence(name)
    files = published_files(name)
    source = files[0].url if files else "keras.applications"
    if spec.family == "lite":
        source = "pip install 'kclf[lite]'"
    if name not in PARAMETERS:
        raise BackboneError(f"Expected the count of {name!r} in kclf/backbones/parameters.py")
    return BackboneInfo(name, PARAMETERS[name], spec.default_size, licence, source, find_weights(name))


def _first_licence(name: str) -> str:
    found = next((licence for start, licence in LICENCES if re.match(start, name)), None)
    if found is None:
        raise BackboneError(f"Expected a start of {name!r} in LICENCES of kclf/backbones/published.py")
    return found


def backbone_table() -> list[BackboneInfo]:
    """`backbone_info` of every backbone, sorted by name.

    Example:
        >>> [info.name for info in backbone_table() if info.name.startswith("DINOv2B")]
        ['DINOv2B14', 'DINOv2B14Registers']
    """
    return [backbone_info(name) for name in SPECS]
