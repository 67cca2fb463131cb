"""``learnreg reconstruct`` on folders: what one file does is not what happens to the others."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import tifffile
from tests.cli.cases import invoke, save_png

from learnreg.cli import reconstruct_work as work
from learnreg.cli.reconstruct import parse_bytes
from learnreg.core.errors import DataWarning, InputError
from learnreg.data import load_image
from learnreg.models.noise import parse_sigma

CERTIFIED = r"certified distance to the exact minimizer <= ([\d.e+-]+) over the image"


@pytest.fixture
def folder(tmp_path):
    """Seven files: five good ones of two sizes, a broken one and one with NaN between them."""
    place = tmp_path / "noisy"
    place.mkdir()
    for i, (h, w) in enumerate([(20, 24), (20, 24), (31, 17), (20, 24), (31, 17)]):
        values = np.random.default_rng(i).random((h, w)).astype(np.float32)
        tifffile.imwrite(place / f"{i}.tif", values)
    (place / "1b.png").write_bytes(b"no picture")
    values[3, 4] = np.nan
    tifffile.imwrite(place / "2b.tif", values)
    return place


def run(learned, *arguments, code=0):
    return invoke("reconstruct", "-m", learned, *arguments, code=code)


def test_failures_are_listed_at_the_end_and_nothing_else_is_lost(learned, folder, tmp_path):
    result = run(learned, folder, "-o", tmp_path / "clean", code=3)
    assert sorted(p.name for p in (tmp_path / "clean").iterdir()) == [f"{i}.tif" for i in range(5)]
    assert len(re.findall(CERTIFIED, result.stdout)) == 5 and "7 images" in result.stdout
    head, *listed = result.stderr.splitlines()
    assert head.startswith("2 of 7 images failed")
    assert any("1b.png" in line and "cannot be read as an image" in line for line in listed)
    assert any("2b.tif" in line and "NaN" in line for line in listed)


def test_images_of_one_size_are_solved_together_and_as_if_alone(
    learned, folder, tmp_path, monkeypatch
):
    run(learned, folder, "-o", tmp_path / "together", code=3)
    monkeypatch.setattr(work, "BATCH", 1)
    run(learned, folder, "-o", tmp_path / "alone", code=3)
    eps = 1e-2 / 96 * math.sqrt(31 * 17)
    for i in range(5):
        one, two = (load_image(tmp_path / name / f"{i}.tif") for name in ("together", "alone"))
        assert float((one - two).norm()) <= 2 * eps


def test_what_fails_in_a_batch_is_found_image_by_image(learned, tmp_path):
    place = tmp_path / "noisy"
    place.mkdir()
    for i in range(4):
        save_png(place / f"{i}.png", 20, 20)
    model = work.Recipe(learned / "model.safetensors", work.Demands(), alone=False)
    worker = work.Worker(model.model(), model)
    reconstruct, asked = worker.model.reconstruct, []

    def fails_for_the_third(y, *arguments, **options):
        asked.append(len(y))
        if len(y) > 1 or len(asked) == 4:
            raise InputError("y", given="this", expected="that")
        return reconstruct(y, *arguments, **options)

    worker.model.reconstruct = fails_for_the_third
    jobs = [work.Job(place / f"{i}.png", tmp_path / f"{i}.png") for i in range(4)]
    found = list(worker.run(jobs))
    assert asked == [4, 1, 1, 1, 1] and [o.job for o in found] == jobs
    assert [o.state for o in found] == ["done", "done", "failed", "done"]
    assert not (tmp_path / "2.png").exists() and "2.png: given this" in found[2].text


@pytest.mark.parametrize("sizes", ["equal", "mixed"])
def test_no_more_images_are_read_than_fit(learned, tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(work, "BATCH", 2000)
    monkeypatch.setattr(work, "PENDING", 4000)
    recipe = work.Recipe(learned / "model.safetensors", work.Demands())
    read = []

    def jobs():
        for i in range(60):
            side = 20 + (i % 20 if sizes == "mixed" else 0)
            path = save_png(tmp_path / f"{i}.png", 16, side)
            read.append(path)
            yield work.Job(path, tmp_path / f"clean{i}.png")

    most, done = 0, 0
    for _ in work.Worker(recipe.model(), recipe).run(jobs()):
        most, done = max(most, len(read) - done), done + 1
    assert done == 60 and most <= 4000 // (16 * 20) + 1


def test_a_result_that_cannot_be_written_stops_at_once(learned, folder, tmp_path, monkeypatch):
    def full(*arguments):
        raise InputError("--output", given="a full disk", expected="room")

    monkeypatch.setattr(work, "write_picture", full)
    error = run(learned, folder, "-o", tmp_path / "clean", code=2).stderr
    assert "full disk" in error and "images failed" not in error


def test_an_interruption_keeps_what_is_written_and_can_go_on(
    learned, folder, tmp_path, monkeypatch
):
    write, count = work.write_picture, []

    def interrupted(*arguments):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(work, "write_picture", interrupted)
    error = run(learned, folder, "-o", tmp_path / "clean", code=130).stderr
    assert "2 of 7 images are written" in error and "--skip-existing" in error
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "clean").iterdir()}
    assert len(before) == 2
    (folder / "1b.png").unlink()
    (folder / "2b.tif").unlink()
    result = run(learned, folder, "-o", tmp_path / "clean", "--skip-existing")
    assert "2 of 5 images are there already" in result.stdout
    assert len(re.findall(CERTIFIED, result.stdout)) == 3
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    again = run(learned, folder, "-o", tmp_path / "clean", "--skip-existing")
    assert "5 of 5" in again.stdout and not re.findall(CERTIFIED, again.stdout)


def test_remarks_on_data_stand_with_their_image_and_other_warnings_pass(
    learned, folder, tmp_path, monkeypatch
):
    plainly = work.read_input

    def remarking(path, units):
        if path.suffix == ".tif":
            warnings.warn(f"{path.name} looks odd", DataWarning, stacklevel=1)
        return plainly(path, units)

    monkeypatch.setattr(work, "read_input", remarking)
    text = run(learned, folder, "-o", tmp_path / "clean", code=3).stdout
    for i in range(5):
        assert f"warning: {i}.tif looks odd\n" in text
    with pytest.warns(FutureWarning, match="later"), work.heard() as remarks:
        warnings.warn("later", FutureWarning, stacklevel=1)
        for _ in range(2):
            warnings.warn("odd", DataWarning, stacklevel=1)
    assert remarks == ["odd"]


def test_debugging_shows_the_first_error(learned, folder, tmp_path):
    with pytest.raises(InputError, match="cannot be read as an image"):
        run(learned, folder, "-o", tmp_path / "clean", "--debug")


def test_the_model_may_be_named_by_its_run(learned, tmp_path):
    image = save_png(tmp_path / "x.png", 20, 20)
    by_folder = run(learned, image, "-o", tmp_path / "1.png").stdout
    by_file = run(learned / "model.safetensors", image, "-o", tmp_path / "2.png").stdout
    assert by_folder.replace("1.png", "2.png") == by_file
    assert "folder without" in run(tmp_path, image, "-o", tmp_path / "3.png", code=2).stderr


def test_a_quality_is_a_distance_per_pixel(learned, tmp_path):
    image = save_png(tmp_path / "x.png", 30, 40)
    for quality, distance in (("draft", 1 / 255), ("fine", 1e-2 / 96)):
        text = run(learned, image, "-o", tmp_path / "y.png", "--quality", quality).stdout
        assert f"eps {distance * math.sqrt(1200):.2e}" in text
        assert float(re.search(CERTIFIED, text)[1]) <= distance * math.sqrt(1200) * 1.01


def test_images_out_of_time_are_written_and_listed(learned, tmp_path):
    place = tmp_path / "noisy"
    place.mkdir()
    for i in range(2):
        save_png(place / f"{i}.png", 40, 40)
    clean = tmp_path / "clean"
    result = run(learned, place, "-o", clean, "--max-seconds", "1e-9", code=3)
    assert len(list(clean.iterdir())) == 2
    assert len(re.findall(CERTIFIED + r".*not reached within 1e-09 s", result.stdout)) == 2
    assert "2 of 2 images did not reach the accuracy in time" in result.stderr
    assert not run(learned, place, "-o", clean, "--max-seconds", "100").stderr


def test_one_image_that_misses_is_written_too(learned, tmp_path):
    image = save_png(tmp_path / "x.png", 40, 40)
    run(learned, image, "-o", tmp_path / "y.png", "--max-seconds", "1e-9", code=3)
    assert (tmp_path / "y.png").exists()


@pytest.mark.slow
def test_several_processes_do_the_same(learned, folder, tmp_path):
    run(learned, folder, "-o", tmp_path / "one", code=3)
    result = run(learned, folder, "-o", tmp_path / "two", "--processes", "2", code=3)
    assert len(re.findall(CERTIFIED, result.stdout)) == 5 and "2 of 7" in result.stderr
    for path in (tmp_path / "one").iterdir():
        one, two = load_image(path), load_image(tmp_path / "two" / path.name)
        assert float((one - two).norm()) <= 2e-2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--eps", "1", "--quality", "draft"], "one of the two"),
        (["--quality", "best"], "expected draft or fine"),
        (["--max-seconds", "0"], "--max-seconds: given 0"),
        (["--memory", "much"], "a size such as 800MB"),
        (["--memory", "0"], "a size such as 800MB"),
        (["--memory", "10kB"], "of memory; expected at most 10 kB"),
        (["--processes", "0"], "--processes: given 0"),
        (["--processes", "100000"], "--processes: given 100000"),
        (["--sigma", "loud"], "--sigma: given loud"),
        (["--sigma", "0/255"], "--sigma: given 0/255"),
    ],
)
def test_options_out_of_range_are_refused_by_name(learned, tmp_path, options, words):
    image = save_png(tmp_path / "x.png", 20, 20)
    assert words in run(learned, image, "-o", tmp_path / "y.png", *options, code=2).stderr
    assert not (tmp_path / "y.png").exists()


def test_sizes_and_noise_levels_in_words():
    assert parse_bytes("1.5 GB") == 1_500_000_000 and parse_bytes("2gib") == 2**31
    assert parse_sigma("25/255") == 25 / 255 and parse_sigma(" Auto") == "auto"
    for text in ("", "GB", "1 XB", "-1GB", "1.2.3GB", "nan"):
        with pytest.raises(InputError):
            parse_bytes(text)
    for text in ("", "/255", "1/0", "nan", "inf", "-1"):
        with pytest.raises(InputError):
            parse_sigma(text)


def test_remarks_on_noise_stand_with_the_image_they_are_about(learned, tmp_path):
    place = tmp_path / "noisy"
    place.mkdir()
    for i, level in enumerate([0.1, 0.1, 0.45, 0.1]):
        noise = level * np.random.default_rng(i).standard_normal((48, 48))
        tifffile.imwrite(place / f"{i}.tif", (0.5 + noise).clip(-0.9, 1.9).astype(np.float32))
    text = run(learned, place, "-o", tmp_path / "clean").stdout
    lines = text.replace("\n", " ").split("warning: ")
    assert len(lines) == 2 and lines[1].index("2.tif") < lines[1].index("3.tif")
    text = run(learned, place, "-o", tmp_path / "auto", "--sigma", "auto").stdout
    assert len(re.findall(r"noise estimated at [\d.]+", text)) == 4


def test_the_range_of_pictures_can_be_said(learned, tmp_path):
    values = np.random.default_rng(0).integers(1000, 3000, (24, 20)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values)
    tifffile.imwrite(tmp_path / "b.tif", (values / 4095).astype(np.float32))
    for name, options in {"a": ("--range", "0,4095"), "b": ()}.items():
        text = run(learned, tmp_path / f"{name}.tif", "-o", tmp_path / f"{name}_out.tif", *options)
        assert "largest value" not in text.stdout
    a, b = (tifffile.imread(tmp_path / f"{name}_out.tif") for name in "ab")
    assert a.dtype == np.uint16 and np.abs(a / 4095 - b).max() < 1e-3
    for wrong in ("4095", "5,3", "a,b", "0,inf"):
        error = run(learned, tmp_path / "a.tif", "-o", "x.tif", "--range", wrong, code=2).stderr
        assert "--range" in error


@pytest.mark.filterwarnings("default:.*left out")
def test_what_is_left_out_of_a_folder_is_named(learned, tmp_path):
    place = tmp_path / "noisy"
    (place / "deeper").mkdir(parents=True)
    save_png(place / "a.png", 20, 24)
    save_png(place / "deeper" / "b.png", 20, 24)
    (place / "c.heic").write_bytes(b"another format")
    (place / ".hidden").write_bytes(b"")
    result = run(learned, place, "-o", tmp_path / "clean")
    said = result.stdout + result.stderr
    assert said.count("left out c.heic, deeper/.") == 1 and ".hidden" not in said
    again = run(learned, place / "deeper", "-o", tmp_path / "clean")
    assert "left out" not in again.stdout + again.stderr
