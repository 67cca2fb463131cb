"""Scans as images: DICOM and NIfTI files in and out, in rescaled units, with their headers."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import InputError
from .arrays import NIFTI, array_file

if TYPE_CHECKING:
    import pydicom

DICOM = ".dcm"
SCANS = (DICOM, *NIFTI)
"""Endings of files of scans."""

_GREY = ("MONOCHROME1", "MONOCHROME2")
_RAW_LITTLE, _RAW_BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"


@dataclass(frozen=True, eq=False)
class Scan:
    """The slices or frames of one file.

    Attributes:
        path: the file.
        values: (n, h, w), float64, rescaled (Hounsfield units and the like).
        dtype: type of the stored numbers.
        limits: the smallest and largest number that can be stored; None for floats.
        slope, intercept: values = slope * stored + intercept.
        shape: of the stored array.
    """

    path: Path
    values: np.ndarray
    dtype: np.dtype
    limits: tuple[int, int] | None
    slope: float
    intercept: float
    shape: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether the values are the stored numbers."""
        return self.slope == 1 and self.intercept == 0

    def arranged(self, values: np.ndarray) -> np.ndarray:
        """Slices (n, h, w) with the axes of the file."""
        if _is_dicom(self.path):
            return values.reshape(self.shape)
        return _as_volume(values, self.shape)


def is_scan(path: Path) -> bool:
    """Whether a file holds a scan, by its name."""
    return array_file(path).suffix in SCANS


def read_scan(path: Path) -> Scan:
    """Read one.

    Raises:
        InputError: no such file, damaged, colour, complex numbers, NaN or Inf, values that are no
            linear function of what is stored, a package that is not installed.
    """
    if not path.is_file():
        raise InputError(
            str(path), given="no such file", expected="a scan", remedy="Check the path."
        )
    try:
        scan = _read_dicom(path) if _is_dicom(path) else _read_nifti(path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # why: readers fail in many ways on damaged files
        raise InputError(
            str(path),
            given=f"{path.stat().st_size} bytes that cannot be read as "
            f"{array_file(path).suffix} ({error or type(error).__name__})",
            expected="a readable file",
            remedy="Export it without compression, or remove it.",
        ) from error
    if scan.values.size == 0 or not np.isfinite(scan.values).all():
        raise InputError(
            str(path),
            given="NaN or Inf" if scan.values.size else "no pixels",
            expected="finite numbers",
            remedy="Repair or leave it out.",
        )
    return scan


def write_scan(path: Path, values: np.ndarray, like: Scan) -> None:
    """Write results with the header, the type and the rescaling of what was read.

    Integers are rounded and clipped to what can be stored. A DICOM file gets a new SOPInstanceUID,
    its image type becomes DERIVED, and it refers to its source; compressed ones are written
    uncompressed. Affine, header and extensions of NIfTI files stay as they are.

    Args:
        path: the ending is that of ``like.path``.
        values: (n, h, w), in the units of ``like.values``.
        like: what was read.

    Raises:
        OSError: the file cannot be written.
    """
    stored = (values - like.intercept) / like.slope
    if like.limits is not None:
        stored = stored.round().clip(*like.limits)
    stored = stored.astype(like.dtype)
    write = _write_dicom if _is_dicom(like.path) else _write_nifti
    write(path, like.arranged(stored), like)


def _is_dicom(path: Path) -> bool:
    return array_file(path).suffix == DICOM


def _missing(path: Path, package: str) -> InputError:
    return InputError(
        str(path),
        given=f"a scan, and the package {package}, which reads it, is not installed",
        expected="the extra packages for measured data",
        remedy='Install them with: pip install "learnreg[measured]"',
    )


# --- DICOM ----------------------------------------------------------------------------------------


def _pydicom(path: Path) -> ModuleType:
    try:
        import pydicom
    except ImportError as error:
        raise _missing(path, "pydicom") from error
    module: ModuleType = pydicom
    return module


def _read_dicom(path: Path) -> Scan:
    dicom = _pydicom(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # why: what pydicom says of unusual values of other tags
        data = dicom.dcmread(path)
        pixels = data.pixel_array
    kind = str(data.get("PhotometricInterpretation", ""))
    if int(data.get("SamplesPerPixel", 1)) != 1 or kind not in _GREY:
        raise InputError(
            str(path),
            given=f"a DICOM file of {kind or 'unknown'} pixels",
            expected="grey ones (MONOCHROME1 or MONOCHROME2)",
            remedy="Export colour as PNG or TIFF.",
        )
    if int(data.get("BitsAllocated", 16)) < 8:
        raise InputError(
            str(path),
            given="a mask of single bits",
            expected="grey levels of 8 bits or more",
            remedy="Leave segmentations out.",
        )
    slope, intercept = _rescaling(data, path)
    signed, bits = int(data.get("PixelRepresentation", 0)), int(data.get("BitsStored", 16))
    limits = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    frames = pixels if pixels.ndim == 3 else pixels[None]
    return Scan(
        path,
        slope * frames.astype(np.float64) + intercept,
        pixels.dtype.newbyteorder("="),
        limits if pixels.dtype.kind in "iu" else None,
        slope,
        intercept,
        pixels.shape,
    )


def _rescaling(data: pydicom.Dataset, path: Path) -> tuple[float, float]:
    """Slope and intercept, the same for all frames.

    Raises:
        InputError: a table instead, or frames that differ.
    """
    groups = [
        *data.get("SharedFunctionalGroupsSequence", []),
        *data.get("PerFrameFunctionalGroupsSequence", []),
    ]
    parts = [p for group in groups for p in group.get("PixelValueTransformationSequence", [])]
    pairs = {
        (float(part.get("RescaleSlope", 1)), float(part.get("RescaleIntercept", 0)))
        for part in (parts or [data])
    }
    if len(pairs) > 1 or "ModalityLUTSequence" in data or {s for s, _ in pairs} & {0.0}:
        table = "ModalityLUTSequence" in data
        raise InputError(
            str(path),
            given="a table of values (ModalityLUTSequence)"
            if table
            else f"rescaling (slope, intercept) {sorted(pairs)[:3]}",
            expected="one slope, not 0, and intercept for all frames",
            remedy="Export the frames as files of their own, or as .npy in their units.",
        )
    return pairs.pop()


def _write_dicom(path: Path, stored: np.ndarray, like: Scan) -> None:
    dicom = _pydicom(like.path)
    data = dicom.dcmread(like.path)
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        data.file_meta.TransferSyntaxUID = dicom.uid.UID(_RAW_LITTLE)
    dtype = stored.dtype.newbyteorder(">" if str(syntax) == _RAW_BIG else "<")
    content = stored.astype(dtype).tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)
    element = data["PixelData"]
    element.VR = "OW" if stored.dtype.itemsize > 1 else element.VR
    element.is_undefined_length = False
    for name, value in (("Smallest", stored.min()), ("Largest", stored.max())):
        if f"{name}ImagePixelValue" in data:
            setattr(data, f"{name}ImagePixelValue", int(value))
    _derived(dicom, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # why: tags that were odd before are written as they were
        data.save_as(path)


def _derived(dicom: ModuleType, data: pydicom.Dataset) -> None:
    """Say that the image was computed, and from which."""
    source = dicom.dataset.Dataset()
    source.ReferencedSOPClassUID = data.get("SOPClassUID", "")
    source.ReferencedSOPInstanceUID = data.get("SOPInstanceUID", "")
    if source.ReferencedSOPClassUID and source.ReferencedSOPInstanceUID:
        data.SourceImageSequence = dicom.sequence.Sequence([source])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = dicom.uid.generate_uid()
    kind = data.get("ImageType") or ["ORIGINAL", "PRIMARY"]
    data.ImageType = ["DERIVED", *(list(kind)[1:] or ["PRIMARY"])]
    said = str(data.get("DerivationDescription", "") or "")
    data.DerivationDescription = f"{said}; reconstructed by learnreg".lstrip("; ")[:1024]


# --- NIfTI ----------------------------------------------------------------------------------------


def _nibabel(path: Path) -> ModuleType:
    try:
        import nibabel
    except ImportError as error:
        raise _missing(path, "nibabel") from error
    module: ModuleType = nibabel
    return module


def _read_nifti(path: Path) -> Scan:
    image = _nibabel(path).load(path)
    dtype = np.dtype(image.get_data_dtype()).newbyteorder("=")
    if dtype.names is not None or dtype.kind not in "iuf" or len(image.shape) < 2:
        raise InputError(
            str(path),
            given=f"{dtype} numbers of shape {tuple(image.shape)}",
            expected="real numbers (x, y), (x, y, z) or (x, y, z, t)",
            remedy="Export the magnitude, or save k-space as .npy.",
        )
    whole = np.iinfo(dtype) if dtype.kind in "iu" else None
    return Scan(
        path,
        _as_slices(np.asarray(image.dataobj, np.float64)),
        dtype,
        None if whole is None else (int(whole.min), int(whole.max)),
        float(image.dataobj.slope),
        float(image.dataobj.inter),
        tuple(int(n) for n in image.shape),
    )


def _as_slices(volume: np.ndarray) -> np.ndarray:
    """(x, y, ...) as (n, x, y)."""
    return np.moveaxis(volume.reshape(*volume.shape[:2], -1), -1, 0)


def _as_volume(slices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(n, x, y) as (x, y, ...)."""
    return np.moveaxis(slices, 0, -1).reshape(shape)


def _write_nifti(path: Path, stored: np.ndarray, like: Scan) -> None:
    nibabel = _nibabel(like.path)
    source = nibabel.load(like.path)
    if like.limits is None:
        stored = (stored * like.slope + like.intercept).astype(like.dtype)
    image = type(source)(stored, source.affine, copy.deepcopy(source.header), dtype=like.dtype)
    if like.limits is not None:
        # why said: a header without them would be given others, and the numbers with them
        image.header.set_slope_inter(like.slope, like.intercept)
    nibabel.save(image, path)
