"""The linear probe: the last layer of a classifier solved on what its backbone computes, not stepped.

    photos -> backbone -> pooling -> | features | -> standardised -> kernel and bias -> logits

The solution is that of (multinomial) logistic regression, of one logistic regression for each of several
labels, or of ridge regression for numbers, and it is written into the classifier exactly.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Any

import keras
import numpy as np
import torch

from .._core.arguments import at_least
from ..data import ImageData, ImageDataset
from ..data.tasks import probabilities_of
from ..distributed import broadcast, take_device
from ..errors import DataError
from ..models import ImageClassifier
from ..models.heads import set_target_units, target_units
from ..prediction.activation_cache import activations
from ..prediction.predictions import Predictions
from .solving import Problem, choose_strength, make_folds, require_two_classes, row_space, solve

FOLDS, FEW, FEWER_FOLDS = 5, 1000, 3  # above FEW photos, three folds are enough and cost half
NORM_EPSILON = 1e-5  # of the head's BatchNormalization
SMALLEST_VARIANCE = 1e-4  # share of the mean variance below which a feature counts as constant
AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on features: `outputs(x) = ((x - mean) / deviation) @ kernel + bias`.

    Args:
        kernel: float64 (features, outputs).
        bias: float64 (outputs,).
        mean: float32 (features,), of the training photos.
        variance: float32 (features,), of the training photos, a little above 0 for constant features.
        strength: C of the regularisation, as scikit-learn counts it: (1,), or one for each of several labels.
        scale: float64 (outputs,), of the targets of a regression; 1 for classes.
        offset: float64 (outputs,), of the targets of a regression; 0 for classes.
        held_out: each training photo's prediction by a probe of other photos, at a strength that other
            photos chose; None where there are too few photos.
    """

    kernel: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    strength: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    held_out: Predictions | None = None

    @property
    def deviation(self) -> np.ndarray:
        """What features are divided by, float64 (features,)."""
        return np.sqrt(self.variance.astype(np.float64) + NORM_EPSILON)

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """Logits, or numbers in the units of the targets, float64 (n, outputs).

        Args:
            features: float (n, features).
        """
        standard = (features - self.mean.astype(np.float64)) / self.deviation
        return (standard @ self.kernel + self.bias) * self.scale + self.offset

    def __str__(self) -> str:
        strengths = f"{self.strength.min():.1e}"
        if len(self.strength) > 1:
            strengths += f" to {self.strength.max():.1e}"
        if self.held_out is None:
            return f"linear probe, C {strengths}"
        return f"linear probe, C {strengths}; cross-validated: {self.held_out}"


def fit_linear_probe(
    model: keras.Model,
    data: Any,
    *,
    views: int = 0,
    strength: float | np.ndarray | None = None,
    folder: AnyPath | None = None,
    progress: bool = False,
) -> LinearProbe:
    """Solve the last layer of a classifier on its training photos, to convergence, and write it in.

    The backbone is left as it is. The strength of the regularisation has the lowest loss on photos of
    folds; weights of classes and samples count. What is solved, the model then computes to 1e-5.

    Args:
        model: an `ImageClassifier`, or any Keras model that ends in a `Dense` layer with a bias.
        data: an `ImageData` or an `ImageDataset` with labels; for another Keras model also a pair of arrays
            (inputs, labels).
        views: augmented views of each photo to learn from beside the plain one: 0, or 2 and more.
        strength: C, as in scikit-learn, for several labels also one each, (outputs,); None chooses it.
        folder: keep the activations there, as `precompute` does; None computes them each time.
        progress: show a progress bar while computing them.

    Returns:
        The solution, with the cross-validated predictions.

    Raises:
        DataError: there are no labels, or fewer than two classes have photos.
        TypeError: the model does not end in a layer that can hold the solution.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
        >>> data = ImageDataset(images, [0, 1] * 4, class_names=["cat", "dog"], presize=32)
        >>> model = ImageClassifier("MobileNetV2", ["cat", "dog"], size=32, weights=None, hidden=())
        >>> fit_linear_probe(model, data, strength=0.1).kernel.shape
        (2560, 2)

    Source: linear probes on frozen features, Kornblith et al. 2019, https://arxiv.org/abs/1805.08974.
    """
    found = _features(model, data, views, folder, progress)
    probe = solve_linear_probe(**found, strength=strength)
    write_linear_probe(model, probe)
    return probe


def fit_linear_probes(
    model: ImageClassifier,
    leveled: ImageClassifier,
    data: ImageData,
    *,
    views: int = 0,
    folder: AnyPath | None = None,
    progress: bool = False,
) -> tuple[LinearProbe, LinearProbe]:
    """The linear probes of a classifier and of its copy with `multi_level`, from one look at the photos.

    Args:
        model: the classifier.
        leveled: the copy, whose features end with those of the classifier.
        data: as for `fit_linear_probe`, which says the others.
    """
    found = _features(leveled, data, views, folder, progress)
    width = model.head.get_layer("pooling").output.shape[-1]
    last = {**found, "features": np.ascontiguousarray(found["features"][..., -width:])}
    probes = solve_linear_probe(**last), solve_linear_probe(**found)
    for one, probe in zip((model, leveled), probes, strict=True):
        write_linear_probe(one, probe)
    return probes


def solve_linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    task: str = "single_label",
    num_outputs: int | None = None,
    weights: np.ndarray | None = None,
    class_names: Any = (),
    paths: np.ndarray | None = None,
    strength: float | np.ndarray | None = None,
    seed: int = 0,
) -> LinearProbe:
    """The linear probe of features, without a model.

    Args:
        features: float (n, features), or (views, n, features) with the plain view first.
        labels: class numbers (n,), n-hot rows (n, outputs), or targets (n,) or (n, outputs).
        task: "single_label", "multi_label" or "regression".
        num_outputs: classes, where some may have no photo; None for those of the labels.
        weights: of each photo in the loss, (n,); None for 1 each.
        class_names: of the outputs, for the held-out predictions.
        paths: of the photos, for the held-out predictions.
        strength: C, as in scikit-learn, for several labels also one each, (outputs,); None chooses it in
            folds.
        seed: of the folds.
    """
    views = features if features.ndim == 3 else features[None]
    mean, variance = _moments(views[0])
    targets, scale, offset = _targets(labels, task)
    x = _standardised(views, mean, variance)
    photo = torch.arange(len(labels), device=x.device).repeat(len(views))
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    coordinates, basis = row_space(x)
    problem = Problem(
        coordinates,
        torch.from_numpy(targets).to(x.device)[photo],
        torch.from_numpy(weights / len(views)).to(x.device)[photo],
        task,
        num_outputs or (int(labels.max()) + 1 if task == "single_label" else targets.shape[1]),
    )
    require_two_classes(problem)
    folds = make_folds(labels, task, FOLDS if len(labels) <= FEW else FEWER_FOLDS, seed)
    if strength is not None:
        strengths, outputs = torch.from_numpy(np.atleast_1d(np.asarray(strength, np.float64))), None
    else:
        strengths, outputs = choose_strength(problem, photo, torch.from_numpy(folds).to(x.device))
    solution = solve(problem, strengths)
    kernel = solution.kernel if basis is None else basis @ solution.kernel
    held_out = None
    if outputs is not None:
        answers = probabilities_of(outputs.float().cpu(), task).numpy() * scale + offset
        every = Predictions(answers.astype(np.float32), labels, paths, class_names, task)
        held_out = every.take(folds >= 0)
    return LinearProbe(
        kernel.cpu().numpy(),
        solution.bias.cpu().numpy(),
        mean,
        variance,
        strengths.numpy(),
        scale,
        offset,
        held_out,
    )


def write_linear_probe(model: keras.Model, probe: LinearProbe) -> None:
    """Write a solution into the last layer of a model.

    Args:
        model: as for `fit_linear_probe`.
        probe: of the model's features.

    Raises:
        TypeError: the last layer cannot hold it.
    """
    if not isinstance(model, ImageClassifier):
        dense, kernel = _last_dense(model), probe.kernel / probe.deviation[:, None] * probe.scale
        dense.set_weights([kernel, probe.bias * probe.scale + probe.offset - probe.mean @ kernel])
        return
    norm, logits = model.head.get_layer("norm"), model.head.get_layer("logits")
    shift = np.zeros_like(probe.mean)
    if logits.use_bias:
        logits.set_weights([probe.kernel, probe.bias])
        set_target_units(model.head, probe.scale, probe.offset)
    else:
        shift = _shift(probe)
        logits.set_weights([probe.kernel * probe.scale])
    norm.set_weights([np.ones_like(probe.mean), shift, probe.mean, probe.variance])
    broadcast([variable.value for variable in model.head.variables])


def _shift(probe: LinearProbe) -> np.ndarray:
    """The norm's shift that makes up for a last layer without bias: shift @ kernel = bias."""
    kernel, bias = probe.kernel * probe.scale, probe.bias * probe.scale + probe.offset
    shift = np.linalg.lstsq(kernel.T, bias, rcond=None)[0]
    if not np.allclose(shift @ kernel, bias, rtol=1e-6, atol=1e-6):
        raise TypeError(
            "The classifier's last layer has no bias, and no shift of its features makes up for it. "
            "Make it with hidden=(), or bias=True. Received: bias=False"
        )
    return shift


# ---- features ------------------------------------------------------------


def _features(
    model: keras.Model, data: Any, views: int, folder: AnyPath | None, progress: bool
) -> dict[str, Any]:
    """What `solve_linear_probe` takes, of a model and its training photos."""
    data = data.train if isinstance(data, ImageData) else data
    if not isinstance(model, ImageClassifier):
        return _features_of_any(model, data)
    at_least("views", views, 0)
    if views == 1:
        raise ValueError("Expected no augmented views, or 2 and more. Received: views=1")
    if not isinstance(data, ImageDataset) or data.labels is None:
        raise DataError(f"Expected photos with labels, as an ImageDataset. Received: data={data!r}")
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        cached = [
            activations(model, data, place, views=count, progress=progress) for count in (1, views) if count
        ]
    known = cached[0].readable
    features = np.concatenate([part.features for part in cached])[:, known]
    if model.hidden:  # the layers between pooling and the last norm
        get_layer = model.head.get_layer
        before_norm = keras.Model(get_layer("pooling").output, get_layer("norm").input)
        features = np.stack([before_norm.predict(view, verbose=0) for view in features])
    return {
        "features": features,
        "labels": data.labels[known],
        "weights": photo_weights(data)[known],
        "task": model.task,
        "num_outputs": len(model.class_names) if model.task != "regression" else None,
        "class_names": model.class_names if model.task != "regression" else (),
        "paths": None if data.files is None else data.files[known],
    }


def photo_weights(dataset: ImageDataset) -> np.ndarray:
    """Weight of each photo in training, float64 (n,): that of its class, times how often it is drawn."""
    weights = np.ones(dataset.num_images)
    if dataset.sample_weights is not None:
        weights = weights * dataset.sample_weights
    if dataset.sampling_weights is not None:
        weights = weights * dataset.sampling_weights * dataset.num_images
    return weights


def _features_of_any(model: keras.Model, data: Any) -> dict[str, Any]:
    dense = _last_dense(model)
    if isinstance(data, tuple):
        inputs, labels = data
    else:
        batches = [batch[:2] for batch in data]
        inputs, labels = (
            np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*batches, strict=True)
        )
    labels = np.asarray(labels)
    return {
        "features": keras.Model(model.inputs, dense.input).predict(inputs, verbose=0),
        "labels": labels,
        "task": _task_of(labels),
        "num_outputs": dense.units,
    }


def _last_dense(model: keras.Model) -> keras.layers.Dense:
    last = model.layers[-1]
    if not isinstance(last, keras.layers.Dense) or not last.use_bias:
        raise TypeError(
            "Expected an ImageClassifier, or a model whose last layer is a Dense with a bias. "
            f"Received: {type(model).__name__} with the last layer {type(last).__name__}"
        )
    return last


def _task_of(labels: np.ndarray) -> str:
    if labels.ndim == 1 and not np.issubdtype(labels.dtype, np.floating):
        return "single_label"
    return "multi_label" if labels.ndim == 2 and set(np.unique(labels)) <= {0, 1} else "regression"


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (features,), float32 as the classifier will hold them.

    A feature that is all but constant gets some variance: divided by next to nothing, it would be noise in
    the first photo where it is not.
    """
    mean, variance = features.mean(axis=0, dtype=np.float64), features.var(axis=0, dtype=np.float64)
    variance = np.maximum(variance, SMALLEST_VARIANCE * variance.mean())
    return mean.astype(np.float32), variance.astype(np.float32)


def _standardised(views: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> torch.Tensor:
    """Rows of all views, float64 (views * n, features), on the device."""
    take_device()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.from_numpy(views.reshape(-1, views.shape[-1])).to(device, torch.float64)
    x -= torch.from_numpy(mean).to(x)
    return x.div_((torch.from_numpy(variance).to(x) + NORM_EPSILON).sqrt_())


def _targets(labels: np.ndarray, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels as the solver takes them, and scale and offset back to their own units."""
    if task == "single_label":
        return labels.astype(np.int64), np.ones(1), np.zeros(1)
    columns = np.asarray(labels, np.float64).reshape(len(labels), -1)
    if task == "multi_label":
        return columns, np.ones(1), np.zeros(1)
    scale, offset = target_units(labels)
    return (columns - offset) / scale, scale, offset
