from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from kclf.data import decoding, images
from kclf.errors import ImageError

# Four colours, one a quarter: any turn, mirror or mix-up of channels shows.
RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 200, 30), (30, 30, 200), (120, 120, 120)


def quarters(width=80, height=60):
    array = np.empty((height, width, 3), np.uint8)
    array[: height // 2, : width // 2], array[: height // 2, width // 2 :] = RED, GREEN
    array[height // 2 :, : width // 2], array[height // 2 :, width // 2 :] = BLUE, GREY
    return array


def corners(array):
    height, width = array.shape[:2]
    return [array[y, x].astype(int) for y in (height // 4, -height // 4) for x in (width // 4, -width // 4)]


def photo(width, height, seed=0):
    """A smooth random image, as a photo is: noise has nothing that a resize keeps."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


# Formats


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "a.gif", "a.ppm", "a.avif"])
def test_formats_give_the_same_picture(tmp_path, name):
    Image.fromarray(quarters()).save(tmp_path / name)

    read = images.read_image(tmp_path / name)

    assert read.shape == (60, 80, 3)
    assert read.dtype == np.uint8
    assert np.abs(np.array(corners(read)) - [RED, GREEN, BLUE, GREY]).max() < 12


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_colour_modes_become_rgb(tmp_path, mode, suffix):
    if (mode, suffix) in {("RGBA", "jpg"), ("P", "jpg"), ("CMYK", "png"), ("YCbCr", "png")}:
        pytest.skip("the format has no such mode")
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(quarters()).convert(mode).save(file)

    read = images.read_image(file)

    assert np.abs(np.array(corners(read)) - [RED, GREEN, BLUE, GREY]).max() < (60 if mode == "P" else 12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((4, 5), 100, np.uint8), 100),
        (np.full((4, 5), True), 255),
        (np.full((4, 5), 100 * 257, np.uint16), 100),
        (np.full((4, 5), 3, np.uint16), 0),
        (np.full((4, 5), 100 * 257, np.int32), 100),
        (np.full((4, 5), 0.5, np.float32), 128),
        (np.full((4, 5), 100.0, np.float32), 255),
    ],
)
def test_grey_of_any_depth_becomes_rgb(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tiff")

    read = images.read_image(tmp_path / "a.tiff")

    assert read.shape == (4, 5, 3)
    assert np.unique(read).tolist() == [expected]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(tmp_path, mode):
    image = Image.new(mode, (4, 4), 0)
    image.save(tmp_path / "a.png")

    assert (images.read_image(tmp_path / "a.png") == 255).all()


def test_a_transparent_palette_colour_is_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "a.png", transparency=1)

    assert (images.read_image(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])

    read = images.read_image(tmp_path / f"a.{suffix}")

    assert np.abs(read.astype(int) - RED).max() < 10


@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, kind):
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](quarters())
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / f"a.{kind}", exif=exif, quality=95)

    read = images.read_image(tmp_path / f"a.{kind}")

    assert read.shape == (60, 80, 3)
    assert np.abs(np.array(corners(read)) - [RED, GREEN, BLUE, GREY]).max() < 12
    assert images.image_size(tmp_path / f"a.{kind}") == (80, 60)


def test_a_large_jpeg_is_decoded_smaller_but_never_too_small(tmp_path):
    Image.fromarray(photo(1600, 1200)).save(tmp_path / "a.jpg", quality=95)

    assert images.read_image(tmp_path / "a.jpg").shape == (1200, 1600, 3)
    assert images.read_image(tmp_path / "a.jpg", at_least=460).shape == (600, 800, 3)
    assert images.read_image(tmp_path / "a.jpg", at_least=1200).shape == (1200, 1600, 3)


def test_decoding_smaller_looks_the_same(tmp_path):
    Image.fromarray(photo(1600, 1200)).save(tmp_path / "a.jpg", quality=95)
    squares = [
        images.to_frame(images.read_image(tmp_path / "a.jpg", at_least), 224).astype(int)
        for at_least in (None, 224)
    ]

    assert np.abs(squares[0] - squares[1]).max() <= 3


# Files that cannot be read


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(photo(300, 200)).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not an image, or its header is damaged"),
        (jpeg()[:2000], "truncated"),
        (jpeg()[:30], "not an image|[Tt]runcated"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, content, reason):
    file = tmp_path / "a.jpg"
    file.write_bytes(content)

    with pytest.raises(ImageError, match=reason) as caught:
        images.read_image(file)

    assert caught.value.path == str(file)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        images.read_image(tmp_path / "no.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        images.read_image(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        images.image_size(tmp_path / "no.jpg")


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 - 1)

    with pytest.raises(ImageError, match="over the limit"):
        images.read_image(tmp_path / "a.png")


def test_the_window_is_fastai_s(golden):
    for width, height in ((500, 374), (375, 500)):
        size, corner = golden[
            f"Resize(460) crop valid {width}x{height}" + " -> crop size, top-left" * (width == 500)
        ]

        left, top, right, bottom = images.crop_box(width, height)

        assert ([right - left, bottom - top], [left, top]) == (size, corner)


@pytest.mark.parametrize("method", images.RESIZE_METHODS)
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (50, 50), (1, 70), (70, 1), (300, 200)])
@pytest.mark.parametrize("position", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_any_shape_becomes_a_square_by_any_method(method, shape, position):
    image = np.full((*shape, 3), 7, np.uint8)

    square = images.to_frame(image, 50, method, position)

    assert square.shape == (50, 50, 3)
    assert square.dtype == np.uint8
    assert (square == 7).all()


@pytest.mark.parametrize(
    ("position", "expected"), [((0.0, 0.5), RED), ((1.0, 0.5), GREEN), ((0.0, 0.0), RED)]
)
def test_crop_takes_the_window_at_its_position(position, expected):
    image = quarters(200, 100)[:50]

    assert (images.to_frame(image, 50, "crop", position) == expected).all()


def test_pad_mirrors_the_edges_and_loses_nothing():
    image = quarters(100, 50)

    square = images.to_frame(image, 100, "pad")

    assert np.array_equal(square[25:75], image)
    assert np.array_equal(square[:25], image[1:26][::-1])
    assert np.array_equal(square[75:], image[-26:-1][::-1])


def test_squish_keeps_the_corners():
    square = images.to_frame(quarters(200, 100), 50, "squish")

    assert [tuple(c) for c in corners(square)] == [RED, GREEN, BLUE, GREY]


@pytest.mark.parametrize("method", images.RESIZE_METHODS)
@pytest.mark.parametrize("position", [(0.5, 0.5), (0.2, 0.9)])
def test_fit_then_place_is_to_square(method, position):
    image = photo(331, 207)
    fits = {"crop": max, "pad": min}
    height, width = images.covering(image.shape[:2], 96, fits[method]) if method in fits else (96, 96)

    in_two = images.crop_or_pad(images.resize(image, width, height), 96, position)

    difference = np.abs(in_two.astype(int) - images.to_frame(image, 96, method, position))
    assert difference.mean() < 2  # the crop begins at a fraction of a pixel in one of the two


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (50, 50)])
@pytest.mark.parametrize("method", images.RESIZE_METHODS)
def test_a_square_is_written_where_it_belongs(method, shape):
    image, batch = photo(*shape), np.zeros((2, 50, 50, 3), np.uint8)

    written = images.to_frame(image, 50, method, out=batch[1])

    assert np.shares_memory(written, batch)
    assert np.array_equal(batch[1], images.to_frame(image, 50, method))
    assert not batch[0].any()


@pytest.mark.parametrize("size", [37, 150, 400])
def test_resize_is_torch_s_antialiased_interpolation(size):
    image = photo(300, 200)
    planes = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]

    expected = functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)

    assert np.array_equal(images.resize(image, size, size), expected[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [37, 150, 400])
def test_resize_filters_as_pillow_does(size):
    image = photo(300, 200)

    ours = images.resize(image, size, size)
    pillow = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))

    assert np.abs(ours.astype(int) - pillow).max() <= 2


def test_resize_smooths_what_it_cannot_show():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255

    small = images.resize(stripes, 32, 32)

    assert np.abs(small.astype(int) - 127).max() < 10


@pytest.mark.parametrize("name", ["a\0b.jpg", "\0/a.jpg", "half\ud800.png"])
def test_a_name_that_no_file_can_have_is_a_photo_that_is_not_there(name):
    for read in (images.read_image, images.image_size):
        with pytest.raises(ImageError) as caught:
            read(name)
        assert caught.value.reason == "no such file"
