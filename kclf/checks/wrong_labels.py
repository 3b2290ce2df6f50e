"""Labels that a model, trained on the others, contradicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import torch

from .._core.devices import send
from ..data import ImageDataset
from ..data.images import size_for
from ..data.sources import FileImages

BATCH_SIZE = 32


def backbone_features(model: Any, paths: Sequence[str]) -> np.ndarray:
    """The backbone's features, the mean over the cells of a map, float32 (n, channels).

    Args:
        model: an `ImageClassifier`: reads the photos as in a prediction; or another functional Keras model,
            whose last layer makes classes of its features.
        paths: readable photos.
    """
    method: Any = getattr(model, "resize_method", "crop")
    photos = ImageDataset(
        FileImages(paths, getattr(model, "depth", None), getattr(model, "channels", 3)),
        presize=size_for(model),
        resize_method=method,
        batch_size=BATCH_SIZE,
    )
    make = features_of(model)
    with torch.no_grad():
        features = (make(send(images)).float() for images, *_ in photos)
        means = (found.mean(dim=(1, 2)) if found.ndim == 4 else found for found in features)
        batches = [found.cpu().numpy() for found in means]
    return np.concatenate(batches)


def features_of(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function images -> features of a model.

    Raises:
        TypeError: a model of its own `call`, whose features cannot be told.
    """
    if hasattr(model, "features"):
        return model.features
    last = next((one for one in reversed(getattr(model, "layers", [])) if one.weights), None)
    if last is None or not getattr(model, "inputs", None):
        raise TypeError(
            "Expected an ImageClassifier or a functional Keras model that ends in a layer of classes; for "
            "others pass features=, a function paths -> activations (n, channels). "
            f"Received: {type(model).__name__} {getattr(model, 'name', '')!r}"
        )
    graph = keras.Model(model.inputs, last.input)
    return lambda images: graph(images.float(), training=False)


class LabelIssue(NamedTuple):
    """A photo whose label is doubted.

    Args:
        place: of the photo.
        suggested: the class it seems to be.
        score: probability of the suggested class minus that of the label, in [0, 1].
        confident: the photo is at least as typical of the suggested class as that class's photos are.
    """

    place: int
    suggested: int
    score: float
    confident: bool


def label_issues(probabilities: np.ndarray, labels: np.ndarray) -> list[LabelIssue]:
    """Photos whose label is likely wrong, the widest margin first.

    Every photo that a model takes for another class is listed. It is `confident` in the sense of confident
    learning where the probability of the suggested class reaches that class's mean over the photos that bear
    its name; the list goes beyond these, since among 40 flipped labels they are only about 30.

    Args:
        probabilities: of a model that has not seen the photo it judges, float (n, classes).
        labels: as given, int (n,).

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
        >>> [issue.place for issue in label_issues(probabilities, np.array([0, 0, 1, 1, 1]))]
        [4]
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    num_classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    own = probabilities[np.arange(len(labels)), labels]
    typical = np.bincount(labels, weights=own, minlength=num_classes) / np.maximum(counts, 1)
    suggested = probabilities.argmax(axis=1)
    largest = probabilities.max(axis=1)
    margin, confident = largest - own, largest >= typical[suggested]
    order = np.argsort(-margin, kind="stable")
    return [
        LabelIssue(int(i), int(suggested[i]), float(margin[i]), bool(confident[i]))
        for i in order
        if margin[i] > 0
    ]


def out_of_fold_probabilities(
    features: np.ndarray, labels: np.ndarray, *, folds: int = 5, seed: int = 0, penalty: float = 0.001
) -> np.ndarray:
    """Probabilities of each photo by a linear classifier trained on the other folds.

    Args:
        features: activations, float (n, channels).
        labels: int (n,), each class with at least 2 photos.
        folds: into how many parts to cut the photos; fewer where a class has fewer photos.
        seed: of the cut.
        penalty: scikit-learn's C of logistic regression on standardised features; small means smooth,
            so that a wrong label does not bend the classifier towards itself.

    Returns:
        float64 (n, classes), the classes in the order of `np.unique(labels)`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    smallest = int(np.unique(labels, return_counts=True)[1].min())
    if smallest < 2:
        raise ValueError(f"Expected 2 photos or more of each class. Received: a class with {smallest}")
    parts = StratifiedKFold(min(folds, smallest), shuffle=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500, tol=1e-3))
    return cross_val_predict(
        classifier, features.astype(np.float64), labels, cv=parts, method="predict_proba"
    )
