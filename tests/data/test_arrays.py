"""Arrays from files: formats, types, entries, and files that are none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from learnreg.core.errors import InputError
from learnreg.data import read_array, save_array
from learnreg.data.arrays import ARRAYS, ArrayFile, array_file

KINDS = ["float32", "float64", "complex64", "complex128"]
INTEGERS = {
    "bool": torch.float32,
    "uint8": torch.float32,
    "int16": torch.float32,
    "uint16": torch.float32,
    "float16": torch.float32,
    "int32": torch.float64,
    "uint32": torch.float64,
    "int64": torch.float64,
}


def numbers(dtype: str, shape: tuple[int, ...] = (3, 4, 5)) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 60000, shape)
    if "complex" in dtype:
        return (values + 1j * values[::-1]).astype(dtype)
    return values.astype(dtype)


def npy(path: Path, array: np.ndarray) -> Path:
    np.save(path.with_suffix(".npy"), array)
    return path.with_suffix(".npy")


def npz(path: Path, array: np.ndarray) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), scan=array)
    return path.with_suffix(".npz")


def mat(path: Path, array: np.ndarray) -> Path:
    import scipy.io

    scipy.io.savemat(path.with_suffix(".mat"), {"scan": array})
    return path.with_suffix(".mat")


def hdf5(path: Path, array: np.ndarray) -> Path:
    import h5py

    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["group/scan"] = array
    return path.with_suffix(".h5")


def mat73(path: Path, array: np.ndarray) -> Path:
    """Version 7.3 of MATLAB: HDF5 with the axes the other way round, complex numbers as pairs."""
    import h5py

    with h5py.File(path.with_suffix(".mat"), "w", userblock_size=512) as file:
        if np.iscomplexobj(array):
            kind = np.dtype([("real", array.real.dtype), ("imag", array.real.dtype)])
            pairs = np.empty(array.T.shape, kind)
            pairs["real"], pairs["imag"] = array.T.real, array.T.imag
            file["scan"] = pairs
        else:
            file["scan"] = array.T
    with open(path.with_suffix(".mat"), "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path.with_suffix(".mat")


def tiff(path: Path, array: np.ndarray) -> Path:
    import tifffile

    tifffile.imwrite(path.with_suffix(".tif"), array, photometric="minisblack")
    return path.with_suffix(".tif")


def nifti(path: Path, array: np.ndarray) -> Path:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path.with_suffix(".nii.gz"))
    return path.with_suffix(".nii.gz")


WRITERS = [npy, npz, mat, mat73, hdf5, tiff, nifti]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("write", WRITERS)
def test_numbers_come_back_as_they_were(
    tmp_path: Path, write: Callable[[Path, np.ndarray], Path], dtype: str
) -> None:
    array = numbers(dtype)

    read = read_array(write(tmp_path / "a", array))

    assert read.dtype == getattr(torch, dtype)
    assert np.array_equal(read.numpy(), array)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("write", [npy, npz, hdf5])
def test_integers_keep_their_units(
    tmp_path: Path, write: Callable[[Path, np.ndarray], Path], dtype: str
) -> None:
    array = numbers(dtype)

    read = read_array(write(tmp_path / "a", array))

    assert read.dtype == INTEGERS[dtype]
    assert np.array_equal(read.numpy(), array)


@pytest.mark.parametrize("order", [">f4", ">c16", "<i2"])
def test_byte_orders_and_layouts(tmp_path: Path, order: str) -> None:
    array = np.asfortranarray(np.arange(12).reshape(3, 4).astype(order))

    assert np.array_equal(read_array(npy(tmp_path / "a", array)).numpy(), array)


def test_dicom_is_read_in_its_rescaled_units(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file = pydicom.dataset.FileDataset("a", {}, file_meta=meta, preamble=b"\0" * 128)
    stored = np.arange(12, dtype=np.uint16).reshape(3, 4)
    file.Rows, file.Columns, file.SamplesPerPixel = 3, 4, 1
    file.PhotometricInterpretation = "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.RescaleSlope, file.RescaleIntercept = 2, -1000
    file.PixelData = stored.tobytes()
    file.save_as(tmp_path / "a.dcm", enforce_file_format=True)

    assert np.array_equal(read_array(tmp_path / "a.dcm").numpy(), 2.0 * stored - 1000)


def test_raw_mri_becomes_its_k_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["dataset/xml"] = np.array([b"<header/>"])
        file["dataset/data"] = np.zeros(3)
    kspace = torch.arange(2 * 3 * 4 * 5.0).reshape(1, 2, 3, 1, 4, 5)
    monkeypatch.setattr("deepinv.utils.io.load_ismrmrd_raw", lambda path: kspace)

    assert torch.equal(read_array(tmp_path / "a.h5"), kspace[0, :, :, 0])


# --- entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "mat", "h5"])
def test_one_entry_of_several(tmp_path: Path, kind: str) -> None:
    arrays = {"truth": numbers("float64"), "scan": numbers("float32", (2, 3))}
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "mat":
        import scipy.io

        scipy.io.savemat(path, arrays)
    else:
        import h5py

        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array

    for found in (read_array(f"{path}:scan"), read_array(path, key="scan")):
        assert np.array_equal(found.numpy(), arrays["scan"])
    for given in (path, f"{path}:sino"):
        with pytest.raises(InputError, match=r"one of its entries: scan, truth\. Choose one with"):
            read_array(given)
    with pytest.raises(InputError, match="one entry"):
        read_array(f"{path}:scan", key="truth")


def test_a_colon_in_the_name_of_a_file_is_a_colon(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz:b", numbers("float32"))

    assert array_file(path) == ArrayFile(path)
    assert read_array(str(path)).shape == (3, 4, 5)


def test_an_entry_of_a_file_without_entries(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no names"):
        read_array(npy(tmp_path / "a", numbers("float32")), key="scan")


def test_nested_endings_belong_to_the_name() -> None:
    assert ArrayFile(Path("scan.1.nii.gz")).stem == "scan.1"
    assert ArrayFile(Path("Scan.NPY")).suffix == ".npy"


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [npy, npz, mat, hdf5, tiff])
def test_rows_are_those_of_the_array(
    tmp_path: Path, write: Callable[[Path, np.ndarray], Path]
) -> None:
    array = numbers("float32")
    rows = ArrayFile(write(tmp_path / "a", array)).rows()

    assert len(rows) == 3
    assert all(np.array_equal(rows[i].numpy(), array[i]) for i in range(3))


def test_a_file_larger_than_memory_is_read_by_rows(tmp_path: Path) -> None:
    shape = (2**20, 1024, 1024)  # 4 TiB of which nothing is written
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, shape).flush()

    rows = ArrayFile(tmp_path / "a.npy").rows()

    assert len(rows) == 2**20
    assert rows[2**20 - 1].shape == (1024, 1024)


def test_rows_need_a_first_axis(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="along the first axis"):
        ArrayFile(npy(tmp_path / "a", numbers("float32", (7,)))).rows()


# --- files that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [s for s in ARRAYS if s not in (".nii", ".nii.gz", ".dcm")])
@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00", b"PK\x03\x04abc"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"a\..*bytes that cannot be read as"):
        read_array(path)


@pytest.mark.parametrize("write", [npy, npz, mat, hdf5, tiff])
def test_files_cut_short_are_named(
    tmp_path: Path, write: Callable[[Path, np.ndarray], Path]
) -> None:
    path = write(tmp_path / "a", numbers("float64", (40, 50)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(InputError, match="cannot be read"):
        read_array(path)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


def test_pickles_are_refused_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = np.array([Bomb()], dtype=object)
    np.save("a.npy", bomb, allow_pickle=True)
    np.savez("a.npz", scan=bomb)

    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match=r"pickle|[Oo]bject"):
            read_array(name)
    assert not Path("exploded").exists()


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    for array, words in (
        (np.array(["a", "b"]), "expected numbers"),
        (np.array([], dtype=np.float32), "empty array"),
        (np.zeros(3, [("a", "f4"), ("b", "f4"), ("c", "f4")]), "expected numbers"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "expected numbers"),
    ):
        with pytest.raises(InputError, match=words):
            read_array(npy(tmp_path / "a", array))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "a.npy", "no such file"),
        (tmp_path, "a folder"),
        (tmp_path / "b.txt", "ending '.txt'"),
    ):
        if path.suffix == ".txt":
            path.write_text("1 2 3", encoding="utf-8")
        with pytest.raises(InputError, match=words):
            read_array(path)


@pytest.mark.parametrize(
    "name, package", [("a.nii.gz", "nibabel"), ("a.dcm", "pydicom"), ("a.h5", "h5py")]
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / name).write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(InputError, match=rf"{package}.*pip install \"learnreg\[measured\]\""):
        read_array(tmp_path / name)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (7, 3, 4, 5)])
def test_what_is_saved_comes_back(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) * 1000

    save_array(tmp_path / f"a{suffix}", x)

    assert torch.equal(read_array(tmp_path / f"a{suffix}").reshape(shape), x)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    z = torch.ones(3, 3, dtype=torch.complex64)
    save_array(tmp_path / "a.npy", z.conj())
    assert torch.equal(read_array(tmp_path / "a.npy"), z)
    for name, x, words in (
        ("a.tif", z, "expected one of .npy"),
        ("a.mat", z.real, "expected one of .npy, .tif"),
        ("no/a.npy", z.real, "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            save_array(tmp_path / name, x)
