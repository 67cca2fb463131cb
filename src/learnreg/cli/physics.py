"""The physics that a configuration describes, as a deepinv object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .settings import Physics

if TYPE_CHECKING:
    from deepinv.physics import LinearPhysics


def build_physics(settings: Physics) -> LinearPhysics:
    """Denoising with Gaussian noise, for images in [0, 1]."""
    from deepinv.physics import Denoising, GaussianNoise

    return Denoising(GaussianNoise(settings.sigma))
