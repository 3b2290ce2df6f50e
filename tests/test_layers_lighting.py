from __future__ import annotations

import colorsys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from kclf.layers.lighting import adjust_hue, each, in_logit_space

NEUTRAL = {"brightness": 0.5, "contrast": 1.0, "saturation": 1.0}


def adjust_lighting(images, brightness, contrast, saturation=None):
    """Brightness, contrast and saturation as `Augmentation` draws them."""
    shift = contrast * torch.logit(brightness)
    grey_by = None if saturation is None else each(saturation)
    return in_logit_space(images, each(contrast), each(shift), grey_by)


def relit(colour: tuple[float, ...], **changes: float) -> list[float]:
    values = {name: torch.tensor([value]) for name, value in (NEUTRAL | changes).items()}
    return adjust_lighting(torch.tensor(colour).view(1, 3, 1, 1), **values).flatten().tolist()


def hued(colour: tuple[float, ...], turn: float) -> list[float]:
    return adjust_hue(torch.tensor(colour).view(1, 3, 1, 1), torch.tensor([turn])).flatten().tolist()


def test_brightness(golden):
    assert relit((0.4,) * 3, brightness=0.6) == pytest.approx(
        [golden["brightness draw .6 on .4"]] * 3, abs=1e-5
    )


def test_contrast(golden):
    assert relit((0.4,) * 3, contrast=1.25) == pytest.approx(
        [golden["contrast draw 1.25 on .4"]] * 3, abs=1e-5
    )


def test_saturation(golden):
    expected = golden["saturation draw 1.3 on (.2,.5,.8)"]
    assert relit((0.2, 0.5, 0.8), saturation=1.3) == pytest.approx(expected, abs=1e-5)


def test_hue(golden):
    assert hued((0.2, 0.5, 0.8), 0.1) == pytest.approx(golden["hue draw .1 on (.2,.5,.8)"], abs=1e-5)


def test_brightness_comes_before_contrast():
    first = relit(tuple(relit((0.2, 0.5, 0.8), brightness=0.6)), contrast=1.25)
    assert relit((0.2, 0.5, 0.8), brightness=0.6, contrast=1.25) == pytest.approx(first, abs=1e-6)


def test_no_saturation_is_grey():
    red, green, blue = relit((0.2, 0.5, 0.8), saturation=0.0)
    assert red == pytest.approx(green) == pytest.approx(blue)


colour = st.tuples(*[st.floats(0, 1, width=32)] * 3)


@given(colour)
def test_neutral_lighting_changes_nothing(colour):
    assert relit(colour) == pytest.approx(colour, abs=1e-6)


@given(colour, st.floats(-0.5, 0.5))
def test_hue_is_that_of_the_standard_library(colour, turn):
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    assert hued(colour, turn) == pytest.approx(
        colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=1e-4
    )


@given(colour, st.floats(0.3, 0.7), st.floats(0.5, 2), st.floats(0, 2))
def test_lighting_never_leaves_the_range(colour, brightness, contrast, saturation):
    values = torch.tensor(relit(colour, brightness=brightness, contrast=contrast, saturation=saturation))
    assert ((values >= 0) & (values <= 1)).all()


def test_each_picture_has_its_own_light():
    pictures = torch.full((2, 3, 1, 1), 0.4)
    relit = adjust_lighting(pictures, torch.tensor([0.5, 0.6]), torch.tensor([1.0, 1.0]))
    assert_close(relit[:, 0, 0, 0], torch.tensor([0.4, 0.5]))
