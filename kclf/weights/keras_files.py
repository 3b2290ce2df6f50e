"""Files of Keras: `.weights.h5`, `.keras` and the older `.h5`, read without running their code."""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from .._core.devices import under_policy
from ..errors import FileFormatError
from .h5_reading import datasets_of, group_of, open_h5
from .layer_keys import saved_paths, stable_keys
from .matching import SavedLayer


def load_model(path: str | os.PathLike[str], **arguments: Any) -> keras.Model:
    """As `keras.saving.load_model`, with the loss scaling of the saved model under any global policy.

    Under the policy mixed_float16 `compile` puts a `LossScaleOptimizer` around the optimizer. Keras saves its
    state but not that it is there, and makes it anew only where the global policy is mixed_float16 again;
    elsewhere the model loads without its loss scaling and its momenta. Here such a file loads under the
    policy that it was compiled under, and the global policy is the same afterwards as before.
    (`ImageClassifier`, accelerated models and optimizers wrapped by hand save their loss scaling, so that
    any loader gives it back.)

    Args:
        path: a `.keras` file, or whatever else `keras.saving.load_model` takes.
        **arguments: go to `keras.saving.load_model`.

    Returns:
        The model, compiled if it was.

    Raises:
        FileFormatError: an archive is damaged or has no Keras model in it.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> path = tempfile.mkdtemp() + "/model.keras"
        >>> model.save(path)
        >>> load_model(path).input_shape
        (None, 4)
    """
    policy: Any = keras.config.dtype_policy()
    if zipfile.is_zipfile(path):
        check_archive(path)
        if _scaled_by_compile(path):
            policy = "mixed_float16"
    with under_policy(policy):
        return keras.saving.load_model(path, **arguments)


def _scaled_by_compile(path: str | os.PathLike[str]) -> bool:
    """Whether the file has the state of one optimizer around those that its configuration describes."""
    with weights_of_archive(path) as file, zipfile.ZipFile(path) as archive:
        try:
            config = json.loads(b"".join(_pieces(archive, "config.json", _limit(path))))
            described = (config.get("compile_config") or {}).get("optimizer")
        except (KeyError, ValueError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"{os.fspath(path)}: not a saved Keras model ({error!r}).") from error
        stored = group_of(file, "optimizer")
        while isinstance(described, dict):
            inside = described.get("config", {})
            described = inside.get("inner_optimizer", inside.get("optimizer"))  # of LayerGroupOptimizer
            stored = stored and group_of(stored, "inner_optimizer")
        return stored is not None


# What a Keras file holds besides the weights of layers.
NOT_LAYERS = {"optimizer", "seed_generator", "metrics", "_metrics", "compile_metrics"}
LARGEST_UNPACKING = 128 * 2**20  # bytes more than the archive has; weights hardly shrink
PIECE = 2**20  # bytes unpacked at a time
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack a piece to any size
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, UnicodeDecodeError, OSError, EOFError)
WEIGHTS_MEMBER = "model.weights.h5"  # inside a .keras archive


@contextmanager
def open_saved(
    path: str | os.PathLike[str], class_words: Collection[str], model: keras.Model | None = None
) -> Iterator[dict[str, SavedLayer]]:
    """The layers saved in a Keras file, by stable key and in order; their arrays are read while it is open.

    Args:
        path: the file.
        class_words: class words (`class_word`) whose automatic names ("conv2d_7") count as made up; legacy
            files do not say of what class a layer was.
        model: that the weights are for: layers without a name of their own are found by where Keras saves
            them in it, which their order does not tell where models are nested.

    Raises:
        FileFormatError: the file is damaged, hostile or not a Keras file.
    """
    with open_h5(path) if h5py.is_hdf5(path) else weights_of_archive(path) as file:
        root = group_of(file, "model_weights") or file
        is_legacy = "layer_names" in root.attrs
        layers = _legacy_layers(root, class_words) if is_legacy else _keras3_layers(file, model)
        if not layers:
            raise FileFormatError("no weights of Keras layers in it.")
        yield layers


@contextmanager
def weights_of_archive(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """The HDF5 member of a `.keras` archive, in memory."""
    with _archive(path) as archive:
        content = b"".join(_pieces(archive, WEIGHTS_MEMBER, _limit(path)))
    with open_h5(path, content) as file:
        yield file


def check_archive(path: str | os.PathLike[str]) -> None:
    """Refuse an archive that unpacks to far more than it is long, whatever it says of itself.

    Raises:
        FileFormatError: it does, or is damaged.
    """
    with _archive(path) as archive:
        left = _limit(path)
        for member in archive.infolist():
            if member.compress_type == zipfile.ZIP_STORED:
                left -= member.compress_size
            else:
                left -= sum(map(len, _pieces(archive, member.filename, left)))
            if left < 0:
                raise FileFormatError("refused: its parts are longer than it is.")


@contextmanager
def _archive(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileFormatError as error:
        raise FileFormatError(f"{os.fspath(path)}: {error}") from error
    except _ZIP_ERRORS as error:
        raise FileFormatError(
            f"{os.fspath(path)}: not a weights file of a kind known here (.weights.h5, .h5, .keras, .pth), "
            f"or damaged ({error})."
        ) from error


def _limit(path: str | os.PathLike[str]) -> int:
    return Path(path).stat().st_size + LARGEST_UNPACKING


def _pieces(archive: zipfile.ZipFile, name: str, limit: int) -> Iterator[bytes]:
    """A member of an archive, piece by piece, as long as they stay within a limit."""
    if archive.getinfo(name).compress_type not in _PACKINGS:
        raise FileFormatError(f"refused: {name!r} is packed by another way than stored or deflated.")
    with archive.open(name) as member:
        while piece := member.read(PIECE):
            limit -= len(piece)
            if limit < 0:
                raise FileFormatError(f"refused: {name!r} unpacks to far more than the archive is long.")
            yield piece


def _keras3_layers(file: h5py.File, model: keras.Model | None) -> dict[str, SavedLayer]:
    """Layers of Keras 3: `<path>/vars/<place>`, where the layer's name is an attribute of `vars`."""
    groups: dict[str, dict[str, h5py.Dataset]] = {}
    for path, dataset in datasets_of(file).items():
        owner, _, place = path.rpartition("/vars/")
        if place.isdigit() and not NOT_LAYERS & set(owner.split("/")):
            groups.setdefault(owner, {})[place] = dataset
    owners = sorted(groups, key=_natural)
    words = [_word_of(owner) for owner in owners]
    given = [_names(file[f"{owner}/vars"], "name") for owner in owners]
    names = [name[0] if name else owner.rpartition("/")[2] for name, owner in zip(given, owners, strict=True)]
    keys = stable_keys(list(zip(names, words, strict=True)))
    all_named = all(words) and not any("#" in key for key in keys)
    if model is not None and not all_named:  # else the slow walk through a model adds nothing
        keys = _keys_as_in(model, owners, names, words)
    return {
        key: dict(sorted(groups[owner].items(), key=lambda item: int(item[0])))
        for owner, key in zip(owners, keys, strict=True)
    }


def _keys_as_in(model: keras.Model, owners: list[str], names: list[str], words: list[str]) -> list[str]:
    """Keys of layers, of which the model tells the class words and the places that the file does not."""
    ours = saved_paths(model)
    words = [word or _stem(ours.get(owner, "")) for owner, word in zip(owners, words, strict=True)]
    keys = dict(zip(owners, stable_keys(list(zip(names, words, strict=True))), strict=True))
    keys |= _keys_by_path(keys, ours)
    return list(keys.values())


def _keys_by_path(theirs: dict[str, str], ours: dict[str, str]) -> dict[str, str]:
    """The model's keys of those layers of a file whose names Keras made up and whose paths the model has too.

    Args:
        theirs: keys in the order of the file, by path.
        ours: the model's keys, by the path that Keras saves each layer under.
    """
    found: dict[str, str] = {}
    for stem in {_stem(key) for key in theirs.values()} - {""}:
        in_file, in_model = (
            {path: key for path, key in keys.items() if _stem(key) == stem} for keys in (theirs, ours)
        )
        if in_file.keys() == in_model.keys():
            found |= in_model
    return found


def _stem(key: str) -> str:
    """Class word in a made-up key: "conv2d#3" -> conv2d; "" of a name."""
    return key.partition("#")[0] if "#" in key else ""


def _legacy_layers(root: h5py.Group, class_words: Collection[str]) -> dict[str, SavedLayer]:
    """Layers of Keras 1 and 2: `<layer>/<path of the weight>:0`, in the order two attributes tell.

    A nested model is one "layer" there whose weights are ordered by what was trainable when it was saved.
    The names of the weights tell the inner layers apart, so that a frozen file fits an unfrozen model.
    """
    datasets = datasets_of(root)
    layers: dict[str, dict[str, h5py.Dataset]] = {}
    for layer in _names(root, "layer_names"):
        for weight in _names(root[layer], "weight_names"):
            *owner, variable = weight.split("/")
            arrays = layers.setdefault(owner[-1] if owner else layer, {})
            arrays[variable.partition(":")[0]] = datasets[f"{layer}/{weight}"]
    words = [next((w for w in class_words if re.fullmatch(rf"{w}(_\d+)?", name)), "") for name in layers]
    return dict(zip(stable_keys(list(zip(layers, words, strict=True))), layers.values(), strict=True))


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names in an attribute, which Keras spreads over several where it is long."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    return [name for part in parts for name in _texts(group, part)]


def _texts(group: h5py.Group, attribute: str) -> list[str]:
    """The texts in an attribute; of a type that does not exist, the HDF5 library crashes."""
    stored = group.attrs.get_id(attribute)
    if 0 in stored.shape:
        return []  # of whatever type: Keras' own legacy files have numbers here
    if not isinstance(stored.get_type(), h5py.h5t.TypeStringID):
        raise FileFormatError(f"refused: its attribute {attribute!r} is no text.")
    found = np.ravel(group.attrs[attribute]).tolist()
    return [text.decode() if isinstance(text, bytes) else str(text) for text in found]


def _word_of(owner: str) -> str:
    """Class word of a listed layer: `layers/conv2d_3` -> conv2d; "" for a layer that an attribute held."""
    above, _, last = owner.rpartition("/")
    return re.sub(r"_\d+$", "", last) if above.endswith("layers") else ""


def _natural(path: str) -> list[tuple[str, int]]:
    """Sort key that puts conv2d_10 after conv2d_9."""
    parts = (re.fullmatch(r"(.*?)(?:_(\d+))?", part) for part in path.split("/"))
    return [(match[1], int(match[2] or 0)) for match in parts if match]
