"""Stacks through ``reconstruct``: the same pages, type, units and metadata, whole or absent."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from tests.data.image_files import picture

import learnreg as lr
from learnreg.cli.reconstruct_plan import Job, plan
from learnreg.cli.reconstruct_work import Recipe, Worker
from learnreg.core.errors import InputError
from learnreg.models import Demands, TrainedModel

SIZE, PAGES = (24, 32), 5
CLEAN = np.stack([picture(*SIZE, seed=i) for i in range(PAGES)])
NOISY = CLEAN + 0.1 * np.random.default_rng(0).normal(size=CLEAN.shape)
GREY = (NOISY.clip(0, 1) * 4095).round().astype(np.uint16)
UNITS = {"units": [0.0, 4095.0]}


def model(**notes):
    """Smooths with a quadratic: cheap, and other than its input."""
    import deepinv as dinv

    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    energy = lr.Energy(physics, lr.regularizers.TV(0.05, smoothing=0.05))
    return TrainedModel(energy, Demands(eps=1e-3), notes=notes)


@pytest.fixture(scope="module")
def found():
    return model(**UNITS)


def run(job, found, alone=False):
    (outcome,) = Worker(found, Recipe(None, found.demands, alone=alone)).run([job])
    return outcome


def expected(found, pixels, levels=(0, 4095)):
    """Every page alone, as numbers of the file."""
    lo, hi = levels
    y = torch.from_numpy((pixels.astype(np.float64) - lo) / (hi - lo)).float()
    x = torch.cat([found.reconstruct(page[None, None]).value for page in y])[:, 0]
    return x.double().numpy() * (hi - lo) + lo


def written(path, pixels=GREY, **options):
    tifffile.imwrite(path, pixels, **{"photometric": "minisblack", **options})
    return path


def pages_of(path):
    with tifffile.TiffFile(path) as tiff:
        return [page.asarray() for page in tiff.pages]


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "metadata": {"axes": "TYX", "unit": "um", "Labels": list("abcde")}},
        {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeZ": 0.5}},
        {"metadata": {"axes": "ZYX"}},
        {"metadata": None, "byteorder": ">", "description": "taken in May"},
        {"truncate": True},
        {"bigtiff": True},
    ],
)
def test_pages_type_units_and_metadata_are_kept(tmp_path, found, options):
    source = written(
        tmp_path / "s.tif", resolution=(12.5, 12.5), resolutionunit="CENTIMETER", **options
    )
    (job,) = plan([source], str(tmp_path / "out"))
    outcome = run(job, found)
    assert outcome.state == "done", outcome.text
    with tifffile.TiffFile(source) as before, tifffile.TiffFile(job.target) as after:
        assert len(after.pages) == PAGES and after.byteorder == before.byteorder
        assert after.is_bigtiff == before.is_bigtiff
        one, two = before.series[0], after.series[0]
        assert (one.kind, one.shape, one.axes, one.dtype) == (
            two.kind,
            two.shape,
            two.axes,
            two.dtype,
        )
        for tag in (282, 283, 296):
            assert after.pages[0].tags.valueof(tag) == before.pages[0].tags.valueof(tag)
        if before.is_imagej:
            assert after.imagej_metadata == before.imagej_metadata
        if before.is_ome:
            assert after.ome_metadata == before.ome_metadata
        if "description" in options:
            assert after.pages[0].description == "taken in May"
        result = after.asarray()
    assert result.dtype == np.uint16
    assert np.abs(result - expected(found, GREY)).max() < 0.5 + 4095 * 2e-3
    assert "rounded to 16 bits" in outcome.text and outcome.text.count("certified") >= PAGES
    assert [path.name for path in job.target.parent.iterdir()] == ["s.tif"]


@pytest.mark.parametrize("kind", ["float", "colour", "sizes", "transparent", "8 bits"])
def test_pages_of_all_kinds(tmp_path, found, kind):
    float_model = model()
    images = {
        "float": [image / np.float32(4095) for image in GREY],
        "colour": [np.stack([image, image[::-1], image], -1) for image in GREY[:2]],
        "sizes": [GREY[0], GREY[1][:12], GREY[2][:, :8], GREY[3]],
        "transparent": [np.stack([image] * 3 + [image * 0], -1) for image in GREY[:2]],
        "8 bits": [(image >> 4).astype(np.uint8) for image in GREY],
    }[kind]
    options = {"photometric": "rgb" if images[0].ndim == 3 else "minisblack"}
    if kind == "transparent":
        options["extrasamples"] = ["unassalpha"]
    source = tmp_path / "s.tif"
    with tifffile.TiffWriter(source) as file:
        for image in images:
            file.write(image, metadata=None, **options)
    (job,) = plan([source], str(tmp_path / "out"))
    outcome = run(job, float_model if kind in ("float", "8 bits") else found)
    assert outcome.state == "done", outcome.text
    results = pages_of(job.target)
    for image, result in zip(images, results, strict=True):
        image = image[..., :3] if kind == "transparent" else image
        assert result.shape == image.shape and result.dtype == image.dtype
        assert 0 < np.abs(result.astype(float) - image).max() < 0.5 * float(image.max())
    assert ("transparency was dropped" in outcome.text) == (kind == "transparent")


def test_many_pages_have_one_line_with_the_worst(tmp_path, found):
    pixels = np.stack([np.roll(GREY[0], i, axis=1) for i in range(12)])
    (job,) = plan([written(tmp_path / "s.tif", pixels)], str(tmp_path / "out"))
    outcome = run(job, found)
    assert outcome.text.startswith("12 pages; ") and "\n" not in outcome.text
    assert "the worst, #" in outcome.text and outcome.text.count("certified") == 1


def test_remarks_on_the_numbers_name_the_stack_once(tmp_path):
    (job,) = plan([written(tmp_path / "s.tif")], str(tmp_path / "out"))
    outcome = run(job, model())
    range_words, noise_words = outcome.remarks
    assert "s.tif#0" in range_words and "4095" in range_words and "and 2 more" in range_words
    assert noise_words.startswith("noise: ")


def test_one_bad_page_does_not_lose_the_others(tmp_path, found):
    pixels = GREY.astype(np.float32) / 4095
    pixels[1, 3, 4], pixels[3] = np.nan, 7.0
    (job,) = plan([written(tmp_path / "s.tif", pixels)], str(tmp_path / "out"))
    outcome = run(job, model(), alone=True)
    assert outcome.state == "partly" and outcome.text.startswith("3 of 5 pages")
    assert [text.split(":")[0].rsplit("#", 1)[1] for text in outcome.bad] == ["1", "3"]
    assert "NaN" in outcome.bad[0] and "[7, 7]" in outcome.bad[1]
    results = pages_of(job.target)
    np.testing.assert_array_equal(results[1], pixels[1])
    np.testing.assert_array_equal(results[3], pixels[3])
    clean = expected(model(), pixels[[0, 2, 4]], (0, 1))
    assert np.abs(np.stack([results[i] for i in (0, 2, 4)]) - clean).max() < 2e-3


def test_a_damaged_page_leaves_a_gap(tmp_path, found):
    source = written(tmp_path / "s.tif", compression="zlib", metadata=None)
    with tifffile.TiffFile(source) as tiff:
        at, size = tiff.pages[2].dataoffsets[0], tiff.pages[2].databytecounts[0]
    content = bytearray(source.read_bytes())
    content[at : at + size] = bytes(size)
    source.write_bytes(content)
    (job,) = plan([source], str(tmp_path / "out"))
    outcome = run(job, found)
    assert outcome.state == "partly" and "s.tif#2" in outcome.bad[0]
    results = pages_of(job.target)
    assert len(results) == PAGES and results[2].shape == SIZE and not results[2].any()


def test_without_any_good_page_nothing_is_written(tmp_path):
    pixels = np.full((3, *SIZE), np.nan, np.float32)
    (job,) = plan([written(tmp_path / "s.tif", pixels)], str(tmp_path / "out"))
    assert run(job, model()).state == "failed"
    with pytest.raises(InputError, match="NaN"):
        run(job, model(), alone=True)
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_stack_leaves_nothing(tmp_path, found):
    (job,) = plan([written(tmp_path / "s.tif", np.concatenate([GREY] * 2))], str(tmp_path / "out"))

    def stop(job, share):
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Worker(found, Recipe(None, found.demands), stop).run([job]))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["x.png", "x.npy", "x.jpg"])
def test_a_stack_goes_into_a_file_that_holds_pages(tmp_path, name):
    source = written(tmp_path / "s.tif")
    with pytest.raises(InputError, match=r"5 pages.*-o .*x\.tif"):
        plan([source], str(tmp_path / name))
    assert plan([source], str(tmp_path / "x.tif"))[0].pages == PAGES


def test_the_first_series_is_used_and_the_loss_of_the_others_is_said(tmp_path, found):
    source = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(source, ome=True) as file:
        file.write(GREY, photometric="minisblack", metadata={"axes": "ZYX"})
        file.write(GREY[:2, :9], photometric="minisblack", metadata={"axes": "ZYX"})
    (job,) = plan([source], str(tmp_path / "out"))
    outcome = run(job, found)
    assert outcome.state == "done" and "a plain stack" in outcome.text
    assert any("first series" in text for text in outcome.remarks)
    assert len(pages_of(job.target)) == PAGES


def test_stacks_and_pictures_of_one_folder(tmp_path, found):
    (tmp_path / "in").mkdir()
    written(tmp_path / "in" / "a.tif")
    tifffile.imwrite(tmp_path / "in" / "b.tif", GREY[0])
    jobs = plan([tmp_path / "in"], str(tmp_path / "out"))
    assert [job.pages for job in jobs] == [PAGES, None]
    outcomes = list(Worker(found, Recipe(None, found.demands)).run(jobs))
    assert {o.job.source.name: o.state for o in outcomes} == {"a.tif": "done", "b.tif": "done"}
    np.testing.assert_array_equal(pages_of(jobs[0].target)[0], pages_of(jobs[1].target)[0])


def test_a_job_is_still_a_source_and_a_target(tmp_path):
    assert Job(tmp_path / "a", tmp_path / "b").pages is None
