"""Several sets of weights of one model, as the restarts of SGDR leave them, put to use together.

Three ways, from the dearest prediction to the cheapest:

    ensemble     mean of the members' probabilities        as many passes as members
    soup         one set of weights, the mean of some      one pass
    EMA          weights averaged while training           one pass

`SnapshotEnsemble.table` says what each gains on validation photos, with its standard error.
Members are loaded one after another into one model, which has its own weights back in the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch

from ..callbacks import load_snapshot
from ..callbacks.delivered import live_batchnorms
from ..callbacks.run_state import Undo, passing_draws, remember_tensors
from .inference import predict as predict_plain
from .predictions import Predictions, mean_gain

Predict = Callable[[Any, Any], Predictions]
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class SnapshotEnsemble:
    """Members that share an architecture, each a file of weights.

    Huang et al. 2017, "Snapshot ensembles: train 1, get M for free", https://arxiv.org/abs/1704.00109.

    Args:
        model: the model that the members' weights go into.
        files: weights files that `load` reads; those of the last cycles are usually the best.
        weights: one share for each member, made to sum to 1; None for equal ones.
        load: puts the weights of a file into the model; by default as `CosineRestarts` saved them.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> files = [f"{tempfile.mkdtemp()}/dogs_cyc_{cycle}.weights.h5" for cycle in range(2)]
        >>> for file in files:
        ...     model.save_weights(file)
        >>> [name for name in SnapshotEnsemble(model, files).members()]
        ['dogs_cyc_0', 'dogs_cyc_1']
    """

    model: keras.Model
    files: Sequence[AnyPath]
    weights: Sequence[float] | None = None
    load: Callable[[keras.Model, AnyPath], Any] = field(default=load_snapshot)

    def __post_init__(self) -> None:
        if isinstance(self.files, (str, os.PathLike)) or not len(self.files):
            raise ValueError(f"Expected a list of one or more files. Received: files={self.files!r}")
        missing = [os.fspath(file) for file in self.files if not Path(file).is_file()]
        if missing:
            raise FileNotFoundError(f"No such snapshots: {', '.join(missing)}")
        if len({os.fspath(file) for file in self.files}) != len(self.files):
            raise ValueError(f"Expected each file once. Received: files={self.files}")
        _member_shares(self.weights, len(self.files))

    def members(self) -> Iterator[str]:
        """Load the members into the model one after another; gives each one's name.

        The model has its own weights back when the iteration ends, or is given up.
        """
        with original_weights(self.model):
            for name, file in self._files_by_name().items():
                self.load(self.model, file)
                yield name

    def predict_members(self, data: Any, *, predict: Predict = predict_plain) -> dict[str, Predictions]:
        """What each member says, by its name.

        Args:
            data: photos, as `predict` takes them.
            predict: how one member predicts; `predict_tta` for the ensemble of both.
        """
        return {name: predict(self.model, data) for name in self.members()}

    def predict(self, data: Any, *, predict: Predict = predict_plain) -> Predictions:
        """The mean of the members' probabilities.

        Args:
            data: photos, as `predict` takes them.
            predict: how one member predicts; `predict_tta` for the ensemble of both.
        """
        return average_predictions(list(self.predict_members(data, predict=predict).values()), self.weights)

    def soup(self, valid: Any, train: Any = None, *, predict: Predict = predict_plain) -> list[str]:
        """Leave the mean of the weights of those members in the model that help it on validation photos.

        Greedy soup: members join from the best down, and each that makes the accuracy worse is left out.
        Wortsman et al. 2022, "Model soups", https://arxiv.org/abs/2203.05482.

        Args:
            valid: labelled photos that decide who joins.
            train: photos by which the statistics of BatchNormalization are taken anew after each mean
                (`recompute_batchnorm`); None averages the statistics as well.
            predict: how the model predicts.

        Returns:
            Names of the members in the soup, in the order they joined.
        """
        return self._soup(self.predict_members(valid, predict=predict), valid, train, predict)

    def _soup(
        self, members: Mapping[str, Predictions], valid: Any, train: Any, predict: Predict
    ) -> list[str]:
        scores = {name: predictions.accuracy() for name, predictions in members.items()}
        files = self._files_by_name()
        soup: list[str] = []
        best = -1.0
        for name, score in sorted(scores.items(), key=lambda pair: -pair[1]):
            if soup:
                with original_weights(self.model):
                    self._mix([files[member] for member in (*soup, name)], train)
                    score = predict(self.model, valid).accuracy()
            if score >= best:
                soup, best = [*soup, name], score
        self._mix([files[member] for member in soup], train)
        return soup

    def table(
        self,
        valid: Any,
        train: Any = None,
        *,
        ema: Mapping[str, AnyPath] | AnyPath | None = None,
        predict: Predict = predict_plain,
    ) -> EnsembleTable:
        """What each way of using the members gains over the last one alone; model and data stay as they were.

        Args:
            valid: labelled photos.
            train: photos for the soup's BatchNormalization, as in `soup`.
            ema: weights averaged while training: a file, or files by name.
            predict: how one set of weights predicts.

        Returns:
            A row for each member, their mean, the soup, and each EMA. The soup's gain is an upper bound: its
            members were chosen by the same images.
        """
        members = self.predict_members(valid, predict=predict)
        rows = {**members, "mean": average_predictions(list(members.values()), self.weights)}
        with original_weights(self.model), passing_draws(self.model, train):
            soup = self._soup(members, valid, train, predict)
            rows[f"soup of {len(soup)}, chosen here"] = predict(self.model, valid)
            for name, file in _named(ema).items():
                self.load(self.model, file)
                rows[name] = predict(self.model, valid)
        return EnsembleTable.of(rows, base=list(members)[-1])

    def _files_by_name(self) -> dict[str, AnyPath]:
        """Names without `.weights.h5` where they tell the files apart, paths where they do not."""
        named = {Path(file).name.removesuffix(".h5").removesuffix(".weights"): file for file in self.files}
        return named if len(named) == len(self.files) else {os.fspath(file): file for file in self.files}

    def _mix(self, files: Sequence[AnyPath], train: Any) -> None:
        average_weights(self.model, files, load=self.load)
        if train is not None and len(files) > 1:
            recompute_batchnorm(self.model, train)


@dataclass(frozen=True)
class EnsembleRow:
    """One way to predict, measured on validation photos.

    Args:
        name: of it.
        accuracy: share of the photos it gets right.
        accuracy_gain: that, less the base's.
        accuracy_error: standard error of the gain, from the differences photo by photo.
        log_loss: mean of -log(probability of the right class).
        log_loss_gain: that, less the base's; below 0 is better.
        log_loss_error: standard error of it.
    """

    name: str
    accuracy: float
    accuracy_gain: float
    accuracy_error: float
    log_loss: float
    log_loss_gain: float
    log_loss_error: float


@dataclass(frozen=True)
class EnsembleTable:
    """Ways to predict beside one another; prints as a table.

    Args:
        rows: of it.
        base: name of the row that gains are measured from.
        num_images: how many photos it was measured on.
    """

    rows: Sequence[EnsembleRow]
    base: str
    num_images: int

    @classmethod
    def of(cls, predictions: Mapping[str, Predictions], base: str) -> EnsembleTable:
        """Compare predictions of the same photos, all with labels."""
        right = {name: p.hits() for name, p in predictions.items()}
        losses = {name: p.losses() for name, p in predictions.items()}
        rows = [
            EnsembleRow(
                name,
                float(right[name].mean()),
                *mean_gain(right[name], right[base]),
                float(losses[name].mean()),
                *mean_gain(losses[name], losses[base]),
            )
            for name in predictions
        ]
        return cls(rows, base, len(right[base]))

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'':{width}}  accuracy    gain              log loss    gain"]
        lines += [
            f"{row.name:{width}}  {row.accuracy:.4f}  {row.accuracy_gain:+.4f} ± {row.accuracy_error:.4f}"
            f"      {row.log_loss:.4f}  {row.log_loss_gain:+.4f} ± {row.log_loss_error:.4f}"
            for row in self.rows
        ]
        lines.append(f"Gains over {self.base}, ± one standard error, on {self.num_images:,} photos.")
        return "\n".join(lines)


# ---- predictions ------------------------------------------------------------


def average_predictions(
    predictions: Sequence[Predictions], weights: Sequence[float] | None = None
) -> Predictions:
    """Weighted mean of the probabilities of several models (folds, seeds, snapshots) for the same photos.

    Args:
        predictions: of the same photos in the same order.
        weights: one share for each, made to sum to 1; None for equal ones.

    Raises:
        ValueError: the photos or classes differ, or a weight is wrong.
    """
    if not predictions:
        raise ValueError("Expected the predictions of one model or more. Received: predictions=[]")
    first = predictions[0]
    for other in predictions[1:]:
        same = other.probabilities.shape == first.probabilities.shape
        if not same or list(other.class_names) != list(first.class_names) or not _same_photos(first, other):
            raise ValueError(
                "Expected predictions of the same photos, in one order, with the same classes. Received: "
                f"shapes {first.probabilities.shape} and {other.probabilities.shape}, classes "
                f"{list(first.class_names)[:4]} and {list(other.class_names)[:4]}"
            )
    shares = _member_shares(weights, len(predictions))
    mean = sum(
        share * p.probabilities.astype(np.float64) for share, p in zip(shares, predictions, strict=True)
    )
    return replace(first, probabilities=np.asarray(mean, dtype=first.probabilities.dtype))


def _same_photos(first: Predictions, other: Predictions) -> bool:
    pairs = ((first.paths, other.paths), (first.labels, other.labels))
    return all(one is None or two is None or np.array_equal(one, two) for one, two in pairs)


def _member_shares(weights: Sequence[float] | None, members: int) -> np.ndarray:
    shares = np.ones(members) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (members,) or not (shares >= 0).all() or not shares.sum() > 0:
        raise ValueError(f"Expected {members} weights >= 0, not all 0. Received: weights={weights}")
    return shares / shares.sum()


# ---- weights ------------------------------------------------------------


def original_weights(model: keras.Model) -> Undo:
    """Give the model its weights back when the block ends, however it ends."""
    return remember_tensors(variable.value for variable in model.variables)


def average_weights(
    model: keras.Model,
    files: Sequence[AnyPath],
    *,
    load: Callable[[keras.Model, AnyPath], Any] = load_snapshot,
) -> None:
    """Set the model's weights to the mean of those in the files; whole numbers stay those of the last one.

    Args:
        model: takes the weights.
        files: one or more, of the same architecture.
        load: puts the weights of a file into the model.
    """
    sums: list[torch.Tensor] = []
    for file in files:
        load(model, file)
        values = [variable.value.detach().cpu().double() for variable in model.weights]
        sums = [total + value for total, value in zip(sums, values, strict=True)] if sums else values
    for variable, total in zip(model.weights, sums, strict=True):
        if keras.backend.is_float_dtype(variable.dtype):
            variable.assign(total / len(files))


def recompute_batchnorm(model: keras.Model, data: Iterable[Any]) -> None:
    """Take the statistics of BatchNormalization anew, as the mean over a pass in training mode.

    After weights were averaged the stored ones belong to none. Layers that are frozen keep theirs.

    Args:
        model: takes the statistics.
        data: batches of images, or of (images, ...).
    """
    norms = live_batchnorms(model)
    with Undo(*(partial(setattr, norm, "momentum", norm.momentum) for norm in norms)):
        for number, batch in enumerate(data):
            for norm in norms:  # moving = moving * momentum + batch's * (1 - momentum): the running mean
                norm.momentum = number / (number + 1)
            with torch.no_grad():
                model(batch[0] if isinstance(batch, list | tuple) else batch, training=True)


def _named(files: Mapping[str, AnyPath] | AnyPath | None) -> dict[str, AnyPath]:
    if files is None:
        return {}
    return dict(files) if isinstance(files, Mapping) else {"EMA": files}
