"""ONNX networks in whole numbers of 8 bits, with ranges seen on photos."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

BATCH_SIZE = 8
# What runs of 8-bit numbers are made of; softmax and pooling stay as they are, since they cost no time.
QUANTIZED = ["Conv", "MatMul", "Gemm", "Add", "Clip", "Relu"]
PRODUCTS = ("Conv", "MatMul", "Gemm")


def quantize(model: Any, photos: np.ndarray) -> Any:
    """A network with 8-bit weights, one scale a channel, and 8-bit activations.

    Preprocessing and the last layer stay in float32: the first has pixels, the last decides.

    Args:
        model: an `onnx.ModelProto` with the input "photos".
        photos: uint8 (n, side, side, channels), which show how large activations become.

    Returns:
        The `onnx.ModelProto` anew.

    References:
        - Jacob et al., [Quantization and Training of Neural Networks for Efficient
          Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877), 2018.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = ({"photos": photos[start : start + BATCH_SIZE]} for start in range(0, len(photos), BATCH_SIZE))
    with tempfile.TemporaryDirectory() as folder:
        given, before, after = (Path(folder) / name for name in ("given.onnx", "before.onnx", "after.onnx"))
        onnx.save(model, given)
        quant_pre_process(given, before, skip_symbolic_shape=True)  # every shape but the batch is a number
        quantize_static(
            before,
            after,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=True,  # without it, sums of products saturate on CPUs before VNNI
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_spared(onnx.load(before).graph),
        )
        return onnx.load(after)


def _spared(graph: Any) -> list[str]:
    """Names of the nodes before the first convolution, which prepare pixels, and of the last layer on."""
    nodes = list(graph.node)
    products = [place for place, node in enumerate(nodes) if node.op_type in PRODUCTS]
    first = next((place for place in products if nodes[place].op_type == "Conv"), products[0])
    return [node.name for node in [*nodes[:first], *nodes[products[-1] :]]]
