"""The section [data]: where the images come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .sections import Section


class Data(Section):
    """Where the images come from."""

    type: Literal["simulated"] = "simulated"
    """measurements of images are simulated with [physics]; "measured": pairs from files"""
    source: str = "natural"
    """"natural" (photographs that come with scikit-image), "phantoms", or a folder of images"""
    size: int = Field(default=96, ge=11)
    """height and width of the crops in pixels"""
    train: int = Field(default=24, ge=1)
    """number of training crops"""
    test: int = Field(default=8, ge=1)
    """number of held-out crops, from other photographs"""
    scale: float | None = Field(default=None, gt=0, le=1)
    """photographs are made smaller by this factor first; 0.5 for "natural" and 1 otherwise when
    left out
    """
    channels: Literal[1, 3] = 1
    """1 (grey) or 3 (colour)"""
