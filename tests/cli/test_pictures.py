"""Image files in and out of ``reconstruct``: type, units and metadata of what was read are written,
and what the file cannot hold is measured.
"""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from tests.data.image_files import deep_png, picture, tiff

from learnreg.cli.pictures import WRITABLE, read_picture, write_picture
from learnreg.core.errors import DataWarning, InputError
from learnreg.data import files_out, load_image

GREY = picture(40, 56)
COLOUR = np.stack([picture(40, 56, seed=i) for i in range(3)], axis=-1)
CODECS = importlib.util.find_spec("imagecodecs") is not None
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def stated(remark: str) -> float:
    """The distance in a remark."""
    return float(re.search(r"([\d.]+e[+-]\d+) from the result", remark)[1])


def loaded(path):
    """The pixels of a file, by Pillow."""
    with Image.open(path) as file:
        return np.asarray(file)


def there_and_back(path, *, units=None, target=None, change=0.0):
    """What is written when ``change`` is added to what was read; the picture, the file, the
    remark.
    """
    read = read_picture(path, units)
    target = target or path.with_name("out" + path.suffix)
    remark = write_picture(target, read.pixels + change, read)
    return read, target, remark


# --- types and units ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_tiff_files_keep_type_and_units(tmp_path, dtype, values):
    lo, hi = {"uint8": (0, 255), "uint16": (0, 65535), "float32": (0, 1)}.get(dtype, (-1000, 3000))
    lo = 0 if dtype == "uint32" else lo
    stored = values * (hi - lo) + lo
    stored = (stored.round() if "int" in dtype else stored).astype(dtype)
    path = tiff(tmp_path / "in.tif", stored)
    _, target, remark = there_and_back(path, units=(lo, hi))
    written = tifffile.imread(target)
    assert written.dtype == dtype and written.shape == stored.shape
    tolerance = 0 if "int" in dtype else 1e-6 * max(hi, 1)
    np.testing.assert_allclose(written.astype(float), stored.astype(float), atol=tolerance)
    assert ("rounded to" in remark) == ("int" in dtype)


@pytest.mark.parametrize("name", ["in.tif", "in.png"])
def test_twelve_bits_come_back_as_twelve_bits(tmp_path, name):
    stored = (GREY * 4095).round().astype(np.uint16)
    path = tmp_path / name
    if name.endswith("tif"):
        tiff(path, stored)
    else:
        Image.fromarray(stored).save(path)
    read, target, _ = there_and_back(path, units=(0, 4095))
    assert read.levels == (0, 4095) and 0.9 < read.pixels.max() <= 1
    written = tifffile.imread(target) if name.endswith("tif") else loaded(target)
    np.testing.assert_array_equal(written, stored)


def test_a_depth_in_the_header_is_written_too(tmp_path):
    stored = (GREY * 4095).round().astype(np.uint16)
    _, target, _ = there_and_back(tiff(tmp_path / "in.tif", stored, t281=4095), change=0.5)
    np.testing.assert_allclose(
        load_image(target)[0], (stored / 4095 + 0.5).clip(max=1), atol=1 / 4095
    )


def test_units_of_the_model_need_a_type_that_reaches_them(tmp_path):
    Image.fromarray((GREY * 255).astype(np.uint8)).save(tmp_path / "in.png")
    with pytest.warns(DataWarning, match=r"uint8 pixels, which cannot be in the units \[0, 4095\]"):
        read = read_picture(tmp_path / "in.png", (0, 4095))
    assert read.levels == (0, 255) and read.pixels.max() > 0.9
    # of a tomograph's model: numbers without a sign have no air at -1000
    path = tiff(tmp_path / "in.tif", (GREY * 65535).astype(np.uint16))
    with pytest.warns(DataWarning, match=r"uint16 pixels, which cannot be in the units \[-1000"):
        assert read_picture(path, (-1000, 2000)).levels == (0, 65535)


def test_what_looks_wrong_is_said_on_reading(tmp_path):
    path = tiff(tmp_path / "in.tif", (GREY * 4000).astype(np.uint16))
    with pytest.warns(DataWarning, match=r"largest value is 4000.*4095"):
        read_picture(path)


def test_one_bit_becomes_eight(tmp_path):
    Image.fromarray(GREY > 0.5).save(tmp_path / "in.png")
    read, target, _ = there_and_back(tmp_path / "in.png")
    assert set(np.unique(loaded(target))) == {0, 255}
    assert torch.equal(read.pixels, load_image(target))


def test_white_is_zero_is_written_as_it_is_seen(tmp_path):
    stored = (GREY * 65535).round().astype(np.uint16)
    path = tiff(tmp_path / "in.tif", ~stored, photometric="miniswhite")
    _, target, _ = there_and_back(path)
    np.testing.assert_array_equal(tifffile.imread(target), stored)


def test_png_to_tiff_keeps_everything(tmp_path):
    Image.fromarray((GREY * 255).astype(np.uint8)).save(tmp_path / "in.png")
    read, target, remark = there_and_back(
        tmp_path / "in.png", target=tmp_path / "out.tif", change=0.4
    )
    np.testing.assert_array_equal(tifffile.imread(target), read.pixels[0] + 0.4)
    assert remark == ""


def test_units_that_a_format_cannot_hold_are_said(tmp_path):
    path = tiff(tmp_path / "in.tif", (GREY * 4000 - 1000).astype(np.int16))
    _, target, remark = there_and_back(path, units=(-1000, 3000), target=tmp_path / "out.png")
    assert "-1000 to 3000 written as 0 to 65535" in remark
    assert loaded(target).max() > 65000


@pytest.mark.skipif(CODECS, reason="with imagecodecs nothing is lost")
def test_deep_colour_without_codecs_is_said(tmp_path):
    path = tiff(tmp_path / "in.tif", (COLOUR * 65535).astype(np.uint16))
    _, target, remark = there_and_back(path, target=tmp_path / "out.png")
    assert "written with 8 bits" in remark and "rounded to 8 bits" in remark
    assert loaded(target).dtype == np.uint8


@pytest.mark.skipif(not CODECS, reason="needs the extra formats")
def test_deep_colour_png(tmp_path):
    stored = (COLOUR * 65535).round().astype(np.uint16)
    path = deep_png(tmp_path / "in.png", stored)
    read, target, _ = there_and_back(path)
    again = read_picture(target)
    assert again.dtype == np.uint16 and torch.equal(again.pixels, read.pixels)


def test_metadata_of_deep_colour(tmp_path):
    """The chunks, whatever has encoded the pixels."""

    class Codecs:
        @staticmethod
        def png_encode(pixels):
            return deep_png(tmp_path / "raw.png", pixels).read_bytes()

    known = files_out.Metadata(((300, 1), (150, 1)), 2, icc=ICC)
    pixels = (COLOUR * 65535).astype(np.uint16)
    (tmp_path / "x.png").write_bytes(files_out._deep_png(pixels, known, Codecs))
    with Image.open(tmp_path / "x.png") as file:
        file.load()
        assert file.info["icc_profile"] == ICC
        assert file.info["dpi"] == pytest.approx((300, 150), rel=1e-3)


# --- what is lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [("out.jpg", "JPEG"), ("out.png", "rounded to 8 bits"), ("out.jpeg", "JPEG")],
)
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_the_distance_of_the_file_is_measured(tmp_path, name, words, values):
    Image.fromarray((values * 255).astype(np.uint8)).save(tmp_path / "in.png")
    read = read_picture(tmp_path / "in.png")
    x = read.pixels + 0.1 * torch.rand(
        read.pixels.shape, generator=torch.Generator().manual_seed(0)
    )
    remark = write_picture(tmp_path / name, x, read)
    distance = (load_image(tmp_path / name, channels=len(x)) - x).norm()
    assert words in remark and stated(remark) == pytest.approx(float(distance), rel=0.06)


def test_jpeg_keeps_colour_as_fine_as_grey(tmp_path):
    """With half the resolution, stripes of two colours of one brightness would mix."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, ::2] = (255, 0, 0)
    pixels[:, 1::2] = (0, 130, 0)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    there_and_back(tmp_path / "in.png", target=tmp_path / "out.jpg")
    Image.fromarray(pixels).save(tmp_path / "usual.jpg")
    ours, usual = (loaded(tmp_path / n) / 255 for n in ("out.jpg", "usual.jpg"))
    assert np.abs(ours - pixels / 255).max() < 0.1 < np.abs(usual - pixels / 255).max()


def test_clipping_counts(tmp_path):
    Image.fromarray((GREY * 255).astype(np.uint8)).save(tmp_path / "in.png")
    _, _, remark = there_and_back(tmp_path / "in.png", change=2.0)
    assert stated(remark) > 1.5 * GREY.size**0.5


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    Image.fromarray((GREY * 255).astype(np.uint8)).save(tmp_path / "in.png")
    read = read_picture(tmp_path / "in.png")

    def full(path, *rest):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("learnreg.cli.pictures.write_pixels", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_picture(tmp_path / "out.png", read.pixels, read)
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


# --- metadata -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["out.tif", "out.png", "out.jpg"])
@pytest.mark.parametrize(("unit", "per_inch"), [("INCH", 1), ("CENTIMETER", 2.54)])
def test_tags_of_tiff_files_are_kept(tmp_path, target, unit, per_inch):
    path = tmp_path / "in.tif"
    tifffile.imwrite(
        path,
        (GREY * 255).astype(np.uint8),
        photometric="minisblack",
        resolution=((236, 2), (1000, 10)),
        resolutionunit=unit,
        description="µ-CT of a walnut".encode(),
        iccprofile=ICC,
        metadata=None,
    )
    _, written, _ = there_and_back(path, target=tmp_path / target)
    with Image.open(written) as file:
        assert file.info["dpi"] == pytest.approx((118 * per_inch, 100 * per_inch), rel=1e-2)
        assert file.info["icc_profile"] == ICC
    if target == "out.tif":
        with tifffile.TiffFile(written) as file:
            tags = file.pages.first.tags
            assert tags.valueof(282) == (118, 1) and tags.valueof(283) == (100, 1)
            assert tags.valueof(296) == {"INCH": 2, "CENTIMETER": 3}[unit]
            assert tags.valueof(270) == "µ-CT of a walnut"


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_metadata_of_photographs_are_kept_but_for_the_orientation(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    path = tmp_path / f"in.{ending}"
    shown = Image.fromarray((COLOUR * 255).astype(np.uint8))
    shown.save(path, exif=exif, dpi=(300, 300), icc_profile=ICC)
    _, target, _ = there_and_back(path)
    with Image.open(target) as file:
        file.load()
        assert file.size == shown.size[::-1]
        assert file.info["dpi"] == pytest.approx((300, 300), rel=1e-3)
        assert file.info["icc_profile"] == ICC
        assert file.getexif().get(0x010F) == "a camera" and 0x0112 not in file.getexif()


def test_a_profile_for_ink_is_not_given_to_colours(tmp_path):
    Image.fromarray((COLOUR * 255).astype(np.uint8)).convert("CMYK").save(
        tmp_path / "in.jpg", icc_profile=ICC
    )
    _, target, _ = there_and_back(tmp_path / "in.jpg")
    with Image.open(target) as file:
        assert "icc_profile" not in file.info


@pytest.mark.parametrize("ending", WRITABLE)
def test_files_without_metadata(tmp_path, ending):
    stored = (GREY * 255).astype(np.uint8)
    path = tmp_path / f"in{ending}"
    if "tif" in ending:
        tifffile.imwrite(path, stored, photometric="minisblack")
    else:
        Image.fromarray(stored).save(path)
    read, target, _ = there_and_back(path)
    assert read.metadata.description is None and read.metadata.exif is None
    assert load_image(target).shape == read.pixels.shape


def test_twelve_bits_of_a_tiff_can_be_seen_in_a_png(tmp_path):
    """0 to 4095 of 65535 would be nearly black."""
    picture = np.random.default_rng(0).integers(0, 4096, (20, 24)).astype(np.uint16)
    source = tmp_path / "scan.tif"
    tifffile.imwrite(source, picture, photometric="minisblack")
    like = read_picture(source, (0.0, 4095.0))
    note = write_picture(tmp_path / "clean.png", like.pixels, like)
    assert "0 to 4095 written as 0 to 65535" in note
    seen = np.asarray(Image.open(tmp_path / "clean.png")).astype(float)
    assert np.abs(seen / 65535 - picture / 4095).max() < 1e-4
    note = write_picture(tmp_path / "clean.tif", like.pixels, like)
    assert "written as" not in note and np.array_equal(
        tifffile.imread(tmp_path / "clean.tif"), picture
    )
