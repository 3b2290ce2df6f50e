# %% [markdown]
# # 8. Many GPUs
#
# The script of one GPU, started on several by torch's own launcher. Here the processes are two on one CPU, so that it
# runs anywhere; on a machine with GPUs the same words give each of them one.
#
# | | |
# |---|---|
# | data | handwritten digits, 1,797 images of scikit-learn: no download |
# | model | two convolutions, so that it takes seconds |
# | time | under a minute on two CPU cores |
# | expect | the same losses and accuracy from one process and from two, in four digits |

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

SMALL = os.environ.get("KCLF_SMALL") == "1"  # a run of seconds that only shows that everything works

# %% [markdown]
# ## The script
#
# Two lines are about processes: one joins a model that is not kclf's own to the others, one lets only one of them
# write. `batch_size` is that of all together: each process reads and computes its share of every batch.

# %%
SCRIPT = """
import json, sys
from pathlib import Path
import kclf
import keras
import numpy as np
from sklearn.datasets import load_digits

keras.utils.set_random_seed(0)
digits = load_digits()
pictures = np.uint8(digits.images * 15)[..., None].repeat(3, axis=-1)
data = kclf.ImageData.from_arrays((pictures, digits.target), size=8, batch_size=64)

model = keras.Sequential(
    [
        keras.Input((8, 8, 3)),
        kclf.aug_transforms(do_flip=False),
        keras.layers.Rescaling(1 / 128, -1),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(64, 3, strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
)
kclf.accelerate(model)
model.compile(
    kclf.LayerGroupOptimizer(keras.optimizers.AdamW(1e-2), model),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
kclf.distributed.distribute(model)  # an ImageClassifier or a Learner does this by itself

epochs = int(sys.argv[1])
history = model.fit(
    data.train, validation_data=data.valid, epochs=epochs, verbose=0,
    callbacks=[kclf.OneCycle(1e-2), kclf.EpochTable()],
)

if kclf.distributed.is_main():
    kclf.distributed.print_on_main(kclf.distributed.describe(data.batch_size, seed=0))
    Path(sys.argv[2]).write_text(json.dumps(history.history))
"""
Path("digits.py").write_text(SCRIPT)
epochs = "1" if SMALL else "4"

# %% [markdown]
# ## One process
#
# As any script.


# %%
def run(*command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    print(done.stdout)


os.environ["OMP_NUM_THREADS"] = "1"
run("digits.py", epochs, "one.json")

# %% [markdown]
# ## Two processes
#
# `torchrun --standalone --nproc-per-node 2 digits.py`, here as the module that this command is:

# %%
run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "digits.py", epochs, "two.json")

# %% [markdown]
# The augmentation draws the same for each photo, and gradients are averaged, so the two runs are one up to rounding.
# (With BatchNorm they differ a little: it normalises by the photos that a process has. Its statistics are averaged.)

# %%
one, two = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "two"))
for name in ("loss", "val_loss", "val_accuracy"):
    print(f"{name:13} one {one[name][-1]:.4f}   two {two[name][-1]:.4f}")

# %% [markdown]
# ## On real machines
#
# ```bash
# torchrun --standalone --nproc-per-node 8 digits.py                      # one machine, a process for each GPU
# torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m kclf train photos/   # restarts after a crash
# ```
#
# Several machines, and what to expect of them: `docs/scaling.md`.
