"""A functional model as a flat list of torch calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers, tree

from .._core.devices import send
from .._core.keras_private import (
    LayerScale,
    get_keras_mask,
    hooks_of,
    in_stateless_scope,
    is_recomputed,
    numpy_operations,
    output_structure,
    raw,
    takes_argument,
    to_torch_dtype,
)
from . import convolutions, pointwise
from .checkpointing import segments
from .convolutions import BatchNorm, Convolution, FoldedConvolution, follow
from .folding import NormFolder
from .gradients import Idle
from .graph import (
    Function,
    Graph,
    LayerContext,
    Node,
    Run,
    Step,
    flatten,
    pooled_early,
    run_steps,
    to_nchw,
    to_nhwc,
)
from .graphs import CapturedEnd
from .packing import PackedConvolution, can_pack, packed_steps
from .padding import joined_steps
from .pointwise import Activation, MaxPooling, Padding

OVERWRITABLE = (keras.layers.Add, keras.layers.BatchNormalization)
MASKING = (keras.layers.Masking, keras.layers.Embedding)


class Plan:
    """The compiled form of a functional model.

    Args:
        model: a functional `keras.Model`, or the `_functional` of a Sequential.
        checkpointing: keep the activations of whole residual blocks out of memory in training, and compute
            them again on the way back.
        graphs: launch what follows the last layer that Keras runs as CUDA graphs in training.

    Attributes:
        fallback: the layers that run as Keras runs them.
    """

    def __init__(self, model: Any, *, checkpointing: bool = False, graphs: bool = False) -> None:
        self.graph = flatten(model)
        self.views = _has_channels_last(self.graph)
        self.fallback: list[Any] = []
        self._output_struct = output_structure(model)
        self._input_dtypes = [to_torch_dtype(tensor.dtype) for tensor in model.inputs]
        self._uses = self.graph.uses()
        self._producers: dict[int, Step] = {}
        self._host: list[Function] = []  # what Keras runs
        self.steps: list[Step] = []
        for node in self.graph.nodes:
            self._add(node)
        self.steps = pooled_early(self.steps, self.graph)
        self.packed_steps = packed_steps(self.steps, self.graph)
        self.steps = joined_steps(self.steps, self.graph, views=self.views)
        self._folds = [one.function for one in self.steps if isinstance(one.function, FoldedConvolution)]
        self._fold_norms = NormFolder()
        self.segments = segments(self.steps, self.graph) if checkpointing else []
        self._end = self._captured_end() if graphs else None
        self._hooks = [hooks for layer in _layers_of(self.graph) for hooks in hooks_of(layer)]

    def __call__(self, inputs: Sequence[torch.Tensor], *, training: bool) -> list[torch.Tensor]:
        """Run on flat inputs in Keras' layout; returns flat outputs in Keras' layout."""
        run = Run(training=training, gradients=torch.is_grad_enabled())
        values: list[Any] = [None] * len(self.graph.values)
        for number, tensor in zip(self.graph.inputs, inputs, strict=True):
            values[number] = self._inward(tensor)
        steps = self.steps
        end = self._end if training and run.gradients and values[self.graph.inputs[0]].is_cuda else None
        if end is None:
            self._fold(run)
        if end is not None:
            run_steps(end.before, run, values)
            end(run, values)
            steps = []
        elif self.segments and training and run.gradients:
            for segment in self.segments:
                values[segment.target] = segment(run, values[segment.source])
                values[segment.source] = None
            steps = self.steps[self.segments[-1].end :]
        elif not (training or run.gradients) and can_pack(inputs):
            steps = self.packed_steps
        run_steps(steps, run, values)
        if run.statistics:
            follow(run.statistics)
        outputs = [self._outward(values[number]) for number in self.graph.outputs]
        if run.gradients and run.idle:
            outputs[0] = Idle.apply(outputs[0], *run.idle)
        return outputs

    def _fold(self, run: Run) -> None:
        """Fold the norms that learn, all at once."""
        if run.gradients and self._folds:
            run.folded = self._fold_norms([fold for fold in self._folds if fold.learns(run)])

    def _captured_end(self) -> CapturedEnd | None:
        variables = [v for layer in _layers_of(self.graph) for v in layer.variables]
        tensors = {id(raw(variable)): raw(variable) for variable in variables}
        parameters = [tensor for tensor in tensors.values() if isinstance(tensor, torch.nn.Parameter)]
        end = CapturedEnd(self.steps, self._host, self.graph.outputs, self._fold, parameters)
        return end if end.steps else None

    def forget_weights(self) -> None:
        """Fold and pack the weights anew when they are needed next."""
        self._fold_norms = NormFolder()
        for step in (*self.steps, *self.packed_steps):
            if isinstance(step.function, FoldedConvolution | PackedConvolution):
                step.function.forget()

    def accept(self, inputs: Any) -> list[torch.Tensor] | None:
        """The flat inputs on the device and in the dtypes of the model; None where Keras has to take them."""
        flat: Any = [inputs] if isinstance(inputs, torch.Tensor | np.ndarray) else inputs
        if not isinstance(flat, list | tuple) or len(flat) != len(self.graph.inputs):
            return None
        flat = [keras.ops.convert_to_tensor(x) if isinstance(x, np.ndarray) else x for x in flat]
        if in_stateless_scope() or any(self._hooks):
            return None
        for tensor, number in zip(flat, self.graph.inputs, strict=True):
            if not _fits(tensor, self.graph.values[number].shape):
                return None
        return [send(tensor).to(dtype) for tensor, dtype in zip(flat, self._input_dtypes, strict=True)]

    def pack(self, outputs: list[torch.Tensor]) -> Any:
        """Flat outputs in the structure that the model's `call` gives."""
        packed = tree.pack_sequence_as(self._output_struct, outputs)
        return packed[0] if isinstance(packed, list | tuple) and len(packed) == 1 else packed

    def _inward(self, tensor: torch.Tensor) -> torch.Tensor:
        return to_nchw(tensor) if self.views and tensor.ndim == 4 else tensor

    def _outward(self, tensor: torch.Tensor) -> torch.Tensor:
        return to_nhwc(tensor) if self.views and tensor.ndim == 4 else tensor

    # ---- compiling

    def _add(self, node: Node) -> None:
        site = self._site(node)
        function = None if _takes_integers(site) else compiled(site)
        if function is None:
            self.fallback.append(node.operation)
            step = Step(self._fallback(node), node.inputs, node.outputs)
            self._host.append(step.function)
        else:
            fresh = isinstance(node.operation, OVERWRITABLE) or _bare(function) or _is_product(node.operation)
            step = Step(_casting(function, site), node.inputs, node.outputs, fresh)
            if self._join(step, function):
                return
            self._absorb_padding(step, function)
        self.steps.append(step)
        self._producers |= dict.fromkeys(step.targets, step)

    def _site(self, node: Node) -> LayerContext:
        values = self.graph.values
        return LayerContext(
            layer=node.operation,
            record=node.record,
            inputs=tuple(values[number] for number in node.inputs),
            output=values[node.outputs[0]],
            views=self.views,
            disposable=tuple(place for place, value in enumerate(node.inputs) if self._is_disposable(value)),
        )

    def _is_disposable(self, value: int) -> bool:
        """Whether a value is new, read once, and needed by no gradient."""
        producer = self._producers.get(value)
        return producer is not None and producer.fresh and self._uses[value] == 1

    def _before(self, step: Step) -> Step | None:
        """The step that made the only input of this one, if nothing else reads that value."""
        if len(step.sources) != 1 or self._uses[step.sources[0]] != 1:
            return None
        return self._producers.get(step.sources[0])

    def _join(self, step: Step, function: Function) -> bool:
        """Let a batch norm join the convolution before it."""
        before = self._before(step)
        if not isinstance(function, BatchNorm) or before is None or not _bare(before.function):
            return False
        before.function = FoldedConvolution(before.function, function)
        before.targets = step.targets
        self._producers[step.targets[0]] = before
        return True

    def _absorb_padding(self, step: Step, function: Function) -> None:
        """Let a convolution, or the maxima of what is never negative, do the zero padding before it."""
        before = self._before(step)
        border = before.function.border if before and isinstance(before.function, Padding) else None
        if before is None or border is None or step.function is not function:
            return
        if isinstance(function, MaxPooling):
            absorbs = function.takes(border) and _never_negative(self._producers.get(before.sources[0]))
        else:
            absorbs = isinstance(function, Convolution) and not function.same
        if absorbs:
            function.border = border
            step.sources = before.sources
            self.steps.remove(before)

    def _fallback(self, node: Node) -> Function:
        """Run a layer as Keras does, on values in Keras' layout."""
        operation, arguments = node.operation, node.record.arguments
        takes_training = takes_argument(operation, "training")
        symbols = [id(tensor) for tensor in node.record.input_tensors]

        def fallback(run: Run, *values: torch.Tensor) -> Any:
            tensors = dict(zip(symbols, map(self._outward, values), strict=True))
            args, kwargs = arguments.fill_in(tensors)
            if takes_training:
                kwargs["training"] = run.training
            results = [self._inward(result) for result in tree.flatten(operation(*args, **kwargs))]
            return results[0] if len(results) == 1 else results

        return fallback


def _bare(function: Any) -> bool:
    """Whether a function is a convolution with nothing after it."""
    return isinstance(function, Convolution) and function.activation is None


def _is_product(operation: Any) -> bool:
    """Whether an operation is a Dense without an activation, whose result no gradient needs."""
    return isinstance(operation, layers.Dense) and pointwise.is_linear(operation.activation)


def _never_negative(step: Step | None) -> bool:
    """Whether the values of a step are 0 or more, so that zeros around them change no maximum."""
    post = step.function.post if step and isinstance(step.function, Activation) else None
    return post is not None and post.name in ("relu", "hardtanh")


def _takes_integers(site: LayerContext) -> bool:
    """Whether a layer is given integers: in which dtype Keras then computes differs from layer to layer."""
    floats = all(keras.backend.is_float_dtype(tensor.dtype) for tensor in site.inputs)
    return isinstance(site.layer, keras.layers.Layer) and not floats


def _casting(function: Function, site: LayerContext) -> Function:
    """Cast the inputs where the layer computes in another dtype than they come in, as Keras does."""
    layer = site.layer
    if not isinstance(layer, keras.layers.Layer):
        return function
    wanted = layer.compute_dtype
    kinds = {tensor.dtype for tensor in site.inputs if keras.backend.is_float_dtype(tensor.dtype)}
    if kinds <= {wanted}:
        return function
    dtype = to_torch_dtype(wanted)
    return lambda run, *values: function(run, *[value.to(dtype) for value in values])


def _has_channels_last(graph: Graph) -> bool:
    return any(getattr(node.operation, "data_format", None) == "channels_last" for node in graph.nodes)


def _layers_of(graph: Graph) -> list[Any]:
    return [node.operation for node in graph.nodes if isinstance(node.operation, keras.layers.Layer)]


def _fits(tensor: Any, shape: tuple[int | None, ...]) -> bool:
    """Whether a value is a plain tensor of a shape that the model was made for."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.device.type != "meta"
        and tensor.ndim == len(shape)
        and get_keras_mask(tensor) is None
        and all(want is None or have == want for have, want in zip(tensor.shape, shape, strict=True))
    )


TABLE: dict[type, Callable[[LayerContext], Function | None]] = {
    layers.Activation: pointwise.compile_activation,
    layers.Add: pointwise.compile_add,
    layers.AveragePooling2D: pointwise.pooling(F.avg_pool2d, count_include_pad=False),
    layers.BatchNormalization: convolutions.compile_batchnorm,
    layers.Concatenate: pointwise.compile_concatenate,
    layers.Conv2D: convolutions.compile_conv2d,
    layers.Dense: convolutions.compile_dense,
    layers.DepthwiseConv2D: convolutions.compile_depthwise,
    layers.Dropout: pointwise.compile_dropout,
    layers.Flatten: pointwise.compile_flatten,
    layers.GlobalAveragePooling2D: pointwise.global_pooling(torch.mean),
    layers.GlobalMaxPooling2D: pointwise.global_pooling(torch.amax),
    layers.LayerNormalization: pointwise.compile_layernorm,
    layers.Normalization: pointwise.compile_normalization,
    layers.MaxPooling2D: pointwise.compile_max_pooling,
    layers.Multiply: pointwise.compile_multiply,
    layers.ReLU: pointwise.compile_relu,
    layers.Rescaling: pointwise.compile_rescaling,
    layers.Reshape: pointwise.compile_reshape,
    layers.SeparableConv2D: convolutions.compile_separable,
    layers.Softmax: pointwise.compile_softmax,
    layers.ZeroPadding2D: pointwise.compile_padding,
    LayerScale: pointwise.compile_layer_scale,
    numpy_operations.Add: pointwise.arithmetic(operator.add),
    numpy_operations.Multiply: pointwise.arithmetic(operator.mul),
    numpy_operations.Subtract: pointwise.arithmetic(operator.sub),
}


def compiled(site: LayerContext) -> Function | None:
    """The torch function of a layer where it stands, or None where Keras has to run it."""
    layer = site.layer
    if not is_plain(layer):
        return None
    if getattr(type(layer), "calls_torch_alone", False):
        return pointwise.compile_torch_call(site)
    return TABLE[type(layer)](site) if type(layer) in TABLE else None


def is_plain(layer: Any) -> bool:
    """Whether a layer does what its class does: no quantising, LoRA, activity loss or `call` of its own."""
    if not isinstance(layer, layers.Layer):
        return True
    return not (
        getattr(layer, "activity_regularizer", None) is not None
        or getattr(layer, "lora_enabled", False)
        or layer.quantization_mode is not None
        or is_recomputed(layer)
        or not (layer.autocast or type(layer) is layers.LayerNormalization)  # which casts by itself
        or "call" in layer.__dict__
    )
