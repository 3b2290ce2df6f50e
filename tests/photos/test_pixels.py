"""The pixels of a photo, against Pillow, ImageOps and ImageCms, for whatever its file holds."""

from __future__ import annotations

import io
import os
import struct
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from photo_makers import encoded, picture
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from kclf.checks import check
from kclf.checks.file_info import inspect_file
from kclf.data import presized
from kclf.data.decoding import set_decoding
from kclf.data.images import image_size, read_image
from kclf.errors import ImageError

RAMP = np.linspace(0, 1, 24 * 16).reshape(16, 24)
GREY = np.rint(RAMP * 255)


@contextmanager
def decoded(**how):
    before = set_decoding(**how)
    try:
        yield
    finally:
        set_decoding(depth=before.depth, max_pixels=before.max_pixels)


def saved(tmp_path, image, name="a.tif", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(tmp_path / name, **options)
    return tmp_path / name


def close(image, expected, within=1.0):
    return (
        np.abs(image.astype(float) - np.broadcast_to(np.asarray(expected, float), image.shape)).max()
        <= within
    )


# Depth


@pytest.mark.parametrize(
    ("values", "depth"),
    [
        (RAMP * 65535, None),
        (RAMP * 4095, 12),
        (RAMP * 1023, 10),
        (RAMP * 255, 8),
    ],
)
@pytest.mark.parametrize(("kind", "name"), [("uint16", "a.png"), ("uint16", "a.tif"), ("int32", "a.tif")])
def test_whole_numbers(tmp_path, values, depth, kind, name):
    file = saved(tmp_path, np.rint(values).astype(kind), name)
    with decoded(depth=depth):
        assert close(read_image(file), GREY[..., None])


@pytest.mark.parametrize(
    ("values", "depth", "expected"),
    [
        (RAMP, None, GREY),
        (RAMP * 1.0001, None, GREY),
        (np.where(RAMP > 0.99, np.inf, RAMP), None, GREY),
        (np.where(RAMP < 0.01, np.nan, RAMP), None, GREY),
        (RAMP * 255, 8, GREY),
        (RAMP * 4095, 12, GREY),
        (RAMP * 65535, 16, GREY),
        (RAMP * 2 - 1, None, (GREY * 2 - 255).clip(0)),
    ],
)
def test_floats(tmp_path, values, depth, expected):
    file = saved(tmp_path, values.astype(np.float32))
    with decoded(depth=depth):
        assert close(read_image(file), expected[..., None], 3)


def test_the_values_of_one_photo_do_not_change_its_scale(tmp_path):
    one, other = np.full((4, 4), 255, np.int32), np.full((4, 4), 256, np.int32)
    assert close(read_image(saved(tmp_path, one)), read_image(saved(tmp_path, other, "b.tif")))


def test_a_depth_that_the_file_declares(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 4095
    file = saved(tmp_path, np.rint(RAMP * 4095).astype(np.uint16), tiffinfo=tags)
    assert close(read_image(file), GREY[..., None])


def test_white_is_zero_in_16_bits(tmp_path):
    file = saved(tmp_path, np.rint((1 - RAMP) * 65535).astype(np.uint16), tiffinfo={262: 0})
    assert close(read_image(file), GREY[..., None])


def deep_png(values: np.ndarray, key=None) -> bytes:
    """A PNG of 16 bits a channel, grey or RGB, with a colour key."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 0, 0, 0, 0))]
    if key is not None:
        chunks.append((b"tRNS", struct.pack(f">{channels}H", *key)))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize(("most", "depth", "within"), [(65535, None, 1), (4095, 12, 17), (1023, 10, 64)])
def test_colours_of_16_bits(tmp_path, most, depth, within):
    values = np.rint(np.repeat(RAMP[..., None], 3, axis=2) * most)
    (tmp_path / "a.png").write_bytes(deep_png(values))
    with decoded(depth=depth):
        assert close(read_image(tmp_path / "a.png"), GREY[..., None], within)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.rint(RAMP * 4095).astype(np.uint16), "nearly black"),
        ((RAMP * 99 + 1).astype(np.float32), "nearly white"),
    ],
)
def test_a_check_names_photos_of_another_depth(tmp_path, values, said):
    assert said in inspect_file(str(saved(tmp_path, values))).oddity


# Transparency


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_colour_key_is_white(tmp_path, mode):
    image = Image.new(mode, (8, 8), 0)
    key = (0, 0, 0) if mode == "RGB" else 0
    assert (read_image(saved(tmp_path, image, "a.png", transparency=key)) == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_key_of_16_bits_is_white(tmp_path, channels):
    values = np.full((4, 6, channels), 0x1234)
    values[0, 0] = 0xFFFF // 2
    (tmp_path / "a.png").write_bytes(deep_png(values, key=(0x1234,) * channels))
    image = read_image(tmp_path / "a.png")
    assert image[0, 0].tolist() == [127] * 3
    assert (image.reshape(-1, 3)[1:] == 255).all()


def test_other_colours_than_the_key_stay(tmp_path):
    photo = picture(3)
    image = read_image(saved(tmp_path, photo, "a.png", transparency=(1, 2, 3)))
    assert np.array_equal(image, np.asarray(photo))


# Orientation


def with_tag(value, kind=3):
    """EXIF with one orientation tag of a TIFF type."""
    data = {2: b"6\0\0\0", 3: struct.pack("<HH", value, 0), 4: struct.pack("<I", value), 7: b"abcd"}[kind]
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 0x0112, kind, 1) + data + b"\0\0\0\0"


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_orientations(tmp_path, value, name):
    exif = Image.Exif()
    exif[0x0112] = value
    file = saved(tmp_path, picture(1), name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert np.array_equal(read_image(file), expected)
    assert image_size(file) == expected.shape[1::-1]


@pytest.mark.parametrize(("value", "kind"), [(0, 3), (9, 3), (65535, 3), (77, 4), (6, 2), (6, 7)])
def test_orientations_that_mean_nothing_are_upright_for_size_cache_and_loader(tmp_path, value, kind):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(1, (96, 64)), "JPEG", exif=with_tag(value, kind)))
    file = str(tmp_path / "a.jpg")
    cache = presized.cached(np.array([file], dtype=object), 32, tmp_path / "cache", 1)
    assert image_size(file) == (96, 64)
    assert read_image(file).shape == (64, 96, 3)
    assert cache[0].shape == (32, 48, 3)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage!garbage!", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0MM"]
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_is_no_fault(tmp_path, exif, suffix):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(encoded(picture(1), {"jpg": "JPEG"}.get(suffix, suffix), exif=exif, dpi=(72, 72)))
    assert read_image(file).shape == (16, 24, 3)
    assert image_size(file) == (24, 16)
    assert inspect_file(str(file)).is_readable


# Colour profiles


def profile(red, green, blue, gamma):
    """A matrix profile of three primaries (CIE XYZ for D50) and a gamma, as bytes."""
    base = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", base[128:132])[0]
    tags = {bytes(base[p : p + 4]): p for p in range(132, 132 + 12 * count, 12)}
    tags = {name: struct.unpack(">II", base[p + 4 : p + 12]) for name, p in tags.items()}
    for name, xyz in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue)):
        start = tags[name][0] + 8
        base[start : start + 12] = struct.pack(">3i", *(round(v * 65536) for v in xyz))
    start = tags[b"rTRC"][0]
    base[start : start + 16] = b"para\0\0\0\0\0\0\0\0" + struct.pack(">i", round(gamma * 65536))
    return bytes(base)


DISPLAY_P3 = profile(
    (0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407), 2.4
)
ADOBE_RGB = profile(
    (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457), 2.2
)
PRO_PHOTO = profile((0.79767, 0.28804, 0), (0.13519, 0.71188, 0), (0.03134, 0.00008, 0.8249), 1.8)


def in_srgb(image, icc):
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    return np.asarray(
        ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    )


@pytest.mark.parametrize("icc", [DISPLAY_P3, ADOBE_RGB, PRO_PHOTO])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_profiles_are_converted_to_srgb(tmp_path, icc, name):
    options = {"lossless": True} if name == "a.webp" else {}
    file = saved(tmp_path, picture(5), name, icc_profile=icc, **options)
    expected = in_srgb(Image.open(file).convert("RGB"), icc)
    assert close(read_image(file), expected)
    assert np.abs(np.asarray(Image.open(file).convert("RGB")).astype(int) - expected).max() > 3


@pytest.mark.parametrize(
    "icc", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"broken", b""]
)
def test_srgb_and_broken_profiles_change_nothing(tmp_path, icc):
    file = saved(tmp_path, picture(5), "a.png", icc_profile=icc)
    assert np.array_equal(read_image(file), np.asarray(picture(5)))


def test_a_profile_with_transparency_and_orientation(tmp_path):
    image, exif = picture(5).convert("RGBA"), Image.Exif()
    image.putpixel((0, 0), (0, 0, 0, 0))
    exif[0x0112] = 6
    read = read_image(saved(tmp_path, image, "a.png", icc_profile=DISPLAY_P3, exif=exif))
    expected = in_srgb(picture(5), DISPLAY_P3)
    expected = np.rot90(expected, -1)
    assert (read[0, -1] == 255).all()
    assert close(read[1:], expected[1:])


# Size, and what is opened at all


@pytest.mark.parametrize("limit", ["own", "pillow"])
def test_a_limit_of_pixels_holds_after_scaling(tmp_path, monkeypatch, limit):
    file = saved(tmp_path, picture(1, (1600, 1200)), "a.jpg")
    plain = saved(tmp_path, picture(1, (1600, 1200)), "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 300 if limit == "pillow" else 10)
    with decoded(max_pixels=400 * 300 if limit == "own" else "pillow"):
        assert read_image(file, at_least=128).shape == (150, 200, 3)
        with pytest.raises(ImageError, match="over the limit of 120,000"):
            read_image(file)
        with pytest.raises(ImageError, match="1,600 x 1,200"):
            read_image(plain, at_least=128)


def test_no_limit_at_all(tmp_path, monkeypatch):
    file = saved(tmp_path, picture(1, (160, 120)), "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(file).shape == (120, 160, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with decoded(max_pixels=None):
        assert read_image(file).shape == (120, 160, 3)


def test_a_photo_of_108_megapixels(tmp_path):
    file = saved(tmp_path, Image.new("L", (12000, 9000), 20), "a.jpg")
    assert read_image(file, at_least=224).shape == (1125, 1500, 3)
    assert inspect_file(str(file)).is_readable


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"<svg/>"]
)
def test_no_other_format_is_opened(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "a.jpg")


# The check


@pytest.fixture
def strange(tmp_path):
    """Files that a check must survive, each with what it says of it."""
    folder = tmp_path / "data"
    (folder / "cat").mkdir(parents=True)
    frames = [picture(i, (64, 64)) for i in range(6)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    (folder / "cat/cut.gif").write_bytes(gif[: len(gif) // 2])
    tif = bytearray(encoded(picture(1), "TIFF"))
    at = struct.unpack("<I", tif[4:8])[0]
    end = at + 2 + 12 * struct.unpack("<H", tif[at : at + 2])[0]
    tif[end : end + 4] = struct.pack("<I", at - 2)
    (folder / "cat/offset.tif").write_bytes(bytes(tif))
    (folder / "cat/exif.jpg").write_bytes(encoded(picture(2), "JPEG", exif=b"Exif\0\0garbage!", dpi=(72, 72)))
    return folder


def test_a_check_survives_cut_animations_bad_offsets_and_pipes(strange):
    os.mkfifo(strange / "cat/pipe.jpg")
    findings = check(strange, threads=1)
    found = {row.path: (row.problem, row.detail) for row in findings.of("unreadable", "odd")}
    assert found.keys() <= {"cat/cut.gif", "cat/offset.tif", "cat/pipe.jpg"}
    assert found["cat/cut.gif"][0] == "odd"
    assert found["cat/pipe.jpg"] == ("unreadable", "is not a file, but a pipe or device")
