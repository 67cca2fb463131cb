"""Stacks of pages in one TIFF file: each page an image, the pages of a file together."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import deepinv as dinv
import numpy as np
import pytest
import tifffile
import torch
from tests.data.image_files import picture

from learnreg.core.errors import DataWarning, InputError
from learnreg.data import count_pages, formats, load_image, pairs, stacks
from learnreg.data.blocks import in_blocks, need_blocks, spread
from learnreg.data.crops import Source
from learnreg.data.formats import read_raw, size_of

PAGES = 7
GREY = np.stack([(picture(seed=i) * 4095).round().astype(np.uint16) for i in range(PAGES)])
COLOUR = np.stack([GREY[i : i + 3] for i in range(PAGES - 2)]).transpose(0, 2, 3, 1)

WRITTEN = {
    "plain": (GREY, {"metadata": None}),
    "own": (GREY, {}),
    "ImageJ": (GREY, {"imagej": True}),
    "OME": (GREY, {"ome": True}),
    "big-endian": (GREY, {"byteorder": ">"}),
    "BigTIFF": (GREY, {"bigtiff": True}),
    "one header": (GREY, {"truncate": True}),
    "one header, big-endian": (GREY, {"truncate": True, "byteorder": ">"}),
    "compressed": (GREY, {"compression": "zlib"}),
    "8 bits": ((GREY >> 4).astype(np.uint8), {}),
    "float": ((GREY / 4095).astype(np.float32), {}),
    "colour": (COLOUR, {"photometric": "rgb"}),
    "planar": (
        np.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2)),
        {"photometric": "rgb", "planarconfig": "separate"},
    ),
    "transparent": (
        np.concatenate([COLOUR, COLOUR[..., :1]], axis=-1),
        {"photometric": "rgb", "extrasamples": ["unassalpha"]},
    ),
}


def written(path, pixels, **options):
    """A stack in a file."""
    tifffile.imwrite(path, pixels, **{"photometric": "minisblack", **options})
    return path


def stack(path, seed=0, pages=8, size=(48, 56)):
    """A stack of different pictures, 12 bits in 16."""
    images = [picture(*size, seed=100 * seed + i) for i in range(pages)]
    return written(path, (np.stack(images) * 4095).round().astype(np.uint16))


def denoising():
    """White noise on images."""
    return dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))


def pages_of(names):
    """(file, page) of crops."""
    return [(name.split("#")[0], int(name.split("#")[1].split("@")[0])) for name in names]


# --- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_page_is_read_as_it_is(tmp_path, kind):
    pixels, options = WRITTEN[kind]
    path = written(tmp_path / "x.tif", pixels, **options)
    expected = np.moveaxis(pixels, 1, -1) if kind == "planar" else pixels
    expected = expected[..., None] if expected.ndim == 3 else expected[..., :3]
    assert count_pages(path) == len(pixels)
    for page in reversed(range(len(pixels))):
        raw = read_raw(path, page)
        np.testing.assert_array_equal(raw.pixels, expected[page])
        assert raw.pixels.dtype == pixels.dtype and raw.transparent == (kind == "transparent")
        assert size_of(path, page) == expected.shape[1:3]


def test_pages_may_differ_in_size_and_previews_do_not_count(tmp_path):
    path, images = tmp_path / "x.tif", [GREY[0], GREY[1][:20], GREY[2], GREY[3][:, :9]]
    for metadata in (None, {}):
        with tifffile.TiffWriter(path) as file:
            for image in images:
                file.write(image, photometric="minisblack", metadata=metadata)
                file.write(
                    image[::2, ::2], photometric="minisblack", subfiletype=1, metadata=metadata
                )
        assert count_pages(path) == 4
        for page, image in enumerate(images):
            np.testing.assert_array_equal(read_raw(path, page).pixels[..., 0], image)
            assert size_of(path, page) == image.shape


def test_levels_of_a_pyramid_are_no_pages_and_of_several_series_the_first_counts(tmp_path):
    path = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(GREY, subifds=1, photometric="minisblack")
        file.write(GREY[:, ::2, ::2], subfiletype=1, photometric="minisblack")
        file.write(GREY[:3, :9], photometric="minisblack")
    assert count_pages(path) == PAGES
    np.testing.assert_array_equal(read_raw(path, 6).pixels[..., 0], GREY[6])
    with pytest.warns(DataWarning, match="first series of the file is used; 3 images"):
        load_image(path, page=6, range=(0, 4095))


def test_a_page_that_only_pillow_can_read_is_the_right_one(tmp_path, monkeypatch):
    path = written(tmp_path / "x.tif", GREY)

    def none(*args):
        raise ValueError("no such codec")

    monkeypatch.setattr("learnreg.data.tiff.pixels_at", none)
    for page in (0, 3, 6):
        np.testing.assert_array_equal(read_raw(path, page).pixels[..., 0], GREY[page])


def test_a_turned_page_is_upright(tmp_path):
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        for image in GREY[:3]:
            file.write(
                image,
                photometric="minisblack",
                metadata=None,
                extratags=[(274, "H", 1, 6, True)],
            )
    np.testing.assert_array_equal(read_raw(path, 2).pixels[..., 0], np.rot90(GREY[2], -1))
    assert size_of(path, 2) == GREY[2].T.shape


@pytest.mark.parametrize("page", [-1, PAGES, 1.0, True, "0"])
def test_a_page_that_is_not_there_is_refused(tmp_path, page):
    path = written(tmp_path / "x.tif", GREY)
    with pytest.raises(InputError, match=r"page: given .*0 to 6"):
        load_image(path, page=page)
    formats.Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="it has one page"):
        load_image(tmp_path / "x.png", page=1)
    assert (
        count_pages(tmp_path / "x.png") == 1 and load_image(tmp_path / "x.png", page=0).any() == 0
    )


def test_a_volume_behind_one_header_is_refused_in_words(tmp_path):
    path = written(tmp_path / "x.tif", GREY, volumetric=True, tile=(1, 16, 16))
    with pytest.raises(InputError, match=r"a volume of 7 slices.*measured data"):
        load_image(path)


def test_a_file_that_was_rewritten_is_looked_at_again(tmp_path):
    path = written(tmp_path / "x.tif", GREY)
    assert count_pages(path) == PAGES
    written(path, GREY[:4])
    assert count_pages(path) == 4


# --- training -------------------------------------------------------------------------------------


def test_files_of_pages_are_never_on_two_sides(tmp_path):
    for i in range(5):
        stack(tmp_path / f"s{i}.tif", seed=i)
    train, validation, test = pairs(
        tmp_path, denoising(), size=24, split=(9, 4, 6), seed=0, range="auto"
    )
    assert train.units == (0, 4095)
    files = [{file for file, _ in pages_of(side.names)} for side in (train, validation, test)]
    assert all(a.isdisjoint(b) for a, b in combinations(files, 2))
    assert len(set(pages_of(train.names))) == 9


def test_every_page_has_the_scale_of_its_source(tmp_path):
    path = stack(tmp_path / "s.tif", pages=3)
    train, _ = pairs([path], denoising(), size=24, split=(3, 0), seed=0, range=(0, 4095))
    whole = tifffile.imread(path) / 4095
    for image, name in zip(train.x, train.names, strict=True):
        row, column = map(int, name.split("@")[1].split(","))
        page = pages_of([name])[0][1]
        expected = whole[page, row : row + 24, column : column + 24]
        np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("split", [(6, 3), (4, 2, 3)])
@pytest.mark.parametrize("listed", [True, False])
def test_one_stack_for_several_sides_is_cut_into_blocks_with_a_warning(tmp_path, split, listed):
    path = stack(tmp_path / "s.tif", pages=9)
    with pytest.warns(DataWarning) as found:
        sides = pairs(
            [path] if listed else path, denoising(), size=24, split=split, seed=0, range="auto"
        )
    (words,) = [str(w.message) for w in found]
    assert "pages of one file on several sides" in words and "test_source" in words
    pages = [sorted({page for _, page in pages_of(side.names)}) for side in sides]
    assert all(max(a) < min(b) for a, b in pairwise(pages))


def test_a_pattern_for_groups_is_obeyed_by_pages(tmp_path):
    path = stack(tmp_path / "s.tif", pages=4)
    train, test = pairs(
        path, denoising(), size=24, split=(2, 2), seed=0, range="auto", group=r"#(\d+)$"
    )
    assert set(pages_of(train.names)).isdisjoint(pages_of(test.names))
    with pytest.raises(InputError, match="one group"):
        pairs(path, denoising(), size=24, split=(2, 2), seed=0, range="auto", group="^s")


def test_another_stack_can_be_the_test(tmp_path):
    one, two = stack(tmp_path / "a.tif"), stack(tmp_path / "b.tif", seed=1)
    train, test = pairs(
        one, denoising(), size=24, split=(4, 2), seed=0, range="auto", test_source=two
    )
    assert {file for file, _ in pages_of(train.names)} == {"a.tif"}
    assert {file for file, _ in pages_of(test.names)} == {"b.tif"}


def test_single_pages_can_be_listed(tmp_path):
    one, two = stack(tmp_path / "a.tif"), stack(tmp_path / "b.tif", seed=1)
    train, _ = pairs(
        [f"{one}#5", f"{one}#2", two], denoising(), size=24, split=(10, 0), seed=0, range="auto"
    )
    assert {p for p in pages_of(train.names) if p[0] == "a.tif"} == {("a.tif", 5), ("a.tif", 2)}
    with pytest.raises(InputError, match=r"a.tif#5 twice"):
        pairs([f"{one}#5", one], denoising(), size=24, split=(4, 0), seed=0, range="auto")
    with pytest.raises(InputError, match="0 to 7"):
        pairs([f"{one}#8"], denoising(), size=24, split=(1, 0), seed=0, range="auto")


def test_empty_and_standing_pages_are_no_mistake_but_equal_ones_on_two_sides_are_named(tmp_path):
    pages = np.stack([picture(48, 48, seed=i) for i in (0, 0, 1, 1, 0, 2)])
    pages[3] = pages[5] = 0
    path = written(tmp_path / "s.tif", pages.astype(np.float32))
    train, _ = pairs(path, denoising(), size=24, split=(6, 0), seed=0)
    assert len(train) == 6
    with pytest.warns(DataWarning) as found:
        pairs(path, denoising(), size=24, split=(3, 3), seed=0)
    words = [str(w.message) for w in found]
    assert any(
        "equal pages on two sides" in text and "s.tif#0 and s.tif#4" in text for text in words
    )
    assert not any("looks like" in text for text in words)


def test_two_stacks_that_are_alike_are_named_once(tmp_path):
    images = np.stack([picture(48, 56, seed=i) for i in range(6)])
    for i, factor in enumerate((1, 0.9)):
        written(tmp_path / f"s{i}.tif", (images * factor).astype(np.float32))
    with pytest.warns(DataWarning) as found:
        pairs(tmp_path, denoising(), size=24, split=(6, 6), seed=0)
    (words,) = [str(w.message) for w in found]
    assert words.count("looks like") == 1


def test_small_and_damaged_pages_are_named_or_left_out(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for i, size in enumerate((48, 16, 40)):
            file.write(picture(size, 48, seed=i).astype(np.float32), photometric="minisblack")
    stack(tmp_path / "b.tif", seed=1)
    with pytest.raises(InputError, match=r"a.tif#1: given an image of 16 x 48"):
        pairs(tmp_path, denoising(), size=24, split=(8, 8), seed=0, range="dtype")
    with pytest.warns(DataWarning, match=r"a.tif#1: smaller than a crop"):
        pairs([tmp_path / "a.tif"], denoising(), size=24, split=(2, 0), seed=0, skip_small=True)


def test_only_headers_are_read_of_pages_that_are_not_used(tmp_path, monkeypatch):
    path, read = stack(tmp_path / "s.tif", pages=40), []
    inner = stacks.pixels_at
    monkeypatch.setattr(
        "learnreg.data.tiff.pixels_at", lambda t, spot: read.append(spot.index) or inner(t, spot)
    )
    pairs(path, denoising(), size=24, split=(4, 0), seed=0, range=(0, 4095))
    assert sorted(read) == [0, 8, 16, 32] or len(read) == 4


@pytest.mark.parametrize("n", [1, 2, 5, 8, 33])
def test_the_first_pages_of_an_order_are_far_apart(n):
    order = spread(range(n))
    assert sorted(order) == list(range(n))
    for k in range(2, n + 1):
        some = sorted(order[:k])
        gaps = [b - a for a, b in pairwise(some)]
        assert min(gaps) >= math.floor(n / (4 * k)) and max(gaps) <= math.ceil(4 * n / k)


def test_blocks_hold_every_side_and_keep_the_order_of_pages(tmp_path):
    sources = [Source(f"s#{i}", tmp_path, "s", i) for i in spread(range(5))]
    assert need_blocks(sources, (1, 1, 1), None) and not need_blocks(sources, (1, 1, 1), "#")
    assert not need_blocks(sources[:2], (1, 1, 1), None)
    sides = in_blocks(sources, (100, 1, 1))
    assert [sorted(s.page or 0 for s in side) for side in sides] == [[0, 1, 2], [3], [4]]
    torch.testing.assert_close(torch.tensor(sum(map(len, sides))), torch.tensor(5))
