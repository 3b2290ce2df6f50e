"""What is seen while work goes on, and what a learner does when it is cut off."""

from __future__ import annotations

import io
import re
import sys
import types

import keras
import numpy as np
import pytest
import torch

from kclf import ImageData, Learner, side_on
from kclf._core.progress import Progress
from kclf.callbacks.recording import LateLoss, smooth
from kclf.callbacks.snapshots import BestSoFar
from kclf.errors import NotFiniteError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch) -> Terminal:
    """A terminal of 80 columns from here on."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "80")
    return shown


def backbone() -> keras.Model:
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, strides=4, activation="relu")(image)
    return keras.Model(image, keras.layers.BatchNormalization()(x), name="tiny")


def learner_of(tmp_path, labels=None, **settings) -> Learner:
    photos = np.random.default_rng(0).integers(0, 128, (40, 16, 16, 3), dtype=np.uint8)
    photos[::2, ..., 0] += 100
    labels = ["cat", "dog"] * 20 if labels is None else labels
    task = "regression" if isinstance(labels, np.ndarray) else None
    data = ImageData.from_arrays((photos, labels), batch_size=8, task=task)
    settings = {"hidden": (), "normalization": "tf", "path": tmp_path, "verbose": False} | settings
    return Learner(data, backbone(), **settings)


def lines(shown: io.StringIO) -> list[str]:
    return [part.strip() for part in re.split(r"[\r\n]", shown.getvalue()) if part.strip()]


def test_a_fit_shows_epoch_batches_speed_loss_and_time_left(monkeypatch, tmp_path, capsys):
    learner = learner_of(tmp_path, verbose=True)
    terminal = terminal_of(monkeypatch)
    learner.fit_one_cycle(2, 1e-3)

    what, bar, count, speed, loss, left = re.split(r" +\d+%|\| | batches, |, ", lines(terminal)[-1])
    assert (what, bar[0], count) == ("validation", "|", "8/8")
    assert re.fullmatch(r"[\d.,]+ photos/s loss \d\.\d{4} \d+:\d\d left", f"{speed} {loss} {left}")
    assert max(map(len, lines(terminal))) <= 80
    assert "\x1b" not in capsys.readouterr().out  # the table is plain text
    assert [row["epoch"] for row in learner.table.rows] == [0, 1]


def test_range_test_predictions_and_views_have_a_bar(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Progress.__init__, "__kwdefaults__", {**Progress.__init__.__kwdefaults__, "delay": 0.0}
    )
    terminal = terminal_of(monkeypatch)
    learner = learner_of(tmp_path, verbose=True, augmentation=side_on(16))
    learner.lr_find(num_it=6)
    assert "range test" in terminal.getvalue()
    assert "/6 batches" in terminal.getvalue()
    learner.get_preds()
    learner.TTA(n_aug=2)
    assert {"predictions", "3 views"} <= {line.split("  ")[0] for line in lines(terminal)}


def test_nothing_is_shown_where_nobody_looks(tmp_path, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with Progress(2, "reading", delay=0.0) as bar:
        bar.update()
    learner_of(tmp_path, verbose=True).fit_one_cycle(1, 1e-3)
    assert shown.getvalue() == ""


def test_in_a_notebook_the_bar_is_one_output_that_ends_empty(monkeypatch):
    shown: list[str] = []

    class Handle:
        def update(self, html):
            shown.append(html)

    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, lambda html, display_id: Handle()
    module = types.ModuleType("IPython")
    module.get_ipython, module.display = lambda: shell, display
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)

    with Progress(3, "<reading>", delay=0.0) as bar:
        bar.update(2)
        bar.refresh()

    assert "&lt;reading&gt;  67%|██" in shown[-2]
    assert shown[-1] == ""


def test_the_loss_that_is_shown_is_the_debiased_average():
    late, losses = LateLoss(), [3.0, 1.0, 2.0]
    found = [late.add(torch.tensor(loss)) for loss in losses]
    assert found == pytest.approx(smooth(losses).tolist())


def test_the_table_has_the_debiased_average_of_this_fit(tmp_path):
    learner = learner_of(tmp_path, verbose=True)
    for _ in range(2):
        learner.fit_one_cycle(1, 1e-3)
    assert learner.table.rows[1]["train_loss"] == pytest.approx(smooth(learner.recorder.losses[4:])[-1])
    assert learner.recorder.smoothed_losses.tolist() == pytest.approx(
        [*smooth(learner.recorder.losses[:4]), *smooth(learner.recorder.losses[4:])]
    )


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C in an epoch; keeps the head's kernel as it was after each epoch before."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch, self.kernels, self.losses = epoch, [], []

    def on_epoch_end(self, epoch, logs=None):
        self.kernels.append(self.model.head.weights[-2].numpy().copy())
        self.losses.append(logs["val_loss"])

    def on_train_batch_end(self, batch, logs=None):
        if len(self.kernels) == self.epoch and batch == 2:
            raise KeyboardInterrupt


def test_ctrl_c_leaves_the_best_epoch_and_the_next_fit_goes_well(tmp_path, capsys):
    learner = learner_of(tmp_path, verbose=True)
    cut = Interrupt(3)
    with pytest.raises(KeyboardInterrupt):
        learner.fit_one_cycle(5, 0.3, callbacks=[cut])
    best = int(np.argmin(cut.losses))
    assert np.array_equal(learner.model.head.weights[-2].numpy(), cut.kernels[best])
    said = f"those of epoch {best}, the best so far, valid_loss {cut.losses[best]:.6f}"
    assert said in capsys.readouterr().out
    assert len(learner.fit_one_cycle(1, 1e-3).history["loss"]) == 1


def test_ctrl_c_in_the_first_epoch_leaves_what_is_there(tmp_path, capsys):
    learner = learner_of(tmp_path, verbose=True)
    with pytest.raises(KeyboardInterrupt):
        learner.fit_one_cycle(2, 1e-3, callbacks=[Interrupt(0)])
    assert "No epoch was over" in capsys.readouterr().out


def test_without_validation_the_last_epoch_is_the_best():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    best = BestSoFar()
    model.fit(np.ones((4, 1)), np.ones((4, 1)), epochs=3, callbacks=[best], verbose=0)
    assert best.epoch == 2


def test_a_loss_that_is_not_finite_names_the_batch_and_the_photos(tmp_path):
    learner = learner_of(tmp_path, labels=np.linspace(0, 1, 40))
    train = learner.data.train
    train.labels[7] = np.nan
    row = list(train.order(0)).index(7)
    with pytest.raises(NotFiniteError, match=rf"epoch 0, batch {row // 8}\..*not finite: "):
        learner.fit_one_cycle(1, 1e-3)


def test_steps_that_are_too_large_end_with_the_best_epoch(tmp_path):
    learner = learner_of(tmp_path, optimizer=keras.optimizers.SGD, loss="mse", labels=np.linspace(0, 1, 40))
    learner.fit(1e-4, 1)
    with pytest.raises(NotFiniteError, match="became infinite or NaN") as caught:
        learner.fit(1e12, 30)
    assert np.isfinite(learner.model.head.weights[-2].numpy()).all()
    assert caught.value.__notes__


def test_too_little_memory_halves_the_batch(tmp_path, monkeypatch):
    learner = learner_of(tmp_path)
    whole = learner_of(tmp_path)
    whole.model.set_weights(learner.model.get_weights())
    step = learner.model.train_step

    def short_of_memory(data):
        if len(data[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(data)

    monkeypatch.setattr(learner.model, "train_step", short_of_memory)
    with pytest.warns(UserWarning, match="they go through in 2 parts"):
        learner.fit_one_cycle(1, 1e-3)
    whole.fit_one_cycle(1, 1e-3)
    assert learner.memory.parts == 2
    # the same steps, but for the head's BatchNorm, which sees the parts
    np.testing.assert_allclose(learner.recorder.losses, whole.recorder.losses, rtol=0.01)
