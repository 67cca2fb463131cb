"""What stands in folders, lists, files and tensors of measured data, and which belongs to which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.ranges import shown
from .arrays import ARRAYS, MEASURED, ArrayFile, array_file, as_tensor
from .images import load_image

SourceLike = str | PathLike[str] | Sequence[str | PathLike[str]] | Tensor | np.ndarray

_SHOWN = 8
"""So many names of unmatched files stand in a message."""


@dataclass(frozen=True)
class Entry:
    """One image or measurement, loaded when it is needed.

    Attributes:
        name: by which images and measurements are matched.
        where: file (and row) for messages.
        load: gives the array.
    """

    name: str
    where: str
    load: Callable[[], Tensor]


@dataclass(frozen=True)
class Entries:
    """The entries of one source.

    Attributes:
        what: the argument, for messages.
        items: in the order of their names, or as given.
        kind: ``folder``, ``list``, or ``rows`` of one file or tensor.
    """

    what: str
    items: tuple[Entry, ...]
    kind: Literal["folder", "list", "rows"]

    def __len__(self) -> int:
        return len(self.items)


def entries_of(source: SourceLike, what: str, channels: int = 1) -> Entries:
    """The entries of a folder, a file with a first axis of entries, a list of files or a tensor.

    Args:
        channels: in which PNG, JPEG and their like are read: 3 in colour, otherwise grey.

    Raises:
        InputError: nothing there, two files with one name, a foreign ending, no rows.
    """
    if isinstance(source, np.ndarray):
        source = as_tensor(source, what)
    if isinstance(source, Tensor):
        return _of_tensor(source, what)
    if isinstance(source, str | PathLike):
        place = Path(source)
        if place.is_dir():
            return _of_files(_listed(place, what), what, channels, "folder")
        return _of_rows(array_file(source), what)
    try:
        files = [array_file(fspath(file)) for file in source]
    except TypeError:
        raise InputError(
            what,
            given=shown(source),
            expected="a folder, a file, a list of files or a tensor",
            remedy="Pass paths as strings or pathlib.Path objects.",
        ) from None
    if not files:
        raise InputError(
            what,
            given="an empty list",
            expected="at least one file",
            remedy="Check the pattern that made this list.",
        )
    return _of_files(files, what, channels, "list")


def _listed(folder: Path, what: str) -> list[ArrayFile]:
    """The files of a folder that can be read, sorted by name; hidden ones are passed over."""
    entries = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    found = [file for p in entries if (file := ArrayFile(p)).suffix in MEASURED]
    if not found:
        raise InputError(
            f"{what}, {folder}",
            given=f"{len(entries)} files, none of them readable" if entries else "no file",
            expected="at least one of *" + ", *".join(MEASURED),
            remedy="Put the files directly into this folder (subfolders are not searched).",
        )
    return sorted(found, key=lambda file: file.path.name)


def _of_files(
    files: Sequence[ArrayFile], what: str, channels: int, kind: Literal["folder", "list"]
) -> Entries:
    """One entry per file."""
    for file in files:
        if not file.path.is_file():
            raise InputError(
                f"{what}, {file.path}",
                given="no such file",
                expected="a file of an image or measurement",
                remedy="Check the path.",
            )
    plain = Counter(file.stem for file in files)
    double = sorted(stem for stem, times in plain.items() if times > 1)
    if double and kind == "folder":
        stem = double[0]
        raise InputError(
            f"{what}, {files[0].path.parent}",
            given=" and ".join(f.path.name for f in files if f.stem == stem)
            + (f", and {len(double) - 1} more such names" if len(double) > 1 else ""),
            expected="one file per name without its ending",
            remedy="Remove the copies in other formats.",
        )
    # why the whole path: names of patients' folders tell files apart that are all called alike
    name = (lambda f: f.stem) if not double else (lambda f: str(f))
    load = {
        file: partial(load_image, file.path, 3 if channels == 3 else 1)
        if file.suffix in MEASURED and file.suffix not in ARRAYS
        else file.read
        for file in files
    }
    return Entries(what, tuple(Entry(name(f), str(f), load[f]) for f in files), kind)


def _of_rows(file: ArrayFile, what: str) -> Entries:
    """One entry per row of a file."""
    if file.suffix in MEASURED and file.suffix not in ARRAYS:
        raise InputError(
            f"{what}, {file.path}",
            given="one picture",
            expected="a folder, or a file whose first axis counts images",
            remedy="Pass its folder, or a list with this one file.",
        )
    rows, stem = file.rows(), file.stem
    items = tuple(
        Entry(f"{stem}[{i}]", f"{file}[{i}]", partial(rows.__getitem__, i))
        for i in range(len(rows))
    )
    return Entries(what, items, "rows")


def _of_tensor(source: Tensor, what: str) -> Entries:
    if source.dim() < 2 or source.numel() == 0:
        raise InputError(
            what,
            given=f"shape {tuple(source.shape)}",
            expected="(n, ...), n images or measurements",
            remedy="Add the first axis with [None].",
        )
    if not (source.is_floating_point() or source.is_complex()):
        source = source.to(torch.float32)
    items = tuple(
        Entry(f"{what}[{i}]", f"{what}[{i}]", partial(source.__getitem__, i))
        for i in range(len(source))
    )
    return Entries(what, items, "rows")


def matched(first: Entries, second: Entries) -> Entries:
    """``second`` in the order of ``first``, every entry with its partner.

    Raises:
        InputError: names all entries without a partner.
    """
    by_name = {entry.name: entry for entry in second.items}
    if by_name.keys() == {entry.name for entry in first.items}:
        return Entries(second.what, tuple(by_name[e.name] for e in first.items), second.kind)
    alone = [e.name for e in first.items if e.name not in by_name]
    own = {entry.name for entry in first.items}
    others = [e.name for e in second.items if e.name not in own]
    apart = len(alone) == len(first) and len(others) == len(second)
    ordered = first.kind == second.kind != "folder" and apart
    if ordered and len(first) == len(second):
        return second
    if ordered or "rows" in (first.kind, second.kind):
        raise InputError(
            f"{first.what} and {second.what}",
            given=f"{len(first)} and {len(second)} ({_kind(first)} and {_kind(second)})",
            expected="partners: two files or two lists of equal length, or equal names",
            remedy="Check that both hold the same images; (n, ...) counts along the first axis.",
        )
    sides = [
        f"{len(names)} of {what} without a partner: {_names(names)}"
        for what, names in ((first.what, alone), (second.what, others))
        if names
    ]
    raise InputError(
        f"{first.what} and {second.what}",
        given="; ".join(sides),
        expected="files with the same names but for the ending",
        remedy="Rename them, or pass two lists of files in the same order.",
    )


def _kind(entries: Entries) -> str:
    return {"folder": "a folder", "list": "a list", "rows": "rows of one array"}[entries.kind]


def _names(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
