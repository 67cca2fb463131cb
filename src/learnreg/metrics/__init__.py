"""Image metrics per image, and honesty: how true errors compare with certified ones."""

from .honesty import Honesty, honesty
from .image import Scale, data_psnr, mse, psnr, scale_of, ssim

__all__ = ["Honesty", "Scale", "data_psnr", "honesty", "mse", "psnr", "scale_of", "ssim"]
