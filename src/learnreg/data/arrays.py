"""Arrays from files: NumPy, MATLAB, HDF5, TIFF stacks, NIfTI, DICOM and raw MRI, as tensors in the
units of the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.asking import offers
from ..core.errors import InputError
from .formats import TIFF
from .images import SUFFIXES as PICTURES

HDF5 = (".h5", ".hdf5")
NIFTI = (".nii", ".nii.gz")
KEYED = (".npz", ".mat", *HDF5)
"""Endings of files that hold several arrays by name."""
ARRAYS = (".npy", *KEYED, *TIFF, *NIFTI, ".dcm")
"""Endings (in lower case) of the files that ``read_array`` reads."""
WRITTEN = (".npy", *TIFF)
"""Endings of the files that ``save_array`` writes."""
MEASURED = (*ARRAYS, *(suffix for suffix in PICTURES if suffix not in ARRAYS))
"""Endings of what can stand in a folder of measured data."""

_KEPT = {np.dtype(t) for t in ("float32", "float64", "complex64", "complex128")}
_EXACT_IN_FLOAT32 = {np.dtype(t) for t in ("bool", "int8", "uint8", "int16", "uint16", "float16")}
_ENTRY = "a file, or file:entry for one array of a file with several"


class Stored(Protocol):
    """An array in memory or in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: int) -> object: ...


class _Sparse(Protocol):
    """A sparse matrix."""

    def toarray(self) -> np.ndarray: ...


class _Hdf5(Protocol):
    """An open HDF5 file."""

    def visititems(self, visit: Callable[[str, object], None]) -> object: ...


@dataclass(frozen=True)
class ArrayFile:
    """One array in a file, read when it is asked for.

    Attributes:
        path: the file.
        key: its entry, where a file holds several arrays.
    """

    path: Path
    key: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.key is None else f"{self.path}:{self.key}"

    @property
    def suffix(self) -> str:
        """The ending in lower case, ``.nii.gz`` as one."""
        return _suffix(self.path)

    @property
    def stem(self) -> str:
        """The name of the file without its ending."""
        return self.path.name[: len(self.path.name) - len(self.suffix)]

    def read(self) -> Tensor:
        """The whole array, see ``read_array``."""
        return as_tensor(self._load(_READERS), self)

    def rows(self) -> Rows:
        """The array by the entries of its first axis; only those asked for are read from .npy and
        HDF5 files.
        """
        return Rows(self._load({**_READERS, **_LAZY}), self)

    def _load(self, readers: Mapping[str, Callable[[ArrayFile], Stored]]) -> Stored:
        """What the reader for its ending answers.

        Raises:
            InputError: no such file, a foreign ending, a damaged file, a missing package.
        """
        if not self.path.is_file():
            given = "a folder" if self.path.is_dir() else "no such file"
            raise InputError(str(self.path), given=given, expected=_ENTRY, remedy="Check the path.")
        reader = readers.get(self.suffix)
        if reader is None:
            raise InputError(
                str(self.path),
                given=f"the ending {self.path.suffix!r}",
                expected="one of " + ", ".join(ARRAYS),
                remedy="Save the array with numpy.save.",
            )
        if self.key is not None and self.suffix not in KEYED:
            raise InputError(
                str(self),
                given=f"the entry {self.key!r} of a {self.suffix} file, which has no names",
                expected=f"no entry, or one of {', '.join(KEYED)}",
                remedy="Leave the entry out.",
            )
        try:
            return reader(self)
        except (InputError, MemoryError):
            raise
        except ImportError as error:
            raise InputError(
                str(self.path),
                given=f"a {self.suffix} file, and a package that is not installed ({error})",
                expected="the package that reads it",
                remedy='Install it with: pip install "learnreg[measured]"',
            ) from error
        except Exception as error:  # why: readers fail in many ways on damaged files
            raise InputError(
                str(self.path),
                given=f"{self.path.stat().st_size} bytes that cannot be read as {self.suffix} "
                f"({error or type(error).__name__})",
                expected="a readable file",
                remedy="Write the file again, or remove it.",
            ) from error


class Rows:
    """The entries along the first axis of an array, read one by one where the format allows it."""

    def __init__(self, array: Stored, file: ArrayFile) -> None:
        shape = tuple(int(n) for n in array.shape)
        if len(shape) < 2 or 0 in shape:
            raise InputError(
                str(file),
                given=f"an array of shape {shape}",
                expected="(n, ...), n images or measurements along the first axis",
                remedy="Save one image per file in a folder, or give the array its first axis.",
            )
        self.shape, self.file, self._array = shape, file, array

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        return as_tensor(self._array[index], self.file)


def array_file(path: str | PathLike[str], key: str | None = None) -> ArrayFile:
    """``file`` or ``file:entry`` taken apart.

    >>> array_file("scans.npz:kspace")
    ArrayFile(path=...Path('scans.npz'), key='kspace')
    """
    whole = fspath(path)
    place, colon, entry = whole.rpartition(":")
    named = bool(colon) and _suffix(Path(place)) in KEYED and not Path(whole).exists()
    if not named:
        return ArrayFile(Path(whole), key)
    if key is not None and key != entry:
        raise InputError(
            "key",
            given=f"{key!r} for {whole}",
            expected="one entry",
            remedy="Name it once.",
        )
    return ArrayFile(Path(place), entry)


def read_array(path: str | PathLike[str], key: str | None = None) -> Tensor:
    """Read one array in the units of its file.

    float32, float64, complex64 and complex128 are kept; integers become float32 where that is
    exact (up to 16 bits), else float64, without being divided by anything. Pickled objects are
    refused: reading a file runs no code.

    Args:
        path: a .npy, .npz, .mat, .h5, .hdf5, .tif (all pages as one stack), .nii, .nii.gz or .dcm
            file (in its rescaled units). NIfTI and DICOM need ``pip install "learnreg[measured]"``,
            and so does an HDF5 file of raw MRI acquisitions (ISMRMRD): it becomes the k-space
            (2, coils, h, w) of deepinv's ``load_ismrmrd_raw``. ``file.npz:entry`` chooses an entry.
        key: the entry of a file with several arrays; may be left out where there is one.

    Returns:
        The array with its own axes.

    Raises:
        InputError: no such file, damaged, no numbers, an entry that is not there (those that are
            get listed), a package that is not installed.

    >>> import tempfile, numpy
    >>> with tempfile.NamedTemporaryFile(suffix=".npy") as file:
    ...     numpy.save(file.name, numpy.ones((2, 3), dtype="uint16"))
    ...     read_array(file.name).dtype
    torch.float32
    """
    return array_file(path, key).read()


def save_array(path: str | PathLike[str], x: Tensor) -> None:
    """Write one array without rounding or clipping; the ending of ``path`` chooses the format.

    Args:
        path: a .npy file (any numbers), or .tif (real ones; all axes but the last two are pages).
            An existing file is replaced.
        x: on any device.

    Raises:
        InputError: another ending, no such folder, complex numbers for .tif.
    """
    file = ArrayFile(Path(path))
    values = x.detach().cpu().resolve_conj().numpy()
    if file.suffix not in WRITTEN or (file.suffix in TIFF and x.is_complex()):
        raise InputError(
            str(path),
            given=f"the ending {file.path.suffix!r} for numbers of {x.dtype}",
            expected="one of " + ", ".join(WRITTEN if not x.is_complex() else WRITTEN[:1]),
            remedy="Choose .npy, which holds any numbers.",
        )
    if not file.path.parent.is_dir():
        raise InputError(
            str(path),
            given=f"a folder {file.path.parent} that does not exist",
            expected="an existing folder",
            remedy="Create the folder first.",
        )
    if file.suffix in TIFF:
        import tifffile

        tifffile.imwrite(file.path, values, photometric="minisblack")
    else:
        np.save(file.path, values, allow_pickle=False)


# --- formats --------------------------------------------------------------------------------------


def _npy(file: ArrayFile) -> np.ndarray:
    with open(file.path, "rb") as content:
        return np.lib.format.read_array(content, allow_pickle=False)


def _npy_rows(file: ArrayFile) -> Stored:
    rows: np.ndarray = np.lib.format.open_memmap(file.path, mode="r")
    return rows


def _npz(file: ArrayFile) -> np.ndarray:
    with open(file.path, "rb") as content, np.load(content, allow_pickle=False) as entries:
        return entries[_chosen(file, list(entries.files))]


def _mat(file: ArrayFile) -> np.ndarray:
    from deepinv.utils import load_mat

    try:
        entries = load_mat(str(file.path))
    except NotImplementedError:  # version 7.3, which is HDF5 with the axes the other way round
        return np.asarray(_hdf5(file)).T
    names = [name for name in entries if not name.startswith("__")]
    found = entries[_chosen(file, names)]
    return found.toarray() if offers(found, _Sparse) else found


def _hdf5(file: ArrayFile) -> np.ndarray:
    import h5py

    with h5py.File(file.path, "r") as content:
        if file.key is None and "dataset/xml" in content and "dataset/data" in content:
            return _raw_mri(file)
        return content[_chosen(file, _datasets(content))][()]


def _hdf5_rows(file: ArrayFile) -> Stored:
    import h5py

    content = h5py.File(file.path, "r")  # stays open as long as its rows are in use
    if file.key is None and "dataset/xml" in content:
        content.close()
        return _hdf5(file)
    return content[_chosen(file, _datasets(content))]


def _datasets(content: _Hdf5) -> list[str]:
    """The names of all arrays in an HDF5 file."""
    names: list[str] = []
    content.visititems(lambda name, item: names.append(name) if _is_array(item) else None)
    return names


def _is_array(item: object) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset) and item.ndim > 0 and "#refs#" not in str(item.name)


def _raw_mri(file: ArrayFile) -> np.ndarray:
    from deepinv.utils.io import load_ismrmrd_raw

    kspace = load_ismrmrd_raw(str(file.path))[0]  # (2, coils, depth, h, w)
    return (kspace[:, :, 0] if kspace.shape[2] == 1 else kspace).numpy()


def _tiff(file: ArrayFile) -> np.ndarray:
    import tifffile

    return tifffile.imread(file.path)


def _nifti(file: ArrayFile) -> np.ndarray:
    from deepinv.utils import load_nifti

    return np.asanyarray(load_nifti(file.path, as_memmap=True))


def _dicom(file: ArrayFile) -> np.ndarray:
    from deepinv.utils import load_dicom

    with warnings.catch_warnings():
        # why: the rescaling of deepinv still calls what releases 3 of pydicom only deprecate
        warnings.simplefilter("ignore", DeprecationWarning)
        return load_dicom(file.path, as_tensor=False, apply_rescale=True)


_READERS: dict[str, Callable[[ArrayFile], Stored]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".mat": _mat,
    **dict.fromkeys(HDF5, _hdf5),
    **dict.fromkeys(TIFF, _tiff),
    **dict.fromkeys(NIFTI, _nifti),
    ".dcm": _dicom,
}
_LAZY: dict[str, Callable[[ArrayFile], Stored]] = {
    ".npy": _npy_rows,
    **dict.fromkeys(HDF5, _hdf5_rows),
}


# --- what they have in common ---------------------------------------------------------------------


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((s for s in NIFTI if name.endswith(s)), Path(name).suffix)


def _chosen(file: ArrayFile, names: list[str]) -> str:
    """The entry that is meant among those there are."""
    wanted = file.key if file.key is not None else (names[0] if len(names) == 1 else None)
    if wanted in names:
        return wanted
    there = ", ".join(sorted(names)[:20]) or "none"
    raise InputError(
        str(file.path),
        given=f"no entry {file.key!r}" if file.key is not None else f"{len(names)} entries",
        expected=f"one of its entries: {there}",
        remedy=f"Choose one with {file.path.name}:{sorted(names)[0]}, or key=."
        if names
        else "Save the array under a name.",
    )


def as_tensor(values: object, where: object) -> Tensor:
    """Numbers of any kind as a tensor of one of four types; ``where`` they are from, for
    messages.
    """
    array = np.asarray(values)
    names = array.dtype.names
    if names is not None and len(names) == 2:  # complex numbers of MATLAB 7.3 and others
        array = array[names[0]] + 1j * array[names[1]]
    if array.dtype == np.object_ or array.dtype.kind not in "biufc":
        raise InputError(
            str(where),
            given=f"an array of {array.dtype}",
            expected="numbers",
            remedy="Save the numbers themselves: objects, texts and ragged lists are not read.",
        )
    if array.size == 0:
        raise InputError(
            str(where),
            given=f"an empty array of shape {array.shape}",
            expected="numbers",
            remedy="Write the file again, or remove it.",
        )
    native = array.dtype.newbyteorder("=")
    if native not in _KEPT:
        exact = native in _EXACT_IN_FLOAT32
        native = np.dtype("float32" if exact else "complex128" if native.kind == "c" else "float64")
    return torch.from_numpy(np.array(array, dtype=native, order="C"))
