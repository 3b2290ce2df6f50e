"""Which variable belongs to which layer group, and one value for each group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import torch

from .._core.keras_private import all_layers, own_weights, set_path

GroupSpec = float | slice | Sequence[float] | Mapping[int, float]


def group_rates(spec: GroupSpec, num_groups: int) -> list[float]:
    """One learning rate (or multiplier) for each layer group, input side first.

    Args:
        spec: a scalar for all groups; `slice(hi)`: `hi / 10` for all but the last; `slice(lo, hi)`: equal
            factors from `lo` to `hi`; a list, tuple or array with one value a group; a mapping from the
            group's index (negative counts from the head) to its value, the others keep 1.
        num_groups: how many groups there are.

    Returns:
        `num_groups` floats.

    Raises:
        ValueError: where the number of values is not the number of groups, or a value is below 0.

    Example:
        >>> group_rates(slice(1e-3), 3), group_rates(slice(1.0, 100.0), 3)
        ([0.0001, 0.0001, 0.001], [1.0, 10.0, 100.0])
    """
    rates = _spread(spec, num_groups)
    if len(rates) != num_groups:
        raise ValueError(
            f"One value for each layer group is needed: {num_groups} groups, {len(rates)} values. "
            f"Received: {spec}"
        )
    if min(rates, default=0.0) < 0:
        raise ValueError(f"Values of layer groups must not be below 0. Received: {spec}")
    return rates


def layer_decay(decay: float, num_groups: int) -> list[float]:
    """Multipliers that fall by one factor a group from the head to the input.

    Args:
        decay: the factor between neighbours, in (0, 1].
        num_groups: how many groups there are.

    Example:
        >>> layer_decay(0.5, 3)
        [0.25, 0.5, 1.0]
    """
    return [float(decay) ** (num_groups - 1 - index) for index in range(num_groups)]


def _spread(spec: GroupSpec, num_groups: int) -> list[float]:
    if isinstance(spec, slice):
        return _spread_slice(spec, num_groups)
    if isinstance(spec, Mapping):
        values = dict.fromkeys(range(num_groups), 1.0)
        for key, value in spec.items():
            values[_index(key, num_groups)] = float(value)
        return list(values.values())
    if isinstance(spec, str):
        raise TypeError(f"Expected a number, slice, list or mapping. Received: {spec!r}")
    if isinstance(spec, Iterable):
        return [float(value) for value in spec]
    return [float(spec)] * num_groups


def _spread_slice(spec: slice, num_groups: int) -> list[float]:
    if spec.stop is None or spec.step is not None:
        raise ValueError(f"Expected slice(hi) or slice(lo, hi). Received: {spec}")
    last = float(spec.stop)
    if spec.start is None:
        return [last / 10] * (num_groups - 1) + [last]
    first = float(spec.start)
    if first <= 0 or last <= 0:
        raise ValueError(f"Both ends of slice(lo, hi) must be above 0. Received: {spec}")
    return [first * (last / first) ** (i / max(num_groups - 1, 1)) for i in range(num_groups - 1)] + [last]


def _index(key: int, num_groups: int) -> int:
    if not isinstance(key, int) or not -num_groups <= key < num_groups:
        raise ValueError(
            f"A mapping names groups by index, {-num_groups}..{num_groups - 1}. Received: {key!r}"
        )
    return key % num_groups


@dataclass(frozen=True)
class VariableSpec:
    """What is known of a variable that can train, whether or not it is at hand."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    decays: bool
    trainable: bool

    def config(self) -> dict[str, Any]:
        """The JSON form that a saved optimizer carries."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VariableSpec:
        """Back from the JSON form."""
        return cls(**{**config, "shape": tuple(config["shape"])})

    def fits(self, variable: keras.Variable) -> bool:
        """True when the variable may be this member: its shape, and its path but for outer scopes."""
        return tuple(variable.shape) == self.shape and _same_end(variable.path, self.path)

    def stand_in(self) -> keras.Variable:
        """A variable of this shape that takes no memory, for building state before the real one is seen."""
        data = torch.zeros((), dtype=getattr(torch, self.dtype)).expand(self.shape)
        parameter = torch.nn.Parameter(data, requires_grad=False)
        variable = keras.Variable(parameter, trainable=False, dtype=self.dtype, name=self.path.split("/")[-1])
        set_path(variable, self.path)
        return variable


def _same_end(one: str, other: str) -> bool:
    """Paths gain or lose outer scopes when a model is saved and loaded; their ends stay."""
    short, long = sorted((one, other), key=len)
    return ("/" + long).endswith("/" + short) or one.split("/")[1:] == other.split("/")[1:] != []


class LayerGroups:
    """Ordered groups of layers, and the variables they hold.

    Deliberately neither a list nor a layer: Keras' saver would walk into those and save the layers again
    under the optimizer.

    Args:
        source: a model with `.layer_groups`, any other model (each of its layers that holds variables is then
            a group), or a list of lists of layers.
    """

    def __init__(self, source: keras.Model | Sequence[Sequence[keras.Layer]]) -> None:
        self._source = source

    def layers(self) -> list[list[keras.Layer]]:
        """The groups as they are now, input side first."""
        groups: Any = getattr(self._source, "layer_groups", self._source)
        if isinstance(groups, keras.Model):
            return [[layer] for layer in groups.layers if _can_hold_variables(layer)]
        groups = [list(group) for group in groups]
        if not groups or not all(isinstance(layer, keras.Layer) for group in groups for layer in group):
            raise TypeError("Layer groups are a list of lists of Keras layers, input side first")
        return groups

    def __len__(self) -> int:
        return len(self.layers())

    def members(self) -> list[tuple[keras.Variable, VariableSpec]]:
        """Every variable that can train, frozen or not, in the order of the groups.

        Raises:
            ValueError: where a layer is not built, or a variable lies in two groups.
        """
        found: dict[int, tuple[keras.Variable, VariableSpec]] = {}
        for index, group in enumerate(self.layers()):
            for layer in _leaves(group):
                for variable in own_weights(layer):
                    _, other = found.setdefault(id(variable), (variable, _describe(variable, layer, index)))
                    if other.group != index:
                        raise ValueError(
                            f"The variable {variable.path} is in layer groups {other.group} and {index}; "
                            "every variable belongs to exactly one"
                        )
        return list(found.values())


def _leaves(layers: Iterable[keras.Layer]) -> Iterator[keras.Layer]:
    for layer in layers:
        for leaf in all_layers(layer):
            if not leaf.built:
                raise ValueError(f"The layer {leaf.name} is not built: call its model on one batch first")
            yield leaf


def _can_hold_variables(layer: keras.Layer) -> bool:
    """True for layers with weights, and for those that are not built and may get some."""
    return any(own_weights(leaf) or not leaf.built for leaf in all_layers(layer))


def _describe(variable: keras.Variable, layer: keras.Layer, group: int) -> VariableSpec:
    return VariableSpec(
        path=variable.path,
        shape=tuple(variable.shape),
        dtype=str(variable.dtype),
        group=group,
        decays=not _is_bias_or_norm(variable, layer),
        trainable=bool(variable.trainable),
    )


def _is_bias_or_norm(variable: keras.Variable, layer: keras.Layer) -> bool:
    """Biases, norm parameters and other per-channel vectors, which weight decay leaves alone."""
    normalizes = type(layer).__name__.endswith("Normalization")
    return normalizes or len(variable.shape) <= 1 or variable is getattr(layer, "bias", None)


class RecordedGroups:
    """The groups of a saved optimizer: what its variables were, without the variables.

    Args:
        members: every variable of the saved run, as `VariableRegistry.config` describes it.
        num_groups: how many groups there were.
    """

    def __init__(self, members: Sequence[Mapping[str, Any]], num_groups: int) -> None:
        self._members = [VariableSpec.from_config(member) for member in members]
        self._num_groups = num_groups

    def __len__(self) -> int:
        return self._num_groups

    def members(self) -> list[tuple[None, VariableSpec]]:
        """The records; their variables are found when the optimizer meets them."""
        return [(None, member) for member in self._members]


class VariableRegistry:
    """All variables an optimizer is built on, each with its place; unseen ones are held by stand-ins.

    A plain object for the reason that `LayerGroups` is one.

    Args:
        entries: pairs of a variable, or None where it has not been seen yet, and its description.
    """

    def __init__(self, entries: Sequence[tuple[keras.Variable | None, VariableSpec]]) -> None:
        self.members = [member for _, member in entries]
        self.variables = [member.stand_in() if known is None else known for known, member in entries]
        self._unseen = {index for index, (known, _) in enumerate(entries) if known is None}
        self._places = {id(known): index for index, (known, _) in enumerate(entries) if known is not None}

    def place(self, variable: keras.Variable) -> int:
        """Where a variable stands."""
        return self._places[id(variable)]

    def seen(self) -> list[int]:
        """Places whose variables are at hand."""
        return [index for index in range(len(self.members)) if index not in self._unseen]

    def register(self, variables: Sequence[keras.Variable]) -> list[int]:
        """Give variables that are new their places, by name or else by order; return those places.

        Raises:
            ValueError: naming a variable that has no place.
        """
        new = [variable for variable in variables if id(variable) not in self._places]
        if not new:
            return []
        places = self._by_name(new) or self._by_order(new)
        if places is None:
            strangers = [v for v in new if not any(self.members[i].fits(v) for i in self._unseen)] or new
            raise ValueError(
                f"The variable {strangers[0].path} of shape {tuple(strangers[0].shape)} is in no layer "
                "group. Every variable that trains must be in exactly one: add its layer to `layer_groups`"
            )
        for place, variable in zip(places, new, strict=True):
            self.variables[place] = variable
            self._places[id(variable)] = place
            self._unseen.discard(place)
        return places

    def _by_name(self, new: Sequence[keras.Variable]) -> list[int] | None:
        """The first free place with the same shape and path; whole paths go before their ends."""
        free = sorted(self._unseen)
        places = []
        for variable in new:
            fitting = [i for i in free if self.members[i].fits(variable)]
            fitting.sort(key=lambda i: self.members[i].path != variable.path)
            if not fitting:
                return None
            free.remove(fitting[0])
            places.append(fitting[0])
        return places

    def _by_order(self, new: Sequence[keras.Variable]) -> list[int] | None:
        """One to one where layers were renamed: with all free places, or with those that trained."""
        free = sorted(self._unseen)
        for places in (free, [i for i in free if self.members[i].trainable]):
            shapes = [self.members[i].shape for i in places]
            if shapes == [tuple(variable.shape) for variable in new]:
                return places
        return None

    def config(self) -> list[dict[str, Any]]:
        """The JSON form of the members, with the trainable flags of now."""
        return [
            {**member.config(), "trainable": bool(variable.trainable)}  # no stand-in trains
            for member, variable in zip(self.members, self.variables, strict=True)
        ]
