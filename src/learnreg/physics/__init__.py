"""Physics and noise by name, and recipes of them for model files: no code is ever stored."""

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
    "Demosaicing",
    "Denoising",
    "Gaussian",
    "Inpainting",
    "NoNoise",
    "Noise",
    "Poisson",
    "PoissonGaussian",
    "SaltPepper",
    "Setup",
    "SuperResolution",
    "Uniform",
    "describe",
    "image_shape",
    "rebuild",
]
