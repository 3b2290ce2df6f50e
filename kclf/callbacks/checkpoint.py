"""A run that is killed resumes where it was, and ends with the same result."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import torch

from .._core.atomic import sweep
from .._core.fit_hooks import Step, unwrap_step, wrap_step
from .._core.h5_store import JSON, read_arrays, write_arrays
from .._core.keras_private import start_epochs_at
from .._core.keywords import CHECKPOINT, answering
from .._core.locks import FolderLock
from ..distributed import gather, is_main, run_on_main, world_size
from ..errors import FileFormatError, NotFiniteError, OutputError, RunStopped, TrainingError
from .run_state import (
    assign,
    from_arrays,
    random_layers,
    random_states,
    remember_tensors,
    set_random_states,
    to_arrays,
    training_variables,
)

STOPS_EVERY = 8  # batches after which processes ask one another whether to stop
LONGEST_WAIT = 600.0  # seconds between two checkpoints where `every` is None
DONE = "done"
REFIT = "refit"  # folder beside a run's files, for the same training once more on all photos
DAMAGED = ".damaged"  # ending of a file that was set aside
PARTS = {"position", "stages", "histories", "weights", "training", "layers", "random", "others"}
PARTS |= {"epoch_random", "epoch_data"}
Position = tuple[int, int, int | str]  # stage, epoch, and batch or "done"


class Checkpoint(keras.callbacks.Callback):
    """Saves everything that a run needs to resume, and resumes from it.

    A run is one fit or several, with whatever is done between them: freezing, other rates, compiling anew.
    Give this one callback to all of them, **last in the list**, and run the same script again after a crash:
    fits that were over are passed over, the interrupted one resumes at its batch, and on the same CPU
    with the same number of threads the weights end bit for bit as they would have. So does a fit that was
    interrupted in the same process, for example by Ctrl-C in a notebook, when the same fit is the next.

    A file holds weights, BatchNorm statistics, the optimizer with its counts and loss scale, metrics, the
    random states of Python, NumPy, torch, Keras and of layers, the place in the data, the history, and the
    states of the `others`. Its number of stage, epoch and batch is the place in every schedule. It is
    written whole or not at all and carries a checksum; nothing in it is executed. A file that is damaged is
    set aside with a warning, and the one before it is taken. With several processes rank 0 writes and reads.

    Args:
        folder: where the files go; made where it is missing. Only one process works in it at a time.
        data: the training data that `fit` is given. With `state_dict` and `load_state_dict`, as
            `ImageDataset` has them, an epoch is entered in its middle without reading what comes before;
            anything else is read up to there, under the random states of then.
        every: save after so many batches of an epoch; None for every ten minutes. The beginning of an epoch
            and the end of a fit are always saved.
        keep: how many files are kept.
        others: objects with `state_dict` and `load_state_dict` that go with the run, such as a `Recorder`.
        model: a model whose weights go along, where `fit` trains only a part of it.
        resume: False to begin anew: files of an earlier run are removed.
        settings: what must be the same when a fit is resumed, as JSON values; it can be set before each fit.
        stop: called between batches; a signal's number, from it, ends the run with `RunStopped`.

    Attributes:
        folders: others that only this run writes to: what a kill left half written there is removed too.
        position: (stage, epoch, batch) of the last file that was saved or loaded, or None. The batch is
            "done" where the stage is over.

    Example:
        >>> import tempfile, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> checkpoint = Checkpoint(tempfile.mkdtemp())
        >>> _ = model.fit(np.ones((8, 2)), np.ones(8), verbose=0, callbacks=[checkpoint])
        >>> checkpoint.position
        (0, 1, 'done')
    """

    @answering(CHECKPOINT)
    def __init__(
        self,
        folder: str | os.PathLike[str],
        data: Any = None,
        *,
        every: int | None = None,
        keep: int = 3,
        others: Sequence[Any] = (),
        model: keras.Model | None = None,
        resume: bool = True,
        settings: Mapping[str, JSON] | None = None,
        stop: Callable[[], int | None] | None = None,
    ) -> None:
        super().__init__()
        if keep < 1 or (every is not None and every < 1):
            raise ValueError(f"Expected keep >= 1 and every >= 1. Received: keep={keep}, every={every}")
        self.folder = Path(folder)
        self.data, self.every, self.keep = data, every, keep
        self.others, self.whole, self.resume = list(others), model, resume
        self.settings: Mapping[str, JSON] = settings or {}
        self.stop = stop
        self.folders: list[Path] = []
        self.position: Position | None = None
        self._lock = FolderLock(self.folder)
        self._stage = -1
        self._stages: list[JSON] = []  # what each stage so far was asked to do
        self._histories: list[dict[str, Any]] = []  # of the stages that are over
        self._found: dict[str, Any] | None = None  # what is still to be taken up

    # ---- what fit calls ------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin a stage: skip it, resume inside of it, or start it."""
        run_on_main(self._lock.acquire)
        lengths = {name: (self.params or {}).get(name) for name in ("epochs", "steps")}
        asked = {**lengths, **self.settings}
        if self._is_cut_off() and self.resume and asked == self._stages[-1]:
            self.rewind()
        self._stage += 1
        self._stages.append(asked)
        if self._stage == 0 and self._found is None:
            self.look()
        self._passing = False
        self._saved_at = time.monotonic()
        if self._found is None:
            return
        stage, epoch, batch = self._found_position()
        if self._stage <= stage:
            self._check_settings(self._found["stages"][self._stage])
        self._passing = self._stage < stage or (self._stage, DONE) == (stage, batch)
        start_epochs_at(self.model, lengths["epochs"] if self._passing else epoch)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember where the data stand, or take them there."""
        start_epochs_at(self.model, None)
        self._epoch = epoch
        if self._found is not None:
            self._enter_epoch(self._found)
        self._mark_epoch()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save where it is time, before the batch; or take up what was saved."""
        if self._found is not None:
            if batch == self._found_position()[2]:
                self._restore_run(self._found)
            return
        signal = self._signal(batch)
        if signal is not None or batch == 0 or self._is_time(batch):
            self.save(batch)
        if signal is not None:
            self._lock.release()
            raise RunStopped(
                f"Stopped in stage {self._stage} at epoch {self._epoch}, batch {batch}, which is saved in "
                f"{self.folder}.",
                signal,
            )

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Do not wait for the end of a long validation with a stop."""
        signal = self.stop() if self.stop and world_size() == 1 else None
        if signal is not None:
            self._lock.release()
            raise RunStopped(
                f"Stopped in the validation after epoch {self._epoch} of stage {self._stage}; what is saved "
                f"in {self.folder} goes up to {self.position}.",
                signal,
            )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Save the end of the stage, or take up an end that was saved."""
        start_epochs_at(self.model, None)
        if self._passing and self._found is not None:
            self._leave_passed(self._found)
        else:
            self._epoch += 1
            self._mark_epoch()
            self.save(DONE)
            self._histories.append(self._history())
        self._lock.release()

    # ---- saving ------------------------------------------------------------

    def save(self, batch: int | str) -> Path:
        """Save all of the run's state as it is before a batch of the epoch; rank 0 does, for all.

        Args:
            batch: its number, or "done".

        Raises:
            NotFiniteError: a weight is infinite or NaN; nothing is saved then.
            OutputError: the file cannot be written; the ones before it are kept.
        """
        position = (self._stage, self._epoch, batch)
        path = self.folder / _name(*position)
        try:
            if is_main():
                self._write(path, *to_arrays(self._state(batch)))
        except OSError as error:
            self._lock.release()
            raise OutputError(
                f"The checkpoint {path} cannot be written: {error.strerror or error}. What was saved before "
                "it stands."
            ) from error
        self.position = position
        self._saved_at = time.monotonic()
        return path

    def restore_last_good(self, are_good: Callable[[], bool]) -> bool:
        """Give the model the weights of the last file with which they are good.

        Args:
            are_good: called with each file's weights in the model, last file first.

        Returns:
            False where no file's are; the model then has those that it had.
        """
        undo = remember_tensors(self._weights(), device=None)
        for file in reversed(self.files()):
            try:
                found = read_checkpoint(file)
            except FileFormatError as error:
                warnings.warn(str(error), stacklevel=2)
                continue
            self._take_up_weights(found)
            if are_good():
                self.position = tuple(found["position"])
                return True
        undo()
        return False

    def below(self, name: str) -> Checkpoint:
        """Another run's, in a folder of this one's, that stops and resumes as this one does."""
        return Checkpoint(
            self.folder / name, every=self.every, keep=self.keep, resume=self.resume, stop=self.stop
        )

    def rewind(self) -> None:
        """After an error cut a fit off: let the next fit be that one again, from the newest whole file."""
        self._stage -= 1
        self._stages.pop()
        self._find()

    def files(self) -> list[Path]:
        """The files that exist, oldest first."""
        places = {file: place for file in self.folder.glob("stage*.h5") if (place := _place(file.name))}
        return sorted(places, key=lambda file: places[file])

    def _write(self, path: Path, arrays: dict[str, Any], attributes: dict[str, JSON]) -> None:
        try:
            write_arrays(path, arrays, attributes)
        except OSError as error:
            spare = self.files()[:-1]
            if error.errno != errno.ENOSPC or not spare:
                raise
            _remove(spare)  # the newest stands until the new one is complete
            write_arrays(path, arrays, attributes)
        _remove(self.files()[: -self.keep])

    def _is_cut_off(self) -> bool:
        """Whether the last stage has begun in this process and not ended, as after Ctrl-C in a notebook."""
        return self._found is None and len(self._stages) > len(self._histories)

    def _signal(self, batch: int) -> int | None:
        """The signal that came, or None; with several processes any of them has it come for all."""
        signal = self.stop() if self.stop else None
        if self.stop is None or world_size() == 1:
            return signal
        if batch % STOPS_EVERY:
            return None
        return max((one for one in gather(signal) if one is not None), default=None)

    def _is_time(self, batch: int) -> bool:
        if self.every is not None:
            return batch % self.every == 0
        return time.monotonic() - self._saved_at > LONGEST_WAIT

    def _state(self, batch: int | str) -> dict[str, Any]:
        """Everything, as nested dicts of arrays and plain values."""
        return {
            "position": [self._stage, self._epoch, batch],
            "stages": self._stages,
            "histories": [*self._histories, self._history()],
            "weights": _finite(self._weights()),
            "training": self._training_state(),
            "layers": [layer.get_random_state() for layer in self._random_layers()],
            "random": random_states(),
            "epoch_random": self._epoch_random,
            "epoch_data": self._epoch_data,
            "others": [other.state_dict() for other in self.others],
        }

    def _mark_epoch(self) -> None:
        """Remember where data and random states are when an epoch begins."""
        self._epoch_random = random_states()
        self._epoch_data = self.data.state_dict() if hasattr(self.data, "state_dict") else None

    def _weights(self) -> list[torch.Tensor]:
        return [variable.value for variable in (self.whole or self.model).variables]

    def _training_state(self) -> list[torch.Tensor]:
        """What is not a weight of the whole model: metrics, the optimizer, and a part's own variables."""
        weights = {id(tensor) for tensor in self._weights()}
        state = (variable.value for variable in training_variables(self.model))
        return [tensor for tensor in state if id(tensor) not in weights]

    def _random_layers(self) -> list[keras.Layer]:
        models = (self.whole or self.model, self.model)
        return list({id(layer): layer for model in models for layer in random_layers(model)}.values())

    def _history(self) -> dict[str, Any]:
        return {"epoch": self.model.history.epoch, "history": self.model.history.history}

    # ---- resuming ------------------------------------------------------------

    def look(self) -> Path | None:
        """Clear up after a kill, and read what was saved; `fit` does so itself where nobody has.

        Returns:
            The file that the next `fit` resumes from, or None.
        """
        run_on_main(self._clear_up)
        self._find()
        return None if self._found is None else self.folder / _name(*self._found_position())

    def _clear_up(self) -> None:
        for folder in (self.folder, *self.folders):
            sweep(folder)
        if not self.resume:
            _remove(self.files())

    def _find(self) -> None:
        """Find the newest file that is whole; rank 0 does, for all."""
        self._found = run_on_main(self._newest)
        if self._found is not None:
            self.position = self._found_position()

    def _newest(self) -> dict[str, Any] | None:
        """What the newest file holds that is whole; None where there is none."""
        damage, found = [], None
        while found is None and (files := self.files()):
            try:
                found = read_checkpoint(files[-1])
            except FileFormatError as error:
                damage.append(str(error))
                files[-1].rename(f"{files[-1]}{DAMAGED}")
        if damage:
            warnings.warn(
                f"{' '.join(damage)} Set aside with the ending .damaged; resuming from "
                f"{files[-1].name if found else 'the beginning'}.",
                stacklevel=3,
            )
        return found

    def _found_position(self) -> Position:
        return tuple((self._found or {})["position"])

    def _check_settings(self, theirs: Mapping[str, JSON]) -> None:
        ours = json.loads(json.dumps(self._stages[-1]))  # tuples as the lists that they became
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                raise TrainingError(
                    f"Stage {self._stage} of the run in {self.folder} cannot be resumed: it was begun with "
                    f"{name}={theirs.get(name)!r}. Received: {name}={ours.get(name)!r}. Set it as it was, or "
                    "begin anew in another folder"
                )

    def _enter_epoch(self, found: Mapping[str, Any]) -> None:
        """Bring the data to where they stood when the epoch began, and past the batches that were done."""
        self._place_data(found)
        done = found["position"][2]
        if done:
            if hasattr(self.data, "blank_batches"):
                self.data.blank_batches(done)
            _skip_batches(self.model, done)

    def _place_data(self, found: Mapping[str, Any]) -> None:
        set_random_states(found["epoch_random"])
        if found["epoch_data"] is not None:
            self.data.load_state_dict(found["epoch_data"])

    def _restore_run(self, found: Mapping[str, Any]) -> None:
        """Make everything as it was."""
        self._take_up_weights(found)
        self._assign(self._training_state(), found["training"])
        for layer, state in zip(self._random_layers(), found["layers"], strict=True):
            layer.set_random_state(state)
        for other, state in zip(self.others, found["others"], strict=True):
            other.load_state_dict(state)
        set_random_states(found["random"])
        self._histories = found["histories"][: self._stage]
        self._tell_history(found)
        self._found = None

    def _take_up_weights(self, found: Mapping[str, Any]) -> None:
        self._assign(self._weights(), found["weights"])

    def _assign(self, tensors: list[torch.Tensor], values: Sequence[Any]) -> None:
        try:
            assign(tensors, values)
        except ValueError as error:
            raise TrainingError(f"The run in {self.folder} was of another model: {error}") from error

    def _leave_passed(self, found: Mapping[str, Any]) -> None:
        """At the end of a stage that was passed over: its result, and what `fit` returns."""
        stage, _, batch = self._found_position()
        if (self._stage, DONE) == (stage, batch):
            self._place_data(found)
            self._restore_run(found)
            self._histories = found["histories"]
        else:  # the frozen layers of the stage to come are in it as they were at its beginning
            self._take_up_weights(found)
            self._tell_history(found)

    def _tell_history(self, found: Mapping[str, Any]) -> None:
        told = found["histories"][self._stage]
        self.model.history.epoch = list(told["epoch"])
        self.model.history.history = {name: list(values) for name, values in told["history"].items()}


def _name(stage: int, epoch: int, batch: int | str) -> str:
    """A file's name; names sort as the run goes, and beyond their digits `_place` sorts them."""
    place = batch if batch == DONE else f"batch{batch:08d}"
    return f"stage{stage:04d}-epoch{epoch:06d}-{place}.h5"


def _place(name: str) -> tuple[int, int, float] | None:
    """The stage, epoch and batch that a file's name tells; None of a file of others."""
    found = re.fullmatch(r"stage(\d+)-epoch(\d+)-(?:batch(\d+)|done)\.h5", name)
    return found and (int(found[1]), int(found[2]), int(found[3]) if found[3] else math.inf)


def is_checkpoint_file(name: str) -> bool:
    """Whether a file bears a name that `Checkpoint` gives."""
    return _place(name.removesuffix(DAMAGED)) is not None


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a file holds, as nested dicts, lists and tensors.

    Raises:
        FileFormatError: it is damaged, or no checkpoint.
    """
    arrays, attributes = read_arrays(path)
    missing = sorted(PARTS - set(attributes))
    if missing:
        raise FileFormatError(f"{path}: no checkpoint, it lacks {', '.join(missing)}.")
    try:
        return from_arrays(arrays, attributes)
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise FileFormatError(f"{path}: no checkpoint ({error!r}).") from error


def _finite(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """The weights, once it is sure that they are good: one wait for the device."""
    floating = [tensor for tensor in weights if tensor.is_floating_point()]
    if not bool(torch.stack([torch.isfinite(tensor).all() for tensor in floating]).all()):
        raise NotFiniteError(
            "The weights have become infinite or NaN, so they are not saved. Lower the learning rate"
        )
    return weights


def _skip_batches(model: keras.Model, batches: int) -> None:
    """Let the fit that runs now hand its next batches to nobody."""
    left = iter(range(batches))

    def nothing(step: Step, data: list[Any]) -> Any:
        if next(left, None) is not None:
            return {}
        unwrap_step(model, "train_function", nothing)
        return step(data)

    wrap_step(model, "train_function", nothing)
