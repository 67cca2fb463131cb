"""The models beside a page: every report keeps those of its runs, and never takes the place of
another run's.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from ..core.asking import offers
from ..core.errors import InputError
from ..core.files import write_atomically
from ..core.words import slug

FILE, HISTORY = "model.safetensors", "history.safetensors"


class Savable(Protocol):
    """A run that can write its model."""

    @property
    def has_model(self) -> bool: ...
    def save_model(self, path: Path) -> Path:
        """Write the model to this file."""
        ...

    def lacking(self, path: Path) -> str:
        """What has to be handed in to read it again, "" for nothing."""
        ...


@dataclass(frozen=True)
class Kept:
    """A model as the page knows it.

    Attributes:
        file: its place relative to the page; "" where there is none.
        sha256: of the file.
        lacks: what ``load_model`` has to be given besides the file, "" for nothing.
        why: why there is no file.
    """

    file: str = ""
    sha256: str = ""
    lacks: str = ""
    why: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def keep_models(
    folder: Path, runs: Mapping[str, object], known: Mapping[str, Kept], origin: Path | None
) -> dict[str, Kept]:
    """Write the model of every run into ``folder``; those of a report that was read from ``origin``
    are copied from there.

    One run goes to ``model.safetensors``, several to ``<name>/model.safetensors``. Another name is
    taken, with a warning, where the file there belongs to another run.
    """
    before = _of_report(folder)
    found: dict[str, Kept] = {}
    for name in runs:
        content, kept = _content(runs[name], known.get(name), origin)
        if not content:
            found[name] = kept
            continue
        digest = hashlib.sha256(content).hexdigest()
        taken = {other.file for other in found.values()}
        places = _places(name, len(runs) == 1, kept.file)
        first = ""
        for place in places:
            first = first or place
            if place not in taken and _free(folder / place, digest, before):
                break
        if place != first:
            warnings.warn(
                f"{folder / first} belongs to another run; the model of this report is {place}.",
                UserWarning,
                stacklevel=3,
            )
        if not (folder / place).is_file() or _digest(folder / place) != digest:
            write_atomically(folder / place, content)
        found[name] = Kept(place, digest, kept.lacks)
    return found


def _content(run: object, known: Kept | None, origin: Path | None) -> tuple[bytes, Kept]:
    """The bytes of a model and what is known of it; none where there is no model."""
    if offers(run, Savable):
        if not run.has_model:
            return b"", Kept(why="the objective is no energy of a regularizer and a physics")
        with tempfile.TemporaryDirectory() as there:
            path = Path(there) / FILE
            try:
                run.save_model(path)
                return path.read_bytes(), Kept(lacks=run.lacking(path))
            except (InputError, NotImplementedError, TypeError, ValueError) as error:
                # why: a regularizer of the user's own may have a spec that no file can hold
                return b"", Kept(why=f"its recipe cannot be written ({error})")
    if known is None or not known.file or origin is None:
        return b"", known or Kept(why="the report was made without its run")
    path = origin / known.file
    if not path.is_file() or _digest(path) != known.sha256:
        return b"", Kept(why=f"{known.file} is not beside run.json any more")
    return path.read_bytes(), known


def _places(name: str, alone: bool, kept: str) -> Iterator[str]:
    if kept:
        yield kept
    if alone:
        yield FILE
    yield f"{slug(name)}/{FILE}"
    for number in range(2, 1000):
        yield f"{slug(name)}-{number}/{FILE}"


def _free(path: Path, digest: str, before: set[str]) -> bool:
    """Whether a model may be written here: nothing is there, the same model, or that of the report
    which is about to be replaced, unless a history beside it says that a run was saved here.
    """
    if not path.is_file():
        return True
    there = _digest(path)
    return there == digest or (there in before and not (path.parent / HISTORY).is_file())


def _of_report(folder: Path) -> set[str]:
    """Checksums of the models that the report in a folder names."""
    try:
        data = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return {method["model"]["sha256"] for method in data["methods"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
