# %% [markdown]
# # 4. Restarts and snapshot ensembles
#
# Why does the rate jump back up? Because a model that settles in a narrow valley of the loss is thrown out of it, and
# one in a wide valley, which generalises better, stays. And because the end of each cycle leaves you a model for
# nothing: average them. This recipe measures what that brings.
#
# | | |
# |---|---|
# | data | Dogs v. Cats; the figures are of a sample of 2,002 photos |
# | backbone | MobileNetV2, ImageNet weights, at 96 px: so small that there is something left to gain |
# | time | about 6 minutes on 2 CPU cores for the sample |
# | expect | EXPECT_04 |

# %%
import os
import re
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import kclf
from kclf import schedules

SMALL = os.environ.get("KCLF_SMALL") == "1"  # a run of seconds that only shows that everything works
WEIGHTS = None if SMALL else os.environ.get("KCLF_WEIGHTS", "imagenet")
photos = Path(os.environ.get("KCLF_DOGSCATS") or kclf.datasets.fetch("dogs-vs-cats"))
keras.utils.set_random_seed(0)

# %% [markdown]
# ## What a schedule is
#
# A function of the step. It can be looked at before a single photo is read.

# %%
steps = 100  # batches in the first cycle
schedules.plot(schedules.cosine_restarts(1e-2, steps, cycle_mult=2), 7 * steps)
plt.title("cycles of 1, 2 and 4 epochs")

# %% [markdown]
# Cycles that grow give the model a long quiet end. How many epochs is that? The sum, not the product: 1 + 2 + 4 = 7.

# %%
print("cycles end after epochs", schedules.cycle_ends(1, 2, 3))

# %% [markdown]
# ## Data and model

# %%
data = kclf.ImageData.from_files(
    photos,
    lambda path: re.findall(r"(cat|dog)[./\\]", path.lower())[-1],
    presize=40 if SMALL else 112,
    size=32 if SMALL else 96,
    batch_size=16 if SMALL else 64,
)
learn = kclf.Learner(data, "MobileNetV2", weights=WEIGHTS, augmentation=kclf.side_on(), path="runs/04")
learn.fit(1e-2, 1)

# %% [markdown]
# ## Three cycles, three snapshots
#
# `cycle_save_name` keeps the weights at the end of each cycle, after validation.

# %%
learn.unfreeze()
learn.fit([1e-4, 1e-3, 1e-2], 2 if SMALL else 3, cycle_len=1, cycle_mult=2, cycle_save_name="dogs")
learn.sched.plot_lr()

# %% [markdown]
# The validation loss in the epochs of a cycle: worse after each restart, and then better.

# %%
losses = [logs["val_loss"] for logs in learn.recorder.epochs[1:]]
figure, axes = plt.subplots(figsize=(5, 2.5))
axes.plot(range(1, len(losses) + 1), losses, "o-")
axes.set(xlabel="epoch with everything trainable", ylabel="validation loss", ylim=(0, None))
figure.tight_layout()

# %% [markdown]
# ## What the ensemble gains
#
# Each row is a way to use the snapshots, with its gain over the last one alone and the standard error of that gain,
# taken photo by photo. A gain within two standard errors may be chance.

# %%
snapshots = learn.snapshots("dogs")
print(snapshots.table(data.valid))

# %% [markdown]
# ## Without restarts
#
# The same number of epochs in one cycle, from the same start, is the honest rival.

# %%
keras.utils.set_random_seed(0)
rival = kclf.Learner(
    data, "MobileNetV2", weights=WEIGHTS, augmentation=kclf.side_on(), path="runs/04", verbose=False
)
rival.fit(1e-2, 1)
rival.unfreeze()
rival.fit([1e-4, 1e-3, 1e-2], 1, cycle_len=3 if SMALL else 7)
one_cycle = rival.interpret()
ensemble = kclf.Interpretation.from_predictions(snapshots.predict(data.valid))
print(f"one long cycle       {one_cycle.accuracy}, log loss {one_cycle.losses.mean():.4f}")
print(f"mean of the snapshots {ensemble.accuracy}, log loss {ensemble.losses.mean():.4f}")
print(kclf.compare(one_cycle, ensemble))

# %% [markdown]
# ## Why averaging helps
#
# Models gain from each other where they err on different photos. How often do two snapshots disagree?

# %%
members = snapshots.predict_members(data.valid)
answers = np.stack([predictions.predicted for predictions in members.values()])
for first in range(len(answers)):
    for second in range(first + 1, len(answers)):
        share = np.mean(answers[first] != answers[second])
        print(f"snapshots {first} and {second} disagree on {share:.1%} of the photos")
