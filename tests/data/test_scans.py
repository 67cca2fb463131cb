"""DICOM and NIfTI files in and out with their headers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from learnreg.core.errors import InputError
from learnreg.data.scans import is_scan, read_scan, write_scan

CT = "1.2.840.10008.5.1.4.1.1.2"


def dicom(path: Path, stored: np.ndarray, **tags: object) -> Path:
    """A DICOM file; (h, w), or (n, h, w) for frames."""
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CT
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file = pydicom.dataset.FileDataset("a", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = CT, meta.MediaStorageSOPInstanceUID
    file.PatientName, file.PixelSpacing, file.ImageType = (
        "Nobody",
        [0.5, 0.7],
        ["ORIGINAL", "AXIAL"],
    )
    bits = 8 * stored.dtype.itemsize
    file.Rows, file.Columns = stored.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        file.NumberOfFrames = len(stored)
    file.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path)
    return path


def nifti(path: Path, stored: np.ndarray, slope: float = 1.0, inter: float = 0.0) -> Path:
    """A NIfTI file with an affine of its own."""
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(stored, affine, dtype=stored.dtype)
    image.header.set_slope_inter(slope, inter)
    image.header["descrip"] = b"by hand"
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a remark"))
    nibabel.save(image, path)
    return path


def numbers(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 120, size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7)])
def test_dicom_keeps_type_rescaling_and_tags(tmp_path: Path, dtype: str, shape) -> None:
    pydicom = pytest.importorskip("pydicom")
    stored = numbers(shape, dtype)
    tags = {"RescaleSlope": 2, "RescaleIntercept": -50, "LargestImagePixelValue": 1}
    path = dicom(tmp_path / "a.dcm", stored, **tags)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.values.reshape(shape), 2.0 * stored - 50)
    assert not scan.plain and scan.dtype == stored.dtype

    write_scan(tmp_path / "b.dcm", scan.values + 4.3, scan)
    before, after = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "b.dcm")
    np.testing.assert_array_equal(after.pixel_array, stored + 2)
    assert after.pixel_array.dtype == stored.dtype
    assert (after.RescaleSlope, after.RescaleIntercept) == (2, -50)
    assert after.PatientName == "Nobody" and list(after.PixelSpacing) == [0.5, 0.7]
    assert after.SOPInstanceUID != before.SOPInstanceUID
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    assert list(after.ImageType) == ["DERIVED", "AXIAL"]
    (source,) = after.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert "learnreg" in after.DerivationDescription
    assert int(after.LargestImagePixelValue) == int(after.pixel_array.max())


def test_dicom_clips_to_the_bits_that_are_stored(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    path = dicom(tmp_path / "a.dcm", numbers((4, 6), "uint16"), BitsStored=12, HighBit=11)
    scan = read_scan(path)
    assert scan.limits == (0, 4095)
    write_scan(tmp_path / "b.dcm", np.linspace(-9, 5000, 24).reshape(1, 4, 6), scan)
    pixels = pydicom.dcmread(tmp_path / "b.dcm").pixel_array
    assert (pixels.min(), pixels.max()) == (0, 4095)


def test_a_compressed_dicom_file_is_written_without_compression(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    stored = numbers((6, 8), "uint16")
    path = dicom(tmp_path / "a.dcm", stored)
    data = pydicom.dcmread(path)
    if not hasattr(data, "compress"):
        pytest.skip("this release does not compress")
    data.compress(pydicom.uid.RLELossless)
    data.save_as(path)
    scan = read_scan(path)
    write_scan(tmp_path / "b.dcm", scan.values, scan)
    after = pydicom.dcmread(tmp_path / "b.dcm")
    assert not after.file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(after.pixel_array, stored)


@pytest.mark.parametrize(
    "tags, words",
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR pixels"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "single bits"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "slope"),
        ({"PixelData": b"\0\0"}, "cannot be read as .dcm"),
    ],
)
def test_dicom_files_that_are_no_grey_images_are_refused(tmp_path: Path, tags, words) -> None:
    path = dicom(tmp_path / "a.dcm", numbers((4, 6), "uint16"), **tags)
    with pytest.raises(InputError, match=words):
        read_scan(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 3, 2)])
def test_nifti_keeps_type_rescaling_and_header(tmp_path: Path, ending, dtype, shape) -> None:
    nibabel = pytest.importorskip("nibabel")
    slope, inter = (0.5, -8.0) if dtype[0] != "f" else (1.0, 0.0)
    stored = numbers(shape, dtype)
    path = nifti(tmp_path / f"a{ending}", stored, slope, inter)
    scan = read_scan(path)
    volume = slope * stored + inter
    np.testing.assert_array_equal(scan.arranged(scan.values), volume)
    np.testing.assert_array_equal(scan.values[-1], volume.reshape(5, 7, -1)[..., -1])

    write_scan(tmp_path / f"b{ending}", scan.values + 1, scan)
    before, after = nibabel.load(path), nibabel.load(tmp_path / f"b{ending}")
    np.testing.assert_array_equal(after.dataobj, volume + 1)
    assert after.get_data_dtype() == before.get_data_dtype() == stored.dtype
    assert (after.dataobj.slope, after.dataobj.inter) == (slope, inter)
    np.testing.assert_array_equal(after.affine, before.affine)
    for name in ("descrip", "pixdim", "xyzt_units", "sform_code", "qform_code"):
        np.testing.assert_array_equal(after.header[name], before.header[name])
    assert [e.get_content() for e in after.header.extensions] == [b"a remark"]


@pytest.mark.parametrize("values", [np.array([[1, np.nan]]), np.ones((2, 2), complex)])
def test_nifti_files_that_are_no_images_are_refused(tmp_path: Path, values) -> None:
    with pytest.raises(InputError, match=r"NaN|complex128"):
        read_scan(nifti(tmp_path / "a.nii", values))


@pytest.mark.parametrize("name, package", [("a.dcm", "pydicom"), ("a.nii.gz", "nibabel")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch, name, package) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.*pip install \"learnreg\[measured\]\""):
        read_scan(tmp_path / name)
    assert is_scan(tmp_path / name) and not is_scan(tmp_path / "a.npy")
