"""Image metrics per image, and honesty: how true errors compare with certified ones."""

from .honesty import Honesty, honesty
from .image import Scale, data_psnr, mse, psnr, scale_of, ssim
from .noise_level import estimate_sigma

__all__ = [
    "Honesty",
    "Scale",
    "data_psnr",
    "estimate_sigma",
    "honesty",
    "mse",
    "psnr",
    "scale_of",
    "ssim",
]
