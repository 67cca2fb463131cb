"""DICOM and NIfTI files through a model of images: slice by slice, in the units of the model, and
back with their headers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..core.errors import DataWarning, InputError
from ..data.arrays import array_file, save_array
from ..data.scans import Scan, is_scan, read_scan, write_scan
from ..data.stacks import TIFF, named
from ..data.units import Facts, Levels, levels_of
from ..models import TrainedModel
from .array_files import RESULT, result_name
from .outcomes import Outcome
from .pictures import Picture, remarks_for
from .reconstruct_plan import Job
from .stack_files import Page, Stack

ARRAYS = (RESULT, *TIFF)
"""Endings of files that take every value of a scan, in its units."""


class ScanStack(Stack):
    """The slices or frames of a scan at work, as :class:`Stack`; the whole scan is in memory.

    Raises:
        InputError: see ``learnreg.data.scans.read_scan``; numbers whose scale must not be guessed.
    """

    _scan: Scan
    _levels: Levels

    def run(self) -> Outcome:
        self._scan = read_scan(self.job.source)
        self._levels = _levels(self._scan, self.model)
        self.count = len(self._scan.values)
        self._distance = 0.0
        found = super().run()
        lo, hi = self._levels
        units = f"{lo:g} to {hi:g} taken as 0 to 1"
        return replace(found, text=found.text.replace("pages", "slices") + f"; {units}")

    def _picture(self, number: int) -> tuple[Picture, Facts]:
        return _slice(self._scan, self._levels, number)

    def _into(self, part: Path) -> list[str]:
        """Write the scan whole; how far it is from the result is measured by reading it again."""
        lo, hi = self._levels
        values = self._scan.values.copy()
        done: list[int] = []
        for page in self._pages():
            if page.solution is not None:
                x = page.solution.value[page.index].detach().cpu().double()
                values[page.number] = x[0].numpy() * (hi - lo) + lo
                done.append(page.number)
                self._said(page, x)
            self.progress((page.number + 1) / self.count)
        if array_file(part).suffix in ARRAYS:
            save_array(part, torch.from_numpy(self._scan.arranged(values)).float())
            return []
        write_scan(part, values, self._scan)
        written = read_scan(part).values
        apart = [float(np.linalg.norm(written[i] - values[i])) / abs(hi - lo) for i in done]
        bits = 8 * self._scan.dtype.itemsize
        if self._scan.limits is None and bits > 32:
            return []
        return [f"stored as {self._scan.dtype}, {max(apart):.1e} from the result at most"]

    def _said(self, page: Page, x: torch.Tensor) -> None:
        """What is to be said of a slice; its rounding is measured in the file."""
        if page.picture is not None and page.solution is not None:
            self._verdict(page, page.picture, x, page.solution)


def scan_picture(path: Path, model: TrainedModel) -> Picture:
    """The only slice of a scan, for a model of images.

    Raises:
        InputError: several slices; as :class:`ScanStack`.
    """
    scan = read_scan(path)
    if len(scan.values) > 1:
        raise InputError(
            str(path),
            given=f"{len(scan.values)} slices or frames for one picture",
            expected="a result that holds several",
            remedy=f"Choose a folder, a file with the ending of the scan, or {RESULT}.",
        )
    picture, facts = _slice(scan, _levels(scan, model), 0)
    for remark in remarks_for([(picture, facts)], model.units):
        warnings.warn(remark, DataWarning, stacklevel=2)
    return picture


def _slice(scan: Scan, levels: Levels, number: int) -> tuple[Picture, Facts]:
    """One slice, and what there is to know of it."""
    values, (lo, hi) = scan.values[number], levels
    dtype = scan.dtype if scan.plain else np.dtype(np.float64)
    low, high = float(values.min()), float(values.max())
    facts = Facts(named(scan.path, number), dtype, low, high, None, False, False)
    pixels = torch.from_numpy((values - lo) / (hi - lo)).float()[None]
    return Picture(scan.path, pixels, True, False, dtype, levels, page=number), facts


def _levels(scan: Scan, model: TrainedModel) -> Levels:
    """The values that become 0 and 1: those of the model; of a model from pictures without a range,
    the full range of the file; else they stay as they are, as in measured pairs.

    Raises:
        InputError: signed or floating-point numbers for a model from pictures without a range.
    """
    if model.units is not None:
        return model.units
    if not model.from_pictures:
        return 0.0, 1.0
    low, high = float(scan.values.min()), float(scan.values.max())
    white = scan.limits[1] if scan.limits is not None and scan.dtype.kind == "u" else None
    dtype = scan.dtype if scan.plain else np.dtype(np.float64)
    return levels_of(Facts(str(scan.path), dtype, low, high, white, False, False), None)


def keeping_scans(jobs: Sequence[Job], model: TrainedModel) -> list[Job]:
    """The same jobs; scans that a model of images is applied to become scans of the same kind.

    Raises:
        InputError: a scan as the result of what is no image, or of another kind of file.
    """
    images = any(is_scan(job.source) for job in jobs) and model.takes_images
    return [_kept(job, images) for job in jobs]


def _kept(job: Job, images: bool) -> Job:
    """One of them."""
    named = job.target.name == result_name(job.source)
    if is_scan(job.source) and images and named and job.into_folder:
        return replace(job, target=job.target.with_name(job.source.name))
    if is_scan(job.target) and not (images and _same_kind(job)):
        raise InputError(
            "--output",
            given=f"{job.target} for {job.source}",
            expected="a scan of the same kind as the input, of a model whose measurements are "
            "images",
            remedy=f"Choose {RESULT}, which holds any result.",
        )
    return job


def _same_kind(job: Job) -> bool:
    one, two = array_file(job.source).suffix, array_file(job.target).suffix
    return is_scan(job.source) and (one == two or ".dcm" not in (one, two))


def scan_of(job: Job, model: TrainedModel) -> bool:
    """Whether a file is taken slice by slice."""
    kept = is_scan(job.target) or array_file(job.target).suffix in ARRAYS
    return is_scan(job.source) and kept and model.takes_images
