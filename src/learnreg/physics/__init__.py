"""Physics and noise by name, and recipes of them for model files: no code is ever stored."""

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

__all__ = [
    "CT",
    "MRI",
    "NOISES",
    "PET",
    "SETUPS",
    "Blur",
    "Calibration",
    "Demosaicing",
    "Denoising",
    "DiscKernel",
    "Free",
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
    "calibrate",
    "describe",
    "image_shape",
    "rebuild",
]
