"""In the shape of "MixUp augmentation for image classification" (S. Paul).

https://keras.io/examples/vision/mixup/
"""

from __future__ import annotations

import keras
import numpy as np

import kclf

SIDE = 32


class Mixed(keras.utils.PyDataset):
    """Pairs of photos blended by shares from a beta distribution of 0.2, one-hot labels with them."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x.astype("float32") / 255, np.eye(2, dtype="float32")[y]

    def __len__(self):
        return len(self.x) // 16

    def __getitem__(self, index):
        generator = np.random.default_rng(index)
        rows = slice(16 * index, 16 * index + 16)
        others = generator.permutation(len(self.x))[:16]
        share = generator.beta(0.2, 0.2, 16).astype("float32")
        wide = share[:, None, None, None]
        images = self.x[rows] * wide + self.x[others] * (1 - wide)
        return images, self.y[rows] * share[:, None] + self.y[others] * (1 - share[:, None])


def keras_way(x, y, valid, accelerate):
    """A small convolutional network with softmax on mixed photos; the losses of each epoch."""
    model = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            keras.layers.Conv2D(16, 5, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 5, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Dropout(0.2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    if accelerate:
        kclf.accelerate(model)
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    known = (valid[0].astype("float32") / 255, np.eye(2, dtype="float32")[valid[1]])
    fit = model.fit(Mixed(x, y), validation_data=known, epochs=3, verbose=0, shuffle=False)
    return [*fit.history["loss"], *fit.history["val_loss"]]


def kclf_way(data):
    """kclf's layer mixes batches of kclf's data for a classifier; the accuracy of validation."""
    mix = kclf.MixUp(2, alpha=0.2)
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Conv2D(16, 5, strides=2, activation="relu")(inputs)
    features = keras.Model(inputs, keras.layers.Conv2D(32, 5, strides=2, activation="relu")(x))
    model = kclf.ImageClassifier(features, data.class_names, size=SIDE, normalization="tf", hidden=(32,))
    model.unfreeze()
    model.compile(keras.optimizers.Adam(3e-3), "categorical_crossentropy", ["accuracy"])
    for _ in range(6):
        for images, labels in data.train:
            model.train_on_batch(*mix(images, labels, training=True))
    return model.evaluate(data.valid, verbose=0, return_dict=True)["accuracy"]
