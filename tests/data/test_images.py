"""Image files and the bundled photographs: read as written, and a bad file says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from learnreg.core.errors import InputError
from learnreg.data import images, list_images, load_image, natural_photographs, phantoms, save_image

RAMP = torch.linspace(0, 1, 6 * 5).reshape(1, 6, 5)


def write(path: Path, pixels: np.ndarray) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    else:
        Image.fromarray(pixels).save(path)
    return path


def test_photographs_are_grey_and_in_range():
    photographs = natural_photographs()
    assert set(photographs) == set(images.NATURAL)
    assert len(photographs) >= 6
    for name, image in photographs.items():
        assert image.dim() == 2 and min(image.shape) >= 300, name
        assert image.dtype == torch.float32
        assert 0 <= image.min() < 0.3 and 0.7 < image.max() <= 1, name
        assert image.std() > 0.05, name


def test_missing_photograph_names_the_file(monkeypatch):
    monkeypatch.setitem(images.NATURAL, "astronaut", ("not_there.png", ""))
    with pytest.raises(InputError, match=r"astronaut.*not_there\.png.*[Rr]einstall scikit-image"):
        natural_photographs()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.TIFF", "a.jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(tmp_path, name, channels):
    x = RAMP.repeat(channels, 1, 1)
    save_image(tmp_path / name, x)
    read = load_image(tmp_path / name, channels=channels)
    assert read.shape == x.shape and read.dtype == torch.float32
    exact = name.lower().endswith((".tif", ".tiff"))
    assert (read - x).abs().max() <= (0 if exact else 0.5 / 255 + 1e-6 if name == "a.png" else 0.1)


def test_eight_bits_are_clipped_and_tiff_is_not(tmp_path):
    x = torch.tensor([[-0.5, 0.25], [1.0, 1.5]])
    save_image(tmp_path / "x.png", x)
    assert (
        load_image(tmp_path / "x.png")[0, 0, 0] == 0
        and load_image(tmp_path / "x.png")[0, 1, 1] == 1
    )
    save_image(tmp_path / "x.tif", x[None, None])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "x.tif"), x.numpy())


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif", "rgb16.tif"])
def test_sixteen_bits_keep_their_precision(tmp_path, name):
    pixels = np.array([[0, 1], [40000, 65535]], dtype=np.uint16)
    path = write(
        tmp_path / name, np.stack([pixels] * 3, axis=-1) if name.startswith("rgb") else pixels
    )
    torch.testing.assert_close(load_image(path)[0], torch.from_numpy(pixels / 65535).float())


def test_planar_colour_tiff(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 7, 9), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", pixels, photometric="rgb", planarconfig="separate")
    assert torch.equal(
        load_image(tmp_path / "p.tif", channels=3), torch.from_numpy(pixels / 255).float()
    )


def test_compressed_and_palette_tiff(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    assert torch.equal(load_image(tmp_path / "lzw.tif")[0], torch.from_numpy(pixels / 255).float())
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)).convert("P")
    colours.save(tmp_path / "palette.tif")
    red = load_image(tmp_path / "palette.tif", channels=3)[:, 0, 0]
    torch.testing.assert_close(red, torch.tensor([1.0, 0, 0]))


def test_transparency_is_dropped_and_grey_is_luma(tmp_path):
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = (255, 0, 0, 0)
    pixels[0, 1] = (0, 255, 0, 128)
    pixels[1, 0] = (0, 0, 255, 255)
    path = write(tmp_path / "rgba.png", pixels)
    torch.testing.assert_close(load_image(path), torch.tensor([[[0.299, 0.587], [0.114, 0.0]]]))
    assert load_image(path, channels=3).shape == (3, 2, 2)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK"])
def test_other_modes_are_understood(tmp_path, mode):
    ending = "tif" if mode == "CMYK" else "png"
    white = Image.new("RGB" if mode == "CMYK" else "L", (4, 3), "white")
    white.convert(mode).save(tmp_path / f"w.{ending}")
    torch.testing.assert_close(load_image(tmp_path / f"w.{ending}"), torch.ones(1, 3, 4))


def test_orientation_tag_is_obeyed(tmp_path):
    picture = Image.new("L", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").shape == (1, 8, 4)


def corrupt(folder: Path) -> Path:
    path = folder / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return path


def truncated(folder: Path) -> Path:
    path = write(
        folder / "half.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    )
    path.write_bytes(path.read_bytes()[:1000])
    return path


def nothing(folder: Path) -> Path:
    (folder / "empty.tif").touch()
    return folder / "empty.tif"


def pages(folder: Path) -> Path:
    tifffile.imwrite(
        folder / "pages.tif", np.zeros((5, 8, 8), dtype=np.uint8), photometric="minisblack"
    )
    return folder / "pages.tif"


def floats(value: float):
    return lambda folder: write(folder / "float.tif", np.full((4, 4), value, np.float32))


BAD_FILES = {
    "missing": (lambda f: f / "missing.png", r"missing.png: given no such file"),
    "folder": (lambda f: f, r"given a folder; expected an image file"),
    "corrupt": (corrupt, r"broken.png: given 25 bytes that cannot be read"),
    "truncated": (truncated, r"half.png: given 1000 bytes that cannot be read"),
    "no bytes": (nothing, r"empty.tif: given 0 bytes that cannot be read"),
    "nan": (floats(np.nan), r"float.tif: given NaN or Inf pixels"),
    "inf": (floats(np.inf), r"float.tif: given NaN or Inf pixels"),
    "range": (floats(255), r"float.tif: given float pixels in \[255, 255\]"),
    "type": (
        lambda f: write(f / "t.tif", np.zeros((4, 4), np.uint32)),
        r"given pixels of type uint32",
    ),
    "pages": (pages, r"pages.tif: given a TIFF file with 5 pages"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    make, message = BAD_FILES[case]
    with pytest.raises(InputError, match=message):
        load_image(make(tmp_path))


@pytest.mark.parametrize("channels", [0, 2, 4, True, "grey"])
def test_bad_channels(tmp_path, channels):
    with pytest.raises(InputError, match="channels"):
        load_image(tmp_path / "x.png", channels=channels)


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("x.gif", RAMP, 'given the ending ".gif"'),
        ("nowhere/x.png", RAMP, "Create the folder first"),
        ("x.png", torch.zeros(2, 4, 4), r"given shape \(2, 4, 4\)"),
        ("x.png", torch.zeros(5, 1, 4, 4), r"given shape \(5, 1, 4, 4\)"),
        ("x.png", torch.full((4, 4), torch.nan), "given NaN or Inf"),
    ],
)
def test_bad_saves(tmp_path, name, x, message):
    with pytest.raises(InputError, match=message):
        save_image(tmp_path / name, x)


def test_list_images_is_sorted_and_knows_images(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "c.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png", "c.tiff"]


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="an empty folder"):
        list_images(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="1 entries, none an image"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="given a file"):
        list_images(tmp_path / "notes.txt")


def test_phantoms_are_seeded_and_piecewise_smooth():
    before = torch.random.get_rng_state()
    x = phantoms(6, 48, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert x.shape == (6, 1, 48, 48) and x.dtype == torch.float32
    assert x.min() >= 0 and x.max() <= 1
    assert torch.equal(phantoms(2, 48, seed=1), x[:2])
    assert not torch.equal(phantoms(2, 48, seed=2), x[:2])
    steps = (x[..., 1:] - x[..., :-1]).abs()
    assert (steps < 0.02).float().mean() > 0.85  # mostly smooth ...
    assert steps.flatten(1).amax(1).min() > 0.05  # ... with edges in every image
    assert phantoms(0, 48, seed=0).shape == (0, 1, 48, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 48, 0), "n: given -1"),
        ((1, 7, 0), "size: given 7"),
        ((1, 48, -1), "seed: given -1"),
        ((1, 48, None), "seed: given None"),
    ],
)
def test_bad_phantoms(arguments, message):
    with pytest.raises(InputError, match=message):
        phantoms(*arguments)
