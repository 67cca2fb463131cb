"""Physics and noise by name, and recipes of them for model files: no code is ever stored."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .calibration import Calibration, calibrate
from .catalogue import (
    CT,
    MRI,
    PET,
    SETUPS,
    Blur,
    Demosaicing,
    Denoising,
    Inpainting,
    Setup,
    SuperResolution,
)
from .kernel_parameters import (
    DiscKernel,
    Free,
    GaussianKernel,
    MotionKernel,
    RadialKernel,
    SimplexKernel,
)
from .learned import LearnedPhysics
from .noise import (
    NOISES,
    Gaussian,
    Noise,
    NoNoise,
    Poisson,
    PoissonGaussian,
    SaltPepper,
    Uniform,
)
from .recipes import describe, image_shape, rebuild

if TYPE_CHECKING:
    from .emission import EmissionTomography, contamination, resolution
    from .matrices import Explicit, explicit
    from .own import Counts

_LATER = {
    "Counts": "own",
    "EmissionTomography": "emission",
    "Explicit": "matrices",
    "contamination": "emission",
    "explicit": "matrices",
    "resolution": "emission",
}
"""Names that need deepinv, which takes seconds to import, and the files that they are in."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return vars(importlib.import_module(f"{__name__}.{_LATER[name]}"))[name]


__all__ = [
    "CT",
    "MRI",
    "NOISES",
    "PET",
    "SETUPS",
    "Blur",
    "Counts",
    "Calibration",
    "Demosaicing",
    "Denoising",
    "DiscKernel",
    "Free",
    "EmissionTomography",
    "Explicit",
    "Gaussian",
    "GaussianKernel",
    "Inpainting",
    "LearnedPhysics",
    "MotionKernel",
    "NoNoise",
    "Noise",
    "Poisson",
    "PoissonGaussian",
    "RadialKernel",
    "SaltPepper",
    "Setup",
    "SimplexKernel",
    "SuperResolution",
    "Uniform",
    "contamination",
    "calibrate",
    "describe",
    "explicit",
    "image_shape",
    "rebuild",
    "resolution",
]
