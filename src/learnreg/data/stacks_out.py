"""Pages to TIFF stacks, one after the other, with what the headers of another stack say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from .files_out import BIG, Metadata, Tag, metadata_of, write_page
from .stacks import Layout, directory_at, layout_of
from .tiff import Header, read_header

if TYPE_CHECKING:
    import tifffile

_IMAGEJ = 50839
"""Number of the tag with labels, colours and overlays of ImageJ."""


class StackWriter:
    """Writes the pages of a stack in the order and with the metadata of another.

    Resolution and description of every page are kept, and what ImageJ, OME and tifffile say of the
    whole stack (axes, channels, units, labels, display ranges), where the new pages fit to it. Use
    it as a context manager; memory holds one page at a time.

    Args:
        path: the file to write.
        source: the stack that was read.

    Attributes:
        remarks: on what is not kept; complete after the first page.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self.path, self.source, self.remarks = path, source, list[str]()
        self._layout = layout_of(source)
        self._structured = True
        self._next = 0

    def __enter__(self) -> StackWriter:
        import tifffile

        with tifffile.TiffFile(self.source) as tiff:
            self._order = tiff.byteorder
            large = tiff.is_bigtiff or self._bytes(tiff) > BIG
        self._file = tifffile.TiffWriter(self.path, bigtiff=large, byteorder=self._order)
        return self

    def _bytes(self, tiff: tifffile.TiffFile) -> int:
        """Bytes of all pages, if none is larger than the first, middle and last."""
        spots = self._layout.spots
        some = (spots[place] for place in (0, len(spots) // 2, -1))
        return len(spots) * max(int(directory_at(tiff, spot).nbytes) for spot in some)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, pixels: np.ndarray, white: int | None = None) -> None:
        """Write the next page.

        Args:
            pixels: (h, w) or (h, w, 3).
            white: the level that is white, for the header.
        """
        known, extra = self._tags(pixels)
        write_page(self._file, pixels, known, white, extra)
        self._next += 1

    def _tags(self, pixels: np.ndarray) -> tuple[Metadata, list[Tag]]:
        """What is kept of the header of the next page."""
        import tifffile

        with tifffile.TiffFile(self.source) as tiff:
            page = directory_at(tiff, self._layout.spots[self._next])
            first = self._next == 0 or self._layout.spots[self._next].skip == 0
            known = metadata_of(page) if first else replace(metadata_of(page), description=None)
            if self._next == 0:
                self._structured = self._fits(tiff, pixels)
            if not (first and self._structured):
                plain = _about_the_stack(known.description)
                return (replace(known, description=None) if plain else known), []
            labels = page.tags.valueof(_IMAGEJ, default=None)
            if isinstance(labels, dict) and labels:
                return known, [*tifffile.imagej_metadata_tag(labels, self._order)]
        return replace(known, description=_with_headers(known.description)), []

    def _fits(self, tiff: tifffile.TiffFile, pixels: np.ndarray) -> bool:
        """Whether what the description says of the stack holds for the new one."""
        series = tiff.series[0]
        kind = series.kind
        if kind not in ("generic", "uniform", "shaped", "imagej", "ome"):
            self.remarks.append(f"what {kind} files say besides the pixels is not kept")
            return True
        if kind in ("generic", "uniform"):
            return True
        header = read_header(self.source, 0)
        fits = _alike(header, series.keyframe, pixels) and _complete(self._layout, tiff)
        if not fits:
            self.remarks.append("a plain stack: its description does not hold for the new pages")
        return fits


def _alike(header: Header, page: tifffile.TiffPage, pixels: np.ndarray) -> bool:
    """Whether pixels have the type and the shape that a header says."""
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    same = header.dtype == pixels.dtype and header.size == pixels.shape[:2]
    return same and int(page.samplesperpixel) == samples and not header.planar


def _complete(layout: Layout, tiff: tifffile.TiffFile) -> bool:
    """Whether all directories of a file are pages of it."""
    return layout.others == 0 and len({s.index for s in layout.spots}) == len(tiff.pages)


def _about_the_stack(text: str | None) -> bool:
    """Whether a description says how the pages of a stack belong together."""
    return text is not None and (
        text.startswith(("ImageJ=", '{"shape"')) or text.rstrip().endswith("OME>")
    )


def _with_headers(text: str | None) -> str | None:
    """A description by tifffile, for a stack whose pages all have headers of their own."""
    if text is None or not text.startswith('{"shape"'):
        return text
    try:
        told = json.loads(text)
    except ValueError:
        return None
    told.pop("truncated", None)
    return json.dumps(told)
