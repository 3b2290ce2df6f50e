"""In the shape of "Transfer learning & fine-tuning" (F. Chollet, https://keras.io/guides/transfer_learning/)."""

from __future__ import annotations

import keras

import kclf

SIDE = 128  # at 32 the last maps have one pixel, whose batch norms multiply rounding errors a thousandfold


def keras_way(x, y, valid, accelerate):
    """A frozen base under a new top with one output, then all of it at a low rate; losses of each epoch."""
    base = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(SIDE, SIDE, 3), alpha=0.35
    )
    base.trainable = False
    inputs = keras.Input((SIDE, SIDE, 3))
    outputs = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    outputs = keras.layers.GlobalAveragePooling2D()(base(outputs, training=False))
    outputs = keras.layers.Dense(1)(keras.layers.Dropout(0.2)(outputs))
    model = keras.Model(inputs, outputs)
    if accelerate:
        kclf.accelerate(model)
    losses = []
    for rate, trainable in ((1e-3, False), (1e-5, True)):
        base.trainable = trainable
        model.compile(
            keras.optimizers.Adam(rate),
            keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
        )
        fit = model.fit(x, y, epochs=2, batch_size=16, validation_data=valid, verbose=0, shuffle=False)
        losses += [*fit.history["loss"], *fit.history["val_loss"]]
    return losses


def kclf_way(data, weights):
    """The same on kclf's data, with its classifier and schedule; the accuracy of the validation photos."""
    model = kclf.ImageClassifier("MobileNetV2", data.class_names, size=data.size, weights=weights)
    model.compile()
    model.fit(data.train, epochs=3, verbose=0, callbacks=[kclf.OneCycle(1e-2)])
    model.unfreeze()
    cycle = kclf.OneCycle(slice(1e-5, 1e-4))
    fit = model.fit(data.train, validation_data=data.valid, epochs=1, verbose=0, callbacks=[cycle])
    return fit.history["val_accuracy"][-1]
