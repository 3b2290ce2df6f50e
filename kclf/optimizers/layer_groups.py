"""One optimizer, many learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import torch

from .._core.keras_private import (
    applies_alone,
    average_of_weights,
    counted_as,
    decays,
    gradient_sums,
    is_overwritten,
    move_into_place,
    rate_source,
    raw,
    share_counts,
    share_variables,
    state_variables,
    step_count,
    trained_variables,
    update,
    without_empty,
)
from .._core.keywords import OPTIMIZER, answering
from .._core.quiet_steps import (
    HostMirror,
    NumbersByKernels,
    changed_by_an_update,
    overwrite_where,
    undone_where,
    zero_where,
)
from . import updates
from .loss_scale import SavedApart
from .updates import Bucket, Tensors
from .variables import GroupSpec, LayerGroups, RecordedGroups, VariableRegistry, group_rates


def _of_inner(name: str) -> property:
    """An attribute that the inner optimizer has alone."""

    def read(self: LayerGroupOptimizer) -> Any:
        return getattr(self.inner_optimizer, name)

    def write(self: LayerGroupOptimizer, value: Any) -> None:
        if "inner_optimizer" in vars(self):  # before, Keras' constructor writes its defaults
            setattr(self.inner_optimizer, name, value)

    return property(read, write)


def _gentle(pretrained: int) -> list[float]:
    """Multipliers that pretrained groups survive under stored statistics, without warmup; 1 for the head."""
    return [*np.geomspace(0.03, 0.003, pretrained)[::-1].tolist(), 1.0]


@keras.saving.register_keras_serializable(package="kclf")
class LayerGroupOptimizer(SavedApart, keras.optimizers.Optimizer):
    """Any Keras optimizer, with a learning rate and weight decay for each layer group.

    One `learning_rate` belongs to the last group, the head; each group runs at it times its multiplier. The
    multiplier scales the update, not the gradient (scaling gradients does nothing under Adam). State is
    built once for all variables of the groups, frozen or not: layers can be frozen and unfrozen between fits
    without compiling again, and each variable counts its own updates. Multiplier 0 is frozen. No step waits
    for the device. Under float16 the loss scaling goes outermost,
    `FusedLossScaleOptimizer(LayerGroupOptimizer(...))`; `compile` puts Keras' own there by itself under the
    policy "mixed_float16".

    SGD and RMSprop keep torch's momentum, which does not fold the learning rate in: under a schedule they are
    `torch.optim`'s, where Keras' own differ. Weight decay is decoupled, as everywhere in Keras.

    Args:
        optimizer: the Keras optimizer that makes the updates, not built yet, or its name.
        model_or_groups: a model with `layer_groups`; any other Keras model, whose layers with weights are
            then one group each; or a list of lists of layers, input side first.
        learning_rate_multipliers: one number for all groups, a list with one a group, `slice(hi)`,
            `slice(lo, hi)` or `{group index: number}`, as `group_rates` reads them; see also `layer_decay`.
            None is .003 to .03 for the pretrained groups of a model with `layer_groups`, which survive no
            more once they train, and 1 for its head and for all else.
        weight_decay_multipliers: the same for weight decay.
        decay_biases_and_norms: True to decay biases and norm parameters too.
        warm_up_average: under `use_ema`, let the average follow faster at first, by the decay
            min(ema_momentum, (1 + steps) / (10 + steps)), so that after a short run it is not its start.
        torch_epsilon: let Adam's epsilon stand after the bias correction, as in torch and fastai; Keras has
            it before, where at the first step it counts 1 / sqrt(1 - beta_2) times as much.
        name: name of the optimizer.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> optimizer = LayerGroupOptimizer(keras.optimizers.AdamW(1e-3), model, [0.1, 1.0])
        >>> model.compile(optimizer, loss="mse")
        >>> optimizer.learning_rates
        [0.0001, 0.001]
        >>> optimizer.set_learning_rates(slice(1e-5, 1e-2))
        >>> optimizer.learning_rates
        [1e-05, 0.01]
    """

    built: bool
    is_quiet = True  # it keeps its counts and rates on the host, and reads nothing back

    @answering(OPTIMIZER)
    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer | str,
        model_or_groups: keras.Model | Sequence[Sequence[keras.Layer]] | RecordedGroups,
        learning_rate_multipliers: GroupSpec | None = None,
        weight_decay_multipliers: GroupSpec = 1.0,
        *,
        decay_biases_and_norms: bool = False,
        warm_up_average: bool = False,
        torch_epsilon: bool = False,
        name: str | None = None,
    ) -> None:
        optimizer = keras.optimizers.get(optimizer)
        _check_inner(optimizer)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = optimizer
        share_counts(self, optimizer)
        self._groups = (
            model_or_groups if isinstance(model_or_groups, RecordedGroups) else LayerGroups(model_or_groups)
        )
        if learning_rate_multipliers is None:
            pretrained = self.num_groups - 1 if hasattr(model_or_groups, "layer_groups") else 0
            learning_rate_multipliers = _gentle(pretrained) if pretrained else 1.0
        self.learning_rate_multipliers = tuple(group_rates(learning_rate_multipliers, self.num_groups))
        self.weight_decay_multipliers = tuple(group_rates(weight_decay_multipliers, self.num_groups))
        self.decay_biases_and_norms = decay_biases_and_norms
        self.warm_up_average = warm_up_average
        self.torch_epsilon = torch_epsilon
        self._finish_next = False
        self.use_ema = optimizer.use_ema
        self.loss_scale_factor = optimizer.loss_scale_factor
        self._steps = HostMirror(step_count(optimizer))
        self._rate = HostMirror(rate_source(optimizer))
        self._roster = VariableRegistry([])
        self._plan: _Plan | None = None
        self._veto: updates.Veto | None = None

    # ---- what the inner optimizer has alone ----------------------------------------------------------

    weight_decay = _of_inner("weight_decay")
    clipnorm = _of_inner("clipnorm")
    clipvalue = _of_inner("clipvalue")
    global_clipnorm = _of_inner("global_clipnorm")

    # ---- rates -----------------------------------------------------------------------------------

    @property
    def num_groups(self) -> int:
        """How many layer groups there are."""
        return len(self._groups)

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the last group."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        source = rate_source(self.inner_optimizer)
        if isinstance(learning_rate, int | float | np.number) and isinstance(source, keras.Variable):
            self._rate = HostMirror(source)
            self._rate.write(float(learning_rate))
        else:
            self.inner_optimizer.learning_rate = learning_rate

    @property
    def learning_rates(self) -> list[float]:
        """The learning rate of each group now, input side first; read without waiting for the device."""
        rate = self._rate_now()
        return [float(f"{rate * multiplier:.6g}") for multiplier in self.learning_rate_multipliers]

    def set_learning_rates(self, learning_rates: GroupSpec) -> None:
        """Set the rate of every group: `learning_rate` becomes the last one's, the multipliers follow.

        Args:
            learning_rates: a number (all groups alike), a list, `slice(hi)` or `slice(lo, hi)`.
        """
        if isinstance(learning_rates, Mapping):  # a group it leaves out would have the multiplier 1 as rate
            raise TypeError(
                "Expected a learning rate for each group: a number, a list or a slice. "
                f"Received: {learning_rates}"
            )
        rates = group_rates(learning_rates, self.num_groups)
        if rates[-1] <= 0:
            raise ValueError(
                "The last group's learning rate must be above 0: the others are kept relative to it. "
                f"Received: {learning_rates}"
            )
        self.learning_rate = rates[-1]
        self.set_multipliers([rate / rates[-1] for rate in rates])

    def set_multipliers(self, learning_rate_multipliers: GroupSpec) -> None:
        """Set the multiplier of every group; `learning_rate` stays."""
        self.learning_rate_multipliers = tuple(group_rates(learning_rate_multipliers, self.num_groups))
        self._plan = None

    def _rate_now(self) -> float:
        source = rate_source(self.inner_optimizer)
        if isinstance(source, keras.Variable):
            if self._rate.variable is not source:
                self._rate = HostMirror(source)
            return float(self._rate.read())
        with keras.device("cpu"):  # a schedule or a function: worked out on the host
            if isinstance(source, keras.optimizers.schedules.LearningRateSchedule):
                return float(source(self._steps.read()))
            return float(source())

    # ---- state -----------------------------------------------------------------------------------

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the state of all variables of the groups, whichever of them train now."""
        if self.built:
            return
        if self.inner_optimizer.built:
            raise ValueError("The optimizer inside is already built on other variables: pass a new one")
        self._roster = VariableRegistry(self._groups.members())
        self._roster.register(variables)
        self.inner_optimizer.build(self._roster.variables)
        share_variables(self, self.inner_optimizer, self._roster.variables)
        self._update_counts = self.add_variable(
            (len(self._roster.members),), dtype="int64", name="update_counts"
        )
        self.built = True

    @property
    def variables(self) -> list[keras.Variable]:
        """Counts of updates, and the state of the optimizer inside."""
        return state_variables(self) + self.inner_optimizer.variables

    @property
    def iterations(self) -> Any:
        """Steps done."""
        return self.inner_optimizer.iterations

    @property
    def _model_variables_moving_average(self) -> list[keras.Variable]:
        """Where `keras.callbacks.SwapEMAWeights` looks, through a LossScaleOptimizer."""
        return average_of_weights(self.inner_optimizer)

    def exclude_from_weight_decay(
        self, var_list: Sequence[keras.Variable] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Leave more variables out of weight decay, as on any Keras optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def get_config(self) -> dict[str, Any]:
        """The optimizer inside, the multipliers, and a description of every variable with its group."""
        roster = self._roster if self.built else VariableRegistry(self._groups.members())
        return {
            "name": self.name,
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "members": roster.config(),
            "num_groups": self.num_groups,
            "learning_rate_multipliers": list(self.learning_rate_multipliers),
            "weight_decay_multipliers": list(self.weight_decay_multipliers),
            "decay_biases_and_norms": self.decay_biases_and_norms,
            "warm_up_average": self.warm_up_average,
            "torch_epsilon": self.torch_epsilon,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> LayerGroupOptimizer:
        """Rebuild from `get_config`; variables find their groups again by name when they are met."""
        config = dict(config)
        optimizer = keras.saving.deserialize_keras_object(
            config.pop("optimizer"), custom_objects=custom_objects
        )
        groups = RecordedGroups(config.pop("members"), config.pop("num_groups"))
        return cls(optimizer, groups, **config)

    # ---- step ------------------------------------------------------------------------------------

    def apply(
        self,
        grads: Sequence[torch.Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Update the variables by their gradients.

        Args:
            grads: one gradient for each variable; None where there is none.
            trainable_variables: the variables, any subset of the groups'; all of them when None.
        """
        variables = trained_variables(self) if trainable_variables is None else trainable_variables
        variables, gradients = list(variables), list(grads)
        if not self.built:
            self.build(variables)
        if any(gradient is None for gradient in gradients):
            gradients, variables = without_empty(self, gradients, variables)
        with torch.no_grad():
            plan = self._plan_for(variables)
            veto, self._veto = self._veto, None
            self._step(plan, gradients, veto)
            if veto is None:
                self._steps.add_one()
            else:
                raw(self._steps.variable).add_(veto.counts.to(raw(self._steps.variable).dtype))

    def veto_next(self, found: torch.Tensor) -> None:
        """Let the device leave out the next step, with all that it counts, where a flag says so.

        Args:
            found: float32 scalar on the device; above 0 where the step is not to be made.
        """
        before = self._veto
        self._veto = updates.Veto(found if before is None else torch.maximum(before.found, found))

    def _step(self, plan: _Plan, gradients: Tensors, veto: updates.Veto | None) -> None:
        ready, of_update = self._accumulated(plan, gradients, veto)
        if ready is not None:
            rate = self._rate_now() if veto is None else self._rate_on_device()
            ready = updates.clip(self.inner_optimizer, ready)
            with self._undone(plan, ready, of_update):
                for bucket in plan.buckets:
                    chosen = [ready[position] for position in bucket.positions]
                    self._update(bucket, chosen, rate, of_update)
            plan.count(self._update_counts.value, of_update)
            for variable in plan.constrained:
                variable.assign(variable.constraint(variable))
        if self.inner_optimizer.use_ema:
            self._average(veto)

    def _rate_on_device(self) -> updates.Rate:
        """The rate now, where the device alone knows the count of steps that a schedule asks for."""
        source = rate_source(self.inner_optimizer)
        if not isinstance(source, keras.optimizers.schedules.LearningRateSchedule):
            return self._rate_now()
        with NumbersByKernels():
            return source(raw(self._steps.variable))

    @contextmanager
    def _undone(self, plan: _Plan, gradients: Tensors, veto: updates.Veto | None) -> Iterator[None]:
        """Take back what the block does where a veto says so, for optimizers whose kernels know no veto."""
        inner = self.inner_optimizer
        if veto is None or updates.kernel_name(inner) in updates.VETOED:
            yield
            return
        zero_where(veto.found, gradients)
        moving = [variable for bucket in plan.buckets for variable in bucket.variables]
        with undone_where(veto.found, changed_by_an_update(inner, moving)), NumbersByKernels():
            yield

    def _update(
        self, bucket: Bucket, gradients: Tensors, rate: updates.Rate, veto: updates.Veto | None
    ) -> None:
        inner = self.inner_optimizer
        rate = rate * bucket.multiplier
        kernel = updates.KERNELS.get(updates.kernel_name(inner))
        if kernel is not None:
            kernel(inner, bucket, updates.match_layout(gradients, bucket.values), rate, veto)
            return
        bucket.decay(rate)
        done = bucket.updates_done(veto)
        with counted_as(inner, done), NumbersByKernels():
            update(inner, gradients, bucket.variables, torch.ones_like(done) * rate)

    def _accumulated(
        self, plan: _Plan, gradients: Tensors, veto: updates.Veto | None
    ) -> tuple[Tensors | None, updates.Veto | None]:
        """The gradients to apply now, unscaled and averaged, and the veto to that.

        None while steps are being accumulated, where the host knows that they are.
        """
        inner = self.inner_optimizer
        if self.loss_scale_factor is not None:
            gradients = torch._foreach_div(gradients, self.loss_scale_factor)
        every = inner.gradient_accumulation_steps
        if not every:
            return gradients, veto
        kept = gradient_sums(inner)
        sums = [kept[place].value for place in plan.places]
        if veto is not None:
            zero_where(veto.found, gradients)
            torch._foreach_add_(sums, gradients)
            return self._sums_if_due(sums, every, veto)
        torch._foreach_add_(sums, gradients)
        left = (self._steps.read() + 1) % every
        if left and not self._finish_next:
            return None, None
        self._finish_next = False
        gradients = torch._foreach_div(sums, float(left or every))
        torch._foreach_zero_(sums)
        return gradients, None

    def _sums_if_due(self, sums: Tensors, every: int, veto: updates.Veto) -> tuple[Tensors, updates.Veto]:
        """The same where the device alone knows the count of steps, and so whether it is time."""
        left = (raw(self._steps.variable) + 1) % every
        due, self._finish_next = (left >= 0) if self._finish_next else (left == 0), False
        gradients = torch._foreach_div(sums, torch.where(left == 0, every, left).to(torch.float32))
        veto = veto.unless(due)
        torch._foreach_mul_(sums, veto.found)
        return gradients, veto

    def finish_accumulation(self) -> None:
        """Let the next step use the gradients that are there, though they are fewer than were asked for.

        For the last batch of a run: those after it would count from a wrong place.
        """
        self._finish_next = True

    def _average(self, veto: updates.Veto | None) -> None:
        """The moving average of the weights over all variables at hand, as Keras has it unless warmed up."""
        inner = self.inner_optimizer
        pairs = [(average.value, variable.value) for average, variable in self._averages_at_hand()]
        averages, values = map(list, zip(*pairs, strict=True))
        every = inner.ema_overwrite_frequency
        if veto is not None:
            done = raw(self._steps.variable) // (inner.gradient_accumulation_steps or 1)
            share = torch.where(done > 0, self._share_of_average(done), 1.0) * veto.counts
            steps = torch._foreach_mul(torch._foreach_sub(values, averages), share)
            torch._foreach_add_(averages, steps)
            if every:
                overwrite_where(((done + 1) % every == 0) * veto.counts, values, averages)
            return
        done = self._steps.read() // (inner.gradient_accumulation_steps or 1)
        torch._foreach_lerp_(averages, values, self._share_of_average(done) if done else 1.0)
        if every and (done + 1) % every == 0:
            torch._foreach_copy_(values, averages)

    def _share_of_average(self, done: Any) -> Any:
        """What a step's weights count in their average: more at first where it is warmed up."""
        share = 1.0 - self.inner_optimizer.ema_momentum
        if not self.warm_up_average:
            return share
        warm = 9.0 / (10 + done)
        return warm.clamp_min(share) if isinstance(warm, torch.Tensor) else max(share, warm)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """At the end of `fit`: under EMA, the averages become the weights."""
        if self.inner_optimizer.use_ema and self.built:
            for average, variable in self._averages_at_hand():
                variable.assign(average)

    def _averages_at_hand(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """The averages that are kept of variables at hand, each with its variable."""
        kept, variables = average_of_weights(self.inner_optimizer), self._roster.variables
        return [(kept[at], variables[at]) for at in self._roster.seen() if kept[at] is not None]

    # ---- plan ------------------------------------------------------------------------------------

    def _plan_for(self, variables: list[keras.Variable]) -> _Plan:
        """The buckets of these variables, made again only where something about them has changed."""
        key = (
            [*map(id, variables)],
            [raw(variable).data_ptr() for variable in variables],
            (self.weight_decay, getattr(self.inner_optimizer, "adam_weight_decay", None)),
            (self.weight_decay_multipliers, self.decay_biases_and_norms),
            raw(self._update_counts)._version,
        )
        stale = self._plan is not None and self._plan.counted_by_device and self._veto is None
        if self._plan is None or stale or self._plan.key != key:
            self._plan = self._make_plan(variables)
            self._plan.key = key
        return self._plan

    def _make_plan(self, variables: list[keras.Variable]) -> _Plan:
        for place in self._roster.register(variables):
            move_into_place(self.inner_optimizer, place, self._roster.variables[place])  # its stand-in's
        places = [self._roster.place(variable) for variable in variables]
        counts = self._update_counts.value.tolist()
        alike: dict[tuple[float, float, int, str, torch.device], list[int]] = {}
        for position, (variable, place) in enumerate(zip(variables, places, strict=True)):
            if is_overwritten(self, variable):
                raise TypeError(
                    "Expected weights that gradients update. Received: a scale of float8, which Keras trains "
                    f"in another way ({variable.path}). Use mixed_bfloat16 or mixed_float16"
                )
            multiplier = self.learning_rate_multipliers[self._roster.members[place].group]
            if multiplier == 0:
                continue
            kind = (multiplier, self._decay_of(variable, place), int(counts[place]))
            alike.setdefault((*kind, variable.dtype, variable.value.device), []).append(position)
        buckets = [
            Bucket(*key[:3], at, [variables[i] for i in at], self.inner_optimizer, self.torch_epsilon)
            for key, at in alike.items()
        ]
        return _Plan(places, buckets, self._update_counts.value)

    def _decay_of(self, variable: keras.Variable, place: int) -> float:
        member = self._roster.members[place]
        if not (member.decays or self.decay_biases_and_norms):
            return 0.0
        return decays(self.inner_optimizer, variable) * self.weight_decay_multipliers[member.group]


class _Plan:
    """What one step over one list of variables does, worked out once."""

    def __init__(self, places: list[int], buckets: list[Bucket], counts: torch.Tensor) -> None:
        self.places, self.buckets = places, buckets
        self.key: tuple[Any, ...] = ()
        self.counted_by_device = False  # the host's counts of the buckets are too high by the steps left out
        moving = [variable for bucket in buckets for variable in bucket.variables]
        self.constrained = [variable for variable in moving if variable.constraint is not None]
        self.advance: torch.Tensor | int = 1  # what a step adds to the counts
        if len(moving) < len(counts):
            advance = torch.zeros(len(counts), dtype=counts.dtype)
            advance[[places[position] for bucket in buckets for position in bucket.positions]] = 1
            self.advance = advance.to(counts.device)

    def count(self, counts: torch.Tensor, veto: updates.Veto | None) -> None:
        """One more update for every variable that moved, on the device and on the host."""
        if veto is not None:
            counts.add_(veto.counts.to(counts.dtype) * self.advance)
            torch._foreach_add_([bucket.done for bucket in self.buckets], [veto.counts] * len(self.buckets))
            self.counted_by_device = True
        else:
            counts.add_(self.advance)
        self.key = (*self.key[:-1], counts._version)
        for bucket in self.buckets:
            bucket.count += 1


def _check_inner(optimizer: Any) -> None:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "Loss scaling goes outermost: LossScaleOptimizer(LayerGroupOptimizer(optimizer, ...))"
        )
    if not applies_alone(optimizer):
        raise TypeError(f"Cannot set rates inside {type(optimizer).__name__}: give it a single optimizer")


def layer_group_optimizer(optimizer: Any) -> LayerGroupOptimizer | None:
    """The `LayerGroupOptimizer` in an optimizer, under loss scaling or not; None where there is none.

    Example:
        >>> layer_group_optimizer(keras.optimizers.SGD()) is None
        True
    """
    while optimizer is not None and not isinstance(optimizer, LayerGroupOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer
