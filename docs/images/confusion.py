"""Makes the pictures of confusion matrices in this folder.

    python docs/images/confusion.py PETS_FOLDER MOBILENETV2_WEIGHTS

`confusion-37.png`: a sample of the Oxford-IIIT Pets (37 breeds, 10 photos each), predicted by logistic
regression on frozen MobileNetV2 features, each photo by a classifier that has not seen it.
`confusion-120.png` and `confusion-120-worst.png`: 120 breeds and 2,044 photos, simulated: similar breeds are
drawn near each other, and a photo is taken for the breed it lies nearest to.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from kclf.checks import out_of_fold_probabilities
from kclf.data.files import list_images
from kclf.data.images import read_image, to_frame
from kclf.data.labels import parent_label
from kclf.interpret import ConfusionMatrix, Interpretation
from kclf.prediction.predictions import Predictions

HERE = Path(__file__).parent
BREEDS = (HERE / "breeds.txt").read_text().split()


def pets(folder: str, weights: str) -> Interpretation:
    """Out-of-fold predictions of the photos in a folder."""
    import keras  # after kclf, which chooses the backend

    paths = list_images(folder)
    class_names, labels = np.unique([parent_label(path) for path in paths], return_inverse=True)
    backbone = keras.applications.MobileNetV2(
        include_top=False, pooling="avg", input_shape=(224, 224, 3), weights=weights
    )
    squares = np.stack([to_frame(read_image(path, at_least=224), 224) for path in paths])
    features = backbone.predict(squares / np.float32(127.5) - 1, batch_size=32)
    probabilities = out_of_fold_probabilities(features, labels, penalty=0.01)
    return Interpretation(Predictions(probabilities, labels, np.array(paths), class_names.tolist()))


def breeds(photos: int = 2044, groups: int = 25) -> Interpretation:
    """Simulated predictions of 120 breeds in groups of similar ones."""
    draw = np.random.default_rng(1)
    group = draw.integers(0, groups, len(BREEDS))
    centres = draw.normal(size=(groups, 16))[group] * 2 + draw.normal(size=(len(BREEDS), 16)) * 0.8
    labels = np.sort(draw.permutation(np.arange(photos) % len(BREEDS)))
    places = centres[labels] + draw.normal(size=(photos, 16)) * 0.95
    logits = -((places[:, None] - centres) ** 2).sum(axis=-1)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Interpretation(Predictions(powers / powers.sum(axis=1, keepdims=True), labels, class_names=BREEDS))


def main(folder: str, weights: str) -> None:
    """Draw all pictures."""
    save(pets(folder, weights).confusion_matrix(), "confusion-37.png")
    matrix = breeds().confusion_matrix()
    save(matrix, "confusion-120.png")
    save(matrix.worst(20), "confusion-120-worst.png")


def save(matrix: ConfusionMatrix, name: str) -> None:
    """Draw a matrix with the 48 colours it needs: a third of the bytes."""
    picture = io.BytesIO()
    matrix.plot(dpi=80).figure_.savefig(picture)
    Image.open(picture).convert("RGB").quantize(48).save(HERE / name, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
