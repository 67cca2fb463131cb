"""The section [physics]: how measurements are made, as a deepinv object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .sections import Section

if TYPE_CHECKING:
    from deepinv.physics import LinearPhysics


class Physics(Section):
    """How measurements are made."""

    type: Literal["denoising"] = "denoising"
    """the measurement is the image itself, with noise"""
    sigma: float = Field(default=0.1, gt=0)
    """standard deviation of the Gaussian noise, for images in [0, 1]"""


def build_physics(settings: Physics) -> LinearPhysics:
    """Denoising with Gaussian noise, for images in [0, 1]."""
    from deepinv.physics import Denoising, GaussianNoise

    return Denoising(GaussianNoise(settings.sigma))
