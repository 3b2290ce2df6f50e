from __future__ import annotations

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from kclf.layers import Augmentation, aug_transforms, geometry, none, side_on, top_down, trivial
from kclf.layers.resampling import resample

STRONG = {
    "flip": "dihedral", "max_rotate": 30, "max_zoom": 1.5, "max_warp": 0.2, "min_scale": 0.3,
    "max_lighting": 0.4, "max_saturation": 0.5, "max_hue": 0.2,
}  # fmt: skip


def smooth(count: int = 1, side: int = 64) -> torch.Tensor:
    """Pictures (count, side, side, 3) in [0, 255] without fine detail."""
    coarse = torch.rand(count, 3, 5, 5) * 255
    return (
        F.interpolate(coarse, size=(side, side), mode="bicubic")
        .clamp(0, 255)
        .permute(0, 2, 3, 1)
        .contiguous()
    )


def test_same_seed_same_pictures():
    images = smooth(4)
    first, second = (Augmentation(32, **STRONG, seed=7) for _ in range(2))
    assert torch.equal(first(images, training=True), second(images, training=True))
    assert torch.equal(first(images, training=True), second(images, training=True))
    assert not torch.equal(first(images, training=True), first(images, training=True))


def test_without_a_seed_the_global_one_decides():
    keras.utils.set_random_seed(5)
    first = Augmentation(32, **STRONG)
    second = Augmentation(32, **STRONG)
    keras.utils.set_random_seed(5)
    again = Augmentation(32, **STRONG)
    assert first.seed == again.seed != second.seed


def test_the_random_state_can_be_taken_back():
    layer, images = Augmentation(32, **STRONG), smooth(2)
    layer(images, training=True)
    state = layer.get_random_state()
    first = layer(images, training=True)

    layer.set_random_state(state)

    assert torch.equal(layer(images, training=True), first)


def test_prediction_draws_nothing():
    layer = Augmentation(32, **STRONG)
    before = layer.get_random_state()
    layer(smooth(2), training=False)
    assert torch.equal(layer.get_random_state(), before)


@pytest.mark.parametrize(
    ("settings", "random"),
    [
        ({}, False),
        ({"interpolation": "bicubic", "fill_mode": "zeros"}, False),
        ({"max_rotate": 10, "max_hue": 0.1, "p_affine": 0, "p_lighting": 0}, False),
        ({"flip": "horizontal"}, True),
        ({"min_scale": 0.5}, True),
        ({"max_rotate": 10}, True),
        ({"min_zoom": 0.8}, True),
        ({"max_hue": 0.1}, True),
        ({"min_zoom": 1.5, "max_zoom": 1.5, "trivial_augment": True}, True),
        ({"max_hue": 0.1, "p_lighting": 0, "trivial_augment": True}, True),
    ],
)
def test_whether_it_draws_anything_is_known(settings, random):
    layer = Augmentation(16, seed=0, **settings)
    images = np.random.default_rng(0).integers(0, 256, (16, 20, 20, 3), dtype="uint8")
    differs = not torch.equal(layer(images, training=True), layer(images, training=False))
    assert layer.is_random == differs == random


def test_a_batch_is_its_pictures():
    images = smooth(3)
    layer = Augmentation(32, **STRONG, seed=2)
    drawn = layer.draw(3, 64, 64)

    together = layer.apply(images, drawn)

    for i in range(3):
        assert_close(layer.apply(images[i : i + 1], drawn[i : i + 1]), together[i : i + 1])


def test_every_picture_has_its_own_draw():
    drawn = Augmentation(32, **STRONG, seed=2).draw(50, 64, 64)
    assert len({tuple(m) for m in drawn.maps.flatten(1).tolist()}) == 50
    assert len(set(drawn.brightness.tolist())) > 30


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_without_changes_it_is_the_plain_antialiased_resize(interpolation):
    images = (torch.rand(2, 97, 97, 3) * 255).to(torch.uint8)
    plain = F.interpolate(
        images.permute(0, 3, 1, 2).float(), size=(41, 41), mode=interpolation, antialias=True
    ).clamp(0, 255)

    result = Augmentation(41, interpolation=interpolation)(images, training=True)

    assert (result - plain.permute(0, 2, 3, 1)).abs().max() <= 1


def test_the_size_of_the_input_is_kept_bit_for_bit():
    images = (torch.rand(2, 20, 30, 3) * 255).to(torch.uint8)
    assert torch.equal(none()(images, training=True), images.float())


def test_prediction_takes_the_centre_window_of_the_wanted_aspect():
    images = smooth(1, 40)[:, :, :30]
    centre = images[:, 5:35].permute(0, 3, 1, 2)
    expected = F.interpolate(centre, size=(30, 30)).permute(0, 2, 3, 1)
    assert_close(none(30)(images), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("k", range(8))
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_symmetries_are_exact_and_the_same_as_by_sampling(k, interpolation):
    images = torch.rand(2, 6, 6, 3) * 255
    maps = geometry.dihedral(torch.tensor([k, k]))

    exact = resample(images, maps, (6, 6), interpolation=interpolation)

    assert exact.flatten().sort().values.equal(images.flatten().sort().values)
    sampled = resample(images, maps, (6, 6), interpolation=interpolation, antialias=False)
    assert_close(exact, sampled, rtol=0, atol=1e-2)


def test_a_quarter_turn_of_a_picture_that_is_not_square():
    images = torch.rand(1, 8, 6, 3) * 255
    maps = geometry.dihedral(torch.tensor([3]))
    assert_close(resample(images, maps, (6, 8)), images.rot90(1, (1, 2)), rtol=0, atol=1e-2)


def test_one_resample_is_the_product_of_the_parts():
    """On a picture without detail, one read through the product is what reading step by step gives."""
    images = smooth(1, 128)
    angle, factor = torch.tensor([12.0]), torch.tensor([1.3])
    turn, grow = geometry.rotation(angle), geometry.zoom(factor, torch.tensor([0.3]), torch.tensor([0.6]))

    at_once = resample(images, turn @ grow, (128, 128))
    in_steps = resample(resample(images, turn, (128, 128)), grow, (128, 128))

    assert (at_once - in_steps)[:, 16:-16, 16:-16].abs().max() < 2


def test_the_inverse_brings_the_picture_back():
    images = smooth(1, 128)
    drawn = Augmentation(flip="horizontal", max_rotate=15, max_warp=0.1, p_affine=1, seed=1).draw(1, 128, 128)
    there = resample(images, drawn.maps, (128, 128))
    back = resample(there, drawn.maps.inverse(), (128, 128))
    assert (back - images)[:, 32:-32, 32:-32].abs().max() < 3


def test_whole_numbers_and_floats_agree_to_a_grey_level():
    images = smooth(2, 100).round()
    layer = aug_transforms(32, min_scale=0.5)
    drawn = layer.draw(2, 100, 100)
    difference = layer.apply(images.to(torch.uint8), drawn) - layer.apply(images, drawn)
    assert difference.abs().max() < 1.5


def test_a_mask_takes_the_geometry_and_no_new_values():
    masks = torch.randint(0, 2, (3, 64, 64, 1), dtype=torch.uint8) * 200
    layer = Augmentation(24, **STRONG)
    drawn = layer.draw(3, 64, 64)
    result = layer.apply(masks, drawn, lighting=False, interpolation="nearest")
    assert set(result.unique().tolist()) <= {0.0, 200.0}


@pytest.mark.parametrize("fill_mode", ["reflect", "border", "zeros"])
def test_what_lies_outside(fill_mode):
    images = torch.full((1, 8, 8, 3), 100.0)
    maps = torch.diag(torch.tensor([3.0, 3.0, 1.0]))[None]
    corner = resample(images, maps, (9, 9), fill_mode=fill_mode)[0, 0, 0, 0].item()
    assert corner == pytest.approx(0 if fill_mode == "zeros" else 100)


@pytest.mark.parametrize(("shrink", "left"), [(1.5, 75), (2.0, 40), (3.0, 20), (5.0, 10)])
def test_fine_stripes_become_grey_not_coarse_stripes(shrink, left):
    """Detail that the result cannot hold must go, also when the map is turned a little."""
    side = 240
    stripes = ((torch.arange(side) % 2) * 255.0).expand(1, side, side).unsqueeze(-1).repeat(1, 1, 1, 3)
    size = int(side / shrink)
    result = resample(stripes.to(torch.uint8), geometry.rotation(torch.tensor([5.0])), (size, size))
    inside = result[0, size // 5 : -size // 5, size // 5 : -size // 5]
    assert inside.std() < left  # 127 before


def test_draws_lie_in_their_ranges():
    layer = aug_transforms(224, min_scale=0.75, max_saturation=0.3, max_hue=0.1, seed=0)
    drawn = layer.draw(2000, 460, 460)
    assert 0.4 <= drawn.brightness.min() < 0.42 < 0.58 < drawn.brightness.max() <= 0.6
    assert 0.8 <= drawn.contrast.min() < 0.82 < 1.22 < drawn.contrast.max() <= 1.25
    assert 0.7 <= drawn.saturation.min() < drawn.saturation.max() <= 1 / 0.7
    assert -0.1 <= drawn.hue.min() < drawn.hue.max() <= 0.1
    for values, same in ((drawn.brightness, 0.5), (drawn.contrast, 1.0), (drawn.hue, 0.0)):
        assert (values != same).double().mean().item() == pytest.approx(0.75, abs=0.03)


def test_crops_keep_their_area_and_aspect():
    drawn = Augmentation(64, min_scale=0.25, seed=0).draw(2000, 100, 100)
    width, height = drawn.maps[:, 0, 0], drawn.maps[:, 1, 1]
    area, aspect = width * height, width / height
    assert 0.25 <= area.min() < 0.26
    assert 0.97 < area.max() <= 1
    assert 3 / 4 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() <= 4 / 3 + 1e-9
    edges = drawn.maps[:, :2, 2].abs() + torch.stack([width, height], 1)
    assert edges.max() <= 1 + 1e-9


def test_half_of_the_pictures_are_mirrored():
    drawn = Augmentation(flip="horizontal", seed=0).draw(2000, 10, 10)
    assert (drawn.maps[:, 0, 0] < 0).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_all_symmetries_come_alike_from_above():
    drawn = top_down(max_zoom=1, max_rotate=0, seed=0).draw(4000, 10, 10)
    _, counts = drawn.maps.round().unique(dim=0, return_counts=True)
    assert len(counts) == 8
    assert counts.min() > 400


def test_trivial_changes_one_thing():
    drawn = trivial(seed=0).draw(1000, 64, 64)
    linear = drawn.maps[:, :2, :2]
    changes = (
        ((drawn.maps[:, 2, :2] != 0).any(1)).long()
        + (linear[:, 0, 1].abs() > 1e-9).long() * (drawn.maps[:, 2, :2] == 0).all(1)
        + ((linear[:, 0, 0].abs() < 1 - 1e-9) & (linear[:, 0, 1] == 0)).long()
        + (drawn.brightness != 0.5) + (drawn.contrast != 1) + (drawn.saturation != 1) + (drawn.hue != 0)
    )  # fmt: skip
    assert changes.max() == 1
    assert (changes == 0).double().mean().item() == pytest.approx(1 / 8, abs=0.04)


def test_grey_images_have_no_colour_to_change():
    images = torch.full((32, 8, 8, 1), 100, dtype=torch.uint8)
    colour = Augmentation(max_saturation=0.9, max_hue=0.5, p_lighting=1.0, seed=0)(images, training=True)
    assert torch.equal(colour, images.float())
    light = trivial(seed=0)(images, training=True)
    assert 1 < len(light.mean((1, 2, 3)).unique()) < 32


def test_colour_is_that_of_three_channels():
    images = torch.full((2, 8, 8, 4), 100, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"3 channels.*shape=\(2, 8, 8, 4\)"):
        Augmentation(max_hue=0.1)(images, training=True)
    assert Augmentation(max_lighting=0.1)(images, training=True).shape == (2, 8, 8, 4)


def test_resized_is_the_same_augmentation_of_another_size():
    layer = side_on(None, max_zoom=1.3, seed=4)
    resized = layer.resized(48)
    assert resized(smooth(1), training=True).shape == (1, 48, 48, 3)
    assert resized.get_config() == layer.get_config() | {"size": (48, 48)}


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"size": 0}, "size=0"),
        ({"size": 3.5}, "size=3.5"),
        ({"size": (1, 2, 3)}, r"size=\(1, 2, 3\)"),
        ({"flip": "vertical"}, "flip='vertical'"),
        ({"max_rotate": -1}, "max_rotate=-1"),
        ({"min_zoom": 1.2, "max_zoom": 1.1}, "max_zoom=1.1"),
        ({"max_warp": 0.6}, "max_warp=0.6"),
        ({"min_scale": 0}, "min_scale=0"),
        ({"max_lighting": 1}, "max_lighting=1"),
        ({"p_affine": 1.5}, "p_affine=1.5"),
        ({"max_hue": float("nan")}, "max_hue=nan"),
        ({"interpolation": "lanczos"}, "interpolation='lanczos'"),
        ({"fill_mode": "wrap"}, "fill_mode='wrap'"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, fact):
    with pytest.raises(ValueError, match=f"Received: {fact}"):
        Augmentation(**arguments)


def test_words_for_numbers_are_refused():
    with pytest.raises(TypeError, match="Received: max_zoom='big'"):
        Augmentation(max_zoom="big")


def test_a_transformation_for_other_pictures_is_refused():
    layer = Augmentation(32)
    drawn = layer.draw(2, 64, 64)
    with pytest.raises(ValueError, match="3 images, 2 transformations"):
        layer.apply(smooth(3), drawn)


def test_numbers_drawn_do_not_depend_on_the_settings():
    """So a flip added to a layer leaves its other changes as they were."""
    plain, flipped = (
        Augmentation(max_rotate=10, seed=3),
        Augmentation(max_rotate=10, max_lighting=0.2, seed=3),
    )
    np.testing.assert_array_equal(plain.draw(5, 10, 10).maps, flipped.draw(5, 10, 10).maps)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_are_the_same_on_one_core_and_on_two(interpolation):
    images, threads = smooth(6), torch.get_num_threads()
    layer = aug_transforms(24, min_scale=0.5, interpolation=interpolation, seed=0)
    drawn = layer.draw(6, 64, 64)
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(layer.apply(images, drawn))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
