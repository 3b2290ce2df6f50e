"""Keywords under which Keras, torch and fastai know what kclf calls otherwise, answered with what to write.

docs/migration-keras.md shows them; tests/test_migration.py holds both together.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_SIZE = "size=SIDE for squares, or size=(HEIGHT, WIDTH)"
_LABELS = "leave it out: labels are class numbers, and losses and metrics by name take these"
_ITSELF = "leave it out: ImageClassifier normalises pixels in [0, 255] as its backbone expects"

DATA = {
    "image_size img_size target_size": _SIZE,
    "validation_split valid_pct": "valid_fraction=SHARE",
    "subset": "leave it out: data.train and data.valid are the two parts",
    "label_mode class_mode": _LABELS,
    "labels": "leave it out: folders name the classes; ImageData.from_files(paths, label) or from_table(...) "
    "take labels of your own",
    "shuffle": "leave it out: training data are shuffled, validation data are not",
    "color_mode": "channels=1 for grey; photos are read in colour, grey ones with three equal channels",
    "interpolation": "leave it out: photos are resized with antialiasing",
    "crop_to_aspect_ratio": 'resize_method="crop"',
    "pad_to_aspect_ratio": 'resize_method="pad"',
    "x_col": "path_column=NAME",
    "y_col": "label_column=NAME",
    "directory": "folder=PATH, in from_folder as the first argument",
    "dataframe": "the table as the first argument",
    "rescale preprocessing_function": _ITSELF,
    "batch_tfms": "ImageClassifier(..., augmentation=kclf.aug_transforms())",
    "item_tfms": "size=SIDE, and presize=SIDE for larger squares to augment from",
    "bs": "batch_size=NUMBER",
}
MODEL = {
    "include_top": "leave it out: a backbone has no top, and ImageClassifier adds a head",
    "classes num_classes": "class_names=[...], one name an output",
    "input_shape image_size": _SIZE,
    "input_tensor": "leave it out: the classifier makes its own input; model.inputs has it",
    "pooling": "leave it out: the head pools, by average and maximum",
    "dropout_rate": "dropout=SHARE",
    "classifier_activation activation": "leave it out: a classifier gives logits, kclf.predict probabilities",
    "preprocess_input": "leave it out; normalization= is for a backbone given as a model",
    "trainable": "leave it out: a new classifier trains its head alone; model.unfreeze() for all",
    "alpha": 'the width in the name, "MobileNetV2_035"; backbone_names() lists them',
    "in_chans n_in": "channels=NUMBER",
}
BACKBONE = MODEL | {
    "input_shape size": "input_shape=(SIDE, SIDE, 3)",
    "classes num_classes": "leave it out: a backbone ends in features",
    "class_names": "ImageClassifier(name, class_names)",
    "in_chans n_in": "input_shape=(SIDE, SIDE, NUMBER)",
}
LEARNER = {
    "cbs": "callbacks=[...]",
    "pretrained": "weights=None for random ones; published ones are the default",
    "normalize": _ITSELF,
    "wd": "weight_decay=SHARE",
    "loss_func loss_fn": "loss=FUNCTION",
    "opt_func": "optimizer=NAME, or a function of the rate",
    "lr learning_rate": "leave it out: each fit is given its rate, learner.fit_one_cycle(1, RATE)",
    "arch": "the backbone as the second argument",
    "dls": "the data as the first argument",
    "bs batch_size": "batch_size=NUMBER in ImageData",
}
FIT = {
    "cbs": "callbacks=[...]",
    "wds weight_decay": "wd=SHARE",
    "n_epochs": "the epochs as the first argument",
    "validation_data": "leave it out: the learner's data have validation photos",
}
ONE_CYCLE = FIT | {
    "lr max_lr": "lr_max=RATE",
    "epochs": "n_epoch=NUMBER",
}
FINE_TUNE = FIT | {"lr lr_max learning_rate": "base_lr=RATE"}
COMPILE = {"learning_rate lr": "optimizer=keras.optimizers.AdamW(RATE)"}
SCHEDULE = {
    "max_lr learning_rate initial_learning_rate maximal_learning_rate": "lr_max=RATE",
    "total_steps steps_per_epoch epochs": "leave it out: the length of the run is that of fit",
    "div_factor": "div=FACTOR",
    "final_div_factor": "div_final=FACTOR",
    "first_decay_steps T_0": "cycle_len=EPOCHS",
    "t_mul T_mult": "cycle_mult=FACTOR",
    "alpha eta_min": "lr_min=RATE",
}
OPTIMIZER = {
    "learning_rate lr": "the rate in the optimizer: LayerGroupOptimizer(keras.optimizers.AdamW(RATE), model)",
    "learning_rates": "learning_rate_multipliers=[...], or set_learning_rates([...]) afterwards",
    "optimizers_and_layers": "one optimizer, and a list of lists of layers",
}
RANGE_TEST = {
    "start_lr min_lr": "start=RATE",
    "end_lr max_lr": "end=RATE",
    "num_it": "num_steps=NUMBER",
}
PREDICT = {
    "verbose": "leave it out: nothing is printed",
    "steps": "leave it out: all photos are predicted",
    "batch_size": "leave it out: a dataset has its own batches; data.valid.replace(batch_size=NUMBER)",
}
AUGMENTATION = {
    "horizontal_flip": "do_flip=True, as it is by default",
    "vertical_flip": "flip_vert=True",
    "rotation_range": "max_rotate=DEGREES",
    "zoom_range": "max_zoom=FACTOR",
    "brightness_range": "max_lighting=SHARE",
    "shear_range": "max_warp=SHARE, which tilts the perspective",
    "width_shift_range height_shift_range": "ImageData(..., presize=SIDE): windows of larger squares",
    "rescale preprocessing_function": _ITSELF,
}
GRAD_CAM = {
    "last_conv_layer_name layer_name": "layer=NAME, or leave it out for the last map",
    "pred_index class_index": "classes=[...], one an image",
}
CHECKPOINT = {
    "filepath": "the folder as the first argument",
    "save_best_only monitor": "keras.callbacks.ModelCheckpoint(...): this one is for resuming a stopped run",
    "save_freq": "every=BATCHES",
}


def by_word(answers: Mapping[str, str]) -> dict[str, str]:
    """The answers by foreign keyword; in the tables, words that mean the same stand before one answer."""
    return {word: answer for words, answer in answers.items() for word in words.split()}


def answering(answers: Mapping[str, str], also: Collection[str] | None = None) -> Callable[[F], F]:
    """Let a function answer keywords that it does not have with what to write in their place.

    Args:
        answers: what to write, by foreign keyword, or several with blanks between them.
        also: the keywords that the function takes besides those of its signature; None for any, where it
            passes them on.

    Example:
        >>> @answering({"validation_split": "valid_fraction=SHARE"})
        ... def load(folder, valid_fraction=0.2): ...
        >>> load("photos", validation_split=0.1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: load() takes no validation_split=. Write valid_fraction=SHARE. Received: ...
    """
    answers = by_word(answers)

    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters
        passes_on = any(one.kind is one.VAR_KEYWORD for one in parameters.values()) and also is None
        known = {*parameters, *(also or ())}

        @functools.wraps(function)
        def answer(*arguments: Any, **named: Any) -> Any:
            for word, value in named.items():
                if word not in known and (word in answers or not passes_on):
                    name = function.__qualname__
                    if name.endswith(".__init__"):
                        name = type(arguments[0]).__name__
                    raise TypeError(_answer(name, word, value, answers, known))
            return function(*arguments, **named)

        return answer  # type: ignore[return-value]

    return decorate


def _answer(name: str, word: str, value: Any, answers: Mapping[str, str], known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, sorted({*known} - {"self", "cls"}), 1)
    advice = answers.get(word) or (f"{close[0]}=" if close else "")
    hint = f" {advice[0].upper()}{advice[1:]}." if advice.startswith("leave") else f" Write {advice}."
    return f"{name}() takes no {word}=.{hint if advice else ''} Received: {word}={_short(value)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
