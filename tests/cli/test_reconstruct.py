"""``learnreg reconstruct``: any size, grey and colour, 16 bits, and every mistake named before
anything is written.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.cli.cases import invoke, save_png, write_config

from learnreg.core.errors import ModelFileError
from learnreg.data import load_image


def test_any_size_grey_and_colour(learned, tmp_path):
    grey, colour = (
        save_png(tmp_path / "grey.png", 31, 45),
        save_png(tmp_path / "colour.png", 20, 27, 3),
    )
    result = invoke(
        "reconstruct",
        "--model",
        learned / "model.safetensors",
        grey,
        colour,
        "-o",
        tmp_path / "clean",
    )
    for path, bands, shape in ((grey, 1, (31, 45)), (colour, 3, (20, 27))):
        noisy, clean = load_image(path, bands), load_image(tmp_path / "clean" / path.name, bands)
        assert clean.shape == (bands, *shape)
        assert clean.std() < 0.9 * noisy.std()
    assert (
        len(re.findall(r"certified distance to the exact minimizer <= [\d.e+-]+", result.stdout))
        == 2
    )
    assert (
        f"eps {1e-2 * (31 * 45) ** 0.5 / 96:.2e}" in result.stdout
        and "standard deviation 0.1" in result.stdout
    )


def test_colour_with_a_grey_model_goes_channel_by_channel(tmp_path):
    invoke(
        "learn", write_config(tmp_path, steps=1, regularizer='type = "FoE"\nfilters = 2\nsize = 3')
    )
    model, colour = (
        tmp_path / "out" / "model.safetensors",
        save_png(tmp_path / "colour.png", 20, 27, 3),
    )
    result = invoke(
        "reconstruct", "-m", model, colour, "-o", tmp_path / "clean.tif", "--eps", "0.01"
    )
    assert "channels one by one" in result.stdout
    assert float(re.search(r"<= ([\d.e+-]+)", result.stdout)[1]) <= 0.01
    red = tmp_path / "red.png"
    Image.open(colour).getchannel(0).save(red)
    invoke("reconstruct", "-m", model, red, "-o", tmp_path / "red.tif", "--eps", f"{0.01 / 3**0.5}")
    together, alone = (tifffile.imread(tmp_path / name) for name in ("clean.tif", "red.tif"))
    assert np.allclose(together[..., 0], alone, atol=1e-6)


def test_a_colour_model_wants_colour(tmp_path):
    path = write_config(tmp_path, steps=1, regularizer='type = "FoE"\nfilters = 2\nsize = 3')
    for i in range(2):
        save_png(tmp_path / f"{i}.png", 30, 30 + 5 * i, 3)
    text = path.read_text(encoding="utf-8").replace('"phantoms"', json.dumps(str(tmp_path)))
    path.write_text(text.replace("size = 24", "size = 24\nchannels = 3"), encoding="utf-8")
    invoke("learn", path)
    model = tmp_path / "out" / "model.safetensors"
    assert (
        "colour;"
        in invoke(
            "reconstruct", "-m", model, tmp_path / "0.png", "-o", tmp_path / "clean.png"
        ).stdout
    )
    grey = save_png(tmp_path / "grey.png", 30, 30)
    assert (
        "expected 3 channels"
        in invoke("reconstruct", "-m", model, grey, "-o", tmp_path / "x.png", code=2).stderr
    )


def test_sixteen_bits_stay_sixteen_bits(learned, tmp_path):
    deep = save_png(tmp_path / "deep.png", 20, 20, dtype=np.uint16)
    invoke("reconstruct", "-m", learned / "model.safetensors", deep, "-o", tmp_path / "clean.png")
    with Image.open(tmp_path / "clean.png") as picture:
        assert picture.mode.startswith("I") and len(np.unique(np.asarray(picture) % 256)) > 50
    invoke("reconstruct", "-m", learned / "model.safetensors", deep, "-o", tmp_path / "clean.tif")
    apart = load_image(tmp_path / "clean.png")[0].numpy() - tifffile.imread(
        tmp_path / "clean.tif"
    ).clip(0, 1)
    assert np.abs(apart).max() <= 0.51 / 65535
    result = invoke(
        "reconstruct", "-m", learned / "model.safetensors", deep, "-o", tmp_path / "clean.jpg"
    )
    assert "written with 8 bits" in result.stdout


def test_a_floor_is_an_error_that_double_precision_mends(learned, tmp_path):
    grey = save_png(tmp_path / "grey.png", 20, 20)
    command = (
        "reconstruct",
        "-m",
        learned / "model.safetensors",
        grey,
        "-o",
        tmp_path / "clean.png",
        "--eps",
        "1e-9",
    )
    error = invoke(*command, code=2).stderr
    assert "grey.png" in error and "--float64" in error and "Reached" in error
    assert not (tmp_path / "clean.png").exists()
    invoke(*command, "--float64")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.png", "-o", "x.png"], "none.png: given no such file"),
        (["broken.png", "-o", "x.png"], "cannot be read as an image"),
        (["grey.png", "-o", "grey.png"], "which is an input"),
        (["grey.png", "-o", "."], "which is an input"),
        (["grey.png", "other.png", "-o", "x.png"], "expected a folder"),
        (["grey.png", "sub/grey.png", "-o", "clean/"], "for both"),
        (["grey.png", "-o", "x.gif"], "expected one of .png"),
        (["grey.png", "-o", "x.png", "--eps", "0"], "--eps: given 0"),
        (["grey.png", "-o", "x.png", "--eps", "nan"], "--eps: given nan"),
        (["grey.png", "-o", "broken.png/x.png"], "a folder that can be made"),
        (["empty", "-o", "clean"], "an empty folder"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    learned, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("grey.png", "other.png", "sub/grey.png"):
        save_png(tmp_path / name, 20, 20)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert (
        words
        in invoke("reconstruct", "-m", learned / "model.safetensors", *arguments, code=2).stderr
    )
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("cut", "not intact safetensors"),
        ("text", "not intact safetensors"),
        ("empty", "not intact safetensors"),
        ("foreign", "expected a learnreg-model file"),
    ],
)
def test_a_file_that_is_no_model_is_refused(learned, tmp_path, kind, words):
    grey, path = save_png(tmp_path / "grey.png", 20, 20), tmp_path / "model.safetensors"
    model, other = (
        (learned / name).read_bytes() for name in ("model.safetensors", "run.safetensors")
    )
    if kind != "missing":
        path.write_bytes(
            {"cut": model[:-5], "text": b"hello", "empty": b"", "foreign": other}[kind]
        )
    error = invoke("reconstruct", "-m", path, grey, "-o", tmp_path / "x.png", code=2).stderr
    assert words in error and str(path) in error
    with pytest.raises(ModelFileError):
        invoke("reconstruct", "-m", path, grey, "-o", tmp_path / "x.png", "--debug")
