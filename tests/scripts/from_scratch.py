"""In the shape of "Image classification from scratch" (F. Chollet).

https://keras.io/examples/vision/image_classification_from_scratch/
"""

from __future__ import annotations

import keras

import kclf

SIDE = 32


def body(inputs):
    """A small Xception: separable convolutions with batch norms, and a residual around each pair."""
    layers = keras.layers
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Activation("relu")(
        layers.BatchNormalization()(layers.Conv2D(16, 3, strides=2, padding="same")(x))
    )
    before = x
    for size in (24, 32):
        for _ in range(2):
            x = layers.SeparableConv2D(size, 3, padding="same")(layers.Activation("relu")(x))
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        before = x = layers.add([x, layers.Conv2D(size, 1, strides=2, padding="same")(before)])
    return x


def keras_way(x, y, valid, accelerate):
    """One output for two classes, Adam at 3e-4; the losses of each epoch."""
    inputs = keras.Input((SIDE, SIDE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(body(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.25)(pooled)))
    if accelerate:
        kclf.accelerate(model)
    model.compile(
        keras.optimizers.Adam(3e-4),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(name="acc")],
    )
    fit = model.fit(x, y, epochs=2, batch_size=16, validation_data=valid, verbose=0, shuffle=False)
    return [*fit.history["loss"], *fit.history["val_loss"]]


def kclf_way(data):
    """The network as a backbone, all of it trained by one cycle; the accuracy of validation."""
    inputs = keras.Input((SIDE, SIDE, 3))
    model = kclf.ImageClassifier(
        keras.Model(inputs, body(inputs)),
        data.class_names,
        size=SIDE,
        normalization="none",
        hidden=(),
        batchnorm="train",
    )
    model.unfreeze()
    model.compile(keras.optimizers.Adam(3e-3))
    fit = model.fit(
        data.train, validation_data=data.valid, epochs=6, verbose=0, callbacks=[kclf.OneCycle(1e-2)]
    )
    return fit.history["val_accuracy"][-1]
