"""Image files as people have them: turned, inverted, deep, with bands and pages; read as they are
meant, or refused in words.
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from tests.data.image_files import (
    MAX_SAMPLE_VALUE,
    ORIENTATION,
    deep_png,
    packed_12_bits,
    picture,
    tiff,
)

from learnreg.core.errors import DataWarning, InputError
from learnreg.data import formats, load_image
from learnreg.data.formats import read_raw, size_of
from learnreg.data.tiff import Header

EIGHT = (picture() * 255).round().astype(np.uint8)
DEEP = (picture() * 65535).round().astype(np.uint16)
COLOUR = np.stack([picture(seed=i) for i in range(3)], axis=-1)
DEEP_COLOUR = (COLOUR * 65535).round().astype(np.uint16)
CODECS = importlib.util.find_spec("imagecodecs") is not None


@pytest.fixture
def only_pillow(monkeypatch):
    """As with a compression that tifffile alone does not know."""

    def fail(self, path):
        raise ValueError("a compression without codec")

    monkeypatch.setattr(Header, "read", fail)


# --- orientation ----------------------------------------------------------------------------------


def turned(orientation: int) -> np.ndarray:
    """What a viewer shows of ``EIGHT`` under such a tag, by Pillow."""
    shown = Image.fromarray(EIGHT)
    shown.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(shown))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["grey", "deep", "colour"])
def test_the_orientation_of_tiff_files_is_obeyed(tmp_path, orientation, kind):
    pixels = {
        "grey": EIGHT,
        "deep": EIGHT.astype(np.uint16) * 257,
        "colour": np.stack([EIGHT] * 3, axis=-1),
    }[kind]
    path = tiff(tmp_path / "x.tif", pixels, t274=orientation)
    read = load_image(path, range="dtype")[0].numpy()
    np.testing.assert_allclose(read, turned(orientation) / 255, atol=1e-6)
    assert size_of(path) == read.shape


@pytest.mark.parametrize("orientation", [1, 2, 6])
def test_and_where_pillow_reads_them(tmp_path, only_pillow, orientation):
    path = tiff(tmp_path / "x.tif", EIGHT, t274=orientation)
    np.testing.assert_array_equal(read_raw(path).pixels[..., 0], turned(orientation))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_sizes_of_turned_pictures(tmp_path, ending):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(EIGHT).save(tmp_path / f"x.{ending}", exif=exif)
    assert size_of(tmp_path / f"x.{ending}") == read_raw(tmp_path / f"x.{ending}").pixels.shape[:2]
    assert size_of(tmp_path / f"x.{ending}") == EIGHT.T.shape


# --- white is zero --------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [EIGHT, DEEP, EIGHT > 127], ids=["8", "16", "1"])
def test_white_is_zero_is_turned_over(tmp_path, pixels):
    inverted = ~pixels
    path = tiff(tmp_path / "x.tif", inverted, photometric="miniswhite")
    np.testing.assert_array_equal(read_raw(path).pixels[..., 0], pixels)


@pytest.mark.parametrize("pixels", [EIGHT, DEEP], ids=["8", "16"])
def test_white_is_zero_by_pillow(tmp_path, only_pillow, pixels):
    path = tiff(tmp_path / "x.tif", ~pixels, photometric="miniswhite")
    np.testing.assert_array_equal(read_raw(path).pixels[..., 0], pixels)


def test_white_is_zero_of_twelve_bits(tmp_path):
    pixels = DEEP >> 4
    path = tiff(tmp_path / "x.tif", 4095 - pixels, photometric="miniswhite", t281=4095)
    np.testing.assert_allclose(load_image(path)[0], pixels / 4095, atol=1e-6)


def test_white_is_zero_of_floats_is_refused(tmp_path):
    path = tiff(tmp_path / "x.tif", picture().astype(np.float32), photometric="miniswhite")
    with pytest.raises(InputError, match=r"float pixels of which 0 is white.*BlackIsZero"):
        load_image(path)


# --- depth ----------------------------------------------------------------------------------------


def test_a_depth_in_the_header_is_obeyed(tmp_path):
    values = DEEP >> 4
    for path in (
        tiff(tmp_path / "declared.tif", values, t281=4095),
        packed_12_bits(tmp_path / "packed.tif", values),
    ):
        np.testing.assert_allclose(load_image(path)[0], values / 4095, atol=1e-6)


@pytest.mark.parametrize("declared", [3577, 1023, 65535])
def test_a_largest_value_that_is_no_depth_is_not(tmp_path, declared):
    """Of this one picture (3577), or against what the pixels say (1023)."""
    path = tiff(tmp_path / "x.tif", DEEP, **{f"t{MAX_SAMPLE_VALUE}": declared})
    np.testing.assert_allclose(load_image(path)[0], DEEP / 65535, atol=1e-6)


@pytest.mark.skipif(CODECS, reason="with imagecodecs nothing is lost")
def test_deep_colour_read_with_eight_bits_is_said(tmp_path, monkeypatch, only_pillow):
    for path in (
        deep_png(tmp_path / "x.png", DEEP_COLOUR),
        tiff(tmp_path / "x.tif", DEEP_COLOUR, compression="zlib"),
    ):
        with pytest.warns(
            DataWarning, match=rf"{path.name}: more than 8 bits.*learnreg\[formats\]"
        ):
            read = load_image(path, channels=3)
        np.testing.assert_allclose(read.movedim(0, -1), COLOUR, atol=1.1 / 255)


def test_deep_ink_is_read_with_eight_bits_and_that_is_said(tmp_path):
    ink = np.concatenate([65535 - DEEP_COLOUR, np.zeros_like(DEEP_COLOUR[..., :1])], axis=-1)
    path = tiff(tmp_path / "x.tif", ink, photometric="separated")
    with pytest.warns(DataWarning, match=r"more than 8 bits.*save grey or RGB as TIFF without"):
        read = load_image(path, channels=3)
    np.testing.assert_allclose(read.movedim(0, -1), COLOUR, atol=2.1 / 255)


def test_deep_colour_with_the_codecs(tmp_path, monkeypatch):
    codecs = SimpleNamespace(png_decode=lambda data: DEEP_COLOUR)
    if not CODECS:
        monkeypatch.setattr(formats, "image_codecs", lambda: codecs)
    read = load_image(deep_png(tmp_path / "x.png", DEEP_COLOUR), channels=3)
    np.testing.assert_allclose(read.movedim(0, -1), COLOUR, atol=1e-5)


@pytest.mark.skipif(not CODECS, reason="needs the extra formats")
@pytest.mark.parametrize("compression", ["lzw", "zlib"])
def test_compressed_deep_colour(tmp_path, compression):
    path = tiff(tmp_path / "x.tif", DEEP_COLOUR, compression=compression)
    np.testing.assert_array_equal(read_raw(path).pixels, DEEP_COLOUR)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "float16", "float64"])
def test_other_types_with_a_range(tmp_path, dtype):
    values = (picture() * 2000 - (0 if dtype == "uint32" else 1000)).astype(dtype)
    path, lo = tiff(tmp_path / "x.tif", values), -1000 if values.min() < 0 else 0
    with pytest.raises(InputError, match=r"range=\(lo, hi\), range = \[lo, hi\] in \[data\]"):
        load_image(path)
    read = load_image(path, range=(lo, lo + 2000))
    np.testing.assert_allclose(read[0], picture(), atol=1e-3)


def test_complex_pixels_are_refused(tmp_path):
    path = tiff(tmp_path / "x.tif", picture().astype(np.complex64))
    with pytest.raises(InputError, match=r"pixels of type complex64.*magnitude"):
        load_image(path, range=(0, 1))


# --- bands, pages, frames -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bands", "photometric"), [(2, "minisblack"), (4, "minisblack"), (4, "rgb"), (7, "rgb")]
)
@pytest.mark.parametrize("pillow", [False, True])
def test_bands_without_a_meaning_are_refused(tmp_path, request, bands, photometric, pillow):
    if pillow:
        request.getfixturevalue("only_pillow")
    pixels = np.stack([EIGHT] * bands, axis=-1)
    colours = 3 if photometric == "rgb" else 1
    extra = ["unspecified"] * (bands - colours)
    path = tiff(
        tmp_path / "x.tif",
        pixels,
        photometric=photometric,
        extrasamples=extra,
        planarconfig="contig",
    )
    words = f"{bands} bands, of which the header calls {colours}.*ExtraSamples"
    with pytest.raises(InputError, match=words):
        load_image(path, channels=3)


@pytest.mark.parametrize("colours", [1, 3])
def test_a_tagged_transparency_is_dropped(tmp_path, colours):
    pixels = np.stack([EIGHT] * colours + [np.zeros_like(EIGHT)], axis=-1)
    path = tiff(
        tmp_path / "x.tif",
        pixels,
        photometric="rgb" if colours == 3 else "minisblack",
        extrasamples=["unassalpha"],
        planarconfig="contig",
    )
    raw = read_raw(path)
    assert raw.transparent
    np.testing.assert_array_equal(raw.pixels, pixels[..., :colours])


def test_a_stack_or_animation_is_no_single_image(tmp_path):
    stack = np.stack([EIGHT] * 3)
    tifffile.imwrite(tmp_path / "pages.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "imagej.tif", stack, imagej=True, photometric="minisblack")
    frames = [Image.fromarray(np.roll(EIGHT, i)) for i in range(3)]
    for name in ("x.png", "x.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=r"3 (pages|frames).*(file of its own|page=0)"):
            load_image(path)


def test_a_preview_is_no_page(tmp_path):
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(EIGHT, photometric="minisblack", metadata=None)
        file.write(EIGHT[::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read_raw(path).pixels[..., 0], EIGHT)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.jpg"])
def test_damaged_files_are_found_by_their_header_or_their_pixels(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not a picture at all")
    for read in (size_of, read_raw):
        with pytest.raises(InputError, match=f"{name}: given 20 bytes that cannot be read"):
            read(path)
