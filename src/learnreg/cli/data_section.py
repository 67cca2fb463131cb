"""The section [data]: where the images come from."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ..core.errors import InputError
from ..data import Sides, pairs
from ..data.units import check_range
from .sections import Section


def _range(value: object) -> object:
    """A range as it stands in the file, once it is one."""
    try:
        check_range(value)
    except InputError as error:
        raise ValueError(str(error.expected).replace("(lo, hi)", "[lo, hi]")) from None
    return value


def _pattern(value: str | None) -> str | None:
    """A regular expression, once it is one."""
    try:
        re.compile(value or "")
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    return value


class Data(Section):
    """Where the images come from."""

    type: Literal["simulated"] = "simulated"
    """measurements of images are simulated with [physics]; "measured": pairs from files"""
    source: str = "natural"
    """"natural" (photographs that come with scikit-image), "phantoms", a folder of images
    (every page of a TIFF file counts as one), or one TIFF stack
    """
    size: int = Field(default=96, ge=11)
    """height and width of the crops in pixels"""
    train: int = Field(default=24, ge=1)
    """number of training crops"""
    validation: int = Field(default=0, ge=0)
    """number of crops to validate on, from other photographs"""
    test: int = Field(default=8, ge=1)
    """number of held-out crops, from other photographs"""
    scale: float | None = Field(default=None, gt=0, le=1)
    """photographs are made smaller by this factor first; 0.5 for "natural" and 1 otherwise when
    left out
    """
    channels: Literal[1, 3] = 1
    """1 (grey) or 3 (colour)"""
    range: Annotated[Any, AfterValidator(_range)] = None
    """levels [lo, hi] of the files that become 0 and 1; "dtype" for the full range of the integer
    type (so when left out, unless a header says how many bits count), or "auto" for one range that
    holds all files
    """
    group: Annotated[str | None, AfterValidator(_pattern)] = None
    """regular expression that finds the patient or scene in a file's name (its first group, or the
    whole match): files of one are never on two sides
    """
    skip_small: bool = False
    """leave out photographs that are smaller than a crop"""
    validation_source: str | None = None
    """where the validation crops come from, if not from source"""
    test_source: str | None = None
    """where the held-out crops come from, if not from source"""


def build_pairs(data: Data, physics: Any, seed: int) -> Sides:
    """The pairs for training, validation (empty if none is asked for) and test.

    Args:
        data: the section.
        physics: a deepinv physics.
        seed: that of the run.

    Raises:
        InputError: see ``learnreg.data.pairs``.
    """
    keys: dict[str, Any] = data.model_dump(
        exclude={"type", "source", "train", "validation", "test"}
    )
    split = (data.train, data.validation, data.test)
    return pairs(data.source, physics, split=split, seed=seed, **keys)
