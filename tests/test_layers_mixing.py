from __future__ import annotations

import keras
import pytest
import torch
from torch.testing import assert_close

from kclf.layers import CutMix, MixUp, RandomErasing


def pictures(count=8):
    """Each picture has one grey level, its number."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(count, 20, 20, 3).contiguous()


LABELS = torch.arange(8) % 4


@pytest.mark.parametrize("layer_class", [MixUp, CutMix])
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


@pytest.mark.parametrize("layer_class", [MixUp, CutMix])
def test_class_numbers_become_shares(layer_class):
    _, labels = layer_class(4)(pictures(), LABELS, training=True)
    assert labels.shape == (8, 4)
    images, plain = layer_class(4)(pictures().to(torch.uint8), LABELS, training=False)
    assert_close(images, pictures())
    assert torch.equal(plain.argmax(1), LABELS)


@pytest.mark.parametrize("layer_class", [MixUp, CutMix])
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


@pytest.mark.parametrize("layer_class", [MixUp, CutMix])
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
