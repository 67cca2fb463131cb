"""Units: which levels of a file become 0 and 1; one scale for a source; what looks wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, StackedLinearPhysics
from PIL import Image
from tests.data.image_files import picture, tiff

from learnreg.core.errors import DataWarning, InputError
from learnreg.data import load_image, pairs
from learnreg.data.units import likely_white, noise_remark

TWELVE = (picture() * 4000).round().astype(np.uint16)


def folder_of(path, *images):
    path.mkdir()
    for i, pixels in enumerate(images):
        tiff(path / f"{i}.tif", pixels)
    return path


def make(source, split=(2, 2), **options):
    physics = Denoising(GaussianNoise(0.01))
    return pairs(source, physics, size=12, split=split, seed=0, **options)


def test_twelve_bits_in_sixteen_are_named(tmp_path):
    path = tiff(tmp_path / "x.tif", TWELVE)
    words = r"x\.tif: the largest value is 4000, 6\.1 % .* If 4095 is white.*range = \[0, 4095\]"
    with pytest.warns(DataWarning, match=words):
        read = load_image(path)
    np.testing.assert_allclose(read[0], TWELVE / 65535, atol=1e-6)


@pytest.mark.parametrize("levels", [(0, 4095), [0, 4095.0], "auto", (-100, 5000)])
def test_the_range_says_what_is_black_and_white(tmp_path, levels):
    path = tiff(tmp_path / "x.tif", TWELVE)
    lo, hi = (0, 4095) if levels == "auto" else levels
    np.testing.assert_allclose(
        load_image(path, range=levels)[0], (TWELVE - float(lo)) / (hi - lo), atol=1e-6
    )


def test_the_full_type_can_be_asked_for(tmp_path):
    path = tiff(tmp_path / "x.tif", TWELVE)
    np.testing.assert_allclose(load_image(path, range="dtype")[0], TWELVE / 65535, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ((picture() > 0.5).astype(np.uint8), r"largest value is 1, .*range = \[0, 1\]"),
        ((picture() * 40).astype(np.uint8), r"largest value is 40, 16 %.*range = \[0, 255\]"),
        ((picture() * 0.02).astype(np.float32), r"largest value is 0.02, 2 %.*\[0, 0.02\]"),
        ((picture() * 200).astype(np.uint16), r"largest value is 200, .*range = \[0, 255\]"),
    ],
    ids=["mask", "dark", "attenuation", "8 in 16"],
)
def test_a_range_that_is_hardly_filled_is_named(tmp_path, pixels, words):
    path = tiff(tmp_path / "x.tif", pixels)
    with pytest.warns(DataWarning, match=words):
        load_image(path)


@pytest.mark.parametrize("value", [0, 9])
def test_a_constant_says_nothing_of_its_range(tmp_path, value):
    assert load_image(tiff(tmp_path / "x.tif", np.full((8, 8), value, np.uint16))).std() == 0


def test_a_source_is_judged_as_a_whole(tmp_path):
    """A dark picture among others is no mistake."""
    bright = [(picture(seed=i) * 65535).astype(np.uint16) for i in range(3)]
    make(folder_of(tmp_path / "f", *bright, (picture(seed=3) * 4000).astype(np.uint16)))


@pytest.mark.parametrize("scale", [255.0, 2000.0])
def test_floats_on_another_scale_need_a_range(tmp_path, scale):
    values = (picture() * scale).astype(np.float32)
    path = tiff(tmp_path / "x.tif", values)
    with pytest.raises(InputError, match=r'range=\(lo, hi\).*"auto" takes them'):
        load_image(path)
    for levels in ((0, scale), "auto"):
        np.testing.assert_allclose(load_image(path, range=levels)[0], picture(), atol=1e-5)


def test_values_far_outside_the_range_are_named(tmp_path):
    path = tiff(tmp_path / "x.tif", (picture() * 4000 - 1000).astype(np.int16))
    with pytest.warns(DataWarning, match=r"values in \[-1000, 3000\] for the range \[-160, 240\]"):
        read = load_image(path, range=(-160, 240))
    assert read.max() > 7  # nothing is clipped


@pytest.mark.parametrize(
    "value",
    ["wide", (0,), (1, 1), (2, 1), (0, float("inf")), (0, "1"), (False, True), 4095, (0, 1, 2)],
)
def test_bad_ranges(tmp_path, value):
    path = tiff(tmp_path / "x.tif", TWELVE)
    with pytest.raises(InputError, match=r"range: given .*two numbers \(lo, hi\) with lo < hi"):
        load_image(path, range=value)
    with pytest.raises(InputError, match="range: given"):
        make(tmp_path, range=value)


# --- one scale for a source -----------------------------------------------------------------------


def test_auto_is_one_scale_for_all_integers(tmp_path):
    images = [
        (picture(seed=i) * top).round().astype(np.uint16) for i, top in enumerate((3000, 900))
    ]
    source = folder_of(tmp_path / "f", *images)
    both = make(source, (1, 1), range="auto")
    for side in both:
        assert side.units == (0.0, 4095.0)
        name, place = side.names[0].split("@")
        row, column = map(int, place.split(","))
        window = images[int(name[0])][row : row + 12, column : column + 12]
        np.testing.assert_allclose(side.x[0, 0], window / 4095, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_auto_is_the_range_of_the_training_images_for_others(tmp_path, dtype):
    images = [(picture(seed=i) * 2000 - 1000 - 50 * i).astype(dtype) for i in range(4)]
    train, test = make(folder_of(tmp_path / "f", *images), range="auto")
    used = [images[int(name[0])] for name in train.sources]
    assert train.units == test.units == (min(i.min() for i in used), max(i.max() for i in used))


def test_auto_needs_one_type_and_the_default_does_not(tmp_path):
    source = folder_of(
        tmp_path / "f",
        *[
            (picture(seed=i) * np.iinfo(t).max).astype(t)
            for i, t in enumerate((np.uint8, np.uint16))
        ],
    )
    with pytest.raises(InputError, match='"auto" with files of types uint16, uint8'):
        make(source, range="auto")
    train, test = make(source)
    assert train.units is None and 0.7 < torch.cat([train.x, test.x]).max() <= 1


def test_a_source_of_twelve_bits_is_named_once(tmp_path):
    images = [(picture(seed=i) * 4000).astype(np.uint16) for i in range(4)]
    source = folder_of(tmp_path / "f", *images)
    with pytest.warns(DataWarning, match=r"and 1 more: the largest value is 4000.*4095") as caught:
        make(source)
    assert len(caught) == 1 and caught[0].filename == __file__
    train, _ = make(source, range=(0, 4095))
    assert train.units == (0.0, 4095.0) and train.x.max() > 0.8


def test_units_stay_with_the_pairs(tmp_path):
    source = folder_of(tmp_path / "f", TWELVE, TWELVE[::-1].copy() + 1)
    train, _ = make(source, (2, 0), range=(0, 4095))
    assert train[:1].units == train.to(dtype=torch.float64).units == (0.0, 4095.0)


def test_phantoms_have_no_units():
    with pytest.raises(InputError, match=r'range: given .* with "phantoms"'):
        make("phantoms", range=(0, 4095))


def test_likely_whites():
    assert [likely_white(v) for v in (1, 200, 1000, 4000, 16000, 60000)] == [
        2**k - 1 for k in (1, 8, 10, 12, 14, 16)
    ]


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [25.0, 0.6, torch.tensor([0.1, 30.0])])
def test_noise_above_the_images_is_named(sigma):
    physics = Denoising(GaussianNoise(sigma)) if isinstance(sigma, float) else None
    physics = physics or StackedLinearPhysics([Denoising(GaussianNoise(float(s))) for s in sigma])
    remark = noise_remark(physics, torch.rand(2, 1, 8, 8))
    assert "more than half their range" in remark
    assert ("/255" in remark) == (float(torch.as_tensor(sigma).max()) > 1)


def test_pairs_warn_of_it(tmp_path):
    Image.fromarray((picture() * 255).astype(np.uint8)).save(tmp_path / "x.png")
    with pytest.warns(DataWarning, match="noise of standard deviation 25 on images"):
        pairs(tmp_path, Denoising(GaussianNoise(25.0)), size=12, split=(2, 0), seed=0)
    assert noise_remark(Denoising(GaussianNoise(0.4)), torch.rand(2, 1, 8, 8)) is None
    assert noise_remark(Denoising(GaussianNoise(0.4)), torch.zeros(0, 1, 8, 8)) is None
    assert noise_remark(Denoising(), torch.rand(2, 1, 8, 8)) is None
