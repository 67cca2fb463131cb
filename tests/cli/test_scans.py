"""DICOM and NIfTI files through ``reconstruct``."""

from __future__ import annotations

import deepinv as dinv
import numpy as np
import pytest
import torch
from tests.cli.cases import invoke
from tests.cli.test_stacks import NOISY, expected, model, run
from tests.data.test_scans import dicom, nifti

import learnreg as lr
from learnreg.cli.reconstruct_plan import plan
from learnreg.cli.scan_files import keeping_scans
from learnreg.core.errors import InputError
from learnreg.data.scans import read_scan
from learnreg.models import TrainedModel

HU = (NOISY * 2000 - 1000).round().astype(np.int16)
UNITS = {"units": [-1000.0, 1000.0]}


def jobs_for(paths, output, found):
    return keeping_scans(plan(paths, str(output)), found)


def clean(found, values, levels):
    return expected(found, values, levels)


@pytest.mark.parametrize("kind", ["slice.dcm", "frames.dcm", "plane.nii", "volume.nii.gz"])
def test_a_scan_comes_back_as_one_in_its_units(tmp_path, kind):
    stored = HU[:1] if kind in ("slice.dcm", "plane.nii") else HU[:3]
    if kind.endswith(".dcm"):
        offset = stored + 1024
        source = dicom(
            tmp_path / kind,
            (offset[0] if len(stored) == 1 else offset).astype(np.int16),
            RescaleSlope=1,
            RescaleIntercept=-1024,
        )
    else:
        source = nifti(tmp_path / kind, np.moveaxis(stored, 0, -1).squeeze())
    found = model(**UNITS)
    (job,) = jobs_for([source], tmp_path / "out", found)
    outcome = run(job, found, alone=True)
    assert job.target.name == kind and outcome.state == "done"
    assert f"stored as {np.dtype('int16')}" in outcome.text and "-1000 to 1000" in outcome.text
    assert outcome.text.count("certified") == len(stored)
    result = read_scan(job.target).values
    assert np.abs(result - clean(found, stored, (-1000, 1000))).max() < 0.5 + 2000 * 2e-3
    assert [path.name for path in job.target.parent.iterdir()] == [kind]


def test_models_from_pictures_take_the_range_of_the_file_and_refuse_to_guess(tmp_path):
    found = model(pictures=True)
    twelve = (NOISY[0].clip(0, 1) * 4095).round().astype(np.uint16)
    one = dicom(tmp_path / "a.dcm", twelve, BitsStored=12, HighBit=11)
    (job,) = jobs_for([one], tmp_path / "out", found)
    assert "0 to 4095" in run(job, found, alone=True).text
    two = dicom(tmp_path / "b.dcm", HU[0])
    (job,) = jobs_for([two], tmp_path / "out", found)
    with pytest.raises(InputError, match=r"b\.dcm.*range"):
        run(job, found, alone=True)
    assert not job.target.exists()


def test_models_from_measured_pairs_leave_the_units_as_they_are(tmp_path):
    found = model()
    source = nifti(tmp_path / "a.nii", NOISY[0].astype(np.float32))
    (job,) = jobs_for([source], tmp_path / "a.npy", found)
    outcome = run(job, found, alone=True)
    result = np.load(job.target)
    assert result.shape == NOISY[0].shape and outcome.state == "done"
    assert np.abs(result - clean(found, NOISY[:1], (0, 1))[0]).max() < 2e-3


def test_measurements_that_are_no_images_become_arrays_as_before(tmp_path):
    physics = dinv.physics.Tomography(angles=8, img_width=16, normalize=False, device="cpu")
    found = TrainedModel(lr.Energy(physics, lr.regularizers.TV()))
    assert not found.takes_images and model().takes_images
    blur = dinv.physics.BlurFFT((1, 16, 16), filter=torch.ones(1, 1, 3, 3) / 9)
    assert not TrainedModel(lr.Energy(blur, lr.regularizers.TV())).takes_images
    moving = dinv.physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="circular")
    assert TrainedModel(lr.Energy(moving, lr.regularizers.TV())).takes_images
    (tmp_path / "a.dcm").write_bytes(b"x")
    assert jobs_for([tmp_path / "a.dcm"], tmp_path / "out", found)[0].target.name == "a.npy"
    with pytest.raises(InputError, match="--output"):
        jobs_for([tmp_path / "a.dcm"], tmp_path / "b.dcm", found)


@pytest.mark.parametrize("target", ["b.nii", "b.nii.gz"])
def test_a_scan_of_another_kind_is_refused(tmp_path, target):
    (tmp_path / "a.dcm").write_bytes(b"x")
    with pytest.raises(InputError, match="same kind"):
        jobs_for([tmp_path / "a.dcm"], tmp_path / target, model())


def test_the_command_writes_scans_and_stacks_and_tells_of_bad_pages(tmp_path):
    import tifffile

    found = model(**UNITS)
    lr.save_model(tmp_path / "model.safetensors", found.energy, UNITS)
    (tmp_path / "in").mkdir()
    pages = (NOISY * 2000 - 1000).astype(np.float32)
    pages[2] = np.nan
    tifffile.imwrite(tmp_path / "in" / "s.tif", pages, photometric="minisblack")
    command = ["reconstruct", "-m", tmp_path, tmp_path / "in", "--eps", 0.01, "-o"]
    told = invoke(*command, tmp_path / "out", code=3)
    assert "s.tif#2" in told.stderr and "1 of 5 pages" in told.stderr
    assert len(tifffile.imread(tmp_path / "out" / "s.tif")) == len(pages)
    pytest.importorskip("nibabel")
    nifti(tmp_path / "in" / "v.nii.gz", np.moveaxis(HU, 0, -1))
    (tmp_path / "in" / "s.tif").unlink()
    invoke(*command, tmp_path / "out")
    assert read_scan(tmp_path / "out" / "v.nii.gz").values.shape == HU.shape
    told = invoke(*command, tmp_path / "in", code=2)
    assert "which is an input" in told.stderr


@pytest.mark.parametrize("target", ["a.tif", "a.npy", "a.png"])
def test_a_slice_can_be_written_as_an_array_or_a_picture(tmp_path, target):
    found = model(**UNITS)
    source = dicom(tmp_path / "a.dcm", HU[0])
    (job,) = jobs_for([source], tmp_path / target, found)
    outcome = run(job, found, alone=True)
    result = lr.data.load_image(job.target) if target == "a.png" else lr.data.read_array(job.target)
    values = result.double().squeeze().numpy()
    values = values * 2000 - 1000 if target == "a.png" else values
    inside = np.clip(clean(found, HU[:1], (-1000, 1000))[0], -1000, 1000)
    values = values.clip(-1000, 1000)
    assert outcome.state == "done" and np.abs(values - inside).max() < 2000 * 2e-3


def test_several_slices_are_no_picture(tmp_path):
    source = dicom(tmp_path / "a.dcm", HU)
    (job,) = jobs_for([source], tmp_path / "a.png", model(**UNITS))
    with pytest.raises(InputError, match="5 slices"):
        run(job, model(**UNITS), alone=True)


def test_a_model_remembers_that_it_was_learned_from_pictures(learned):
    assert lr.load(learned).from_pictures and not model().from_pictures
