from __future__ import annotations

import keras
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from kclf.layers import CutMix, MixUp, RandomErasing


def pictures(count=8):
    """Each picture has one grey level, its number."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(count, 20, 20, 3).contiguous()


LABELS = torch.arange(8) % 4
every_mixing_layer = pytest.mark.parametrize("layer_class", [MixUp, CutMix])


@every_mixing_layer
def test_labels_are_mixed_as_the_pictures(layer_class):
    """With one grey level a picture and a label row that says which, both must tell the same mixture."""
    shares = torch.eye(8)
    images, labels = layer_class(seed=1)(pictures(), shares, training=True)
    assert_close(images.mean((1, 2, 3)), labels @ torch.arange(1.0, 9), rtol=1e-5, atol=1e-5)
    assert_close(labels.sum(1), torch.ones(8))
    assert ((labels > 0) & (labels < 1)).any()


def test_in_mixup_a_picture_stays_mostly_itself():
    _, labels = MixUp(seed=1)(pictures(), torch.eye(8), training=True)
    assert (labels.diagonal() >= 0.5).all()


def test_in_cutmix_every_pixel_is_of_one_picture():
    images, _ = CutMix(seed=1)(pictures(), torch.eye(8), training=True)
    assert set(images.unique().tolist()) <= set(range(1, 9))


@every_mixing_layer
def test_class_numbers_become_shares(layer_class):
    _, labels = layer_class(4)(pictures(), LABELS, training=True)
    assert labels.shape == (8, 4)
    images, plain = layer_class(4)(pictures().to(torch.uint8), LABELS, training=False)
    assert_close(images, pictures())
    assert torch.equal(plain.argmax(1), LABELS)


@every_mixing_layer
def test_class_numbers_in_a_column_are_class_numbers(layer_class):
    layer = layer_class(4)
    _, plain = layer(pictures(), LABELS[:, None], training=False)
    assert torch.equal(plain, torch.nn.functional.one_hot(LABELS, 4).float())
    assert layer.compute_output_shape((8, 20, 20, 3), (8, 1))[1] == (8, 4)
    assert layer_class()(pictures(), LABELS[:, None] % 2, training=False)[1].shape == (8, 1)


@every_mixing_layer
def test_class_numbers_without_their_count_are_refused(layer_class):
    with pytest.raises(ValueError, match="give the layer `num_classes`"):
        layer_class()(pictures(), LABELS, training=True)


@pytest.mark.parametrize("make", [lambda: MixUp(4, seed=3), lambda: CutMix(4, seed=3)])
def test_same_seed_same_mixture_and_a_state_to_go_back_to(make):
    layer, again = make(), make()
    assert layer.get_config() == type(layer).from_config(layer.get_config()).get_config()
    first, other = layer(pictures(), LABELS, training=True), again(pictures(), LABELS, training=True)
    assert_close(first, other, rtol=0, atol=0)
    state = layer.get_random_state()
    second = layer(pictures(), LABELS, training=True)
    layer.set_random_state(state)
    assert_close(layer(pictures(), LABELS, training=True), second, rtol=0, atol=0)


@every_mixing_layer
def test_mixed_batches_train(layer_class):
    layer = layer_class(4, seed=0)
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)])
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    batches = (layer(pictures(), LABELS, training=True) for _ in range(3))
    history = model.fit(batches, steps_per_epoch=3, shuffle=False, verbose=0)
    assert history.history["loss"][0] > 0


def test_erasing_wipes_out_about_the_share_of_the_pictures_and_area():
    images = pictures(1).expand(2000, 20, 20, 3)
    wiped = (RandomErasing(0.5, seed=0)(images, training=True) != images).any(3)
    area = wiped.float().mean((1, 2))
    assert (area > 0).float().mean().item() == pytest.approx(0.49, abs=0.04)
    assert 0.2 < area.max() <= 0.36  # 0.3, in whole pixels
    boxes = wiped[area > 0]
    assert (boxes.any(2).sum(1) * boxes.any(1).sum(1) == boxes.sum((1, 2))).all()  # rectangles


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda: RandomErasing(2), "p=2"),
        (lambda: RandomErasing(max_area=-1), "max_area=-1"),
        (lambda: RandomErasing(min_aspect=0), "min_aspect=0"),
        (lambda: MixUp(alpha=0), "alpha=0"),
        (lambda: CutMix(alpha=-1), "alpha=-1"),
    ],
)
def test_bad_arguments_are_refused(make, fact):
    with pytest.raises(ValueError, match=f"Received: {fact}"):
        make()


def batch(dtype="float32", device="cpu"):
    images = np.random.default_rng(0).integers(64, 192, (4, 12, 10, 3)).astype(dtype)
    return torch.from_numpy(images).to(device), torch.tensor([0, 1, 2, 1], device=device)


@every_mixing_layer
def test_configuration_gives_the_same_layer_again(layer_class):
    layer = layer_class(num_classes=3, alpha=0.3, seed=5)
    again = layer_class.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    for mixed, expected in zip(again(*batch(), training=True), layer(*batch(), training=True), strict=True):
        assert torch.equal(mixed, expected)


@every_mixing_layer
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # numpy 2 on Keras' tensors
def test_a_saved_model_predicts_the_same(layer_class, tmp_path):
    images, labels = keras.Input((12, 10, 3)), keras.Input((), dtype="int64")
    model = keras.Model([images, labels], layer_class(num_classes=3, seed=5)(images, labels))
    model.save(tmp_path / "model.keras")

    again = keras.saving.load_model(tmp_path / "model.keras")

    given = [part.numpy() for part in batch()]
    for result, expected in zip(
        again.predict(given, verbose=0), model.predict(given, verbose=0), strict=True
    ):
        np.testing.assert_array_equal(result, expected)


@every_mixing_layer
def test_shapes_are_told_before_there_is_data(layer_class):
    layer = layer_class(num_classes=3)
    real = [tuple(part.shape) for part in layer(*batch(), training=True)]
    assert list(layer.compute_output_shape((4, 12, 10, 3), (4,))) == real
    assert [tuple(part.shape) for part in layer(*batch(device="meta"), training=True)] == real
    symbolic = layer(keras.KerasTensor((None, 12, 10, 3)), keras.KerasTensor((None,), dtype="int64"))
    assert [part.shape for part in symbolic] == [(None, 12, 10, 3), (None, 3)]
    assert [part.dtype for part in symbolic] == ["float32", "float32"]


@every_mixing_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64"])
def test_float32_under_every_policy_and_from_every_dtype(layer_class, policy, dtype):
    expected = layer_class(num_classes=3, seed=5)(*batch(), training=True)
    keras.config.set_dtype_policy(policy)

    results = layer_class(num_classes=3, seed=5)(*batch(dtype), training=True)

    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-4)


@every_mixing_layer
def test_the_input_stays_as_it_was(layer_class):
    images, labels = batch()
    for part in layer_class(num_classes=3)(images, labels, training=True):
        part.mul_(0)
    assert torch.equal(images, batch()[0])
    assert torch.equal(labels, batch()[1])


@every_mixing_layer
def test_gradients_reach_the_pictures(layer_class):
    images, labels = batch()
    mixed, _ = layer_class(num_classes=3)(images.requires_grad_(), labels, training=True)
    mixed.sum().backward()
    torch.testing.assert_close(images.grad.sum(), torch.tensor(float(images.numel())))  # shares sum to one


@every_mixing_layer
def test_compiled_layers_give_the_same(layer_class):
    compiled = torch.compile(layer_class(num_classes=3, seed=5), backend="eager")
    expected = layer_class(num_classes=3, seed=5)(*batch(), training=True)
    for result, wanted in zip(compiled(*batch(), training=True), expected, strict=True):
        torch.testing.assert_close(result, wanted)


@every_mixing_layer
def test_nothing_is_fetched_from_the_device(layer_class):
    """Counted by torch's profiler; the one `item` is the seed of Beta's draws, which is made on the CPU.

    The labels are shares, since torch looks at class numbers before it makes shares of them: on CPUs alone.
    """
    layer, shares = layer_class(), torch.eye(4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(batch()[0], shares, training=True)
    counted = {event.key: event.count for event in profile.key_averages()}
    assert counted.get("aten::item", 0) <= 1
    assert {"aten::nonzero", "aten::is_nonzero"}.isdisjoint(counted)


@pytest.mark.parametrize("layer_class", [MixUp, CutMix, RandomErasing])
def test_half_precision_is_refused(layer_class):
    with pytest.raises(ValueError, match="Received: dtype='float16'"):
        layer_class(dtype="float16")
