"""In the shape of "Image classification via fine-tuning with EfficientNet" (Y. Fu).

https://keras.io/examples/vision/image_classification_efficientnet_fine_tuning/
"""

from __future__ import annotations

import keras
import numpy as np

import kclf

SIDE = 32


class Batches(keras.utils.PyDataset):
    """One-hot labels, batch by batch, as the script makes them."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, np.eye(2, dtype="float32")[y]

    def __len__(self):
        return len(self.x) // 16

    def __getitem__(self, index):
        rows = slice(16 * index, 16 * index + 16)
        return self.x[rows], self.y[rows]


def unfreeze(model):
    """The last twenty layers train, but for batch norms."""
    for layer in model.layers[-20:]:
        if not isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = True
    model.compile(keras.optimizers.Adam(1e-5), "categorical_crossentropy", metrics=["accuracy"])


def keras_way(x, y, valid, accelerate):
    """A flat model on EfficientNetB0 with softmax and one-hot labels; the losses of each epoch."""
    inputs = keras.Input((SIDE, SIDE, 3))
    base = keras.applications.EfficientNetB0(include_top=False, input_tensor=inputs, weights=None)
    base.trainable = False
    outputs = keras.layers.GlobalAveragePooling2D(name="avg_pool")(base.output)
    outputs = keras.layers.Dropout(0.2, name="top_dropout")(keras.layers.BatchNormalization()(outputs))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="pred")(outputs))
    if accelerate:
        kclf.accelerate(model)
    model.compile(keras.optimizers.Adam(1e-2), "categorical_crossentropy", metrics=["accuracy"])
    losses = []
    for thawed in (False, True):
        if thawed:
            unfreeze(model)
        fit = model.fit(Batches(x, y), validation_data=Batches(*valid), epochs=2, verbose=0, shuffle=False)
        losses += [*fit.history["loss"], *fit.history["val_loss"]]
    return losses


def kclf_way(data):
    """With kclf's data, layer groups and schedule, and the script's metric; the accuracy of validation."""
    model = kclf.ImageClassifier(
        "EfficientNetB0", data.class_names, size=SIDE, weights=None, augmentation=kclf.aug_transforms()
    )
    model.compile(
        kclf.LayerGroupOptimizer(keras.optimizers.Adam(1e-2), model, slice(0.1, 1.0)),
        "categorical_crossentropy",
        ["accuracy"],
    )
    fit = model.fit(
        data.train, validation_data=data.valid, epochs=6, verbose=0, callbacks=[kclf.OneCycle(1e-2)]
    )
    return fit.history["val_accuracy"][-1]
