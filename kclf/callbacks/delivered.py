"""What validation sees is what a fit delivers: averaged weights, and batch norms that fit the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
import torch

from .._core.devices import send
from .._core.fit_hooks import Step, overridden, unwrap_step, wrap_step
from .._core.keras_private import all_layers, average_of_weights, trained_variables
from ..acceleration import run_by_keras
from ..optimizers import layer_group_optimizer
from .run_state import Undo, remember_tensors
from .steps import finish_interrupted, innermost, log_rates

FEWEST, MOST = 128, 512  # training images that statistics are taken from: a quarter of all, between these
BATCH = 64
# Adam's rate under which a backbone with stored statistics survives.
SAFE_RATE = 3e-4

_RUNNING = "_kclf_delivered"  # where a model under training keeps its callback, for `as_delivered`

BatchNorms = Sequence[keras.layers.BatchNormalization]


class DeliveredModel(keras.callbacks.Callback):
    """Lets validation, and what is saved after it, see the model as the fit will deliver it.

    The moving statistics of a BatchNormalization look back on some ten batches: while features move they lag
    behind the weights, and in a first epoch a third of them is still the 0 and 1 that they began with.
    Before each validation and at the end of the fit they are taken anew from some training images, at the
    weights of now (Wu and Johnson 2021, https://arxiv.org/abs/2105.07576, call it PreciseBN). Under an
    average of weights (`use_ema`) validation runs on the average, as it becomes the model in the end.
    Training itself is not changed. `ImageClassifier.fit` and `Learner` use it by themselves.

    Args:
        data: what `fit` trains on. A dataset of kclf and arrays are read again, a quarter of their images but
            at least 128 and at most 512; of other data the last batches are kept.
    """

    def __init__(self, data: Any = None) -> None:
        super().__init__()
        self.data = data
        self._read: list[torch.Tensor] | None = None
        self._monitors: list[tuple[str, str]] = []  # that other callbacks of the fit wait for
        self._validates = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the batch norms that follow the batches, and listen to the steps."""
        unwrap_step(self.model, "train_function", self._step)
        finish_interrupted(self.model.optimizer)
        self._norms = live_batchnorms(self.model)
        self._recent: list[torch.Tensor] | None = None if can_be_sampled(self.data) else []
        self._moved, self._deliver = False, remember_statistics(())
        self._watch = _backbone_rates(self.model)
        self.model.__dict__[_RUNNING] = self
        wrap_step(self.model, "train_function", self._step)

    def _step(self, step: Step, data: list[Any]) -> Any:
        self._moved = True
        if self._recent is not None and self._norms:
            self._recent = _last([*self._recent, keras.utils.unpack_x_y_sample_weight(data[0])[0]])
        if self._watch is not None and self._watch():
            self._watch = None
        logs = step(data)
        if self._monitors:
            self._look_at_monitors()
        return logs

    def wait_for(self, callbacks: Sequence[Any], validates: bool) -> None:
        """Look after the first step whether what other callbacks monitor will ever come.

        Args:
            callbacks: of the fit; where one is neither of Keras nor of kclf, it may log figures of its own.
            validates: whether the fit has validation data.
        """
        known = all(type(one).__module__.split(".")[0] in ("keras", "kclf") for one in callbacks)
        self._monitors = [
            (type(one).__name__, one.monitor)
            for one in callbacks
            if known
            and isinstance(getattr(one, "monitor", None), str)
            and getattr(one, "save_best_only", True)
        ]
        self._validates = validates

    def _look_at_monitors(self) -> None:
        names = list(self.model.get_metrics_result())
        names += [f"val_{name}" for name in names] * self._validates
        for callback, monitor in self._monitors:
            if monitor not in names and not monitor.startswith("learning_rate"):
                without = "" if self._validates else ". It has no validation_data"
                warnings.warn(
                    f"{callback} waits for {monitor!r}, which this fit never logs{without}. "
                    f"It logs {', '.join(names)}",
                    stacklevel=2,
                )
        self._monitors = []

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Before validation: the weights and statistics that the fit would deliver now."""
        self._undo = remember_statistics(self._norms)
        swap_averages(self.model)
        self._refresh()
        self._deliver = remember_statistics(self._norms)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """After it: training resumes with its own weights."""
        if swap_averages(self.model):
            self._undo()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Where nothing was validated: statistics for what is saved now. The rates, for the history."""
        log_rates(self.model.optimizer, logs)
        if self._moved and not averages(self.model):
            self._refresh()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """The statistics of the last validation, or of now."""
        if self._moved:
            self._refresh()
        elif averages(self.model):
            self._deliver()
        self.model.__dict__.pop(_RUNNING, None)
        unwrap_step(self.model, "train_function", self._step)

    def _refresh(self) -> None:
        self._moved = False
        if not self._norms:
            return
        if self._recent is None and self._read is None:
            self._read = sample(self.data)
        images = self._read if self._recent is None else self._recent
        if images:
            take_statistics(self.model, self._norms, images)


def delivered_first(callbacks: Any, model: keras.Model, given: Mapping[str, Any]) -> Any:
    """The callbacks of a fit with a `DeliveredModel` before them, unless they have one or look for a rate.

    Args:
        callbacks: what `fit` was given.
        model: that is fitted.
        given: the other arguments of `fit`.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        found = callbacks.callbacks
    else:
        found = callbacks = list(keras.tree.flatten(callbacks)) if callbacks is not None else []
    if any(isinstance(one, DeliveredModel | keras.callbacks.SwapEMAWeights) for one in found) or any(
        getattr(one, "leaves_no_trace", False) for one in found
    ):
        return callbacks
    data: Any = given.get("x")
    split = given.get("validation_split") or 0.0
    if split and hasattr(data, "__len__"):
        data = data[: int(len(data) * (1.0 - split))]
    first = DeliveredModel(data)
    first.wait_for(found, given.get("validation_data") is not None or bool(split))
    found.insert(0, first)
    if isinstance(callbacks, keras.callbacks.CallbackList):
        first.set_model(model)
        first.set_params(callbacks.params)
    return callbacks


def moving_statistics(norms: BatchNorms) -> list[torch.Tensor]:
    """The tensors of batch norms that follow the batches."""
    return [variable.value for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]


def remember_statistics(norms: BatchNorms) -> Undo:
    """Remember the moving statistics of batch norms, and return what puts them back."""
    return remember_tensors(moving_statistics(norms), device=None)


def live_batchnorms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorm layers that use, and follow, the statistics of each training batch."""
    layers = all_layers(model)
    return [one for one in layers if isinstance(one, keras.layers.BatchNormalization) and one.trainable]


def take_statistics(model: keras.Model, norms: BatchNorms, images: Iterable[Any]) -> None:
    """Set the moving statistics of batch norms to those of some images, at the weights of now.

    Nothing is drawn at random: images are seen as in validation, without dropout.

    Args:
        model: an `ImageClassifier` or any Keras model, accelerated or not.
        norms: its batch norms to set.
        images: batches of inputs.
    """
    sums = [_Sums(norm) for norm in norms]
    head: Any = getattr(model, "head", None)
    in_head = head is not None and {id(norm) for norm in norms} <= {id(one) for one in all_layers(head)}
    with torch.no_grad(), ExitStack() as stack:
        for one in sums:
            stack.enter_context(overridden(one.norm, call=one))
        if not in_head:
            stack.enter_context(run_by_keras(model))
        for batch in images:
            x = send(torch.as_tensor(batch))
            if in_head:
                type(head).call(head, model.features(x), training=False)
            else:
                model(x, training=False)
    for one in sums:
        one.assign()


class _Sums:
    """Stands in for the call of a batch norm: it normalises by the batch, and adds up what it sees."""

    def __init__(self, norm: keras.layers.BatchNormalization) -> None:
        self.norm, self.count = norm, 0
        self.mean: Any = 0.0
        self.square: Any = 0.0

    def __call__(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        norm, momentum = self.norm, self.norm.momentum
        norm.momentum = 0.0  # the moving statistics are then those of the batch
        outputs = type(norm).call(norm, inputs, training=True, mask=mask)
        norm.momentum = momentum
        mean, variance = norm.moving_mean.value.double(), norm.moving_variance.value.double()
        count = inputs.numel() // mean.numel()
        self.count += count
        self.mean = self.mean + count * mean
        self.square = self.square + count * (variance + mean**2)
        return outputs

    def assign(self) -> None:
        if self.count > 1:
            mean = self.mean / self.count
            self.norm.moving_mean.assign(mean)
            self.norm.moving_variance.assign((self.square / self.count - mean**2).clamp_min(0.0))


def can_be_sampled(data: Any) -> bool:
    """Whether `sample` can read the images again, without a trace in the run."""
    data = data.images if hasattr(data, "mixers") else data
    return hasattr(data, "num_images") or isinstance(data, np.ndarray | torch.Tensor)


def sample(data: Any) -> list[torch.Tensor]:
    """Batches of some images of the training data, always the same ones."""
    data = data.images if hasattr(data, "mixers") else data
    if not hasattr(data, "num_images"):
        rows = np.sort(np.random.default_rng(0).permutation(len(data))[: _number(len(data))])
        return [torch.as_tensor(data[rows[start : start + BATCH]]) for start in range(0, len(rows), BATCH)]
    same = data.replace(
        shuffle=True, random_crop=False, drop_last=False, sampling_weights=None, seed=0, shard=(0, 1)
    )
    found, wanted = [], _number(data.num_images)
    for images, *_ in same:
        found.append(images[:wanted])
        wanted -= len(images)
        if wanted <= 0:
            break
    return found


def _number(images: int) -> int:
    return min(images, MOST, max(FEWEST, images // 4))


def _last(batches: list[Any]) -> list[Any]:
    """The last batches, no more than have `FEWEST` images without the first."""
    while sum(len(batch) for batch in batches[1:]) >= FEWEST:
        batches = batches[1:]
    return batches


def averages(model: keras.Model) -> list[tuple[keras.Variable, keras.Variable]]:
    """Each weight and its moving average; empty where the optimizer keeps none, or has made no step yet."""
    inner = innermost(model.optimizer)
    if not getattr(inner, "use_ema", False) or not inner.built:
        return []
    pairs = zip(trained_variables(inner), average_of_weights(inner), strict=True)
    return [(variable, average) for variable, average in pairs if average is not None]


def swap_averages(model: keras.Model) -> bool:
    """Exchange the weights with their moving averages; whether there are any."""
    pairs = averages(model)
    with torch.no_grad():
        for variable, average in pairs:
            kept = variable.value.detach().clone()
            variable.value.copy_(average.value)
            average.value.copy_(kept)
    return bool(pairs)


@contextmanager
def as_delivered(model: keras.Model) -> Iterator[None]:
    """The model as the last validation saw it, within the block: what a callback should save."""
    mine = model.__dict__.get(_RUNNING)
    if mine is None or not swap_averages(model):
        yield
        return
    with remember_statistics(mine._norms), Undo(lambda: swap_averages(model)):
        mine._deliver()
        yield


def _backbone_rates(model: keras.Model) -> Callable[[], bool] | None:
    """A function that warns where Adam's rate tears a backbone with stored statistics apart, and says so."""
    adaptive = isinstance(getattr(innermost(model.optimizer), "beta_1", None), float)
    first, groups = getattr(model, "first_trainable_group", None), layer_group_optimizer(model.optimizer)
    if first is None or not adaptive or getattr(model, "batchnorm", "") != "inference":
        return None
    last = len(model.layer_groups) - 1
    if first == last or not any(
        isinstance(layer, keras.layers.BatchNormalization) for layer in all_layers(model.backbone)
    ):
        return None

    def too_high() -> bool:
        if "_before_schedule" in vars(model.optimizer):  # a schedule sets the rates, its peak is a choice
            return False
        if groups is not None and groups.num_groups == last + 1:
            rate = max(groups.learning_rates[first:last])
        else:
            rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
        if rate > SAFE_RATE:
            warnings.warn(
                f"The backbone trains at a rate of {rate:.1e} by its stored BatchNorm statistics, which it "
                f"hardly survives above {SAFE_RATE:.0e}. Give its groups lower rates, such as "
                "LayerGroupOptimizer(optimizer, model) or slice(1e-5, 1e-3) do, or set "
                'model.batchnorm = "frozen"',
                stacklevel=2,
            )
        return rate > SAFE_RATE or groups is None

    return too_high
