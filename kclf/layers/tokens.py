"""What vision transformers and ConvNeXt are built of beside Keras' own layers: tokens, attention, scales."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.arguments import one_of
from .base import SameShape

Shape = tuple[Any, ...]  # of tensors without their values: sides may be open
# How the sources resample positions: (antialias, what is added to the new number of rows for the scale).
INTERPOLATIONS: dict[str, tuple[bool, float]] = {
    "timm": (True, 0.0),
    "dinov2": (False, 0.1),  # facebookresearch/dinov2, `interpolate_offset`
    "dinov2_registers": (True, 0.0),
    "bicubic": (False, 0.0),  # transformers' SigLIP
}
POSITION_DEVIATION = 0.02  # of random positions, as in all the sources
READINGS = ("token", "token_and_mean")


@keras.saving.register_keras_serializable(package="kclf")
def gelu_tanh(x: Tensor) -> Tensor:
    """GELU approximated by a hyperbolic tangent, as JAX has it by default (SigLIP)."""
    return F.gelu(x, approximate="tanh")


@lru_cache(maxsize=64)
def resampling_matrix(old: int, new: int, interpolation: str) -> np.ndarray:
    """Bicubic resampling along one axis as a matrix, float32 (new, old).

    Resampling is linear and works axis by axis: two small products do what `interpolate` does, with
    gradients that are the same each time on every device, and in ONNX.
    """
    antialias, offset = INTERPOLATIONS[interpolation]
    each = torch.eye(old, device="cpu")[None, None]  # a column for each old place, (1, 1, old, old)
    if offset:
        scaled = F.interpolate(each, scale_factor=((new + offset) / old, 1.0), mode="bicubic")
    else:
        scaled = F.interpolate(each, size=(new, old), mode="bicubic", antialias=antialias)
    return scaled[0, 0].numpy()


class _TorchLayer(keras.layers.Layer):
    """What the layers of this module share that have arguments."""

    calls_torch_alone = True  # for `accelerate`: without Keras' ceremony
    _settings: tuple[str, ...] = ()  # names of the arguments

    def get_config(self) -> dict[str, Any]:
        """The arguments that give this layer again."""
        return super().get_config() | {name: getattr(self, name) for name in self._settings}


@keras.saving.register_keras_serializable(package="kclf")
class PatchTokens(_TorchLayer):
    """A map of patches as tokens: positions added, class token and registers in front.

    Args:
        grid: side of the square of patches that the positions are stored for.
        class_token: whether there is one.
        registers: number of register tokens (Darcet et al. 2024, arXiv:2309.16588).
        class_position: whether the class token has a position of its own.
        interpolation: how positions are brought to another grid: "timm", "dinov2", "dinov2_registers" or
            "bicubic", each as its source does it.

    Shape:
        Input (batch, rows, columns, channels).
        Output (batch, class token + registers + rows * columns, channels).

    Example:
        >>> import numpy as np
        >>> PatchTokens(grid=2, class_token=True)(np.zeros((1, 3, 2, 8), "float32")).shape
        torch.Size([1, 7, 8])
    """

    _settings = ("grid", "class_token", "registers", "class_position", "interpolation")

    def __init__(
        self,
        grid: int,
        *,
        class_token: bool = True,
        registers: int = 0,
        class_position: bool = True,
        interpolation: str = "timm",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.grid, self.class_token, self.registers = int(grid), bool(class_token), int(registers)
        self.class_position = bool(class_position and class_token)
        self.interpolation = one_of("interpolation", interpolation, tuple(INTERPOLATIONS))

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches."""
        return int(self.class_token) + self.registers

    def build(self, input_shape: Shape) -> None:
        """Make the tokens and the positions, and the matrices that resample these where the size is known."""
        channels = input_shape[-1]
        start = keras.initializers.RandomNormal(stddev=POSITION_DEVIATION)
        if self.class_token:
            self.cls_token = self.add_weight(shape=(1, 1, channels), initializer="zeros", name="cls_token")
        if self.registers:
            shape = (1, self.registers, channels)
            self.reg_token = self.add_weight(shape=shape, initializer=start, name="reg_token")
        length = self.grid**2 + self.class_position
        self.pos_embed = self.add_weight(shape=(1, length, channels), initializer=start, name="pos_embed")
        for side in input_shape[1:3]:
            if side not in (None, self.grid):
                resampling_matrix(self.grid, side, self.interpolation)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions of the patches of a grid, (rows * columns, channels); float32 where resampled."""
        stored = self.pos_embed.value[0, int(self.class_position) :]
        if rows == columns == self.grid:
            return stored
        matrices = (resampling_matrix(self.grid, side, self.interpolation) for side in (rows, columns))
        lines, across = (torch.from_numpy(one).to(stored.device, non_blocking=True) for one in matrices)
        square = stored.float().reshape(self.grid, self.grid, -1)
        return torch.einsum("rg,ch,ghd->rcd", lines, across, square).flatten(0, 1)

    def call(self, patches: Tensor) -> Tensor:
        """The tokens, (batch, prefix + rows * columns, channels)."""
        batch, rows, columns, _ = patches.shape
        positions = self.positions(rows, columns).to(patches.dtype)
        tokens = [patches.flatten(1, 2) + positions]
        if self.registers:
            tokens.insert(0, self.reg_token.value.to(patches.dtype).expand(batch, -1, -1))
        if self.class_token:
            first = self.cls_token.value.to(patches.dtype)
            if self.class_position:
                first = first + self.pos_embed.value[:, :1].to(patches.dtype)
            tokens.insert(0, first.expand(batch, -1, -1))
        return torch.cat(tokens, 1) if len(tokens) > 1 else tokens[0]

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """(batch, prefix + rows * columns, channels)."""
        batch, rows, columns, channels = input_shape
        known = rows is not None and columns is not None
        return batch, self.prefix + rows * columns if known else None, channels


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention of projected tokens, each (batch, tokens, channels), by torch's fused kernel."""
    heads = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(*heads)  # (batch, heads, tokens, channels / heads)
    return mixed.transpose(1, 2).flatten(2)


@keras.saving.register_keras_serializable(package="kclf")
class SelfAttention(_TorchLayer):
    """Multi-head self-attention of tokens whose queries, keys and values are projected already.

    Args:
        num_heads: number of heads.

    Shape:
        Input (batch, tokens, 3 * channels): queries, keys, values. Output (batch, tokens, channels).

    Example:
        >>> import numpy as np
        >>> SelfAttention(2)(np.ones((1, 5, 12), "float32")).shape
        torch.Size([1, 5, 4])
    """

    _settings = ("num_heads",)

    def __init__(self, num_heads: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_heads = int(num_heads)

    def call(self, projected: Tensor) -> Tensor:
        """The mixed values, (batch, tokens, channels)."""
        query, key, value = projected.chunk(3, dim=-1)
        return attend(query, key, value, self.num_heads)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """A third of the channels."""
        return (*input_shape[:-1], input_shape[-1] // 3)


@keras.saving.register_keras_serializable(package="kclf")
class LearntQuery(keras.layers.Layer):
    """One learnt token for each image, for a `CrossAttention` to ask with.

    Shape:
        Input (batch, tokens, channels), of which only the size counts. Output (batch, 1, channels).
    """

    calls_torch_alone = True

    def build(self, input_shape: Shape) -> None:
        """Make the token."""
        channels = input_shape[-1]
        start = keras.initializers.TruncatedNormal(stddev=channels**-0.5)
        self.latent = self.add_weight(shape=(1, 1, channels), initializer=start, name="latent")

    def call(self, tokens: Tensor) -> Tensor:
        """The token, (batch, 1, channels)."""
        return self.latent.value.to(tokens.dtype).expand(tokens.shape[0], -1, -1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """(batch, 1, channels)."""
        return input_shape[0], 1, input_shape[-1]


@keras.saving.register_keras_serializable(package="kclf")
class CrossAttention(_TorchLayer):
    """One projected query attends to projected keys and values: how SigLIP pools its tokens.

    "Multihead attention pooling" of Zhai et al. 2022 (arXiv:2106.04560).

    Args:
        num_heads: number of heads.

    Shape:
        Inputs (batch, 1, channels): the query, and (batch, tokens, 2 * channels): keys, values.
        Output (batch, channels).

    Example:
        >>> import numpy as np
        >>> CrossAttention(2)([np.ones((1, 1, 4), "float32"), np.ones((1, 5, 8), "float32")]).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    _settings = ("num_heads",)

    def __init__(self, num_heads: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_heads = int(num_heads)

    def call(self, query_and_projected: Sequence[Tensor]) -> Tensor:
        """The value that the query finds, (batch, channels)."""
        query, projected = query_and_projected
        key, value = projected.chunk(2, dim=-1)
        return attend(query, key, value, self.num_heads)[:, 0]

    def compute_output_shape(self, input_shape: Sequence[Shape]) -> Shape:
        """(batch, channels)."""
        return input_shape[0][0], input_shape[0][-1]


@keras.saving.register_keras_serializable(package="kclf")
class ReadTokens(_TorchLayer):
    """Tokens as one vector of features: the class token, or it beside the mean of the patches.

    Args:
        reading: "token" (ViT; Dosovitskiy et al. 2021) or "token_and_mean" (DINOv2's linear probe; Oquab et
            al. 2024).
        prefix: tokens before those of the patches.

    Shape:
        Input (batch, tokens, channels). Output (batch, channels), or twice as many.

    Example:
        >>> import numpy as np
        >>> ReadTokens("token_and_mean", prefix=1)(np.array([[[1.0], [2.0], [4.0]]])).tolist()
        [[1.0, 3.0]]
    """

    _settings = ("reading", "prefix")

    def __init__(self, reading: str, *, prefix: int, **options: Any) -> None:
        super().__init__(**options)
        self.reading = one_of("reading", reading, READINGS)
        self.prefix = int(prefix)

    def call(self, tokens: Tensor) -> Tensor:
        """(batch, features)."""
        if self.reading == "token":
            return tokens[:, 0]
        return torch.cat([tokens[:, 0], tokens[:, self.prefix :].mean(1)], -1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """(batch, features)."""
        return input_shape[0], input_shape[-1] * (1 if self.reading == "token" else 2)


@keras.saving.register_keras_serializable(package="kclf")
class LayerScale(SameShape, _TorchLayer):
    """A learnt factor for each channel of a residual branch (Touvron et al. 2021, arXiv:2103.17239).

    Args:
        start: what the factors are at first.

    Shape:
        Any, channels last.

    Example:
        >>> import numpy as np
        >>> LayerScale(0.5)(np.ones((1, 2), "float32")).tolist()
        [[0.5, 0.5]]
    """

    _settings = ("start",)

    def __init__(self, start: float, **options: Any) -> None:
        super().__init__(**options)
        self.start = float(start)

    def build(self, input_shape: Shape) -> None:
        """Make the factors."""
        start = keras.initializers.Constant(self.start)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=start, name="gamma")

    def call(self, x: Tensor) -> Tensor:
        """Each channel times its factor."""
        return x * self.gamma.value.to(x.dtype)


@keras.saving.register_keras_serializable(package="kclf")
class GlobalResponseNormalization(SameShape, keras.layers.Layer):
    """Channels compete by their norm over the map (ConvNeXt V2, Woo et al. 2023, arXiv:2301.00808).

    With n_c the Euclidean norm of channel c over rows and columns, the output is
    x + gamma * x * n_c / (mean over channels of n + 1e-6) + beta.

    Shape:
        (batch, rows, columns, channels), in and out.

    Example:
        >>> import numpy as np
        >>> GlobalResponseNormalization()(np.ones((1, 2, 2, 1), "float32")).flatten().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    calls_torch_alone = True
    epsilon = 1e-6

    def build(self, input_shape: Shape) -> None:
        """Make scale and shift, at zero: the layer starts as the identity."""
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="gamma")
        self.beta = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="beta")

    def call(self, x: Tensor) -> Tensor:
        """The map with its channels weighted."""
        gamma, beta = self.gamma.value.to(x.dtype), self.beta.value.to(x.dtype)
        norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share = norms / (norms.mean(-1, keepdim=True) + self.epsilon)
        return torch.addcmul(x + beta, gamma * share, x)
