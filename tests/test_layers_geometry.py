from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from kclf.layers import geometry

EXACT = {"rtol": 0, "atol": 1e-5}


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def close(actual: torch.Tensor, expected: list) -> None:
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype), **EXACT)


def through(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Points (k, 2) taken through one map."""
    taken = torch.cat([points, torch.ones(len(points), 1, dtype=points.dtype)], 1) @ maps[0].T
    return taken[:, :2] / taken[:, 2:]


CORNERS = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)  # TL BL TR BR


def test_rotation(golden):
    close(geometry.rotation(one(10))[0], golden["rotate_mat(draw=10deg)"])


def test_rotation_of_a_wide_picture(golden):
    adapted = geometry.for_aspect(geometry.rotation(one(10)), height=2, width=4)
    close(adapted[0, :2], golden["rotate via _prepare_mat h=2,w=4 (draw=10)"])


def test_zoom(golden):
    close(geometry.zoom(one(1.1), one(0.3), one(0.8))[0], golden["zoom_mat(draw=1.1,draw_x=.3,draw_y=.8)"])


def test_flip_is_the_second_symmetry(golden):
    close(geometry.dihedral(torch.tensor([1]))[0], golden["flip_mat(draw=1)"])


@pytest.mark.parametrize("k", range(8))
def test_dihedral(golden, k):
    close(geometry.dihedral(torch.tensor([k]))[0], golden["dihedral k-> matrix (0..7)"][str(k)])


def test_warp_brings_the_target_corners_back(golden):
    targets = torch.tensor(golden["warp x_t=.2,y_t=-.1: targ_pts(order TL,BL,TR,BR)"], dtype=torch.float64)
    assert_close(through(geometry.warp(one(0.2), one(-0.1)), targets), CORNERS, **EXACT)


def test_warp_coefficients(golden):
    close(geometry.warp(one(0.2), one(-0.1))[0].flatten()[:8], golden["warp coeffs (8)"])


def test_warp_on_a_grid(golden):
    lattice = torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1], dtype=torch.float64)] * 2).flip(1)
    expected = torch.tensor(golden["warp on 3x3 identity grid"], dtype=torch.float64).reshape(9, 2)
    assert_close(through(geometry.warp(one(0.2), one(-0.1)), lattice), expected, **EXACT)


def test_product_of_flip_rotation_and_zoom(golden):
    parts = (
        geometry.dihedral(torch.tensor([1])),
        geometry.rotation(one(10)),
        geometry.zoom(one(1.1), one(0.5), one(0.5)),
    )
    close((parts[0] @ parts[1] @ parts[2])[0], golden["flip@rot10@zoom1.1 matrix"])


small = st.floats(-0.3, 0.3)


@given(degrees=st.floats(-180, 180), factor=st.floats(0.5, 3), x=small, y=small, k=st.integers(0, 7))
def test_the_inverse_map_brings_every_point_back(degrees, factor, x, y, k):
    maps = (
        geometry.warp(one(x), one(y))
        @ geometry.dihedral(torch.tensor([k]))
        @ geometry.rotation(one(degrees))
        @ geometry.zoom(one(factor), one(0.5), one(0.5))
    )
    points = torch.rand(20, 2, dtype=torch.float64) - 0.5

    there_and_back = through(maps.inverse(), through(maps, points))

    assert_close(there_and_back, points, rtol=0, atol=1e-9)


@given(degrees=st.floats(-180, 180), x=small, y=small)
def test_the_grid_is_the_map_at_every_pixel(degrees, x, y):
    maps = geometry.warp(one(x), one(y)) @ geometry.rotation(one(degrees))
    height, width = 3, 5
    centres = torch.cartesian_prod(
        (torch.arange(height, dtype=torch.float64) * 2 + 1) / height - 1,
        (torch.arange(width, dtype=torch.float64) * 2 + 1) / width - 1,
    ).flip(1)

    [places] = geometry.sampling_grids(maps, (height, width), [1])

    assert_close(places().reshape(-1, 2), through(maps, centres), rtol=1e-9, atol=1e-9)


def test_shrinkage_counts_input_pixels_under_an_output_pixel():
    maps = geometry.crop(one(0.5), one(1.0), one(0.2), one(0.9))
    assert_close(
        geometry.shrinkage(maps, (400, 600), (100, 100)), torch.tensor([[4.0, 3.0]], dtype=torch.float64)
    )


def test_shrinkage_of_a_perspective_is_that_of_its_centre():
    maps = geometry.warp(one(0.3), one(-0.2))
    step = 1e-6
    around = torch.tensor([[-step, 0], [step, 0], [0, -step], [0, step]], dtype=torch.float64)
    left, right, up, down = through(maps, around)
    across, along = (right - left) / (2 * step), (down - up) / (2 * step)

    measured = torch.stack([across, along], 1).norm(dim=1).flip(0)

    assert_close(geometry.shrinkage(maps, (100, 100), (100, 100))[0], measured, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "size"), [((300, 400), (224, 224)), ((400, 300), (100, 200)), ((64, 64), (32, 32))]
)
def test_the_window_has_the_aspect_of_the_result_and_touches_two_edges(source, size):
    share_y, share_x = geometry.window_of_aspect(*source, size)
    assert share_x * source[1] / (share_y * source[0]) == pytest.approx(size[1] / size[0])
    assert max(share_x, share_y) == 1
