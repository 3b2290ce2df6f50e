# %% [markdown]
# # 7. Everything in plain `model.fit`
#
# There is no learner here. Each part of kclf is a Keras part: a data set, a model, an optimizer, callbacks. Take one,
# or all, into the script you have.
#
# | | |
# |---|---|
# | data | Dogs v. Cats; the figures are of a sample of 2,002 photos |
# | backbone | MobileNetV2, ImageNet weights, 96 px |
# | time | 5 minutes on one core of a busy machine for the sample |
# | expect | accuracy .9325 (95 % interval .904 to .953), with TTA .9425, mean of two snapshots .9425. One run |

# %%
import os
import re
from pathlib import Path

import keras

import kclf

SMALL = os.environ.get("KCLF_SMALL") == "1"  # a run of seconds that only shows that everything works
WEIGHTS = None if SMALL else os.environ.get("KCLF_WEIGHTS", "imagenet")
photos = Path(os.environ.get("KCLF_DOGSCATS") or kclf.datasets.fetch("dogs-vs-cats"))
keras.utils.set_random_seed(0)

# %% [markdown]
# ## Data: anything that `fit` takes
#
# `data.train` is a `keras.utils.PyDataset`-like loader: uint8 images and class numbers, decoded by threads.

# %%
data = kclf.ImageData.from_files(
    photos,
    lambda path: re.findall(r"(cat|dog)[./\\]", path.lower())[-1],
    presize=40 if SMALL else 112,
    size=32 if SMALL else 96,
    batch_size=16 if SMALL else 64,
)
images, labels = next(iter(data.valid))
print(images.shape, images.dtype, labels.shape, labels.dtype)

# %% [markdown]
# ## Model: a Keras model that takes those images
#
# Augmentation, the backbone's own normalisation, backbone and head. A new one trains its head alone.

# %%
model = kclf.ImageClassifier(
    "MobileNetV2", data.class_names, size=data.size, weights=WEIGHTS, augmentation=kclf.side_on()
)
print([len(group) for group in model.layer_groups], "layers with weights in the groups")

# %% [markdown]
# ## Optimizer: any of Keras', with rates for the layer groups
#
# The whole model has one `learning_rate`, which schedules move. The groups follow at 1/100, 1/10 and 1 of it.

# %%
optimizer = kclf.LayerGroupOptimizer(keras.optimizers.AdamW(2e-3), model, slice(1e-2, 1))
model.compile(optimizer)  # the loss fits the labels: cross-entropy from logits

# %% [markdown]
# ## Range test: a function

# %%
test = kclf.find_learning_rate(model, data.train, num_steps=20 if SMALL else 40)
print(test)
test.plot()

# %% [markdown]
# ## Training: callbacks

# %%
recorder = kclf.Recorder()
model.fit(
    data.train,
    validation_data=data.valid,
    epochs=1,
    callbacks=[kclf.OneCycle(2e-3), recorder, kclf.EpochTable()],
    verbose=0,
)

# %% [markdown]
# Unfreeze the whole network and train again. Nothing has to be compiled again: the optimizer has known all weights from the
# start, and counts the steps of each.

# %%
model.unfreeze()
restarts = kclf.CosineRestarts(5e-4, cycle_len=1, num_cycles=2, snapshots="runs/07/snapshot")
model.fit(
    data.train,
    validation_data=data.valid,
    epochs=restarts.num_epochs,
    callbacks=[restarts, recorder, kclf.EpochTable()],
    verbose=0,
)
recorder.plot_lr()

# %% [markdown]
# ## Prediction: plain, test-time augmentation, snapshots

# %%
plain = kclf.predict(model, data.valid)
averaged = kclf.predict_tta(model, data.valid, n=4)
print(plain)
print(averaged.tta)
print(kclf.SnapshotEnsemble(model, restarts.snapshots).table(data.valid))

# %% [markdown]
# ## Looking inside

# %%
print(kclf.Interpretation(plain).summary())

# %% [markdown]
# ## The file
#
# One HDF5 file with weights, class names and preprocessing. Reading it runs no code.

# %%
model.save("runs/07/classifier.h5")
loaded = kclf.load("runs/07/classifier.h5", check=True)
files = [str(path) for path in data.valid.paths[:3]]
answers, unreadable = kclf.predict_files(loaded, files)
for file, best in zip(files, answers.top(1), strict=True):
    print(Path(file).name, best)

# %% [markdown]
# ## Only one part
#
# The parts do not need each other. Here is a model that knows nothing of kclf, with one of its callbacks:

# %%
stranger = keras.Sequential(
    [keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(2)]
)
stranger.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
x = keras.random.normal((256, 8), seed=1)
y = keras.ops.cast(x[:, 0] > 0, "int64")
history = stranger.fit(x, y, epochs=3, callbacks=[kclf.OneCycle(0.5)], verbose=0)
print([round(loss, 3) for loss in history.history["loss"]])
