"""What a GPU would do to the loader, the guards, the optimizer and files, on a pretended one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

import kclf
from kclf._core.devices import copy_stream, full_float32, release_keepers, send
from kclf._core.keras_private import step_count
from kclf._core.quiet_steps import QuietSteps
from kclf.callbacks import FiniteGuard
from kclf.callbacks.microbatches import is_out_of_memory
from kclf.callbacks.run_state import changed_by_a_step, random_states, set_random_states
from kclf.data import ImageDataset
from kclf.data.presized import cached
from kclf.distributed import group
from kclf.errors import NotFiniteError
from kclf.prediction.activation_cache import ActivationDataset
from kclf.recipe.budget import measure_speed

from . import kernels, pretended_cuda
from .test_waits import classifier, data


def test_batches_follow_keras_device():
    with pretended_cuda():
        dataset = data(16)
        assert {part.device.type for batch in dataset for part in batch} == {"cuda"}
        with keras.device("cpu"):
            assert {part.device.type for batch in dataset for part in batch} == {"cpu"}
            assert kclf.predict(classifier(), data(16)).accuracy() >= 0


def test_epochs_share_one_copy_stream():
    copy_stream.cache_clear()
    with pretended_cuda() as device:
        dataset = data(64)
        for _ in range(3):
            list(dataset)
        assert device.streams == 2  # the default one and that of the copies
    copy_stream.cache_clear()


def test_a_step_waits_for_its_own_batch_alone():
    copy_stream.cache_clear()
    with pretended_cuda() as device:
        list(data(64))
        assert ("wait", 0, "event") in device.timeline
        assert ("wait", 0, "stream") not in device.timeline
    copy_stream.cache_clear()


def test_arrays_are_resampled_on_the_device():
    photos = np.zeros((4, 20, 20, 3), np.uint8)
    with pretended_cuda() as device:
        model = classifier()
        device.clear()
        kclf.predict(model, photos)
        assert not device.pageable
        assert device.kernels["aten::grid_sampler_2d"] + device.kernels["aten::_upsample_bilinear2d_aa"] > 0


def photos_with_one_bad(count, bad):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 8)).astype(np.float32)
    x[bad] = np.inf
    return x, rng.integers(0, 2, count)


@pytest.mark.parametrize("lag", [0, 3, 8])
def test_the_bad_step_is_named_however_far_the_device_lags(lag):
    x, y = photos_with_one_bad(64, bad=13)
    with pretended_cuda(lag):
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(2)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(kclf.LayerGroupOptimizer(keras.optimizers.SGD(0.1), model), loss)
        kclf.accelerate(model)
        with pytest.raises(NotFiniteError, match=r"epoch 0, batch 3\b.*number 1 of the batch") as found:
            model.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0, callbacks=[FiniteGuard()])
        assert found.value.inputs == ["number 1 of the batch"]
        assert all(np.isfinite(weights).all() for weights in model.get_weights())


def by_layer_group_optimizer(optimizer, variable, scaled, **options):
    layer = keras.layers.Layer()
    layer.kernel, layer.built = variable, True
    inner = kclf.LayerGroupOptimizer(optimizer, [[layer]], **options)
    some = {"initial_scale": 2.0, "dynamic_growth_steps": 1000}
    return kclf.FusedLossScaleOptimizer(inner, **some) if scaled else inner


def by_epsilon_of_torch(optimizer, variable, scaled):
    return by_layer_group_optimizer(optimizer, variable, scaled, torch_epsilon=True)


def by_keras(optimizer, variable, scaled):
    some = {"initial_scale": 2.0, "dynamic_growth_steps": 1000}
    return keras.optimizers.LossScaleOptimizer(optimizer, **some) if scaled else optimizer


def steps(make, optimizer, gradients, scaled):
    """Weights and iterations after steps by the gradients of a loss, scaled as under float16 or not."""
    variable = keras.Variable(np.array([1.0, -2.0, 3.0], np.float32), name="kernel")
    outer = make(optimizer, variable, scaled)
    outer.build([variable])
    quiet = QuietSteps(outer)
    for gradient in gradients:
        scale = float(outer.scale_loss(1.0))
        with quiet(), torch.no_grad():
            outer.apply([torch.tensor(gradient, device=variable.value.device) * scale], [variable])
    while hasattr(outer, "inner_optimizer"):
        outer = outer.inner_optimizer
    return variable.value.detach().cpu().numpy(), int(step_count(outer).value)


def cosine():
    return keras.optimizers.schedules.CosineDecay(0.1, 6)


OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1, weight_decay=0.1),
    "Adam": lambda: keras.optimizers.Adam(0.1, epsilon=1e-3),
    "AdamW": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "EMA": lambda: keras.optimizers.AdamW(0.1, use_ema=True, ema_momentum=0.5),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.1, centered=True),
    "Nadam": lambda: keras.optimizers.Nadam(0.1, clipnorm=0.3),
    "Lion": lambda: keras.optimizers.Lion(0.1),
    "schedule": lambda: keras.optimizers.SGD(cosine()),
    "RMSprop, schedule": lambda: keras.optimizers.RMSprop(cosine()),
    "accumulation": lambda: keras.optimizers.AdamW(0.1, gradient_accumulation_steps=2),
    "accumulation, Nadam": lambda: keras.optimizers.Nadam(0.1, gradient_accumulation_steps=2),
    "accumulation, all": lambda: keras.optimizers.SGD(
        cosine(), gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "overwriting": lambda: keras.optimizers.Adam(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
}


LEFT_OUT = [(name, make) for name in OPTIMIZERS for make in (by_layer_group_optimizer, by_keras)]


@pytest.mark.parametrize(("name", "make"), [*LEFT_OUT, ("Adam", by_epsilon_of_torch)])
def test_a_step_left_out_on_the_device_leaves_no_trace(name, make):
    good = [[0.1, 0.2, -0.3], [0.3, -0.1, 0.2], [-0.2, 0.4, 0.1], [0.2, -0.3, 0.3]]
    infinite = [float("inf"), 0.0, float("nan")]
    wanted = steps(make, OPTIMIZERS[name](), good, scaled=False)
    with pretended_cuda() as device:
        found = steps(make, OPTIMIZERS[name](), [infinite, good[0], infinite, *good[1:]], scaled=True)
        assert not [place for place in device.waits if "/kclf/" in str(place)]
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    assert found[1] == wanted[1] == 4


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Unable to find a valid cuDNN algorithm to run convolution", "GET was unable to find an engine",
    ],
)  # fmt: skip
def test_every_form_of_a_full_device_is_recognised(said):
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_checks_compute_in_whole_float32_and_leave_the_switches_as_they_were():
    def now():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = now()
    with full_float32():
        assert not torch.backends.cuda.matmul.allow_tf32
    assert now() == before


def test_the_state_of_more_gpus_than_there_are_is_taken_as_far_as_it_goes():
    with pretended_cuda():
        states = random_states()
        states["cuda"] = {str(number): states["cuda"]["0"] for number in range(4)}
        set_random_states(states)


def test_a_rank_that_slurm_shows_one_gpu_takes_it(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "SLURM_LOCALID": "3"}.items():
        monkeypatch.setenv(name, value)
    with pretended_cuda():
        group.take_device()
        monkeypatch.delenv("SLURM_LOCALID")
        with pytest.raises(kclf.errors.TrainingError, match="has 1 GPUs"):
            group.take_device()


def test_tensors_are_sent_without_waiting():
    with pretended_cuda() as device:
        assert send(torch.ones(3)).is_cuda
        assert not device.waits
        assert send(torch.ones(3, device="cuda"), "cpu").device.type == "cpu"
        assert sum(device.waits.values()) == 1
        assert kernels(device) == 1


def test_the_memory_guard_copies_only_what_a_step_changes():
    model = classifier(unfrozen=False)
    model.compile()
    weights = {id(variable) for variable in model.backbone.weights}
    assert [v.name for v in changed_by_a_step(model) if id(v) in weights] == []
    model.batchnorm = "train"
    moving = [v.name for v in changed_by_a_step(model) if id(v) in weights]
    assert sorted(set(moving)) == ["moving_mean", "moving_variance"]


def test_decoding_is_measured_where_it_goes_on_beside_the_steps():
    with pretended_cuda():
        assert measure_speed(classifier(), kclf.ImageData(data(16))).decode > 0


def test_datasets_keep_their_device_within_a_pass():
    dataset = ImageDataset(np.zeros((4, 8, 8, 3), np.uint8), presize=8, batch_size=2)
    assert dataset.device.type == "cpu"


def epochs(dataset, count=3):
    return [[[part.cpu() for part in batch] for batch in dataset] for _ in range(count)]


def windows(tmp_path):
    """Photos of a presized cache, of which each epoch takes other windows."""
    files = []
    sizes = [(40, 30), (30, 44), (36, 30), (30, 30), (52, 30), (30, 31)]
    for number, (width, height) in enumerate(sizes * 3):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        files.append(str(tmp_path / f"{number}.png"))
        keras.utils.save_img(files[-1], pixels, scale=False)
    photos = cached(np.array(files), 30, tmp_path / "cache", 1)
    some = {"class_names": ["cat", "dog"], "presize": 30, "batch_size": 4, "shuffle": True}
    return ImageDataset(photos, np.arange(len(files)) % 2, random_crop=True, **some)


def squares(tmp_path):
    """Photos in memory whose squares never change."""
    return data(30, side=24).replace(shuffle=True, batch_size=8)


@pytest.mark.parametrize("photos", [windows, squares])
def test_photos_stay_on_the_gpu_and_are_the_same_ones(photos, tmp_path, monkeypatch):
    expected = epochs(photos(tmp_path))
    with pretended_cuda() as device:
        dataset = photos(tmp_path)
        found = epochs(dataset, 1)
        read = []
        monkeypatch.setattr(ImageDataset, "fill", lambda *_: read.append("a square"))
        monkeypatch.setattr(ImageDataset, "fill_kept", lambda *_: read.append("a photo"))
        device.clear()
        found += epochs(dataset, 2)
        assert not read
        assert not device.pageable
    for epoch, wanted in zip(found, expected, strict=True):
        for batch, other in zip(epoch, wanted, strict=True):
            assert all(torch.equal(*parts) for parts in zip(batch, other, strict=True))


def test_photos_leave_the_gpu_when_memory_runs_out(tmp_path):
    expected = epochs(windows(tmp_path))
    with pretended_cuda():
        dataset, found = windows(tmp_path), []
        for number in range(3):
            epoch = []
            for place, batch in enumerate(dataset):
                epoch.append([part.cpu() for part in batch])
                if (number, place) == (1, 1):
                    release_keepers()
            found.append(epoch)
        assert dataset.resident() is None
    assert all(
        torch.equal(*parts)
        for epoch, wanted in zip(found, expected, strict=True)
        for batch, other in zip(epoch, wanted, strict=True)
        for parts in zip(batch, other, strict=True)
    )


def test_too_many_photos_do_not_stay(monkeypatch):
    with pretended_cuda():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (10**4, 2**37))
        assert data(30).replace(shuffle=True).resident() is None
        assert data(30).replace(shuffle=True, on_gpu=True).resident() is not None
        assert data(30).replace(shuffle=True, on_gpu=False).resident() is None


def test_activations_stay_on_the_gpu_until_memory_runs_out():
    def some():
        features = np.random.default_rng(0).normal(size=(2, 30, 6)).astype(np.float16)
        return ActivationDataset(features, np.arange(30), data(30).replace(shuffle=True))

    expected = epochs(some(), 2)
    with pretended_cuda() as device:
        dataset = some()
        next(iter(dataset))
        device.clear()
        found = epochs(dataset, 1)
        assert not device.pageable
        release_keepers()
        found += epochs(dataset, 1)
    for epoch, wanted in zip(found, expected, strict=True):
        for batch, other in zip(epoch, wanted, strict=True):
            assert all(torch.equal(*parts) for parts in zip(batch, other, strict=True))
