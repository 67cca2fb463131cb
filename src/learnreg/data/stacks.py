"""Pages of TIFF files: which there are, and where each of them stands.

Pages are counted from 0. Previews, masks and sub-directories (the levels of a pyramid) are no
pages; where a microscope keeps several series in one file (OME, LSM and the like), the pages are
those of the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import InputError

if TYPE_CHECKING:
    import tifffile

TIFF = (".tif", ".tiff")

_EVERY_PAGE = ("generic", "uniform", "shaped", "imagej")
"""Kinds of files (in the words of tifffile) of which every page counts, whatever its size."""

_KEPT = 64
"""Files of which the places of the pages are remembered."""


@dataclass(frozen=True)
class Spot:
    """Where a page stands.

    Attributes:
        index: its directory, counted from 0, previews included.
        offset: of that directory, in bytes.
        skip: pages between the pixels that the directory describes and its own: some programs
            write one directory for a whole stack.
    """

    index: int
    offset: int
    skip: int = 0


@dataclass(frozen=True)
class Layout:
    """The pages of a file.

    Attributes:
        spots: one per page.
        others: images of further series, which are left out.
    """

    spots: tuple[Spot, ...]
    others: int = 0

    def __len__(self) -> int:
        return len(self.spots)


def named(path: str | PathLike[str], page: int | None) -> str:
    """How a page is called.

    >>> named("stack.tif", 3), named("photo.tif", None)
    ('stack.tif#3', 'photo.tif')
    """
    return fspath(path) if page is None else f"{fspath(path)}#{page}"


def pages_in(path: Path) -> int | None:
    """Number of pages of a TIFF file with several; None of any other file, and of damaged ones,
    about which the reader of pixels knows more.
    """
    if path.suffix.lower() not in TIFF or not path.is_file():
        return None
    try:
        count = len(layout_of(path))
    except Exception:  # why all: as above
        return None
    return count if count > 1 else None


def layout_of(path: Path) -> Layout:
    """The pages of a TIFF file, from its headers.

    Raises:
        InputError: pages that are volumes, or a stack behind one header that is compressed.
        Exception: what tifffile raises on damaged files.
    """
    state = path.stat()
    return _layout(str(path), state.st_mtime_ns, state.st_size)


def series_remarks(path: Path) -> list[str]:
    """What is to be said of the further series in a readable file."""
    try:
        others = layout_of(path).others if path.suffix.lower() in TIFF else 0
    except Exception:  # why all: damaged files are somebody else's concern
        others = 0
    if not others:
        return []
    return [
        f"{path}: only the first series of the file is used; {others} images of others are not."
    ]


def spot_of(path: Path, page: int | None) -> Spot:
    """Where a page is.

    Raises:
        InputError: no page is named and there are several; no such page; see ``layout_of``.
    """
    spots = layout_of(path).spots
    if page is None:
        if len(spots) > 1:
            raise InputError(
                str(path),
                given=f"a TIFF file with {len(spots)} pages",
                expected="a single page, or which of them",
                remedy=f"Name one, page=0 to page={len(spots) - 1}. Whole stacks are taken by "
                "reconstruct and as source of training images, page by page.",
            )
        return spots[0]
    check_page(path, page, len(spots))
    return spots[page]


def check_page(path: Path, page: int, count: int) -> None:
    """Refuse a page that is not there.

    Raises:
        InputError: outside of 0 to ``count`` - 1.
    """
    if isinstance(page, bool) or not isinstance(page, int) or not 0 <= page < count:
        raise InputError(
            "page",
            given=f"{page!r} of {path}",
            expected=f"a number from 0 to {count - 1}" if count > 1 else "0: it has one page",
            remedy="Pages are counted from 0.",
        )


def directory_at(tiff: tifffile.TiffFile, spot: Spot) -> tifffile.TiffPage:
    """The header of a page."""
    import tifffile

    if spot.index == 0:
        return tiff.pages.first
    # why not tiff.pages[index]: that walks through all directories before it
    tiff.filehandle.seek(spot.offset)
    return tifffile.TiffPage(tiff, index=spot.index)


def pixels_at(tiff: tifffile.TiffFile, spot: Spot) -> np.ndarray:
    """The numbers of a page as stored."""
    page = directory_at(tiff, spot)
    if spot.skip == 0:
        return page.asarray()
    assert page.dtype is not None  # a stack behind one header has a plain type
    start = page.dataoffsets[0] + spot.skip * page.nbytes
    found = tiff.filehandle.read_array(
        page.dtype.newbyteorder(tiff.byteorder), count=page.size, offset=start
    )
    return found.reshape(page.shape)


# --- layouts --------------------------------------------------------------------------------------


@lru_cache(maxsize=_KEPT)
def _layout(path: str, changed: int, size: int) -> Layout:
    """The pages; ``changed`` and ``size`` tell versions of a file apart."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) == 1 and not (tiff.is_imagej or tiff.is_shaped or tiff.is_stk):
            return Layout((Spot(0, tiff.pages.first.offset),))

        series = tiff.series
        kind = series[0].kind if series else "generic"
        found: list[Spot] = []
        others: list[Spot] = []
        if kind in ("generic", "uniform"):
            found = _spots(tiff, list(tiff.pages))
        else:
            for place, one in enumerate(series):
                if place == 0 or kind in _EVERY_PAGE:
                    found += _of_series(tiff, one, path)
                else:
                    others += _spots(tiff, list(one.pages))
        # why the first: a file whose only page calls itself a preview is still a picture
        spots = found or [Spot(0, tiff.pages.first.offset)]
    return Layout(tuple(spots), len(others))


def _spots(
    tiff: tifffile.TiffFile, pages: Sequence[tifffile.TiffPage | tifffile.TiffFrame | None]
) -> list[Spot]:
    """The pages that are in this file and neither previews nor masks."""
    return [
        Spot(_number(page.index), page.offset)
        for page in pages
        if page is not None
        and page.parent.filehandle is tiff.filehandle
        and not (page.keyframe and (page.keyframe.is_reduced or page.keyframe.is_mask))
    ]


def _number(index: int | tuple[int, ...]) -> int:
    return index if isinstance(index, int) else index[0]


def _of_series(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, path: str) -> list[Spot]:
    """The pages of one series, some of which may have no directory of their own."""
    spots, page = _spots(tiff, list(series.pages)), series.keyframe
    behind = int(series.size) // max(int(page.size), 1)
    volume = page.imagedepth > 1
    if volume or (len(spots) == 1 and behind > 1 and not page.is_contiguous):
        what = f"a volume of {page.imagedepth} slices" if volume else f"{behind} compressed pages"
        raise InputError(
            path,
            given=f"{what} behind one header",
            expected="pages with headers of their own",
            remedy="Save it as a stack of pages, or as .npy, for measured data.",
        )
    if len(spots) == 1 and behind > 1:
        return [Spot(spots[0].index, spots[0].offset, skip) for skip in range(behind)]
    return spots
