"""The same photograph on two sides: resaved, resized, turned, cut; others pass in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise
from PIL import Image
from tests.data.image_files import picture

from learnreg.core.errors import DataWarning
from learnreg.data import duplicates, natural_photographs, pairs
from learnreg.data.duplicates import Matcher, Miniature, likenesses

PHOTOGRAPHS = {
    name: Image.fromarray((image.numpy() * 255).astype(np.uint8)).reduce(2)
    for name, image in natural_photographs().items()
}


def cut(image: Image.Image, left: float, top: float, part: float) -> Image.Image:
    """A piece, all in parts of the image."""
    w, h = image.size
    return image.crop((int(left * w), int(top * h), int((left + part) * w), int((top + part) * h)))


def noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, 10, (image.height, image.width))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


COPIES = {
    "png": lambda image: image.point(lambda v: min(v + 1, 255)),
    "resized": lambda image: image.resize((image.width * 2 // 3, image.height * 2 // 3)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "darker": lambda image: image.point(lambda v: v * 2 // 3),
    "noisy": noisy,
}


def run(folder: Path, split=(8, 8), **options):
    physics = Denoising(GaussianNoise(1e-3))
    return pairs(folder, physics, size=32, split=split, seed=0, **options)


def side_by_side(tmp_path, one: Image.Image, other: Image.Image, ending="png", **options):
    """One photograph to train on, another to test on, each with one more of its own."""
    for side, image, company in (("a", one, "coins"), ("b", other, "rocket")):
        (tmp_path / side).mkdir()
        image.save(tmp_path / side / f"photo.{ending if side == 'b' else 'png'}")
        PHOTOGRAPHS[company].save(tmp_path / side / f"{company}.png")
    return run(tmp_path / "a", test_source=tmp_path / "b", **options)


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("name", ["camera", "coffee"])
def test_copies_are_found(tmp_path, kind, name):
    words = r"photo\.png \(training\) looks like .*photo\.png \(test\): what is trained on"
    with pytest.warns(DataWarning, match=words) as caught:
        side_by_side(tmp_path, PHOTOGRAPHS[name], COPIES[kind](PHOTOGRAPHS[name]))
    assert len(caught) == 1 and "coins" not in str(caught[0].message)


def test_the_same_photograph_as_png_and_jpeg(tmp_path):
    with pytest.warns(DataWarning, match=r"photo\.png .* looks like .*photo\.jpg"):
        side_by_side(tmp_path, PHOTOGRAPHS["camera"], PHOTOGRAPHS["camera"], "jpg")


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("place", [(0.1, 0.1, 0.5), (0.35, 0.3, 0.6), (0.2, 0.05, 0.35)])
@pytest.mark.parametrize("trained", ["whole", "piece"])
def test_crops_are_found(tmp_path, ending, place, trained):
    whole, piece = PHOTOGRAPHS["camera"], cut(PHOTOGRAPHS["camera"], *place)
    images = (whole, piece) if trained == "whole" else (piece, whole)
    with pytest.warns(DataWarning, match=rf"photo\.{ending} .*shares a part with.*photo\.|photo"):
        side_by_side(tmp_path, *images, ending)


def test_overlapping_pieces_are_found(tmp_path):
    whole = PHOTOGRAPHS["astronaut"]
    with pytest.warns(DataWarning, match="shares a part with"):
        side_by_side(tmp_path, cut(whole, 0, 0, 0.7), cut(whole, 0.15, 0.1, 0.7))


def test_different_photographs_pass_in_silence(tmp_path):
    for name, image in PHOTOGRAPHS.items():
        image.save(tmp_path / f"{name}.png")
        cut(image, 0.3, 0.3, 0.3).save(tmp_path / f"{name}_piece.png")
    run(tmp_path, (16, 8), group="^[a-z]+?(?=_|[.])")  # the pieces go with their photographs


def test_smooth_pictures_pass_in_silence(tmp_path):
    """A few slow waves, of which some window resembles one of another picture."""
    for i in range(12):
        pixels = (picture(40, 44, seed=i) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    run(tmp_path, (12, 12))


def test_flat_photographs_are_no_copies(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((40, 40), 60 + i, np.uint8)).save(tmp_path / f"{i}.png")
    run(tmp_path)


def test_large_sources_are_searched_in_part_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "WORK", 20_000)
    with pytest.warns(DataWarning, match=r"looked for in \d of \d pairs .* say so with group"):
        side_by_side(tmp_path, PHOTOGRAPHS["camera"], PHOTOGRAPHS["coffee"])
    for folder in (tmp_path / "a", tmp_path / "b"):
        (folder / "photo.png").rename(folder / f"{folder.name}.png")
    run(tmp_path / "a", test_source=tmp_path / "b", group=r"\w+[.]png$")  # the user knows better


@pytest.mark.parametrize("shape", [(5, 7), (16, 9)])
def test_matching_by_fft_is_matching_by_loop(shape):
    rng = torch.Generator().manual_seed(0)
    image, window = torch.rand(20, 23, generator=rng), torch.rand(*shape, generator=rng)
    places = image.unfold(0, shape[0], 1).unfold(1, shape[1], 1).flatten(2).flatten(0, 1)
    expected = max(torch.corrcoef(torch.stack([p, window.flatten()]))[0, 1] for p in places)
    assert Matcher(image).best(window)[0] == pytest.approx(float(expected), abs=1e-5)
    inside = image[3 : 3 + shape[0], 4 : 4 + shape[1]]
    assert Matcher(image).best(5 * inside + 1) == pytest.approx((1, 3, 4), abs=1e-5)


def test_one_side_alone_has_no_likenesses():
    image = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    assert likenesses([Miniature("a", "test", image), Miniature("b", "test", image)]) == []
    assert likenesses([]) == []
