"""The tables of spellings: the course's words beside kclf's own. docs/spellings.md is written from them.

python -m kclf.fastai.spellings     # prints the tables
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

SAME = "the same"
HEADINGS = {"0.7": "fastai 0.7", "2": "fastai 2", "both": "Both"}


class Spelling(NamedTuple):
    """One thing to say, as the course says it and as kclf does without `kclf.fastai`.

    Args:
        course: as typed.
        generation: "0.7", "2", or "both".
        kclf: the same in kclf's own words; `SAME` where they are the course's.
    """

    course: str
    generation: str
    kclf: str


def _table(generation: str, *rows: tuple[str, str]) -> list[Spelling]:
    return [Spelling(course, generation, kclf) for course, kclf in rows]


SPELLINGS = [
    *_table(
        "0.7",
        ("ImageClassifierData.from_paths(path, bs, tfms)", "ImageData.from_folder(path, batch_size=, size=)"),
        ("ImageClassifierData.from_csv(path, folder, csv_fname)", "ImageData.from_csv(file, folder=)"),
        ("ImageClassifierData.from_arrays(path, trn, val)", "ImageData.from_arrays(train, valid)"),
        ("tfms_from_model(arch, sz, aug_tfms, max_zoom)", "side_on(size, max_zoom=) as augmentation="),
        ("transforms_side_on, transforms_top_down, transforms_basic", "side_on, top_down, basic"),
        ("get_cv_idxs(n, cv_idx, val_pct, seed)", "cv_indices(n, fold=, valid_fraction=, seed=)"),
        ("resnet18, resnet34, resnet50, resnet101, resnet152", '"ResNet18", ..., "ResNet152"'),
        ("vgg16, vgg19, dn121, resnext50", '"VGG16", "VGG19", "DenseNet121", "ResNeXt50_32x4d"'),
        ("ConvLearner.pretrained(f, data)", "Learner(data, backbone)"),
        ("data.classes, data.c", "data.class_names, len(data.class_names)"),
        ("data.sz, data.bs", "data.size, data.batch_size"),
        ("data.trn_ds.fnames, data.val_ds, data.test_ds", "data.train.paths, data.valid, data.test"),
        ("data.trn_y, data.val_y, data.trn_ds.y", "data.train.labels, data.valid.labels"),
        ("data.trn_dl, data.val_dl, data.test_dl", "data.train, data.valid, data.test"),
        ("data.aug_dl", "learn.model.augmentation(images, training=True)"),
        ("data.trn_ds.denorm(x)", "x / 255"),
        ("data.resize(340, 'tmp')", SAME),
        ("data.class_counts()", "data.train.class_counts()"),
        ("data.is_multi, data.is_reg", "data.task"),
        ("plots(ims, rows, titles)", "data.show_batch(count, columns=)"),
        ("plot_confusion_matrix(cm, classes)", "ConfusionMatrix(counts, class_names).plot()"),
        ("accuracy_np(preds, y)", "metrics.accuracy(predictions, labels)"),
        ("learn.fit(lrs, n_cycle, wds, cycle_len=, cycle_mult=)", SAME),
        ("learn.precompute = True", SAME),
        ("learn.fc_model, learn.fc_data", "head_model(learn.model), precompute(learn.model, data, folder)"),
        ("learn.TTA(n_aug, is_test, average=)", "predict_tta(model, data.valid, n, average=)"),
        ("learn.predict_array(arr)", "predict(model, images)"),
        ("learn.bn_freeze(True)", 'learn.model.batchnorm = "inference"'),
        ("learn.crit", "learn.training.build_loss(learn.model.task)"),
        ("learn.warm_up(lr)", "learn.fit_one_cycle(1, lr, pct_start=1.0, div=100.0)"),
        ("learn.sched.plot(), learn.sched.plot_lr()", SAME),
        ("learn.metrics = [accuracy]", "Learner(data, backbone, metrics=)"),
    ),
    *_table(
        "2",
        ("untar_data(URLs.PETS)", 'datasets.fetch("pets")'),
        ("Path(path).ls(), L([...])", "sorted(pathlib.Path(path).iterdir())"),
        ("get_image_files(path)", "files.list_images(folder)"),
        ("RegexLabeller(pat), using_attr(f, attr)", "regex_label(pattern)"),
        ("parent_label(path)", "the folder's name, by ImageData.from_folder(path)"),
        ("RandomSplitter(valid_pct, seed)", "valid_fraction=, seed=, stratified by class"),
        ("GrandparentSplitter(train_name, valid_name)", "ImageData.from_folder(path)"),
        (
            "DataBlock(blocks, get_items, splitter, get_y, item_tfms, batch_tfms)",
            "ImageData.from_files(folder, label_of, presize=, size=)",
        ),
        ("ImageBlock, CategoryBlock, MultiCategoryBlock(), RegressionBlock()", "task="),
        ("Resize(460, method)", "presize=460, resize_method="),
        ("aug_transforms(size=, min_scale=)", SAME),
        ("ImageDataLoaders.from_folder(path)", "ImageData.from_folder(path)"),
        ("ImageDataLoaders.from_csv(path), ImageDataLoaders.from_df(df)", "ImageData.from_csv(table)"),
        ("ImageDataLoaders.from_lists(path, fnames, labels)", "ImageData.from_files(files, labels)"),
        (
            "ImageDataLoaders.from_name_re(path, fnames, pat)",
            "ImageData.from_files(files, regex_label(pattern))",
        ),
        ("ImageDataLoaders.from_name_func(path, fnames, f)", "ImageData.from_files(files, label_of)"),
        ("ImageDataLoaders.from_path_func(path, fnames, f)", "ImageData.from_files(files, label_of)"),
        ("cnn_learner(dls, arch, metrics), vision_learner(dls, arch)", "Learner(data, backbone, metrics=)"),
        ("CourseLearner(dls, arch)", "Learner(data, backbone)"),
        ("dls.vocab", "data.class_names"),
        ("dls.one_batch()", "data.train.peek()"),
        ("dls.train_ds, dls.valid_ds", "data.train, data.valid"),
        ("dls.show_batch(nrows=, ncols=)", "data.show_batch(count, columns=)"),
        ("learn.dls", "learn.data"),
        ("learn.fine_tune(epochs, base_lr, freeze_epochs)", SAME),
        (
            "learn.fit_one_cycle(n_epoch, lr_max, wd=, moms=, cbs=)",
            "learn.fit_one_cycle(n_epoch, lr_max, wd=, callbacks=)",
        ),
        ("learn.fit_flat_cos(n_epoch, lr)", SAME),
        ("learn.fit(n_epoch, lr)", "learn.fit(lrs, n_cycle)"),
        ("learn.lr_find(suggest_funcs=)", "learn.lr_find(suggest=)"),
        ("learn.get_preds(ds_idx=1, dl=)", 'learn.get_preds("valid", dl=)'),
        ("learn.validate(ds_idx)", "learn.model.evaluate(data.valid)"),
        (
            "MixUp(alpha), CutMix(alpha), GradientClip(max_norm)",
            "Learner(data, backbone, mixup=, cutmix=, clip=)",
        ),
        ("SaveModelCallback(monitor, fname)", "learn.best_model(name, monitor=)"),
        ("EarlyStoppingCallback(monitor, patience=)", "keras.callbacks.EarlyStopping(monitor, patience=)"),
        ("CSVLogger(fname)", "keras.callbacks.CSVLogger(file)"),
        (
            "CrossEntropyLossFlat(), LabelSmoothingCrossEntropy(eps), FocalLossFlat(gamma=)",
            "Learner(data, backbone, label_smoothing=, focal_gamma=)",
        ),
        ("minimum, steep, valley, slide", '"minimum", "steep", "valley", "slide"'),
        ("PILImage.create(file)", "PIL.Image.open(file)"),
        ("dls.test_dl(files)", "predict_files(learn.model, files)"),
        ("learn.loss_func", "learn.training.build_loss(learn.model.task)"),
        ("learn.opt", "learn.model.optimizer"),
        ("learn.no_bar()", "Learner(data, backbone, verbose=)"),
        ("learn.remove_cb(cb)", "learn.callbacks.remove(callback)"),
        ("learn.recorder.plot_loss()", SAME),
        ("learn.recorder.lrs, learn.recorder.values", "learn.recorder.learning_rates, learn.recorder.epochs"),
        ("learn.recorder.plot_sched()", "learn.recorder.plot_lr(), learn.recorder.plot_momentum()"),
        ("learn.interpret()", SAME),
        ("ClassificationInterpretation.from_learner(learn)", "learn.interpret()"),
        ("interp.plot_top_losses(9)", "learn.interpret().top_losses(9).plot()"),
        ("interp.print_classification_report()", "print(learn.interpret().class_scores())"),
        (
            "learn.export('export.pkl'), load_learner('export.pkl')",
            "learn.export('export.h5'), load_learner('export.h5')",
        ),
    ),
    *_table(
        "both",
        ("np, metrics", "numpy, kclf.metrics"),
        (
            "accuracy(preds, y), error_rate(preds, y), accuracy_multi(preds, y)",
            "metrics.accuracy(predictions, labels), ...",
        ),
        ("log_loss(y, probs)", "metrics.log_loss(labels, probabilities)"),
        ("data.show_augmented()", "data.show_augmented(augmentation)"),
        ("data.replace(size=)", SAME),
        ("data.augmentation, data.path", "learn.model.augmentation"),
        ("data.carrying(data, augmentation)", "Learner(data, backbone, augmentation=)"),
    ),
]


def markdown() -> str:
    """The tables as docs/spellings.md has them, one for each generation."""
    parts = []
    for generation, spellings in itertools.groupby(SPELLINGS, lambda one: one.generation):
        rows = [
            f"| `{one.course}` | {one.kclf if one.kclf == SAME else f'`{one.kclf}`'} |" for one in spellings
        ]
        parts.append(
            "\n".join([f"## {HEADINGS[generation]}", "", "| fastai | kclf |", "|---|---|", *rows]) + "\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    print(markdown(), end="")
