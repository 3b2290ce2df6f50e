"""torch state dicts in and out of Keras models: names by table, layouts by layer, nothing left over."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
import torch

from ..errors import FileFormatError, WeightsError
from .conventions import Conventions, check_conventions
from .foreign_names import timm_names
from .keras_files import LARGEST_UNPACKING, check_archive
from .layer_keys import array_of, layer_keys, named_variables, numpy_of
from .matching import LoadReport, assign_saved
from .safetensors_files import is_safetensors, read_safetensors
from .torch_names import LAYOUTS, Layout, torch_names

LEGACY_PICKLE = b"\x80\x02"  # how torch.save began before torch 1.6
COUNTER = "num_batches_tracked"  # BatchNorm's step counter; Keras has none
# Layers above the features, so that they can be skipped by Keras' names where the model has none.
TOP_LAYERS = ("predictions", "fc1", "fc2", "convnext_head_dense")
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
VGG_MAP = 7  # side of the feature map that VGG's first dense layer reads, at 224 pixels

NORMALISING = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)
BARE = {"cls_token", "reg_token", "pos_embed", "latent"}  # variables that torch libraries name the same
TO_KERAS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
TO_TORCH = {ours: theirs for theirs, ours in TO_KERAS.items()}


def is_torch_file(path: str | os.PathLike[str]) -> bool:
    """True for safetensors and what `torch.save` writes, today's zip archive and the bare pickle of old."""
    if is_safetensors(path):
        return True
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # damaged
        return False
    with open(path, "rb") as file:
        return file.read(2) == LEGACY_PICKLE


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a state dict without running code from the file (`weights_only=True`).

    Args:
        path: `.safetensors`; or a `.pth`, `.pt` or `.bin` file that holds tensors by name, or a checkpoint
            that holds such a dict under "state_dict", "model" or "state_dict_ema".

    Raises:
        FileFormatError: the file is damaged, or holds anything but tensors by name.
    """
    content: Any = read_safetensors(path) if is_safetensors(path) else _read_pickled(path)
    for wrapper in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = isinstance(content, Mapping) and all(isinstance(t, torch.Tensor) for t in content.values())
    if not tensors:
        raise FileFormatError(f"{os.fspath(path)}: expected tensors by name, found {type(content).__name__}.")
    _check_tensors(content, path)
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _read_pickled(path: str | os.PathLike[str]) -> Any:
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler of damaged bytes raises almost anything
        raise FileFormatError(
            f"{os.fspath(path)}: damaged, or it holds more than tensors by name: a program in it, which is "
            f"never run ({type(error).__name__}). Ask its author for a state dict."
        ) from error


def _check_tensors(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Refuse what is no plain array of real numbers, or claims more of them than the file has."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            kind = "meta" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
            raise FileFormatError(f"{os.fspath(path)}: expected plain numbers in {name!r}, found {kind}.")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    limit = os.stat(path).st_size + LARGEST_UNPACKING
    if claimed > limit:
        raise FileFormatError(f"{os.fspath(path)}: its tensors claim {claimed} bytes, more than it has.")


def from_torch(
    model: keras.Model,
    state_dict: Mapping[str, torch.Tensor],
    *,
    conventions: Conventions | None = None,
    skip: Collection[str] = (),
    report: bool = False,
    dry_run: bool = False,
    source: str = "the state dict",
) -> LoadReport:
    """Load a torch state dict into a Keras model that computes the same.

    Knows the names of torchvision, timm and efficientnet_pytorch for ResNet, DenseNet, VGG, MobileNetV2,
    EfficientNet (and Lite) and ConvNeXt, and those of timm, transformers and the authors (`timm_names`) for
    ConvNeXt V2, ViT, DINOv2 and SigLIP. Weights do not tell how their network pads convolutions with a
    stride, nor the epsilon of BatchNorm: both follow from the library where they can, and the model must
    agree. A MobileNetV2 padded the other way loses a point of accuracy and says nothing.

    Args:
        model: a built model whose layers bear the names of Keras Applications or of kclf's own backbones.
        state_dict: tensors by name, as `torch_model.state_dict()` gives them.
        conventions: how the torch network pads and normalises (`TORCH` or `TENSORFLOW`); needed where the
            names do not tell: timm's MobileNetV2 and EfficientNets, whose `tf_` versions follow TENSORFLOW.
        skip: names or patterns of Keras layers to leave out on both sides.
        report: print what matched and what did not.
        dry_run: only look whether it fits: nothing is assigned, and a misfit is no error.
        source: what to call the state dict in a message.

    Returns:
        What was matched and skipped.

    Raises:
        WeightsError: the names are unknown, the conventions differ or are needed, or anything does not fit;
            the model stays as it was.

    Example:
        >>> import keras
        >>> model = keras.applications.DenseNet121(weights=None, include_top=False)
        >>> from_torch(model, to_torch(model)).complete
        True
    """
    layers = layer_keys(model)
    state_dict = timm_names(state_dict)
    layout = _layout_of(layers, state_dict, source, model.name)
    check_conventions(model, conventions or layout.conventions, source)
    named = torch_names([*layers, *(top for top in TOP_LAYERS if top not in layers)], layout)
    keras_names = {module: key for key, module in named.items()}
    saved: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in state_dict.items():
        module, _, parameter = _todays_name(name).rpartition(".")
        if parameter != COUNTER:
            key = keras_names.get(module, module)
            variable, array = _to_keras(parameter, numpy_of(tensor), layers.get(key))
            saved.setdefault(key, {})[variable] = array
    skip = [*skip, *_constants(layers)]
    return assign_saved(model, saved, skip=skip, report=report, dry_run=dry_run, source=source)


def to_torch(model: keras.Model, library: str = "torchvision") -> dict[str, torch.Tensor]:
    """The weights of a Keras model as a torch state dict.

    Args:
        model: a built model of a family that `from_torch` knows.
        library: whose names to give: "torchvision", "timm" or "efficientnet_pytorch".

    Returns:
        Tensors by name, on the CPU, for `torch_model.load_state_dict`. BatchNorm's step counters, which
        Keras does not keep, are 0. The convolutions of Keras' own ResNets have biases; torchvision's have
        none.

    Raises:
        WeightsError: a layer has no name in that library.
    """
    layers = layer_keys(model)
    wanted = [key for key in layers if key not in _constants(layers)]
    layouts = [torch_names(wanted, layout) for layout in LAYOUTS if layout.library == library]
    names = max(layouts, key=len, default={})
    if nameless := [key for key in wanted if key not in names]:
        raise WeightsError(
            f"{library} has no names for these layers of {model.name!r}: {', '.join(nameless)}."
        )
    return {
        f"{names[key]}.{parameter}".removeprefix("."): torch.from_numpy(np.array(array))
        for key in wanted
        for parameter, array in _to_torch(layers[key], library).items()
    }


def _layout_of(
    layers: Mapping[str, keras.layers.Layer], state_dict: Mapping[str, object], source: str, model: str
) -> Layout:
    """The layout under which most of a model's layers are found among the modules of a state dict."""
    modules = {_todays_name(name).rpartition(".")[0] for name in state_dict}
    found = {layout: len(modules & set(torch_names(layers, layout).values())) for layout in LAYOUTS}
    best = max(found, key=found.__getitem__)
    if not found[best]:
        libraries = sorted({layout.library for layout in LAYOUTS})
        raise WeightsError(
            f"{source} does not fit {model!r}: none of its modules ({', '.join(sorted(modules)[:5])}, ...) "
            f"is one of that model's, under the names of {', '.join(libraries)}."
        )
    return best


def _constants(layers: Mapping[str, keras.layers.Layer]) -> list[str]:
    """Means and variances of the input: Keras keeps them as weights, torch libraries do not."""
    return [key for key, layer in layers.items() if isinstance(layer, keras.layers.Normalization)]


def _todays_name(name: str) -> str:
    """Torchvision's DenseNet files still say `norm.1` and `conv.2`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)


def _to_keras(parameter: str, array: np.ndarray, layer: keras.layers.Layer | None) -> tuple[str, np.ndarray]:
    """Keras' name and layout for one torch parameter of a layer."""
    if _normalises(layer):
        return TO_KERAS.get(parameter, parameter), array
    if parameter in ("layer_scale", "gamma"):  # torchvision's and timm's ConvNeXt
        return "gamma", array.reshape(-1)
    if parameter != "weight":
        return parameter, array
    return "kernel", _kernel_to_keras(array, layer)


def _kernel_to_keras(array: np.ndarray, layer: keras.layers.Layer | None) -> np.ndarray:
    if array.ndim == 4 and isinstance(layer, keras.layers.DepthwiseConv2D):
        return array.transpose(2, 3, 0, 1)  # (channels, 1, h, w) -> (h, w, channels, 1)
    if isinstance(layer, keras.layers.Dense) and array.shape[2:] == (1, 1):
        return array[:, :, 0, 0].T  # timm's convolutions of one pixel
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)
    if array.ndim == 2 and _reads_a_map(layer):  # torch flattens (channels, 7, 7), Keras (7, 7, channels)
        maps = array.reshape(len(array), -1, VGG_MAP, VGG_MAP)
        return maps.transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array.T


def _to_torch(layer: keras.layers.Layer, library: str) -> dict[str, np.ndarray]:
    """Torch's names and layouts for the variables of one layer."""
    arrays = {name: array_of(variable) for name, variable in named_variables(layer).items()}
    if _normalises(layer):
        counter = {COUNTER: np.array(0)} if "moving_mean" in arrays else {}
        return {**{TO_TORCH[name]: array for name, array in arrays.items()}, **counter}
    if arrays.keys() <= BARE:
        return arrays
    if "kernel" not in arrays:  # the scale of a residual branch
        (scale,) = arrays.values()
        return {"layer_scale": scale.reshape(-1, 1, 1)} if library == "torchvision" else {"gamma": scale}
    kernel = {"weight": _kernel_to_torch(arrays.pop("kernel"), layer)}
    return {**kernel, **arrays}


def _normalises(layer: keras.layers.Layer | None) -> bool:
    """Whether a layer has scale and shift, which Keras calls gamma and beta and torch weight and bias."""
    if layer is None:
        return False
    return isinstance(layer, NORMALISING) or named_variables(layer).keys() == {"gamma", "beta"}


def _kernel_to_torch(array: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
    if array.ndim == 4 and isinstance(layer, keras.layers.DepthwiseConv2D):
        return array.transpose(2, 3, 0, 1)  # (h, w, channels, 1) -> (channels, 1, h, w)
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)  # (h, w, in, out) -> (out, in, h, w)
    if _reads_a_map(layer):
        maps = array.reshape(VGG_MAP, VGG_MAP, -1, array.shape[-1])
        return maps.transpose(3, 2, 0, 1).reshape(array.shape[-1], -1)
    return array.T


def _reads_a_map(layer: keras.layers.Layer | None) -> bool:
    """True for VGG's first dense layer, the only one here that reads a flattened feature map."""
    return layer is not None and layer.name == "fc1"
